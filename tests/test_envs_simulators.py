"""What only the real simulators and the device worlds can get wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_envs_contract import random_actions

from reverie.envs import EnvError, make_env, make_vec, tasks
from reverie.envs.catch import CATCH_GRID, CATCH_PADDLE, Catch
from reverie.envs.dmc import TASKS, DmControl
from reverie.envs.dot import DOT_STEPS, Dot
from reverie.envs.torch_vector import TorchDots, measure
from reverie.envs.torchrl_adapter import TorchRLEnv


@pytest.mark.atari
@pytest.mark.slow
def test_trap_23_the_first_picture_knows_only_its_own_episode() -> None:
    """Max-pooling at a reset must not see a frame of the game before."""
    played = make_vec("atari/breakout", 2, seed=1, time_limit=30)
    actions = random_actions(played.spec, 2, 70)
    row = played.reset()
    firsts = [row]
    for action in actions:
        row = played.step(action)
        firsts += [row] if row.is_first.all() else []
    assert len(firsts) == 3
    fresh = make_vec("atari/breakout", 2, seed=1, time_limit=30)
    for episode in (2, 1):
        begun = fresh.restore([episode] * 2, [np.zeros((0, played.spec.action_size))] * 2)
        assert np.array_equal(begun.obs["image"], firsts[episode].obs["image"])
        assert np.array_equal(begun.info["frames"], firsts[episode].info["frames"])
    noops = np.concatenate([r.info["frames"] for r in firsts])
    assert (noops <= 29).all() and len(set(noops.tolist())) > 1


@pytest.mark.atari
@pytest.mark.slow
def test_trap_24_action_repeat_holds_in_later_episodes() -> None:
    for repeat in (1, 4):
        vec = make_vec("atari/pong", 2, seed=0, time_limit=6, action_repeat=repeat)
        row = vec.reset()
        for _ in range(20):
            before = row.info["frames"]
            row = vec.step(random_actions(vec.spec, 2, 1)[0])
            moved = row.info["frames"] - before
            assert row.is_first.all() or (moved == repeat).all()
        assert (vec.episodes >= 2).all()


@pytest.mark.dmc
def test_trap_24_action_repeat_holds_in_later_dmc_episodes() -> None:
    env = DmControl("cartpole_balance", image_size=32, action_repeat=3, render="quick")
    step = env._env.control_timestep()
    for seed in range(3):
        env.reset(seed)
        for count in range(1, 4):
            env.step(np.zeros(1, np.float32))
            assert np.isclose(env._env.physics.time(), 3 * step * count)
    env.close()


@pytest.mark.atari
def test_atari_view_and_settings() -> None:
    vec = make_vec("atari/pong", 3, seed=0)
    assert vec.spec.discrete and vec.spec.action_size == 6 and vec.spec.action_repeat == 4
    row = vec.reset()
    assert row.obs["image"].shape == (3, 64, 64, 3) and row.obs["image"].dtype == np.uint8
    assert row.obs["image"].std() > 5
    with pytest.raises(EnvError, match=r"Atari game .* Did you mean pong"):
        make_vec("atari/pongg", 1, seed=0)
    with pytest.raises(EnvError, match="vector only"):
        make_env("atari/pong")


@pytest.mark.atari
def test_atari_death_terminates_and_the_time_limit_does_not() -> None:
    vec = make_vec("atari/breakout", 2, seed=0)
    vec.reset()
    fire = random_actions(vec.spec, 2, 700)
    ends = 0
    for action in fire:
        row = vec.step(action)
        assert np.array_equal(row.is_last, row.is_terminal)
        ends += row.is_last.sum()
    assert ends >= 2
    limited = make_vec("atari/breakout", 1, seed=0, time_limit=5)
    limited.reset()
    rows = [limited.step(fire[0][:1]) for _ in range(6)]
    assert [bool(r.is_last[0]) for r in rows] == [False] * 4 + [True, False]
    assert not rows[4].is_terminal[0] and rows[5].is_first[0]


@pytest.mark.dmc
def test_dmc_profiles_differ_in_the_picture_alone() -> None:
    rows = {}
    for render in ("reference", "quick"):
        vec = make_vec("dmc/cartpole_balance", 1, seed=0, render=render, time_limit=4)
        assert vec.spec.protocol == f"render={render}"
        actions = random_actions(vec.spec, 1, 6)
        rows[render] = [vec.reset(), *(vec.step(a) for a in actions)]
        vec.close()
    for a, b in zip(rows["reference"], rows["quick"], strict=True):
        assert a.reward == b.reward and a.is_last == b.is_last
        shift = np.abs(a.obs["image"].astype(int) - b.obs["image"]).mean()
        assert 0 < shift < 12
    assert rows["quick"][4].is_last[0] and not rows["quick"][4].is_terminal[0]


@pytest.mark.dmc
def test_loading_a_model_is_silent_here_and_in_workers(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    vec = make_vec("dmc/cheetah_run", 2, seed=0, image_size=16, render="quick")
    vec.reset()
    vec.close()
    DmControl("cheetah_run", image_size=16, render="quick").close()
    assert capfd.readouterr() == ("", "") and not caplog.records
    logging.getLogger("absl").warning("contact buffer is full")
    logging.getLogger("absl").warning("this attribute is deprecated")
    assert len(caplog.records) == 2, "only what is said while loading, and only about age"


@pytest.mark.dmc
def test_dmc_ends_after_its_own_time_limit_and_scales_actions() -> None:
    env = DmControl("pendulum_swingup", image_size=16, action_repeat=50, render="quick")
    env.reset(0)
    ends = [env.step(np.float32([5.0])) for _ in range(20)]
    assert [e.is_last for e in ends] == [False] * 19 + [True] and not ends[-1].is_terminal
    assert env._env.physics.data.ctrl[0] == env._env.action_spec().maximum[0]
    env.close()
    with pytest.raises(EnvError, match="cartpole_swingup"):
        DmControl("cartpole_swing")


@pytest.mark.dmc
def test_the_task_list_is_dm_controls() -> None:
    from dm_control import suite

    assert {f"{domain}_{task}" for domain, task in suite.ALL_TASKS} == set(TASKS)
    assert len({info.task for info in tasks()}) == len(tasks())


def test_torch_worlds_equal_their_numpy_twin() -> None:
    worlds = TorchDots(5, seed=3, image_size=24)
    twins = [Dot(image_size=24) for _ in range(5)]
    rng = np.random.default_rng(0)
    row = worlds.reset_tensors()
    for t in range(2 * DOT_STEPS + 10):
        if row.is_first.any():
            assert row.is_first.all() and (row.reward == 0).all()
            keys = worlds.episode_keys(torch.full((5,), t // (DOT_STEPS + 1)))
            images = [twin.reset(int(key))["image"] for twin, key in zip(twins, keys, strict=True)]
        else:
            arrivals = [twin.step(a) for twin, a in zip(twins, action, strict=True)]
            images = [arrival.obs["image"] for arrival in arrivals]
            assert row.reward.tolist() == [np.float32(a.reward) for a in arrivals]
            assert row.is_last.tolist() == [a.is_last for a in arrivals]
        assert np.array_equal(row.obs["image"].numpy(), np.stack(images)), t
        action = rng.uniform(-1.5, 1.5, (5, 2)).astype(np.float32)
        row = worlds.step_tensors(torch.from_numpy(action))
    assert not row.is_terminal.any()


def test_the_dot_world_rewards_arriving_and_distracts() -> None:
    env = Dot(image_size=32)
    rewards = []
    for seed in range(5):
        env.reset(seed)
        pictures = []
        for _ in range(DOT_STEPS):
            gap = np.subtract(env._target, env._dot) / env._layout.speed
            arrival = env.step(gap.astype(np.float32))
            pictures.append(arrival.obs["image"])
        rewards.append(arrival.reward)
        still = np.stack(pictures[-10:])
        assert (still[..., :2].std(0) == 0).all(), "dot and target rest"
        assert still[..., 2].std(0).max() > 0, "the distractor does not"
    assert min(rewards) > 0.99


def catch_player(pictures: list[np.ndarray]) -> int:
    """Action of a player that reads ball, drift and paddle from the last two 12x12 pictures."""
    now, before = pictures[-1][..., 0], pictures[max(0, len(pictures) - 2)][..., 0]
    (height, ball), (_, came) = (np.argwhere(p == 255)[0] for p in (now, before))
    paddle = np.argwhere(now[-1] == 128)[0, 0]
    drift = ball - came
    for _ in range(len(now) - 1 - height):
        drift = drift if 0 <= ball + drift < CATCH_GRID else -drift
        ball += drift
    return 1 + int(np.sign(min(ball, CATCH_GRID - CATCH_PADDLE) - paddle))


def play_catch(seed: int, size: int, choose: Callable[[list[np.ndarray]], int]) -> list[float]:
    env = Catch(image_size=size)
    pictures, rewards = [env.reset(seed)["image"]], []
    while True:
        arrival = env.step(np.eye(3, dtype=np.float32)[choose(pictures)])
        pictures.append(arrival.obs["image"])
        rewards.append(arrival.reward)
        assert pictures[-1].shape == env.spec.image_shape and arrival.is_last == arrival.is_terminal
        if arrival.is_last:
            return rewards


@pytest.mark.parametrize("size", [24, 64, 84])
def test_catching_is_easy_for_who_sees_and_hard_for_who_does_not(size: int) -> None:
    edges = np.arange(CATCH_GRID) * size // CATCH_GRID
    cells = np.ix_(edges, edges)

    def seeing(pictures: list[np.ndarray]) -> int:
        return catch_player([picture[cells] for picture in pictures])

    def still(pictures: list[np.ndarray]) -> int:  # one picture does not show the drift
        return catch_player([pictures[-1][cells]])

    rng = np.random.default_rng(0)
    games = {
        name: [play_catch(seed, size, choose) for seed in range(200)]
        for name, choose in {
            "seeing": seeing,
            "still": still,
            "random": lambda _: int(rng.integers(3)),
        }.items()
    }
    for played in games.values():
        assert all(len(rewards) == CATCH_GRID - 1 for rewards in played)
        assert all(set(rewards[:-1]) == {0} and abs(rewards[-1]) == 1 for rewards in played)
    score = {name: np.mean([sum(rewards) for rewards in played]) for name, played in games.items()}
    assert score["seeing"] > 0.98 and score["random"] < -0.4, score
    assert score["still"] < score["seeing"] - 0.1, score


def test_torch_worlds_report_their_speed() -> None:
    assert measure(16, image_size=16, steps=3) > 0


@pytest.mark.gpu
def test_torch_worlds_are_the_same_on_cuda() -> None:
    host, device = (TorchDots(7, seed=1, image_size=64, device=d) for d in ("cpu", "cuda"))
    rows = host.reset_tensors(), device.reset_tensors()
    rng = torch.Generator().manual_seed(0)
    for _ in range(DOT_STEPS + 20):
        for key in ("reward", "is_first", "is_last"):
            assert torch.equal(getattr(rows[0], key), getattr(rows[1], key).cpu())
        assert torch.equal(rows[0].obs["image"], rows[1].obs["image"].cpu())
        assert rows[1].obs["image"].is_cuda
        action = torch.rand(7, 2, generator=rng) * 2.4 - 1.2
        rows = host.step_tensors(action), device.step_tensors(action.cuda())


@pytest.mark.parametrize("task", ["toy/counter", "toy/dot", "toy/chain", "toy/catch"])
def test_torchrl_check_env_specs(task: str) -> None:
    from torchrl.envs.utils import check_env_specs

    env = TorchRLEnv(make_env(task, image_size=24), seed=0)
    check_env_specs(env)
    rollout = env.rollout(120, break_when_any_done=False)
    done = rollout["next", "done"]
    assert rollout.shape == (120,) and done.any()
    assert ((rollout["next", "terminated"] | rollout["next", "truncated"]) == done).all()
    env.close()
