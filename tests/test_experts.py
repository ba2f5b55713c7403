"""Experts of the main environment; Meta-World's are tested in its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reverie.envs import make_env
from reverie.envs.experts import LANDER, LQR, expert_tasks, make_expert
from reverie.envs.single import Env, episode_seed
from reverie.envs.specs import EnvError


def play(env: Env, choose: Any, seed: int) -> tuple[float, list[np.ndarray]]:
    """Return of one episode, and the actions that were chosen."""
    obs, total, actions = env.reset(seed), 0.0, []
    while True:
        actions.append(choose(obs))
        arrival = env.step(actions[-1])
        obs, total = arrival.obs, total + arrival.reward
        if arrival.is_last:
            return total, actions


SEEDS = [episode_seed(0, "demo", 0, episode) for episode in range(3)]


@pytest.mark.dmc
@pytest.mark.parametrize("task", LQR)
def test_the_regulator_brings_the_springs_to_rest(task: str) -> None:
    env = make_env(task, observe="state", action_repeat=1, time_limit=1500)
    expert = make_expert(task, env)
    assert expert.name.startswith("dm_control 1.") and expert.name.endswith("LQR solution")
    nothing = np.zeros(env.spec.action_size, np.float32)
    for seed in SEEDS:
        expert.reset()
        total, actions = play(env, expert.act, seed)
        idle, _ = play(env, lambda obs: nothing, seed)
        # 1 for each step at rest; springs without damping swing on forever
        assert total > 1100 > 850 > idle, (total, idle)
        limits = np.abs(actions).max(1)
        assert 0.1 < limits.max() < 1, "no action is cut, and none is lost in rounding"
        assert all(a.dtype == np.float32 and a.shape == nothing.shape for a in actions)
    env.close()


def test_the_heuristic_lands() -> None:
    env = make_env(LANDER)
    expert = make_expert(LANDER, env)
    assert expert.name.startswith("gymnasium 1.") and expert.name.endswith("heuristic")
    assert env.spec.discrete and env.spec.action_size == 4
    returns, used = [], np.zeros(4)
    for seed in SEEDS:
        expert.reset()
        total, actions = play(env, expert.act, seed)
        again, repeated = play(env, expert.act, seed)
        assert total == again and np.array_equal(actions, repeated)
        returns.append(total)
        for action in actions:
            assert action.dtype == np.float32 and sorted(action) == [0, 0, 0, 1]
            used += action
    assert np.mean(returns) >= 200 and (used > 0).all(), (returns, used)
    env.close()


def test_an_expert_leaves_the_observation_as_it_is() -> None:
    env = make_env(LANDER)
    expert = make_expert(LANDER, env)
    obs = env.reset(0)
    before = obs["vector"].copy()
    first = expert.act(obs)
    first[:] = 7  # the receiver may write into what it was given
    assert np.array_equal(obs["vector"], before) and expert.act(obs).sum() == 1
    env.close()


def test_tasks_without_an_expert_are_told_which_have_one() -> None:
    env = make_env("toy/chain")
    with pytest.raises(EnvError, match=r"toy/chain has no expert.*metaworld/\*.*lqr.*LunarLander"):
        make_expert("toy/chain", env)
    assert len(expert_tasks()) == len(set(expert_tasks())) == 53
    with pytest.raises(EnvError, match="found toy/chain with a vector of 6"):
        make_expert(LANDER, env)


@pytest.mark.dmc
def test_an_expert_needs_the_state() -> None:
    env = make_env(LQR[0], image_size=16, render="quick")
    with pytest.raises(EnvError, match="observe 'state' or 'both'"):
        make_expert(LQR[0], env)
    env.close()
