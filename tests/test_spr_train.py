"""The SPR family under the trainer: counters, records, resuming, and scores that repeat."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import Child, assert_same, final_state
from test_resume import raise_at

from reverie.agents.configs import RunConfig
from reverie.agents.registry import FAMILIES
from reverie.agents.resolve import resolve
from reverie.agents.runs.checkpoint import checkpoints
from reverie.agents.runs.logger import read_jsonl
from reverie.agents.runs.rundir import read_status
from reverie.agents.spr import SPR
from reverie.agents.trainer import Trainer, train
from reverie.benchmarks import cli, evaluation
from reverie.envs.catch import CATCH_GRID

PREFILL, EPISODE = 64, CATCH_GRID - 1
RESETS = {"reset": {"every": 14}, "returns": {"n_step": 3, "n_step_start": 10}}
"""Three resets in 60 updates and none in the last interval; the horizon is annealed after each."""


def tree(run: Path, agent: str = "spr", *, task: str = "toy/catch", **changes: Any) -> Any:
    """Overrides of a run of one slot; 60 updates in 80 steps behind the prefill."""
    own: dict[str, Any] = {
        "env": {"num_envs": 1},
        "train": {
            "steps": PREFILL + 80,
            "train_ratio": 3,
            "checkpoint_every": 32,
            "eval_every": 60,
        },
    }
    for key, value in changes.items():
        own[key] = {**own.get(key, {}), **value}
    return {"agent": agent, "task": task, "run": str(run), **own}


def config(run: Path, agent: str = "spr", **changes: Any) -> RunConfig:
    return resolve(tree(run, agent, **changes), configs=["debug"])


# what a run leaves


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose scores depend on chance: a third of the actions of an evaluation is random."""
    run = tmp_path_factory.mktemp("spr") / "run"
    changes = {"train": {"final_episodes": 7}, "spr": {"epsilon_eval": 0.3}}
    assert train(config(run, **changes)) == 0
    return run


def test_counters_of_a_run_are_exact(finished: Path) -> None:
    status, state = read_status(finished), final_state(finished)
    assert (status["state"], status["promise"]) == ("done", "bitwise")
    assert status["step"] == status["steps"] == PREFILL + 80
    assert state["learn_from"] == PREFILL, "prefill is part of the budget"
    assert status["updates"] == state["agent"]["updates"] == 80 * 3 // 4
    assert status["saved_at"] == [PREFILL + 80, 60] and status["nonfinite_updates"] == 0
    # every episode begins with a row that is no step
    begun = status["step"] // EPISODE + 1
    assert status["replay_rows"] == status["step"] + begun
    episodes = list(read_jsonl(finished / "episodes.jsonl"))
    played = [e for e in episodes if e["purpose"] == "train"]
    assert [e["length"] for e in played] == [EPISODE] * (begun - 1)
    assert [e["index"] for e in played] == list(range(begun - 1))
    assert {abs(e["score"]) for e in played} == {1.0}


def test_metrics_have_losses_norms_and_health_at_the_right_updates(finished: Path) -> None:
    rows = list(read_jsonl(finished / "metrics.jsonl"))
    learned = [row for row in rows if "loss/total" in row]
    assert [row["count/updates"] for row in learned] == list(range(8, 61, 8))
    names = "loss/q loss/spr norm/network norm/transition norm/predictor health/latent_std "
    names += "health/projection_std q/taken replay/weight spr/distance_first spr/distance_last"
    for row in learned:
        assert all(math.isfinite(row[name]) for name in names.split())
        assert row["nonfinite"] == 0 and row["count/frames"] == row["step"]
        # updates never run ahead of the ratio, and are at most one step behind
        behind = (row["step"] - PREFILL) * 3 // 4 - row["count/updates"]
        assert behind in (0, 1), row["step"]
    scored = [row for row in rows if "eval/mean" in row]
    assert [row["step"] for row in scored] == [PREFILL, 120, PREFILL + 80]
    looked = [row for row in rows if "health/latent_rank" in row]
    assert len(looked) == 4 and looked[-1]["step"] == PREFILL + 80, "every 16 updates, and the end"
    assert looked[0]["health/latent_rank"] >= 1 and looked[0]["health/action_shuffle_ratio"] > 0


def test_the_last_evaluation_is_recorded_everywhere_alike(finished: Path) -> None:
    record = read_status(finished)["evaluation"]
    assert (record["step"], record["episodes"]) == (PREFILL + 80, 7)
    episodes = list(read_jsonl(finished / "episodes.jsonl"))
    last = [e for e in episodes if (e["purpose"], e["step"]) == ("eval", PREFILL + 80)]
    assert len(last) == 7 and record["mean"] == np.mean([e["score"] for e in last])
    assert len({e["score"] for e in last}) == 2, "equal scores would prove nothing"
    folders = [path.name for path in checkpoints(finished)]
    assert int(folders[0]) == PREFILL + 80 and 2 <= len(folders) <= 3
    assert final_state(finished)["evaluated"] == record


@pytest.mark.parametrize("agent", FAMILIES["spr"])
def test_every_agent_of_the_family_trains(agent: str, tmp_path: Path) -> None:
    cfg = config(tmp_path, agent, train={"steps": PREFILL + 16, "train_ratio": 4})
    assert train(cfg) == 0
    status = read_status(tmp_path)
    assert (status["step"], status["updates"]) == (PREFILL + 16, 16)
    row = next(r for r in read_jsonl(tmp_path / "metrics.jsonl") if "loss/q" in r)
    predicts = {"loss/spr", "norm/transition", "norm/predictor", "health/projection_std"}
    assert predicts & row.keys() == (set() if agent == "rainbow" else predicts)
    state = final_state(tmp_path)["agent"]
    parts = {name.split(".")[0] for name in state["model"]}
    own = {"target_encoder", "target_head"} if agent in ("spr", "spr-noaug") else set()
    lags = {"q_target_encoder", "q_target_head"} if agent in ("sr-spr", "bbf") else set()
    assert {part for part in parts if "target" in part} == own | lags


def test_schedules_are_as_long_as_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, plain = [], SPR._begin_update

    def spy(self: SPR) -> None:
        plain(self)
        ends.append((self.updates, self.total_updates, float(self._schedule.beta)))

    monkeypatch.setattr(SPR, "_begin_update", spy)
    assert train(config(tmp_path, train={"steps": PREFILL + 12, "eval_episodes": 0})) == 0
    assert [n for n, _, _ in ends] == list(range(1, 10)) and {total for _, total, _ in ends} == {9}
    assert ends[0][2] == pytest.approx(0.4) and ends[-1][2] == pytest.approx(1.0 - 0.6 / 9)


# resuming

LIKE: dict[str, dict[str, Any]] = {
    "spr": {},
    "spr-noaug": {},
    "rainbow": {},
    "sr-spr": {"spr": RESETS},
    "bbf": {"spr": RESETS | {"returns": {"anneal_updates": 9}}},
}
"""Agent -> what makes its run show everything that can change over one."""


@pytest.mark.parametrize(
    "agent",
    [a if a in ("spr", "sr-spr") else pytest.param(a, marks=pytest.mark.slow) for a in LIKE],
)
def test_a_stopped_run_ends_with_the_same_bits(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets = []
    plain = SPR._reset
    monkeypatch.setattr(SPR, "_reset", lambda s, n: resets.append(s.updates) or plain(s, n))  # type: ignore[func-returns-value]
    changes = LIKE[agent]
    assert train(config(tmp_path / "whole", agent, **changes)) == 0
    due = [14, 28, 42] if "spr" in changes else []
    assert resets == due
    codes = []
    with monkeypatch.context() as patch:
        # in the prefill, right behind a reset, and between two evaluations
        raise_at(patch, {"_collect": 20, "_update": 15, "_evaluate_if_due": 100})
        while not codes or codes[-1] != 0:
            codes.append(train(config(tmp_path / "parts", agent, **changes)))
            assert len(codes) < 6
    assert codes == [143, 143, 143, 0]
    assert resets == due * 2, "no reset is lost or repeated"
    whole = final_state(tmp_path / "whole")
    assert_same(whole, final_state(tmp_path / "parts"))
    leaves = whole["replay"]["priority"]["leaves"]
    assert len(leaves.unique()) > 20 and whole["agent"]["optimisers"]["network"]


def test_a_signal_in_the_last_evaluation_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train": {"steps": PREFILL + 8, "eval_every": 0}}
    assert train(config(tmp_path / "whole", **changes)) == 0
    with monkeypatch.context() as patch:
        raise_at(patch, {"_evaluation_env": 1})
        assert train(config(tmp_path / "parts", **changes)) == 143
    status = read_status(tmp_path / "parts")
    assert status["step"] == PREFILL + 8 and status["evaluation"]["mean"] is None
    assert train(config(tmp_path / "parts", **changes)) == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "noise that acts": lambda s: s["agent"]["head_noise"].mul_(-1),
    "moments": lambda s: [
        e["exp_avg_sq"].mul_(2) for e in s["agent"]["optimisers"]["transition"].values()
    ],
    "generator": lambda s: s["agent"]["generators"].update(
        update=torch.Generator().manual_seed(77).get_state()
    ),
    "prediction target": lambda s: s["agent"]["model"]["target_encoder.convs.0.weight"].mul_(-1),
    "running statistics": lambda s: s["agent"]["model"]["transition.norm.running_mean"].add_(1),
    "priorities": lambda s: s["replay"]["priority"]["leaves"].mul_(
        torch.linspace(1, 3, len(s["replay"]["priority"]["leaves"]))
    ),
    "frames of the carry": lambda s: s["collector"]["carry"]["frames"].zero_(),
    "count": lambda s: s["agent"].update(updates=s["agent"]["updates"] + 1),
}
"""Part of the saved state -> a change of it that must be seen at the end."""


@pytest.mark.slow
@pytest.mark.parametrize("part", SPOILED)
def test_every_part_of_the_state_matters(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train": {"eval_episodes": 0}}
    train(config(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        raise_at(patch, {"_update": 58})
        assert train(config(tmp_path / "parts", **changes)) == 143
        plain = Trainer.load_state_dict

        def spoil(self: Trainer, state: dict[str, Any]) -> list[str]:
            SPOILED[part](state)
            return plain(self, state)

        patch.setattr(Trainer, "load_state_dict", spoil)
        assert train(config(tmp_path / "parts", **changes)) == 0
    with pytest.raises(AssertionError):
        assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(300)
@pytest.mark.parametrize("agent", ["spr", "sr-spr"])
def test_fault_01_sigkill_at_random_moments(agent: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = LIKE[agent] | {"train": {"checkpoint_every": 10, "eval_every": 30}}
    assert train(config(tmp_path / "whole", agent, **changes)) == 0
    parts, rng = tree(tmp_path / "parts", agent, **changes), np.random.default_rng(time.time_ns())
    for _ in range(5):
        child = Child(parts, agent=agent, configs=("debug",), UPDATE_SECONDS="0.01")
        if not child.reaches("ready"):  # a late kill may have left nothing to do
            assert child.finish() == 0, child.output
            break
        child.kill_after(float(rng.uniform(0.0, 0.8)), signal.SIGKILL)
        if child.finish() == 0:
            break
    child = Child(parts, agent=agent, configs=("debug",))
    assert child.finish() == 0, child.output
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


# scores again


def recorded(run: Path) -> dict[str, Any]:
    """The result that `reverie eval` wrote."""
    (path,) = run.glob("evaluation-*.json")
    result: dict[str, Any] = json.loads(path.read_text())["results"]["none"]
    return result


def assert_eval_repeats(run: Path) -> None:
    last_one = read_status(run)["evaluation"]
    assert cli.main(["eval", str(run)]) == 0
    result = recorded(run)
    for key in ("mean", "episodes", "protocol"):
        assert result[key] == last_one[key], key
    last = [
        (e["score"], e["length"])
        for e in read_jsonl(run / "episodes.jsonl")
        if (e["purpose"], e["step"]) == ("eval", last_one["step"])
    ]
    assert list(zip(result["returns"], result["lengths"], strict=True)) == last


def test_eval_repeats_the_recorded_score(finished: Path) -> None:
    assert_eval_repeats(finished)


def test_eval_repeats_the_score_of_a_model_that_samples(tmp_path: Path) -> None:
    sizes = {"train": {"steps": 80, "train_ratio": 2, "eval_every": 40, "final_episodes": 3}}
    own = {"agent": "mudreamer", "task": "toy/dot", "size": "nano", "run": str(tmp_path)}
    assert train(resolve(own | sizes, configs=["debug"])) == 0
    assert_eval_repeats(tmp_path)
    assert len(set(recorded(tmp_path)["returns"])) == 3


def test_a_run_of_another_device_can_be_scored(finished: Path) -> None:
    trained = evaluation.load_run(finished)
    cuda = replace(trained.cfg.train, device="cuda", compile="graph", precision="bf16")
    other = replace(trained, cfg=replace(trained.cfg, train=cuda))
    scores = [
        evaluation.score_run(run, ["none"], episodes=3, device="cpu")["none"]["returns"]
        for run in (trained, other)
    ]
    assert scores[0] == scores[1]
