"""The command line: what people type, what they see, and the exit status scripts rely on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from reverie.agents import resolve
from reverie.agents.flags import split_flags
from reverie.benchmarks import cli, demo, doctor, evaluation

ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]


def test_help_lists_every_command(capsys: Capture) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)
    assert all(f"  reverie {name} runs/" in shown for name in ("eval", "inspect", "play", "export"))
    assert cli.main([]) == 2


def test_version(capsys: Capture) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"reverie \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_an_unknown_command_shows_the_manual(capsys: Capture) -> None:
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["bench", "demos", "distractors"])
def test_a_group_of_commands_has_a_help_of_its_own(group: str, capsys: Capture) -> None:
    own = {name: text for name, (_, text) in cli.COMMANDS.items() if name.startswith(f"{group} ")}
    helped = [[group, "--help"], [group, "-h"], ["help", group]]
    for words, status in [*((words, 0) for words in helped), ([group], 2)]:
        assert cli.main(words) == status
        shown, error = capsys.readouterr()
        if status:
            shown, error = error, shown
        assert not error and "unknown" not in shown
        rows = [line for line in shown.splitlines() if line.startswith("  ")]
        assert [" ".join(row.split()) for row in rows] == [f"{k} {v}" for k, v in own.items()]


def test_help_is_a_command_as_well(capsys: Capture) -> None:
    assert cli.main(["help"]) == 0
    assert capsys.readouterr() == (cli.manual(), "")


def test_an_unknown_command_of_a_group_shows_that_group(capsys: Capture) -> None:
    assert cli.main(["bench", "rnu", "--help"]) == 2
    shown, error = capsys.readouterr()
    assert "unknown command 'bench rnu'" in error and "  bench run " in error
    assert not shown and "  train " not in error


def test_train_help_is_a_manual_of_every_setting(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "mudreamer", "--task", "toy/dot", "--size", "nano", "--help"])
    assert caught.value.code == 0
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "Defaults below: mudreamer on toy/dot at size nano" in shown
    for text in ("--train.train-ratio FLOAT", "Replayed steps per agent step", "(default: 128"):
        assert text in shown


def test_fault_24_a_bad_command_line_lists_all_problems_and_exits_2(capsys: Capture) -> None:
    args = ["train", "mudremer", "--task", "dot", "--train.stesp", "5", "--seed", "x"]
    assert cli.main(args) == 2
    shown = capsys.readouterr().err
    for text in ("did you mean mudreamer?", "expected suite/task", "did you mean train.steps?"):
        assert text in shown
    assert "seed: expected a whole number" in shown and "Traceback" not in shown


def test_an_unknown_task_is_explained_without_a_traceback(capsys: Capture, tmp_path: Path) -> None:
    args = ["train", "mudreamer", "--task", "dmc/walker_wlak", "--run", str(tmp_path / "r")]
    assert cli.main(args) == 1
    shown = capsys.readouterr().err
    assert "walker_walk" in shown and "Traceback" not in shown


def test_fault_19_the_command_refuses_a_replay_beyond_memory(capsys: Capture) -> None:
    args = ["train", "mudreamer", "--task", "toy/dot", "--replay.capacity", "1e9"]
    assert cli.main(args) == 2
    assert "--replay.storage memmap" in capsys.readouterr().err


def test_fault_20_the_command_refuses_a_missing_device(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["train", "mudreamer", "--task", "toy/dot", "--train.device", "cuda"]) == 2
    assert "--train.device auto" in capsys.readouterr().err


def test_tasks_can_be_filtered(capsys: Capture) -> None:
    assert cli.main(["tasks", "toy/"]) == 0
    shown = capsys.readouterr().out
    assert "toy/dot" in shown and "walker_walk" not in shown and "dreamerv3" in shown


@pytest.mark.parametrize("words", ["tasks", "--help"])
def test_fault_21_a_closed_pipe_leaves_no_traceback(words: str) -> None:
    command = f"{sys.executable} -m reverie.benchmarks.cli {words} | true"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_flags_split_at_two_dashes() -> None:
    words, flags, problems = split_flags(["a", "--x.y-z", "1", "-2", "--q=3=4", "-h"])
    assert words == ["a"] and not problems
    assert flags == {"x.y_z": ["1", "-2"], "q": ["3=4"], "help": []}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("Läufe mit Lücke") / "run"
    args = ["train", "mudreamer", "--task", "toy/dot", "--config", "debug", "--run", str(run)]
    assert cli.main([*args, "--train.steps", "96", "--train.eval_every", "0"]) == 0
    return run


def test_the_same_command_finds_its_work_done_and_fresh_refuses(trained: Path) -> None:
    args = ["train", "mudreamer", "--task", "toy/dot", "--config", "debug", "--run", str(trained)]
    args += ["--train.steps", "96", "--train.eval_every", "0"]
    before = (trained / "metrics.jsonl").read_text()
    assert cli.main(args) == 0
    assert (trained / "metrics.jsonl").read_text() == before
    assert cli.main([*args, "--fresh"]) == 1
    assert cli.main([*args, "--train.batch_size", "3"]) == 1


def test_trap_14_the_run_directory_holds_the_resolved_config(trained: Path) -> None:
    cfg = resolve.load(trained / "config.toml")
    own = {"task": "toy/dot", "run": str(trained), "train": {"steps": 96, "eval_every": 0}}
    assert cfg == resolve.resolve(own, configs=["debug"])
    assert tomllib.loads((trained / "config.toml").read_text())["train"]["steps"] == 96


def test_trap_15_the_log_names_the_root_of_every_stream(trained: Path) -> None:
    assert resolve.load(trained / "config.toml").seed == 0


def test_eval_scores_the_agent_and_its_blind_controls(trained: Path, capsys: Capture) -> None:
    assert cli.main(["eval", str(trained), "--episodes", "2", "--controls"]) == 0
    shown = capsys.readouterr().out
    for label in evaluation.LABELS.values():
        assert label in shown
    record = json.loads((trained / "evaluation-000000096.json").read_text())
    assert set(record["results"]) == {"none", "random", "zero", "blank"}
    assert all(len(result["returns"]) == 2 for result in record["results"].values())
    first = evaluation.score_run(evaluation.load_run(trained), ["none"], episodes=2)
    again = evaluation.score_run(evaluation.load_run(trained), ["none"], episodes=2)
    assert first["none"]["returns"] == again["none"]["returns"]
    assert cli.main(["eval", str(trained), "--episodes", "1"]) == 0
    kept = json.loads((trained / "evaluation-000000096.json").read_text())
    assert kept == record, "an earlier evaluation is never replaced"
    assert (trained / "evaluation-000000096-2.json").is_file()


@pytest.mark.parametrize(
    ("episodes", "slots", "games"),
    [(1, 1, 1), (10, 10, 10), (16, 16, 16), (17, 1, 17), (20, 10, 20), (100, 10, 100), (101, 1, 1)],
)
def test_episodes_are_shared_equally_by_slots(episodes: int, slots: int, games: int) -> None:
    assert evaluation.slots_for(episodes, "dmc/cartpole_swingup") == slots
    assert evaluation.slots_for(episodes, "atari/pong") == games


def test_eval_takes_the_best_checkpoint(trained: Path) -> None:
    run = evaluation.load_run(trained, checkpoint="best")
    assert run.step == 96 and run.state.keys() == evaluation.load_run(trained).state.keys()


def test_eval_refuses_no_episodes(trained: Path, capsys: Capture) -> None:
    assert cli.main(["eval", str(trained), "--episodes", "0"]) == 2
    assert "--episodes >= 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_eval_of_no_run_says_so(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["eval", str(tmp_path / name)]) == 2
    assert "expected a run directory" in capsys.readouterr().err


def test_eval_of_a_run_without_checkpoint_says_so(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "config.toml").write_text(resolve.dump(resolve.resolve({"task": "toy/dot"})))
    assert cli.main(["eval", str(tmp_path)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_demo_trains_compares_and_judges(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "demo"
    args = ["demo", "--config", "debug", "--task", "toy/dot", "--run", str(run)]
    status = cli.main([*args, "--train.steps", "96", "--train.eval_every", "0"])
    shown = capsys.readouterr().out
    assert status in (0, 1) and ("has learned" in shown) == (status == 0)
    assert (run / "evaluation-000000096.json").is_file()


def results(agent: float, random: float, zero: float, blank: float) -> dict[str, Any]:
    means = {"none": agent, "random": random, "zero": zero, "blank": blank}
    return {way: {"mean": mean} for way, mean in means.items()}


@pytest.mark.parametrize(
    ("scores", "learned"),
    [
        ((151.0, 100.0, 0.0, 50.0), True),
        ((149.0, 100.0, 0.0, 50.0), False),
        ((149.0, 10.0, 0.0, 100.0), False),
        ((0.0, 0.0, 0.0, 0.0), False),
        ((1.0, 0.0, 0.0, 0.0), True),
        ((-9.0, -10.0, -20.0, -20.0), False),
        ((-4.0, -10.0, -20.0, -20.0), True),
    ],
)
def test_the_demo_counts_only_a_clear_lead(scores: tuple[float, ...], learned: bool) -> None:
    assert demo.judge(results(*scores))[0] is learned


@pytest.mark.parametrize("flag", ["--tag", "--checkpoint"])
@pytest.mark.parametrize("command", ["inspect", "play", "export"])
def test_checkpoints_are_chosen_by_one_flag_with_two_names(
    command: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def load_run(run: Path, *, checkpoint: str) -> Any:
        raise resolve.ConfigError([f"asked for {checkpoint}"])

    module = f"reverie.benchmarks.{cli.COMMANDS[command][0]}"
    monkeypatch.setattr(f"{module}.load_run", load_run)
    assert cli.main([command, "runs/x", flag, "best"]) == 2
    assert "asked for best" in capsys.readouterr().err
    assert cli.main([command, "runs/x"]) == 2
    assert "asked for latest" in capsys.readouterr().err


def test_doctor_reports_versions_and_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {item.name: item for item in doctor.check_versions()}
    assert installed["mujoco"].state == "ok" and "pytest" not in installed
    monkeypatch.setattr(doctor, "version", lambda name: "4.0.0" if name == "mujoco" else "99.0")
    found = {item.name: item for item in doctor.check_versions()}
    assert found["mujoco"].state == "fail" and "mujoco<4" in found["mujoco"].fix


def test_doctor_fails_when_a_check_fails(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    broken = doctor.Finding("rendering", "fail", "no display", "apt-get install libegl1")
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, lambda: [broken]))
    assert cli.main(["doctor"]) == 1
    assert "apt-get install libegl1" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, doctor.check_memory))
    assert cli.main(["doctor"]) == 0


@pytest.mark.dmc
def test_doctor_draws_a_frame_or_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    (good,) = doctor.check_rendering()
    assert good.state == "ok", good
    monkeypatch.setattr(doctor, "DRAW", "raise ImportError('no GL')")
    (bad,) = doctor.check_rendering()
    assert bad.state == "fail" and "libegl1" in bad.fix and "no GL" in bad.found


def test_trap_26_declared_bounds_hold_for_what_is_installed() -> None:
    from importlib.metadata import version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        needed = Requirement(line)
        assert needed.specifier, f"{needed.name} has no lower bound"
        assert needed.specifier.contains(Version(version(needed.name)).base_version), line
    assert "4.0.0" not in Requirement("mujoco>=3.3,<4").specifier
    assert any(line.replace(" ", "") == "mujoco>=3.3,<4" for line in project["dependencies"])
