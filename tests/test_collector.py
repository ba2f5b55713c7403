"""The collector: rows that mean what they say, counters, and moments that can be rebuilt."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from doubles import CountingAgent, CountingVec, TinyAgent
from runs import assert_same

from reverie.agents.collector import Collector, Episode, random_action
from reverie.envs.registry import make_vec
from reverie.envs.specs import EnvSpec

LENGTHS = [[3, 5], [4, 2, 6]]


def collect(count: int, *, random: bool = False, **options: Any) -> tuple[Collector, list[Any]]:
    env = CountingVec(LENGTHS, **options)
    collector = Collector(env, CountingAgent(), seed=0, device="cpu")
    return collector, [collector.advance(random=random) for _ in range(count)]


def test_rows_hold_what_arrived_together() -> None:
    _, rows = collect(30)
    for earlier, row in pairwise(rows):
        for slot in range(2):
            time = row["vector"][slot, 2]
            if row["is_first"][slot]:
                assert earlier["is_last"][slot] and time == 0
                assert row["reward"][slot] == 0 and not row["action"][slot].any()
            else:
                assert row["vector"][slot, 1] == earlier["vector"][slot, 1]
                assert row["reward"][slot] == time
                # the agent chose (rows since is_first) % 3 on the row before
                assert row["action"][slot].argmax() == earlier["vector"][slot, 2] % 3


def test_trap_07_reset_rows_are_not_steps_and_not_scored() -> None:
    collector, rows = collect(30)
    resets = sum(int(row["is_first"].sum()) for row in rows)
    assert resets > 4
    assert collector.steps == 2 * 30 - resets
    env_calls = collector.env.seen  # type: ignore[attr-defined]
    assert len(env_calls) == 29 == collector.calls
    for episode in collector.pop_finished():
        length = LENGTHS[episode.slot][episode.index % len(LENGTHS[episode.slot])]
        assert episode.length == length
        assert episode.score == length * (length + 1) / 2
    assert collector.pop_finished() == []


def test_trap_05_termination_and_time_limit_stay_apart() -> None:
    _, rows = collect(40)
    ends = [
        (r["vector"][s, 1], bool(r["is_terminal"][s]))
        for r in rows
        for s in range(2)
        if r["is_last"][s]
    ]
    assert {terminal for _, terminal in ends} == {True, False}
    assert all(terminal == (episode % 2 == 0) for episode, terminal in ends)


def test_interrupted_episodes_are_marked_and_are_no_moment_to_save() -> None:
    collector, rows = collect(3, interrupt=[(0, 0, 2)])
    assert rows[2]["is_last"].tolist() == [True, False]
    assert not rows[2]["is_terminal"].any()
    assert collector.finished == [Episode(0, 0, score=3.0, length=2, interrupted=True)]
    assert not collector.restorable
    with pytest.raises(AssertionError, match="rebuilt"):
        collector.state_dict()
    assert collector.advance(random=False)["is_first"].tolist() == [True, False]
    assert collector.restorable


@pytest.mark.parametrize("moment", range(1, 14))
def test_any_moment_can_be_rebuilt(moment: int) -> None:
    collector, _ = collect(moment)
    twin = Collector(CountingVec(LENGTHS), CountingAgent(), seed=0, device="cpu")
    assert twin.load_state_dict(collector.state_dict()) == []
    collector.pop_finished()
    for _ in range(12):
        assert_same(collector.advance(random=False), twin.advance(random=False))
    assert (collector.steps, collector.finished) == (twin.steps, twin.finished)


@pytest.mark.parametrize("task", ["toy/counter", "toy/identity", "torch/dots"])
@pytest.mark.parametrize("moment", [1, 7, 33])
def test_real_worlds_are_rebuilt_with_their_policy(task: str, moment: int) -> None:
    def build() -> Collector:
        env = make_vec(task, 2, seed=3, image_size=16)
        return Collector(env, TinyAgent(env.spec, seed=1), seed=3, device="cpu")

    collector, twin = build(), build()
    for t in range(moment):
        collector.advance(random=t < 5)
    twin.agent.load_state_dict(collector.agent.state_dict())
    assert twin.load_state_dict(collector.state_dict()) == []
    for _ in range(30):
        assert_same(collector.advance(random=False), twin.advance(random=False))


def test_a_world_that_does_not_repeat_itself_is_reported() -> None:
    collector, _ = collect(6)
    other = Collector(CountingVec([[9], [9]]), CountingAgent(), seed=0, device="cpu")
    state = {**collector.state_dict(), "digest": "another"}
    notes = other.load_state_dict(state)
    assert len(notes) == 1 and "statistically" in notes[0]


def test_random_actions_depend_on_seed_and_counter_alone() -> None:
    first, again = collect(20, random=True)[1], collect(20, random=True)[1]
    assert_same(first, again)
    assert collect(20, random=True)[0].agent.acts == {"train": 0, "eval": 0}  # type: ignore
    continuous = EnvSpec("double/box", action_size=2, discrete=False, vector_size=1)
    drawn = random_action(continuous, 1000, np.random.default_rng(0))
    assert drawn.dtype == np.float32 and -1 <= drawn.min() < -0.9 < 0.9 < drawn.max() <= 1
    discrete = random_action(EnvSpec("double/d", 3, discrete=True), 999, np.random.default_rng(0))
    assert (discrete.sum(-1) == 1).all() and (discrete.sum(0) > 250).all()


def test_trap_22_delays_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def run(*, delayed: bool) -> list[Any]:
        env = make_vec("toy/counter", 2, seed=0, image_size=8)
        agent = TinyAgent(env.spec, seed=0)
        collector = Collector(env, agent, seed=0, device="cpu")
        if delayed:
            pauses = np.random.default_rng(0)
            for owner, name in ((env, "step"), (agent, "act")):
                plain = getattr(owner, name)

                def slow(*args: Any, plain: Any = plain, **named: Any) -> Any:
                    time.sleep(pauses.uniform(0, 0.003))
                    return plain(*args, **named)

                monkeypatch.setattr(owner, name, slow)
        return [collector.advance(random=False) for _ in range(60)]

    assert_same(run(delayed=False), run(delayed=True))


def test_rows_are_not_overwritten_by_later_steps() -> None:
    env = make_vec("toy/counter", 2, seed=0, image_size=8)
    collector = Collector(env, TinyAgent(env.spec, seed=0), seed=0, device="cpu")
    rows = [collector.advance(random=False) for _ in range(10)]
    copies = [{k: v.copy() for k, v in row.items()} for row in rows]
    for _ in range(10):
        collector.advance(random=False)
    assert_same(rows, copies)
