"""`reverie demos`: what people type, what they see, and what they can do next."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import environment
from demo_doubles import contents

from reverie.agents.demos.demonstrations import demo_folder, make_command
from reverie.agents.demos.store import open_dataset
from reverie.agents.flags import config_from_args
from reverie.agents.resolve import resolve
from reverie.benchmarks import cli, demos
from reverie.benchmarks.demo_player import run_player, run_settings
from reverie.envs import make_env
from reverie.envs.settings import EnvSettings

Capture = pytest.CaptureFixture[str]
LANDER = ["demos", "make", "--task", "gym/LunarLander-v3", "--time-limit", "30"]


def test_from_the_expert_to_the_command_that_trains(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "Läufe mit Lücke"
    args = [*LANDER, "--episodes", "5", "--seed", "3", "--out", str(out)]
    assert cli.main([*args, "--shard-episodes", "3"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"gym/LunarLander-v3 +│ +5 +│ +150 +│ +30 +│ +- ", shown), shown
    (line,) = [line for line in shown.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: "))
    assert words[:3] == ["reverie", "train", "act-jepa"]
    cfg = config_from_args(words[2:])
    assert demo_folder(cfg) == out and cfg.env.time_limit == 30
    assert (cfg.demos.train_episodes, cfg.demos.held_out_episodes) == (4, 1)
    before = contents(out)
    assert cli.main([*args, "--shard-episodes", "3"]) == 0
    assert "5 episodes are there already" in capsys.readouterr().out
    assert contents(out) == before and len(open_dataset(out).shards) == 2


def test_show_says_what_is_there(
    tmp_path: Path, capsys: Capture, flip_byte: Callable[[Path, int], None]
) -> None:
    assert cli.main([*LANDER, "--episodes", "3", "--out", str(tmp_path / "d")]) == 0
    capsys.readouterr()
    assert cli.main(["demos", "show", str(tmp_path / "d")]) == 0
    shown = capsys.readouterr().out
    assert "lunar_lander.heuristic" in shown and "verified: 3 episodes" in shown
    assert re.search(r"observation.state +│ +float32 +│ +8 ", shown)
    assert re.search(r"action +│ +float32 +│ +4 ", shown)
    assert "1 shard of 3 episodes (of 3 attempts) by gymnasium" in shown
    assert "seed 0" in shown and "time_limit 30" in shown
    flip_byte(tmp_path / "d" / "LunarLander-v3-000" / "action.npy", -1)
    assert cli.main(["demos", "show", str(tmp_path / "d")]) == 1
    error = capsys.readouterr().err
    assert "action.npy" in error and "Traceback" not in error
    assert cli.main(["demos", "show", str(tmp_path / "nothing")]) == 1


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--task", "dmc/walker_walk"], 1, "has no expert"),
        (["--task", "dmc/walker_wlak"], 1, "Did you mean dmc/walker_walk"),
        (["--task", "gym/LunarLander-v3", "--episodes", "0"], 2, "--episodes: expected at least 1"),
        (["--task", "gym/LunarLander-v3", "--seed", "-1"], 2, "--seed: expected at least 0"),
        (["--task", "gym/LunarLander-v3", "--run", "nowhere"], 2, "expected a run directory"),
        (["--task", "dmc/lqr_lqr_2_1", "--observe", "image"], 1, "observe 'state' or 'both'"),
    ],
)
def test_fault_24_what_cannot_be_recorded_is_said_in_words(
    args: list[str], status: int, words: str, tmp_path: Path, capsys: Capture
) -> None:
    assert cli.main(["demos", "make", *args, "--out", str(tmp_path / "d")]) == status
    shown = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert words in shown and "Traceback" not in shown
    assert not (tmp_path / "d").exists()


def test_other_settings_name_another_folder(tmp_path: Path, capsys: Capture) -> None:
    args = ["--episodes", "2", "--out", str(tmp_path)]
    assert cli.main([*LANDER, *args]) == 0
    assert cli.main([*LANDER, *args, "--time-limit", "31"]) == 1
    shown = capsys.readouterr().err
    assert "time_limit: it has 30, asked for 31" in shown and "another --out" in shown


def test_fault_03_a_signal_ends_with_a_status_and_whole_shards(tmp_path: Path) -> None:
    args = ["demos", "make", "--task", "dmc/lqr_lqr_2_1", "--episodes", "9999"]
    args += ["--time-limit", "50", "--shard-episodes", "3", "--out", str(tmp_path)]
    child = subprocess.Popen(
        [sys.executable, "-m", "reverie.benchmarks.cli", *args],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    child.stdout.readline()  # the first progress line: it plays
    threading.Timer(1.0, lambda: child.send_signal(signal.SIGINT)).start()
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130 and "the same command continues" in out and err == "", err
    shards = sorted(path.name for path in tmp_path.iterdir())
    assert shards == [f"lqr_lqr_2_1-{number:03d}" for number in range(len(shards))]
    assert not shards or len(open_dataset(tmp_path).episodes) == 3 * len(shards)


def test_recording_and_training_look_in_the_same_folder() -> None:
    sizes = {"six": 6, "three": 3, "fifteen": 15}
    assert sizes.keys() == set(demos.RECIPES)
    for configs in ([name] for name in sizes):
        cfg = resolve({}, configs=configs)
        words = shlex.split(make_command(cfg))[3:]
        request = demos.parse(words)
        jobs = demos.jobs_of(request)
        assert jobs[0].folder.parent == demo_folder(cfg)
        assert len(jobs) == len({job.settings.task for job in jobs}) == sizes[configs[0]]
        assert jobs[0].settings.observe == ("state" if configs == ["six"] else "both")
        assert jobs[0].episodes == 50
        again = demos.train_command(request, jobs[0], spec=None)
        assert again == f"reverie train act-jepa --config {configs[0]}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    args = ["train", "mudreamer", "--task", "toy/dot", "--config", "debug", "--run", str(run)]
    assert cli.main([*args, "--train.steps", "96", "--train.eval_every", "0"]) == 0
    return run


def test_a_trained_agent_plays_as_it_is_evaluated(trained: Path, tmp_path: Path) -> None:
    args = ["demos", "make", "--task", "toy/dot", "--episodes", "2", "--run", str(trained)]
    assert cli.main([*args, "--out", str(tmp_path / "d")]) == 0
    dataset = open_dataset(tmp_path / "d")
    header = dataset.shards[0].header
    assert re.fullmatch(r"reverie run mudreamer-\w+ seed 0, step 96", header["generator"])
    size = dataset.spec.image_shape[0] if dataset.spec.image_shape else 0
    env = make_env("toy/dot", image_size=size)
    assert assert_pictures(dataset.episode(1), env, dataset.episodes[1].seed)
    settings = run_settings(trained, EnvSettings("toy/dot"))
    assert settings.image_size == size
    player = run_player(trained, "toy/dot", env)
    for number in (1, 0, 1):  # nothing is remembered between episodes
        player.reset()
        episode = dataset.episode(number)
        for moment in range(len(episode["action"])):
            obs = {"image": episode["observation.image"][moment]}
            assert np.array_equal(player.act(obs), episode["action"][moment])


def assert_pictures(episode: dict[str, Any], env: Any, seed: int) -> bool:
    """Whether the recorded actions lead to the recorded pictures."""
    obs = env.reset(seed)
    for moment, action in enumerate(episode["action"]):
        assert np.array_equal(obs["image"], episode["observation.image"][moment])
        obs = env.step(action).obs
    return True


def test_a_trained_agent_plays_its_own_task_only(trained: Path, capsys: Capture) -> None:
    args = ["demos", "make", "--task", "toy/catch", "--run", str(trained)]
    assert cli.main(args) == 2
    assert "plays toy/dot, found --task toy/catch" in capsys.readouterr().err
