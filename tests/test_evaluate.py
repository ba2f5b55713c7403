"""Evaluation: fixed episodes per slot, blind controls, and no trace left in training."""

from __future__ import annotations

import numpy as np
import pytest
from doubles import SPEC, CountingAgent, CountingVec, TinyAgent
from runs import assert_same

from reverie.agents.collector import Collector
from reverie.agents.evaluate import EvaluationStopped, evaluate
from reverie.envs.atari import AtariVec
from reverie.envs.registry import make_vec
from reverie.envs.single import episode_seed
from reverie.envs.specs import Array, Step


def test_trap_21_each_slot_contributes_a_fixed_number_of_episodes() -> None:
    env = CountingVec([[2], [30], [3]])
    result = evaluate(CountingAgent(), env, episodes=6, seed=0)
    assert result["lengths"] == [2, 2, 30, 30, 3, 3], "short episodes must not be favoured"
    assert result["returns"] == [3.0, 3.0, 465.0, 465.0, 6.0, 6.0]
    assert result["mean"] == pytest.approx(158.0)
    assert result["episodes"] == 6 and result["frames"] == 70


def test_trap_21_one_vector_environment_is_used_again() -> None:
    env = CountingVec([[4], [5]])
    first = evaluate(CountingAgent(), env, episodes=2, seed=0)
    second = evaluate(CountingAgent(), env, episodes=2, seed=0)
    assert first == second and env.resets == 2 and not env.closed


def test_trap_21_evaluation_differs_from_training_in_seeds_alone() -> None:
    train = make_vec("toy/identity", 2, seed=0, purpose="train", image_size=8)
    held_out = make_vec("toy/identity", 4, seed=0, purpose="eval", image_size=8)
    assert train.spec == held_out.spec
    seeds = {
        (p, s, e): episode_seed(0, p, s, e)
        for p in ("train", "eval")
        for s in range(4)
        for e in range(50)
    }
    assert len(set(seeds.values())) == len(seeds)


def test_slots_are_retired_when_their_episodes_are_played() -> None:
    env = CountingVec([[2], [30], [3]])
    evaluate(CountingAgent(), env, episodes=6, seed=0)
    assert env.retired == [0, 2, 1]


@pytest.mark.atari
def test_a_retired_game_is_not_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_vec("atari/pong", 2, seed=0, purpose="eval", time_limit=5)
    begun: list[list[bool]] = []
    begin = AtariVec._begin

    def spy(self: AtariVec, row: Step, mask: Array, seeds: list[int]) -> None:
        begun.append(mask.tolist())
        begin(self, row, mask, seeds)

    monkeypatch.setattr(AtariVec, "_begin", spy)
    idle = np.eye(6, dtype=np.float32)[[0, 0]]
    env.reset()
    env.retire(0)
    rows = [env.step(idle) for _ in range(8)]
    assert begun == [[True, True], [False, True]], "one reset, then slot 1 alone"
    assert rows[5].is_first.all() and rows[4].is_last.all()
    env.reset()
    assert begun[2:] == [[True, True]] and not env._retired.any()
    env.close()


def test_episodes_must_be_shared_equally() -> None:
    with pytest.raises(ValueError, match="equally"):
        evaluate(CountingAgent(), CountingVec([[2], [2]]), episodes=3, seed=0)
    with pytest.raises(ValueError, match="needs an agent"):
        evaluate(None, CountingVec([[2]]), episodes=1, seed=0, control="blank")


def test_later_episodes_can_be_asked_for() -> None:
    env = CountingVec([[2, 3, 4, 5]])
    result = evaluate(CountingAgent(), env, episodes=2, seed=0, first_episode=2)
    assert result["lengths"] == [4, 5]


def test_interrupted_episodes_are_replaced_and_counted() -> None:
    env = CountingVec([[4], [4]], interrupt=[(1, 0, 2)])
    result = evaluate(CountingAgent(), env, episodes=2, seed=0)
    assert result["interrupted"] == 1 and result["lengths"] == [4, 4]


def test_controls_are_blind() -> None:
    env = CountingVec([[30]])
    evaluate(None, env, episodes=1, seed=0, control="zero")
    assert (np.stack(env.seen)[:, 0, 0] == 1).all()
    env.seen.clear()
    evaluate(None, env, episodes=1, seed=0, control="random")
    first = np.stack(env.seen)
    assert (first.sum((0, 1)) > 0).all()
    env.seen.clear()
    evaluate(None, env, episodes=1, seed=0, control="random")
    assert np.array_equal(first, np.stack(env.seen)), "the control is a function of its seed"

    class Watcher(CountingAgent):
        brightest = 0.0

        def act(self, carry, obs, is_first, *, mode="train"):  # type: ignore[no-untyped-def]
            self.brightest = max(self.brightest, float(obs["vector"].abs().max()))
            return super().act(carry, obs, is_first, mode=mode)

    watcher = Watcher()
    evaluate(watcher, env, episodes=1, seed=0, control="blank")
    assert watcher.brightest == 0.0
    evaluate(watcher, env, episodes=1, seed=0)
    assert watcher.brightest > 0.0
    assert watcher.acts["train"] == 0 and watcher.acts["eval"] > 0
    assert env.spec == SPEC


def test_evaluation_leaves_no_trace_in_training() -> None:
    def run(*, evaluated: bool) -> list[object]:
        env = make_vec("toy/counter", 2, seed=0, image_size=8)
        agent = TinyAgent(env.spec, seed=0)
        collector = Collector(env, agent, seed=0, device="cpu")
        rows = []
        for t in range(40):
            if evaluated and t in (0, 7, 20):
                held_out = make_vec("toy/counter", 2, seed=0, purpose="eval", image_size=8)
                evaluate(agent, held_out, episodes=2, seed=0)
            rows.append(collector.advance(random=False))
        state = agent.state_dict()
        state["generators"].pop("eval")
        return [rows, state]

    assert_same(run(evaluated=False), run(evaluated=True))


def test_a_request_to_stop_ends_it_at_once() -> None:
    env = CountingVec([[1000]])
    with pytest.raises(EvaluationStopped):
        evaluate(CountingAgent(), env, episodes=1, seed=0, stop=lambda: len(env.seen) >= 5)
    assert len(env.seen) == 5
