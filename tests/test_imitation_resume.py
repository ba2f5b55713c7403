"""Learning from demonstrations, interrupted: the same call ends with the same bits."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from point_world import TASKS, final_state, point_config, point_tree, write_points
from runs import Child, assert_same

from reverie.agents.demos.windows import DemoWindows
from reverie.agents.imitation import ImitationTrainer
from reverie.agents.runs.logger import read_jsonl
from reverie.agents.runs.rundir import read_status
from reverie.agents.trainer import train
from reverie.envs import registry

CHANGES: dict[str, Any] = {
    "task": "point/both",
    "train": {"eval_every": 10, "checkpoint_every": 5},
    "act_jepa": {"model": {"dropout": 0.2}},
}
"""Two tasks, evaluation on the way, and dropout."""


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_points(tmp_path_factory.mktemp("demos"), length=10)


@pytest.fixture(autouse=True)
def a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TASK_SETS, "point/both", TASKS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, demos: Path) -> Path:
    """A run that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TASK_SETS, "point/both", TASKS)
        assert train(point_config(run, demos, **CHANGES)) == 0
    return run


def raise_at(monkeypatch: pytest.MonkeyPatch, moments: dict[str, int]) -> None:
    """Send this process SIGTERM at the n-th call of a method of the loop, once each."""
    for name, moment in moments.items():
        plain, calls = getattr(ImitationTrainer, name), [0]

        def counted(
            self: Any, *, plain: Any = plain, calls: Any = calls, at: int = moment, **own: bool
        ) -> Any:
            calls[0] += 1
            if calls[0] == at:
                signal.raise_signal(signal.SIGTERM)
            return plain(self, **own)

        monkeypatch.setattr(ImitationTrainer, name, counted)


STOPS = (
    {"_update": 13, "_evaluate_if_due": 24},
    {"_update": 1},
    {"_evaluate_if_due": 11},
    {"_monitor_if_due": 9, "_update": 24},
    {"_evaluate_if_due": 25},
)
"""What is interrupted at which call; all but the first are left to `make test`."""


@pytest.mark.parametrize(
    "stops",
    [STOPS[0], *(pytest.param(stop, marks=pytest.mark.slow) for stop in STOPS[1:])],
    ids=str,
)
def test_stopped_run_ends_with_the_same_bits(
    stops: dict[str, int],
    whole: Path,
    demos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    with monkeypatch.context() as patch:
        raise_at(patch, stops)
        while not codes or codes[-1] != 0:
            codes.append(train(point_config(tmp_path, demos, **CHANGES)))
            assert len(codes) < 5
    assert codes == [143] * len(stops) + [0]
    assert_same(final_state(whole), final_state(tmp_path))
    for key in ("loss/total", "eval/success", "health/loss_ratio"):
        expected, found = logged(whole, key), logged(tmp_path, key)
        assert [step for step, _ in expected] == [step for step, _ in found], key
        if key != "loss/total":  # a row behind a stop is a mean over fewer updates
            assert expected == found


def logged(run: Path, key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in read_jsonl(run / "metrics.jsonl") if key in row]


@pytest.mark.parametrize("entry", ["updates", "agent.optimiser", "agent.updates", "agent.model"])
def test_every_part_of_the_state_matters(
    entry: str, whole: Path, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any one of these entries the run must not end with the same bits."""
    with monkeypatch.context() as patch:
        raise_at(patch, {"_update": 13})
        assert train(point_config(tmp_path, demos, **CHANGES)) == 143
        plain = ImitationTrainer.load_state_dict

        def forgetful(self: ImitationTrainer, state: dict[str, Any]) -> list[str]:
            spoil(state, entry.split("."))
            return plain(self, state)

        patch.setattr(ImitationTrainer, "load_state_dict", forgetful)
        train(point_config(tmp_path, demos, **CHANGES))
    with pytest.raises(AssertionError):
        assert_same(final_state(whole), final_state(tmp_path))


def spoil(state: Any, path: list[str]) -> None:
    value = state[path[0]]
    if len(path) > 1:
        spoil(value, path[1:])
    elif isinstance(value, dict):
        for key in value:
            spoil(value, [key])
    elif isinstance(value, list):
        for place in range(len(value)):
            spoil(value, [place])  # type: ignore[list-item]
    elif isinstance(value, torch.Tensor):
        value.zero_()
    else:
        state[path[0]] = value + 1


def test_a_run_is_a_function_of_its_seed(whole: Path, demos: Path, tmp_path: Path) -> None:
    first = final_state(whole)["agent"]
    for seed in (0, 1):
        run = tmp_path / str(seed)
        train(point_config(run, demos, seed=seed, **CHANGES))
        found = final_state(run)["agent"]
        if seed == 0:
            assert_same(first, found)
        else:
            assert any(not torch.equal(v, found["model"][k]) for k, v in first["model"].items())


def test_trap_15_draws_depend_on_seed_and_update(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DemoWindows.sample
    keys: dict[int, list[tuple[int, ...]]] = {0: [], 1: []}
    for seed, drawn in keys.items():

        def spy(self: DemoWindows, size: int, rng: np.random.Generator, drawn: Any = drawn) -> Any:
            drawn.append(tuple(rng.bit_generator.state["state"]["key"].tolist()))
            return plain(self, size, rng)

        monkeypatch.setattr(DemoWindows, "sample", spy)
        train(point_config(tmp_path / str(seed), demos, seed=seed, train={"eval_episodes": 0}))
    assert len(set(keys[0] + keys[1])) == len(keys[0] + keys[1]) == 48


def test_looking_and_playing_do_not_change_training(demos: Path, tmp_path: Path) -> None:
    often = {"train": {"eval_every": 3, "monitor_every": 2}}
    never = {"train": {"eval_episodes": 0, "monitor_every": 0}}
    train(point_config(tmp_path / "often", demos, **often))
    train(point_config(tmp_path / "never", demos, **never))
    left, right = (final_state(tmp_path / name)["agent"] for name in ("often", "never"))
    assert_same(left, right)


@pytest.mark.slow
@pytest.mark.fault
def test_fault_01_a_killed_process_continues_with_the_same_bits(
    demos: Path, tmp_path: Path
) -> None:
    changes = {"task": "point/a", "train": {"checkpoint_every": 4}}
    train(point_config(tmp_path / "whole", demos, **changes))
    tree = point_tree(tmp_path / "parts", demos, **changes)
    for at in (6, 15):
        child = Child(tree, agent="real", configs=("debug",), UPDATE_SECONDS="0.02")
        child.wait_for(f"ready {at}")
        child.process.send_signal(signal.SIGKILL)
        assert child.finish() == -signal.SIGKILL
    child = Child(tree, agent="real", configs=("debug",))
    assert child.finish() == 0, child.output
    assert "resumed at step 12" in child.output
    assert re.search(r"done, final score \S+, \d+% solved; all files", child.output)
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.fault
def test_fault_03_a_signal_saves_and_exits(demos: Path, tmp_path: Path) -> None:
    tree = point_tree(tmp_path, demos)
    child = Child(tree, agent="real", configs=("debug",), UPDATE_SECONDS="0.05")
    child.wait_for("ready 7")
    begin = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    assert child.finish() == 143
    assert time.monotonic() - begin < 5
    status = read_status(tmp_path)
    assert status["state"] == "preempted" and status["updates"] in (7, 8)
