"""Success over the tasks of a set, and what linear probes of the features say about the future."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from point_world import TASKS, PointWorld, expert_action, point_config, write_points
from torch import Tensor

from reverie.agents.configs import RunConfig
from reverie.agents.demos import evaluation as demo_evaluation
from reverie.agents.demos.evaluation import evaluate_tasks, probe, probed_offsets, shown, task_spec
from reverie.agents.demos.store import open_dataset
from reverie.agents.demos.windows import DemoWindows
from reverie.agents.evaluate import EvaluationStopped
from reverie.agents.intervals import wilson_interval
from reverie.envs import registry


class Expert:
    """Plays the first task right and stands still in the second."""

    def __init__(self, task: str = TASKS[0]) -> None:
        self.task = task
        self.asked: list[str] = []

    def playing(self, task: str) -> Any:
        self.asked.append(task)
        return Expert(task)

    def initial_carry(self, num_envs: int) -> dict[str, Tensor]:
        return {"none": torch.zeros(num_envs)}

    def act(self, carry: Any, obs: Mapping[str, Tensor], is_first: Tensor, *, mode: str) -> Any:
        assert mode == "eval"
        action = expert_action(obs["vector"])
        return carry, action if self.task == TASKS[0] else torch.zeros_like(action)


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setitem(registry.TASK_SETS, "point/both", TASKS)
    return point_config(tmp_path / "run", tmp_path, task="point/both")


def test_every_task_is_played_and_all_episodes_are_pooled(
    cfg: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(PointWorld, "close", lambda self: closed.append(self.spec.task))
    agent: Any = Expert()
    result = evaluate_tasks(agent, cfg, episodes=6)
    assert agent.asked == list(TASKS) and set(closed) == set(TASKS)
    one, two = (result["tasks"][task] for task in TASKS)
    assert one["successes"] == [True] * 6 and one["success"] == 1.0
    assert one["interval"] == list(wilson_interval(6, 6))
    assert two["success"] < 0.5, "who stands still arrives by chance alone"
    solved = sum(one["successes"]) + sum(two["successes"])
    assert result["success"] == solved / 12 == result["mean"]
    assert result["interval"] == list(wilson_interval(solved, 12))
    assert result["episodes"] == 12 and result["frames"] == sum(one["lengths"] + two["lengths"])
    assert result["length"] == result["frames"] / 12 and result["max"] == 1.0
    numbers = shown(result)
    assert numbers["eval/success"] == result["success"] and numbers["eval_success/a"] == 1.0
    assert (numbers["eval/success_low"], numbers["eval/success_high"]) == tuple(result["interval"])
    # starts are a function of seed, purpose, slot and episode
    again = evaluate_tasks(agent, cfg, episodes=6)
    assert again == result
    later = evaluate_tasks(agent, cfg, episodes=6, first_episode=1)
    assert later["tasks"][TASKS[0]]["lengths"] != one["lengths"]


def test_blind_controls_need_no_agent(cfg: RunConfig) -> None:
    result = evaluate_tasks(None, cfg, episodes=6, control="zero")
    assert result["control"] == "zero" and result["success"] < 0.5


def test_a_task_that_knows_no_success_has_a_score_only(
    cfg: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PointWorld.__init__

    def silent(self: PointWorld, task: str) -> None:
        plain(self, task)
        self.spec = replace(self.spec, has_success=False)

    monkeypatch.setattr(PointWorld, "__init__", silent)
    result = evaluate_tasks(None, cfg, episodes=2, control="random")
    assert "success" not in result and "interval" not in result
    assert "eval/success" not in shown(result) and "eval/mean" in shown(result)


def test_a_request_to_stop_closes_the_environment(
    cfg: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(PointWorld, "close", lambda self: closed.append(self.spec.task))
    with pytest.raises(EvaluationStopped):
        evaluate_tasks(None, cfg, episodes=1, control="zero", stop=lambda: True)
    assert closed == [TASKS[0]]


def test_sizes_come_from_the_first_task(cfg: RunConfig) -> None:
    spec = task_spec(cfg)
    assert (spec.task, spec.vector_size, spec.proprio_size) == (TASKS[0], 4, 2)


# probes

OFFSETS = (2, 3)


class Eyes:
    """An agent whose features are a function of the windows."""

    def __init__(self, see: Any) -> None:
        self.see = see
        self.seen = 0

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        self.seen += len(batch["task"])
        found: Tensor = self.see(batch)
        return found


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoWindows, DemoWindows]:
    dataset = open_dataset(write_points(tmp_path_factory.mktemp("demos"), length=8))
    settings: dict[str, Any] = {"chunk": 4, "tasks": TASKS}
    half = [n for n in range(len(dataset.episodes)) if n % 2]
    return (
        DemoWindows(dataset, half, **settings),
        DemoWindows(dataset, [n for n in range(len(dataset.episodes)) if n % 2 == 0], **settings),
    )


def probed(windows: tuple[DemoWindows, DemoWindows], see: Any) -> dict[str, float]:
    agent: Any = Eyes(see)
    return probe(agent, *windows, OFFSETS, proprio_size=2)


def test_a_probe_of_the_future_itself_finds_it(windows: tuple[DemoWindows, DemoWindows]) -> None:
    found = probed(windows, lambda batch: batch["vector"][:, :, :2].flatten(1))
    assert found.keys() == {f"probe/{n}_{i}" for n in ("rmse", "displacement") for i in OFFSETS}
    assert max(found.values()) < 0.05, "no more than the penalty shrinks"


def test_a_probe_of_nothing_finds_the_spread_of_the_future(
    windows: tuple[DemoWindows, DemoWindows],
) -> None:
    found = probed(windows, lambda batch: torch.ones(len(batch["task"]), 3))
    train, held_out = windows
    mean = train.statistics()["vector_mean"][:2]
    std = train.statistics()["vector_std"][:2]
    for offset in OFFSETS:
        states = []
        for own in (train, held_out):
            batch = own.gather(torch.arange(len(own)))
            here = ~batch["is_pad"][:, offset]
            states.append((batch["vector"][here, offset, :2] - mean) / std)
        error = (states[1] - states[0].mean(0)).double()
        assert found[f"probe/rmse_{offset}"] == pytest.approx(
            math.sqrt(error.square().mean()), rel=1e-5
        )
        assert found[f"probe/displacement_{offset}"] == pytest.approx(
            float(error.square().sum(1).sqrt().mean()), rel=1e-5
        )


def test_a_probe_sees_no_step_behind_an_episode(windows: tuple[DemoWindows, DemoWindows]) -> None:
    def see(batch: Mapping[str, Tensor]) -> Tensor:
        # right inside the episode, nonsense where the window is padded
        wrong = batch["is_pad"][:, -1:].float() * 100
        return batch["vector"][:, 3, :2] + wrong

    found = probed(windows, see)
    assert found["probe/rmse_3"] < 0.05 < 0.1 < found["probe/rmse_2"]


def test_a_probe_takes_evenly_spaced_windows_up_to_a_limit(
    windows: tuple[DemoWindows, DemoWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    plain = DemoWindows.gather

    def spy(self: DemoWindows, index: Any) -> Any:
        asked.append(index.tolist())
        return plain(self, index)

    monkeypatch.setattr(DemoWindows, "gather", spy)
    monkeypatch.setattr(demo_evaluation, "MAX_WINDOWS", 21)
    probed(windows, lambda batch: batch["vector"][:, 0])
    assert [len(index) for index in asked] == [21, 21]
    for index, own in zip(asked, windows, strict=True):
        assert index[0] == 0 and index[-1] == len(own) - 1
        gaps = {b - a for a, b in itertools.pairwise(index)}
        assert max(gaps) - min(gaps) <= 1


def test_offsets_that_no_episode_reaches_are_left_out(tmp_path: Path) -> None:
    dataset = open_dataset(write_points(tmp_path, episodes=4, length=2))
    own = DemoWindows(dataset, range(8), chunk=6, tasks=TASKS)
    agent: Any = Eyes(lambda batch: batch["vector"][:, 0])
    assert probe(agent, own, own, (5,), proprio_size=2) == {}
    assert probed_offsets(30) == (15, 29) and probed_offsets(2) == (1,)
