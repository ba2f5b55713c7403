"""Learning from demonstrations: what a run leaves, what it learns, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from point_world import TASKS, PointWorld, final_state, point_config, write_points
from runs import assert_same

from reverie.agents import train_act_jepa
from reverie.agents.collapse_monitor import CollapseError
from reverie.agents.configs import ConfigError
from reverie.agents.demos.store import DemoError
from reverie.agents.demos.windows import DemoWindows
from reverie.agents.resolve import with_overrides
from reverie.agents.runs.checkpoint import checkpoints
from reverie.agents.runs.logger import read_jsonl
from reverie.agents.runs.rundir import RunDirError, read_status
from reverie.agents.trainer import train
from reverie.benchmarks import cli
from reverie.envs import registry
from reverie.envs.specs import EnvError, EnvSpec

Capture = pytest.CaptureFixture[str]
STRICT = {"monitor": "stop", "monitor_from": 8}
"""A run that is hardly trained stops at its second look that is judged, at update 16."""


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_points(tmp_path_factory.mktemp("demos"), episodes=40, length=10)


@pytest.fixture(autouse=True)
def a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TASK_SETS, "point/both", TASKS)


def learning(run: Path, data: Path, **model: Any) -> Any:
    """Settings that solve a task in three hundred updates."""
    own = {"chunk": 4, "width": 32, "ffn": 64, "predictor_width": 16, "dropout": 0.0}
    return point_config(
        run,
        data,
        task="point/a",
        train={
            "steps": 300,
            "batch_size": 64,
            "final_episodes": 16,
            "log_every": 50,
            "monitor_from": 100,
            "monitor_every": 50,
        },
        demos={"train_episodes": 30, "held_out_episodes": 10},
        act_jepa={
            "model": {**own, "ema_start": 0.9, **model},
            "optim": {"lr": 6e-3, "weight_decay": 0.0},
        },
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(run / "metrics.jsonl"))


# what a run leaves


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, demos: Path) -> Path:
    run = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TASK_SETS, "point/both", TASKS)
        cfg = point_config(run, demos, task="point/both", train={"eval_every": 12})
        assert train(cfg) == 0
    return run


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    status = read_status(finished)
    assert (status["state"], status["step"], status["updates"]) == ("done", 24, 24)
    assert status["evaluation"]["episodes"] == 4 and status["evaluation"]["step"] == 24
    rows = metrics(finished)
    assert [row["step"] for row in rows if "loss/total" in row] == [8, 16, 24]
    assert [row["step"] for row in rows if "health/loss_ratio" in row] == [8, 16, 24]
    scores = [row for row in rows if "eval/success" in row]
    assert [row["step"] for row in scores] == [12, 24]
    assert {"eval_success/a", "eval_success/b", "probe/rmse_2", "probe/rmse_3"} <= scores[-1].keys()
    episodes = list(read_jsonl(finished / "episodes.jsonl"))
    assert {episode["task"] for episode in episodes} == set(TASKS) and len(episodes) == 8
    assert all(isinstance(episode["success"], bool) for episode in episodes)
    assert checkpoints(finished) and list(finished.glob("events.*"))
    assert not (finished / "replay").exists()


def test_a_finished_run_is_left_alone(finished: Path, demos: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    before, folders = final_state(run), checkpoints(run)
    cfg = point_config(run, demos, task="point/both", train={"eval_every": 12})
    assert train(cfg) == 0
    assert_same(before, final_state(run))
    assert checkpoints(run) == folders and len(metrics(run)) == len(metrics(finished))
    with pytest.raises(RunDirError, match="holds a run"):
        train(cfg, fresh=True)


def test_the_progress_line_counts_updates(demos: Path, tmp_path: Path, capsys: Capture) -> None:
    assert train(point_config(tmp_path, demos, train={"eval_episodes": 0})) == 0
    shown = capsys.readouterr().out
    assert "update 24/24 | total " in shown and "updates/s | ETA 0:00" in shown
    assert "steps/s" not in shown


@pytest.mark.parametrize("controls", [False, True])
def test_reverie_eval_repeats_the_score_without_demonstrations(
    finished: Path, controls: bool, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    config = run / "config.toml"
    config.write_text(config.read_text().replace(json.dumps(str(finished)), json.dumps("gone")))
    assert cli.main(["eval", str(run), *(["--controls"] if controls else [])]) == 0
    shown = capsys.readouterr().out
    for name in ("a", "b", "all"):
        assert re.search(rf"^│ {name} +│ agent +│ +\d+% +│ \d+% to \d+%", shown, re.MULTILINE)
    assert shown.count("blanked") == (3 if controls else 0)
    record = json.loads((run / "evaluation-000000024.json").read_text())
    ways = ["none", "random", "zero", "blank"] if controls else ["none"]
    assert list(record["results"]) == ways
    own = record["results"]["none"]
    last = [episode for episode in read_jsonl(run / "episodes.jsonl") if episode["step"] == 24]
    for task in TASKS:
        played = [episode for episode in last if episode["task"] == task]
        assert own["tasks"][task]["returns"] == [episode["score"] for episode in played]
        assert own["tasks"][task]["lengths"] == [episode["length"] for episode in played]
    assert own["success"] == read_status(run)["evaluation"]["success"]
    low, high = own["interval"]
    assert low <= own["success"] <= high and own["episodes"] == 4


# learning


@pytest.mark.learn
def test_it_learns_to_reach_the_goal(demos: Path, tmp_path: Path) -> None:
    cfg = learning(tmp_path, demos)
    assert train(cfg) == 0
    assert read_status(tmp_path)["evaluation"]["success"] >= 0.9
    assert read_status(tmp_path)["health"]["alarms"] == []
    assert cli.main(["eval", str(tmp_path), "--controls"]) == 0
    results = json.loads((tmp_path / "evaluation-000000300.json").read_text())["results"]
    assert max(results[way]["success"] for way in ("random", "zero", "blank")) < 0.5


@pytest.mark.learn
def test_gates_tell_a_collapse_that_success_does_not(demos: Path, tmp_path: Path) -> None:
    failed = {}
    for guard in ("ema", "none"):
        run = tmp_path / guard
        both = {"task": "point/both", "train": {"steps": 400}}
        assert train(with_overrides(learning(run, demos, guard=guard), both)) == 0
        status = read_status(run)
        assert status["evaluation"]["success"] > 0.8
        failed[guard] = {line.split()[0] for line in status["health"]["alarms"]}
    assert failed["ema"] == set()
    broken = {"health/target_std", "health/task_std", "health/target_cosine", "health/loss_ratio"}
    assert failed["none"] == broken


# what it refuses


def test_demonstrations_of_other_tasks_are_refused(demos: Path, tmp_path: Path) -> None:
    cfg = point_config(tmp_path / "run", demos, task="metaworld/push")
    with pytest.raises(ConfigError) as caught:
        train(cfg)
    for part in ("of metaworld/push in", "found those of point/a, point/b", "reverie demos make"):
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_too_few_episodes_are_refused_and_other_tasks_do_not_count(tmp_path: Path) -> None:
    data = write_points(tmp_path / "demos", episodes=3)
    write_points(tmp_path / "demos" / "more", tasks=TASKS[:1], seed=7)
    train(point_config(tmp_path / "run", data, task="point/a"))
    with pytest.raises(DemoError, match=r"point/b has 3; reverie demos make --task point/b"):
        train(point_config(tmp_path / "other", data, task="point/b"))
    assert not (tmp_path / "other").exists()


def test_a_run_continues_on_its_own_demonstrations_wherever_they_lie(
    demos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begun = point_config(run, demos, train=STRICT)
    with pytest.raises(CollapseError):
        train(begun)
    others = write_points(tmp_path / "others", length=10, seed=1)
    with pytest.raises(DemoError, match="began on other demonstrations"):
        train(point_config(run, others, train={"monitor_from": 8}))
    assert read_status(run)["state"] == "failed"
    shutil.copytree(demos, tmp_path / "moved")
    moved = {"demos": {"verify": False}, "train": {"monitor_from": 8}}
    assert train(point_config(run, tmp_path / "moved", **moved)) == 0


def test_a_missing_simulator_is_noticed_before_training(tmp_path: Path) -> None:
    data = write_points(tmp_path / "demos", tasks=("point/robot",))
    with pytest.raises(EnvError, match=r"--train\.eval-episodes 0 trains"):
        train(point_config(tmp_path / "run", data, task="point/robot"))
    assert not (tmp_path / "run").exists()
    plain = {"eval_episodes": 0, "final_episodes": None}
    assert train(point_config(tmp_path / "run", data, task="point/robot", train=plain)) == 0
    last = metrics(tmp_path / "run")[-1]
    assert "probe/rmse_2" in last and "eval/mean" not in last


def test_a_simulator_of_other_sizes_is_noticed_before_training(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grown(self: PointWorld, task: str) -> None:
        self.spec = EnvSpec(task, 2, False, vector_size=5, proprio_size=2)

    monkeypatch.setattr(PointWorld, "__init__", grown)
    with pytest.raises(ConfigError, match="vector_size of the demonstrations is 4"):
        train(point_config(tmp_path / "run", demos))
    assert not (tmp_path / "run").exists()


def test_the_script_and_the_command_explain_missing_demonstrations(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--task", "point/a", "--size", "nano"]
    assert train_act_jepa.main(args) == 2 == cli.main(["train", "bc", *args])
    shown = capsys.readouterr().err
    assert shown.count("reverie demos make --task point/a --episodes 50") == 2
    assert "Traceback" not in shown


# the monitor and guards


@pytest.mark.parametrize("agent", ["act-jepa", "act"])
def test_a_breach_is_noted_where_latents_are_predicted(
    agent: str, demos: Path, tmp_path: Path, capsys: Capture
) -> None:
    cfg = point_config(tmp_path, demos, agent=agent, train={"monitor_from": 16})
    assert train(cfg) == 0
    health, rows = read_status(tmp_path)["health"], metrics(tmp_path)
    counted = [(r["step"], r["health/alarms"]) for r in rows if "health/alarms" in r]
    assert [step for step, _ in counted] == [24], "the look at 16 is the first that is judged"
    if agent == "act":
        assert health["alarms"] == [] and {number for _, number in counted} == {0}
        assert not any("health/loss_ratio" in row for row in rows)
    else:  # hardly trained, so predictions are no better than the mean; two looks must say so
        assert health["update"] == 24 and counted[-1][1] == len(health["alarms"]) > 0
        shown = capsys.readouterr().out
        assert "update 24: collapse? health/loss_ratio" in shown and "| alarms " in shown


def test_an_alarm_can_stop_a_run_and_be_told_to_let_it_go_on(demos: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second call remembers and learns nothing
        with pytest.raises(CollapseError, match=r"at update 16: health.*--train\.monitor warn"):
            train(point_config(tmp_path, demos, train=STRICT))
        status = read_status(tmp_path)
        assert status["state"] == "failed" and "collapsed" in status["reason"]
        assert final_state(tmp_path)["updates"] == 16
    assert CollapseError in cli.explained_errors()
    assert train(point_config(tmp_path, demos, train=STRICT | {"monitor": "off"})) == 0
    assert read_status(tmp_path)["health"]["alarms"] is None


def test_fault_16_a_bad_batch_is_skipped_counted_and_kept(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = DemoWindows.sample, [0]

    def poisoned(self: DemoWindows, *args: Any) -> Any:
        batch = plain(self, *args)
        calls[0] += 1
        if calls[0] == 5:
            batch["action"][0, 0] = torch.nan
        return batch

    monkeypatch.setattr(DemoWindows, "sample", poisoned)
    assert train(point_config(tmp_path, demos)) == 0
    assert read_status(tmp_path)["nonfinite_updates"] == 1
    kept = [path.name for path in (tmp_path / "nonfinite").iterdir()]
    assert kept == ["batch-000000005.safetensors"]
    assert_finite(final_state(tmp_path)["agent"]["model"])


def assert_finite(state: Mapping[str, torch.Tensor]) -> None:
    assert all(bool(value.isfinite().all()) for value in state.values())
