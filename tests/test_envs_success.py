"""Success of a task: from the environment's arrival to the evaluation's numbers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import CountingAgent
from envs_doubles import Plan, SolvableEnv

from reverie.agents.evaluate import evaluate
from reverie.envs.guards import Guarded
from reverie.envs.gym_export import ReverieGym
from reverie.envs.process_vec import ProcessVec
from reverie.envs.single import ActionRepeat, Arrival, Env, TimeLimit, episode_seed
from reverie.envs.specs import Step
from reverie.envs.toy import Counter, counter_length
from reverie.envs.vector import InlineVec, SlotVec, stack
from reverie.envs.worker import Block

SOUND = Plan("none")
STAY = np.eye(4, dtype=np.float32)[[0, 0]]
FORMS = [InlineVec, functools.partial(ProcessVec, num_workers=2)]


def solvable(plan: Plan, *solved: int) -> Any:
    return functools.partial(SolvableEnv, plan, solved)


def guarded(plan: Plan, *solved: int) -> Env:
    return Guarded(SolvableEnv(plan, solved), "drop")


def played(vec: SlotVec, steps: int) -> list[Step]:
    rows = [vec.reset(), *(vec.step(STAY) for _ in range(steps))]
    vec.close()
    return rows


@pytest.mark.parametrize("form", FORMS, ids=["inline", "process"])
def test_success_is_a_flag_of_its_row_alone(form: Any) -> None:
    vec = form(solvable(SOUND, 2, 4), 2, seed=0)
    assert vec.spec.has_success
    rows = played(vec, 4)
    assert [row.info["success"].tolist() for row in rows[:2]] == [[False, False]] * 2
    assert [row.info["success"].all() for row in rows] == [False, False, True, False, True]
    assert all(row.info["success"].dtype == np.bool_ for row in rows)
    plain = form(Counter, 2, seed=0)
    assert not plain.spec.has_success
    assert not any(row.info["success"].any() for row in played(plain, 12))


@pytest.mark.parametrize(
    ("form", "fault"),
    [(FORMS[0], "raise"), (FORMS[0], "nan_reward"), (FORMS[1], "raise"), (FORMS[1], "kill")],
)
def test_fault_11_a_lost_row_is_no_success(form: Any, fault: str, tmp_path: Path) -> None:
    """The worker's block still holds the flags of the row before."""
    plan = Plan(fault, at=3, once=str(tmp_path / "fired"))
    rows = played(form(functools.partial(guarded, plan, 2, 3), 2, seed=0), 3)
    cut = rows[3].info["interrupted"]
    assert rows[2].info["success"].all() and cut.sum() == 1
    assert np.array_equal(rows[3].info["success"], ~cut)


def test_success_and_interruption_exclude_each_other() -> None:
    both = Arrival(Counter().reset(1), is_last=True, interrupted=True, success=True)
    solved = both._replace(interrupted=False)
    assert stack([both, solved]).info["success"].tolist() == [False, True]
    spec = Counter().spec
    block = Block(spec, 2, bytearray(Block.size(spec, 2)))
    block.write(0, both)
    block.write(1, solved)
    read = block.read()
    assert read.info["success"].tolist() == [False, True]
    assert read.info["interrupted"].tolist() == [True, False]


def test_wrappers_keep_success() -> None:
    limited = TimeLimit(SolvableEnv(SOUND, (2,)), 2)
    limited.reset(0)
    found = [limited.step(STAY[0]) for _ in range(2)]
    assert [a.success for a in found] == [False, True]
    assert found[1].is_last and not found[1].is_terminal
    repeated = ActionRepeat(SolvableEnv(SOUND, (4,)), 3)
    repeated.reset(6)
    assert repeated.spec.has_success
    assert [repeated.step(STAY[0]).success for _ in range(3)] == [False, True, False]
    guard = Guarded(SolvableEnv(SOUND, (1,)), "error")
    guard.reset(0)
    assert guard.step(STAY[0]).success


class Cut(SolvableEnv):
    """Solved at one simulator step, cut at the next."""

    def step(self, action: Any) -> Arrival:
        return super().step(action)._replace(is_last=self.time == 2, interrupted=self.time == 2)


def test_a_repeated_action_that_is_cut_is_no_success() -> None:
    env = ActionRepeat(Cut(SOUND, (1,)), 3)
    env.reset(0)
    arrival = env.step(STAY[0])
    assert arrival.interrupted and not arrival.success


def test_gymnasium_users_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    env = ReverieGym("toy/counter")
    monkeypatch.setattr(env, "_env", SolvableEnv(SOUND, (2,)))
    env.reset(seed=0)
    assert [env.step(0)[4]["success"] for _ in range(3)] == [False, True, False]


def test_an_episode_with_one_solved_step_is_a_success() -> None:
    vec = InlineVec(solvable(SOUND, 7), 3, seed=5, purpose="eval")
    result = evaluate(CountingAgent(actions=4), vec, episodes=9, seed=0)
    lengths = [counter_length(episode_seed(5, "eval", i, e)) for i in range(3) for e in range(3)]
    expected = [length >= 7 for length in lengths]
    assert result["lengths"] == lengths and 1 < sum(expected) < 9
    assert result["successes"] == expected
    assert result["success"] == pytest.approx(sum(expected) / 9)


def test_a_success_does_not_survive_its_episode(tmp_path: Path) -> None:
    """Solved, then cut by a fault: the episode that replaces it starts from nothing."""
    plan = Plan("raise", at=4, once=str(tmp_path / "fired"))

    class Once(SolvableEnv):
        def reset(self, seed: int) -> Any:
            self.solved = () if (tmp_path / "fired").exists() else (2,)
            return super().reset(seed)

    vec = InlineVec(lambda: Once(plan, (2,)), 1, seed=0)
    result = evaluate(CountingAgent(actions=4), vec, episodes=2, seed=0)
    assert result["interrupted"] == 1 and result["successes"] == [False, False]
    assert len(result["returns"]) == 2 and result["success"] == 0.0


def test_tasks_that_know_no_success_report_none() -> None:
    result = evaluate(CountingAgent(actions=4), InlineVec(Counter, 2, seed=0), episodes=2, seed=0)
    assert not {"success", "successes"} & result.keys()


def test_demonstrations_share_no_start_with_training_or_evaluation() -> None:
    keys = [
        episode_seed(seed, purpose, slot, episode)
        for seed in range(3)
        for purpose in ("train", "eval", "demo")
        for slot in range(4)
        for episode in range(50)
    ]
    assert len(set(keys)) == len(keys)
