"""The SPR family on the command line: its manual, its values, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import ROOT

from reverie.agents import train_spr
from reverie.agents.configs import ConfigError
from reverie.agents.flags import config_from_args
from reverie.agents.launch import launch
from reverie.agents.registry import FAMILIES
from reverie.agents.resolve import load, resolve
from reverie.agents.runs.rundir import read_status
from reverie.benchmarks import cli
from reverie.envs.specs import EnvError

Capture = pytest.CaptureFixture[str]


def shown_default(manual: str, flag: str) -> str:
    found = re.search(rf"--{re.escape(flag)} .*?\(default: (.*?)\)", manual)
    assert found is not None, flag
    return found[1]


def test_the_manual_shows_the_values_of_the_paper(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "spr", "--task", "atari/pong", "--budget", "100k", "--help"])
    assert caught.value.code == 0
    manual = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "Defaults below: spr on atari/pong at size S" in manual
    expected = {
        "env.gray": "True",
        "env.life-loss": "True",
        "env.image-size": "84",
        "env.sticky": "0.0",
        "env.num-envs": "1",
        "train.steps": "100000",
        "train.train-ratio": "64.0",
        "train.batch-size": "32",
        "train.batch-length": "1",
        "train.prefill": "2000",
        "train.eval-every": "0",
        "train.final-episodes": "100",
        "replay.storage": "device",
        "spr.returns.n-step": "10",
        "spr.model.channels": "32 64 64",
    }
    assert {flag: shown_default(manual, flag) for flag in expected} == expected
    # what is shown is what can be typed
    assert "--env.gray {True,False}" in manual and "--env.no-gray" not in manual
    typed = config_from_args(["spr", "--task", "atari/pong", "--env.gray", "False"])
    assert typed.env.gray is False


@pytest.mark.parametrize("size", ["nano", "S"])
@pytest.mark.parametrize("agent", FAMILIES["spr"])
def test_every_agent_resolves_on_games_and_toys(agent: str, size: str) -> None:
    game = config_from_args([agent, "--task", "atari/pong", "--size", size])
    toy = config_from_args([agent, "--task", "toy/catch", "--size", size])
    assert (game.env.gray, game.env.life_loss, game.env.sticky) == (True, True, 0.0)
    assert (toy.env.gray, toy.env.life_loss) == (False, False)
    ratios = {"sr-spr": 512.0, "bbf": 256.0}
    for cfg in (game, toy):
        assert (cfg.env.image_size, cfg.env.num_envs, cfg.train.batch_length) == (84, 1, 1)
        assert cfg.train.train_ratio == ratios.get(agent, 64.0) and cfg.train.prefill == 2000
    assert game.train.steps == 100_000 and game.replay.capacity >= 100_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "XS"], "size: expected one of nano, S, found 'XS'; did you mean S?"),
        (["--size", "M"], "size: expected one of nano, S, found 'M'"),
        (["--size", "XL"], "size: expected one of nano, S, found 'XL'"),
        (["--train.batch-length", "8"], "raise train.batch_size instead"),
        (["--replay.storage", "ram"], "replay.storage: spr stacks frames where it learns"),
        (["--env.image-size", "32"], "needs 36 pixels or more"),
        (["--train.prefill", "21"], "fill no window of 22 rows; use at least 22"),
    ],
)
def test_fault_24_what_the_family_cannot_do_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_args(["spr", "--task", "atari/pong", *flags])
    assert message in str(caught.value) and len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("agent", "task", "messages"),
    [
        ("spr", "toy/chain", ["learns from images, and toy/chain has none"]),
        ("rainbow", "toy/dot", ["those of toy/dot are continuous"]),
        ("bbf", "toy/ones", ["learns from images", "are continuous"]),
        ("spr", "torch/dots", ["those of torch/dots are continuous"]),
        ("dreamerv3", "toy/chain", ["reconstructs images, and toy/chain has none"]),
        pytest.param("spr", "dmc/cartpole_balance", ["are continuous"], marks=pytest.mark.dmc),
    ],
)
def test_fault_24_an_unfit_task_is_refused_before_a_run_directory_exists(
    agent: str,
    task: str,
    messages: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", agent, "--task", task]) == 2
    shown = capsys.readouterr().err
    assert all(message in shown for message in messages) and "Traceback" not in shown
    assert shown.count("\n  - ") == len(messages)
    assert not list(tmp_path.iterdir()), "nothing is left that a corrected command would meet"
    with pytest.raises(ConfigError):
        launch(resolve({"agent": agent, "task": task}))


def test_train_spr_trains_its_relatives(tmp_path: Path, capsys: Capture) -> None:
    flags = ["--task", "toy/catch", "--config", "debug", "--run", str(tmp_path / "r")]
    flags += ["--budget", "76", "--train.eval-episodes", "0"]
    assert train_spr.main(["--agent", "rainbow", *flags]) == 0
    cfg = load(tmp_path / "r" / "config.toml")
    assert (cfg.agent, cfg.spr.model.predictions, cfg.train.steps) == ("rainbow", 0, 76)
    assert read_status(tmp_path / "r")["state"] == "done"
    assert train_spr.main([*flags, "--agent", "rainbo"]) == 2
    assert "did you mean rainbow?" in capsys.readouterr().err


@pytest.mark.slow
def test_train_spr_is_a_script(tmp_path: Path) -> None:
    command = f"{sys.executable} -m reverie.agents.train_spr --agent rainbow --task toy/catch"
    flags = ["--config", "debug", "--budget", "76", "--run", str(tmp_path)]
    done = subprocess.run(
        [*command.split(), *flags], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "config.toml").agent == "rainbow"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("100k", 100_000),
        ("1.5M", 1_500_000),
        ("250000", 250_000),
        ("8.2M", 8_200_000),
        ("1.001k", 1001),
        ("2k", 2000),
    ],
)
def test_a_budget_is_a_number_of_steps(text: str, steps: int) -> None:
    flags = ["spr", "--task", "atari/pong", "--train.prefill", "500"]
    assert config_from_args([*flags, "--budget", text]).train.steps == steps
    assert config_from_args([*flags, f"--budget={text}"]).train.steps == steps


@pytest.mark.parametrize("text", ["lots", "100K", "1.5", "0.0001k", "-5", "1e5", "k", "", "1k 2k"])
def test_fault_24_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_args(["spr", "--task", "atari/pong", "--budget", *text.split()])
    expected = f"--budget: expected agent steps such as 100k or 1.5M, found {text!r}"
    assert caught.value.problems == [expected]


def test_fault_24_a_budget_is_given_once() -> None:
    both = ["spr", "--task", "atari/pong", "--budget", "100k", "--train.steps", "100000"]
    with pytest.raises(ConfigError, match="under another name; keep one of the two"):
        config_from_args(both)
    with pytest.raises(ConfigError, match="--budget: given twice"):
        config_from_args(["spr", "--budget", "100k", "--budget", "200k"])
    with pytest.raises(ConfigError, match=r"train\.steps: expected more than 0, found 0"):
        config_from_args(["spr", "--task", "atari/pong", "--budget", "0"])
    with pytest.raises(ConfigError, match=r"2000 random steps use up train\.steps 2000"):
        config_from_args(["spr", "--task", "atari/pong", "--budget", "2k"])


@pytest.mark.parametrize("task", ["dmc/walker_wlak", "atari/pongg", "toy/cach"])
def test_an_unknown_task_leaves_no_run_behind(task: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(EnvError, match=r"Expected (a task|an Atari game)"):
        launch(resolve({"task": task, "run": str(run)}))
    assert not run.exists()


def test_what_cannot_be_compiled_or_captured_is_refused_before_anything_is_built(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="inductor cannot compile dropout"):
        resolve({"agent": "spr-noaug", "task": "toy/catch", "train": {"compile": "inductor"}})
    if torch.cuda.is_available():
        return
    run = tmp_path / "run"
    for agent in ("spr", "mudreamer"):
        own = {"agent": agent, "task": "toy/catch", "run": str(run), "train": {"compile": "graph"}}
        with pytest.raises(ConfigError, match="graph needs CUDA"):
            launch(resolve(own))
        assert not run.exists()
