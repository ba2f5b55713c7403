"""Meta-World: runs in an environment of its own (`make test-metaworld`)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from reverie.envs import EnvError, make_env, make_vec
from reverie.envs.experts import make_expert
from reverie.envs.metaworld import FIFTEEN, SIX, TASKS, MetaWorld
from reverie.envs.single import Arrival, Env, episode_seed
from reverie.envs.vector import InlineVec

pytestmark = [
    pytest.mark.metaworld,
    # its own models and the age of its dependencies
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

drawn = pytest.mark.dmc
RNG = np.random.default_rng(0)
ACTIONS = RNG.uniform(-1, 1, (25, 4)).astype(np.float32)
SEEDS = [episode_seed(0, "demo", 0, episode) for episode in range(3)]


def played(env: Env, seed: int, steps: int = 25) -> list[Any]:
    """All that an episode shows under the same actions."""
    shown = [env.reset(seed)]
    rewards = []
    for action in ACTIONS[:steps]:
        arrival = env.step(action)
        shown.append(arrival.obs)
        rewards.append(arrival.reward)
        if arrival.is_last:
            break
    return [*rewards, *(part for obs in shown for part in obs.values())]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def demonstrate(env: Env, seed: int) -> list[Arrival]:
    """Arrivals of an expert's episode, that of the reset first."""
    expert = make_expert(env.spec.task, env)
    arrivals = [Arrival(env.reset(seed))]
    expert.reset()
    while not arrivals[-1].is_last:
        arrivals.append(env.step(expert.act(arrivals[-1].obs)))
    return arrivals


def test_the_task_lists_are_meta_worlds() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    names = {f"{name}-v3" for name in TASKS}
    assert names == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP) and len(TASKS) == 50
    assert {*SIX, *FIFTEEN} <= set(TASKS)
    with pytest.raises(EnvError, match="found 'push-v3'"):
        MetaWorld("push-v3")


def test_what_an_environment_promises() -> None:
    vec = make_vec("metaworld/push", 1, seed=0)
    spec = vec.spec
    assert (spec.vector_size, spec.proprio_size, spec.action_size) == (39, 4, 4)
    assert spec.image_shape is None and not spec.discrete and spec.action_repeat == 1
    assert spec.has_success and spec.protocol == "metaworld=3.1.1,observe=state"
    assert vec.settings.observe == "state"  # type: ignore[attr-defined]
    row = vec.reset()
    assert row.obs.keys() == {"vector"} and row.obs["vector"].dtype == np.float32
    vec.close()
    vec.close()


@pytest.mark.parametrize("name", ["door-close", "door-open", "push", "hammer"])
def test_an_episode_is_a_function_of_its_seed(name: str) -> None:
    env, fresh = MetaWorld(name), MetaWorld(name)
    first = played(env, 5)
    other = played(env, 6)
    assert not same(first, other)
    demonstrate(make_env(f"metaworld/{name}"), 7)
    played(env, 8, steps=9)
    assert same(first, played(env, 5)) and same(first, played(fresh, 5))
    env.close()
    fresh.close()


def test_nothing_outside_is_disturbed_by_a_reset() -> None:
    a, b = MetaWorld("push"), MetaWorld("push")
    alone = played(a, 1), played(b, 2)
    np.random.seed(3)
    expected = np.random.uniform(size=4)
    np.random.seed(3)
    shown: dict[int, list[Any]] = {1: [a.reset(1)], 2: []}
    found = [np.random.uniform()]
    shown[2] = [b.reset(2)]
    found.append(np.random.uniform())
    rewards: dict[int, list[float]] = {1: [], 2: []}
    for action in ACTIONS:
        for key, env in ((1, a), (2, b)):
            arrival = env.step(action)
            shown[key].append(arrival.obs)
            rewards[key].append(arrival.reward)
    found += [np.random.uniform(), np.random.uniform()]
    assert np.array_equal(found, expected), "the user's generator stays as it was"
    for key, before in zip((1, 2), alone, strict=True):
        together = [*rewards[key], *(part for obs in shown[key] for part in obs.values())]
        assert same(before, together)
    a.close()
    b.close()


@pytest.mark.parametrize("name", TASKS)
def test_the_goal_is_seen_whole(name: str) -> None:
    env = MetaWorld(name)
    goals = []
    for seed in (1, 2):
        vectors = [env.reset(seed)["vector"], env.step(ACTIONS[0]).obs["vector"]]
        goal = np.asarray(env._env._target_pos, np.float32)
        assert np.abs(goal).max() > 0.05
        for vector in vectors:
            assert vector.shape == (39,) and np.array_equal(vector[36:], goal)
        # hand and gripper lead, and are what came one step before
        assert np.allclose(vectors[1][:3], env._env.get_endeff_pos(), atol=1e-6)
        assert np.array_equal(vectors[1][18:22], vectors[0][:4])
        goals.append(goal.tobytes())
    assert name in ("bin-picking", "hammer", "sweep-into") or goals[0] != goals[1]
    env.close()


def test_success_ends_the_episode_and_the_time_limit_is_none() -> None:
    env = make_env("metaworld/button-press")
    arrivals = demonstrate(env, SEEDS[0])
    assert 20 < len(arrivals) < 200
    assert [a.success for a in arrivals] == [False] * (len(arrivals) - 1) + [True]
    assert arrivals[-1].is_last and arrivals[-1].is_terminal
    env.reset(SEEDS[0])
    idle = [env.step(np.zeros(4, np.float32)) for _ in range(500)]
    assert [a.is_last for a in idle] == [False] * 499 + [True]
    assert not idle[-1].is_terminal and not idle[-1].success
    env.reset(SEEDS[1])
    assert not env.step(np.zeros(4, np.float32)).is_last, "a new episode has its own limit"
    env.close()
    short = make_vec("metaworld/button-press", 1, seed=0, time_limit=3)
    short.reset()
    rows = [short.step(np.zeros((1, 4), np.float32)) for _ in range(4)]
    assert [bool(r.is_last[0]) for r in rows] == [False, False, True, False]
    assert not rows[2].is_terminal[0] and rows[3].is_first[0]
    short.close()


@pytest.mark.parametrize("name", SIX)
def test_the_scripted_policies_solve_the_small_benchmark(name: str) -> None:
    env = make_env(f"metaworld/{name}")
    expert = make_expert(f"metaworld/{name}", env)
    assert expert.name == "metaworld 3.1.1 scripted policy"
    obs = env.reset(SEEDS[0])
    before = obs["vector"].copy()
    action = expert.act(obs)
    assert action.dtype == np.float32 and action.shape == (4,) and np.abs(action).max() <= 1
    assert np.array_equal(obs["vector"], before), "some policies write into what they are given"
    solved = [demonstrate(env, seed)[-1].success for seed in SEEDS]
    assert sum(solved) >= 2, solved
    env.close()


def test_success_crosses_the_process_boundary() -> None:
    vec = make_vec("metaworld/button-press", 2, seed=0, workers="process")
    inline = make_vec("metaworld/button-press", 2, seed=0, workers="inline")
    reader = make_env("metaworld/button-press")
    expert = make_expert("metaworld/button-press", reader)
    row, twin = vec.reset(), inline.reset()
    successes = np.zeros(2, int)
    for _ in range(100):
        action = np.stack([expert.act({"vector": v}) for v in row.obs["vector"]])
        row, twin = vec.step(action), inline.step(action)
        assert np.array_equal(row.obs["vector"], twin.obs["vector"])
        assert np.array_equal(row.info["success"], twin.info["success"])
        assert np.array_equal(row.info["success"], row.is_terminal)
        successes += row.info["success"]
    assert (successes >= 1).all()
    for env in (vec, inline, reader):
        env.close()


def cyan(image: Any) -> Any:
    """Mean (row, column) of the blue-green finger."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    pixels = np.argwhere((green - red > 80) & (blue - red > 80))
    assert len(pixels) > 5
    return pixels.mean(0)


@drawn
def test_pictures_stand_upright_and_are_not_mirrored() -> None:
    """Up is up, and what moves away from the robot's base (+y) moves to the right."""
    env = MetaWorld("reach", image_size=128, render="quick", observe="both")
    where = {}
    for name, move in {"up": (2, 1), "down": (2, -1), "far": (1, 1), "near": (1, -1)}.items():
        env.reset(1)
        action = np.zeros(4, np.float32)
        action[move[0]] = move[1]
        for _ in range(12):
            arrival = env.step(action)
        where[name] = cyan(arrival.obs["image"]), arrival.obs["vector"][:3]
    assert where["up"][1][2] > where["down"][1][2] + 0.05
    assert where["up"][0][0] < where["down"][0][0] - 8
    assert where["far"][1][1] > where["near"][1][1] + 0.05
    assert where["far"][0][1] > where["near"][0][1] + 8
    env.close()


@drawn
@pytest.mark.parametrize("render", ["quick", "reference"])
def test_the_same_state_is_the_same_picture(render: Any) -> None:
    env, other = (
        MetaWorld("door-open", image_size=48, render=render, observe="both") for _ in range(2)
    )
    first = env.reset(4)["image"]
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8 and first.std() > 20
    assert np.array_equal(first, env._obs(np.zeros(39))["image"])
    moved = played(env, 9, steps=5)[-2]
    assert not np.array_equal(first, moved) and first.flags.c_contiguous
    assert np.array_equal(first, other.reset(4)["image"])
    assert np.array_equal(first, env.reset(4)["image"])
    env.close()
    other.close()


@drawn
def test_profiles_differ_in_the_picture_alone() -> None:
    make = functools.partial(make_env, "metaworld/push", image_size=64)
    shown = {}
    for render in ("quick", "reference"):
        env = make(render=render, observe="both")  # type: ignore[arg-type]
        assert env.spec.protocol == f"metaworld=3.1.1,render={render},observe=both"
        shown[render] = played(env, 2, steps=4)
        env.close()
    state = make(observe="state")
    told = played(state, 2, steps=4)
    state.close()
    pairs = list(zip(shown["quick"], shown["reference"], strict=True))
    pictures = [pair for pair in pairs if np.ndim(pair[0]) == 3]
    assert len(pictures) == 5
    for a, b in pictures:
        assert 0 < np.abs(a.astype(int) - b).mean() < 12
        assert a[:4].mean() > 60, "the sky is drawn"
    rest = [[part for part in side if np.ndim(part) < 3] for side in shown.values()]
    assert same(rest[0], rest[1]) and same(rest[0], told), "looking changes nothing"


@drawn
def test_quality_is_chosen_before_the_context_is_made() -> None:
    """Shadow map and multisampling cost most of the time, and are fixed from then on."""
    for render, wanted in (("quick", False), ("reference", True)):
        env = MetaWorld("push", image_size=16, render=render, observe="image")  # type: ignore[arg-type]
        context = env._physics.contexts.mujoco.ptr
        assert (context.shadowSize > 0, context.offSamples > 0) == (wanted, wanted)
        env.close()


@drawn
def test_dm_control_draws_beside_it_without_harm() -> None:
    """Rendering contexts are switched at every picture; each has to find its own again."""
    mixed: dict[str, list[Any]] = {"dmc/cartpole_swingup": [], "metaworld/push": []}
    envs = {task: make_env(task, image_size=32, render="quick", observe="image") for task in mixed}
    alone = {}
    for task, env in envs.items():
        pictures = [env.reset(1)["image"]]
        action = np.full(env.spec.action_size, 0.5, np.float32)
        alone[task] = [*pictures, *(env.step(action).obs["image"] for _ in range(4))]
    for task, env in envs.items():
        mixed[task].append(env.reset(1)["image"])
    for _ in range(4):
        for task, env in envs.items():
            action = np.full(env.spec.action_size, 0.5, np.float32)
            mixed[task].append(env.step(action).obs["image"])
    for task, env in envs.items():
        assert same(alone[task], mixed[task]), task
        env.close()


def test_resuming_replays_the_episode() -> None:
    ctor = functools.partial(MetaWorld, "drawer-open")
    whole, resumed = InlineVec(ctor, 1, seed=3), InlineVec(ctor, 1, seed=3)
    whole.reset()
    for action in ACTIONS[:10]:
        row = whole.step(action[None])
    found = resumed.restore([0], [ACTIONS[:10]])
    assert np.array_equal(found.obs["vector"], row.obs["vector"])
    a, b = whole.step(ACTIONS[10:11]), resumed.step(ACTIONS[10:11])
    assert np.array_equal(a.obs["vector"], b.obs["vector"]) and a.reward == b.reward
    whole.close()
    resumed.close()
