"""The row contract, on every way to step environments."""

from __future__ import annotations

import functools
import importlib.metadata
import tomllib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from envs_doubles import LENGTH, SharedArray, SmallGrid, Truncating
from gymnasium.utils.env_checker import check_env
from packaging.requirements import Requirement

from reverie import envs
from reverie.envs import EnvError, EnvSettings, Step, make_vec
from reverie.envs.gym_export import gym_id
from reverie.envs.gym_import import GymEnv
from reverie.envs.process_vec import ProcessVec
from reverie.envs.single import episode_seed
from reverie.envs.toy import (
    CHAIN_LENGTH,
    IDENTITY_STEPS,
    ONES_STEPS,
    chain_value,
    counter_code,
    counter_length,
)
from reverie.envs.vector import InlineVec

SMALL: dict[str, dict[str, Any]] = {
    "toy/counter": {"image_size": 16},
    "toy/identity": {"image_size": 16},
    "toy/chain": {},
    "toy/ones": {},
    "toy/dot": {"image_size": 16},
    "toy/catch": {"image_size": 24},
    "torch/dots": {"image_size": 16},
    "gym/CartPole-v1": {},
    "atari/pong": {"time_limit": 25},
    "dmc/cartpole_swingup": {"image_size": 32, "render": "quick", "time_limit": 12},
}


SIMULATORS = ("atari/pong", "dmc/cartpole_swingup")
EVERY = [pytest.param(t, marks=pytest.mark.slow) if t in SIMULATORS else t for t in SMALL]


def random_actions(spec: envs.EnvSpec, num_envs: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    if spec.discrete:
        eye = np.eye(spec.action_size, dtype=np.float32)
        return eye[rng.integers(0, spec.action_size, (steps, num_envs))]
    return rng.uniform(-1, 1, (steps, num_envs, spec.action_size)).astype(np.float32)


def same(a: Step, b: Step) -> bool:
    pairs = [(a.obs[k], b.obs[k]) for k in a.obs]
    pairs += [(getattr(a, k), getattr(b, k)) for k in ("reward", "is_last", "is_terminal")]
    return a.obs.keys() == b.obs.keys() and all(np.array_equal(x, y) for x, y in pairs)


def make(task: str, num_envs: int = 2, **options: Any) -> Any:
    return make_vec(task, num_envs, **({"seed": 7, "workers": "inline"} | SMALL[task] | options))


@pytest.mark.parametrize("workers", ["inline", "process"])
def test_trap_07_reset_rows_are_first_and_carry_nothing(workers: Any) -> None:
    vec = make("toy/counter", 3, workers=workers)
    row = vec.reset()
    actions = random_actions(vec.spec, 3, 40)
    time = np.zeros(3, int)
    seen_first = 0
    for action in actions:
        ended = row.is_last.copy()
        row = vec.step(action)
        time = np.where(ended, 0, time + 1)
        assert np.array_equal(row.is_first, ended)
        assert np.array_equal(row.reward, time)
        for slot in range(3):
            key, t, taken = counter_code(row.obs["image"][slot])
            assert key == episode_seed(7, "train", slot, int(vec.episodes[slot]))
            assert (t, taken) == (time[slot], 0 if ended[slot] else action[slot].argmax())
            # the true last observation is the one that carries is_last
            assert row.is_last[slot] == (t == counter_length(key))
            assert row.is_terminal[slot] == (row.is_last[slot] and key % 2 == 1)
        seen_first += ended.sum()
    assert seen_first >= 9
    vec.close()


def test_trap_05_a_time_limit_is_no_termination() -> None:
    vec = InlineVec(Truncating, 8, seed=0)
    vec.reset()
    for _ in range(LENGTH):
        row = vec.step(np.zeros((8, 1), np.float32))
    even = [episode_seed(0, "train", slot, 0) % 2 == 0 for slot in range(8)]
    assert row.is_last.all() and 0 < sum(even) < 8
    assert np.array_equal(row.is_terminal, even)
    limited = make("toy/ones", time_limit=4)
    limited.reset()
    ends = [limited.step(np.zeros((2, 1), np.float32)) for _ in range(4)]
    assert [r.is_last.all() for r in ends] == [False, False, False, True]
    assert not any(r.is_terminal.any() for r in ends)


@pytest.mark.parametrize("workers", ["inline", "process"])
def test_trap_06_an_env_that_reuses_its_array_loses_nothing(workers: str) -> None:
    ctor = functools.partial(GymEnv, SharedArray, "mine/shared")
    form = InlineVec if workers == "inline" else ProcessVec
    vec = form(ctor, 2, seed=0)
    rows = [vec.reset()] + [vec.step(np.eye(3, dtype=np.float32)[:2]) for _ in range(2 * LENGTH)]
    clock = [int(r.obs["vector"][0, 0]) for r in rows]
    assert clock == [*range(LENGTH + 1), *range(LENGTH)]
    assert [bool(r.is_last[0]) for r in rows[: LENGTH + 1]] == [False] * LENGTH + [True]
    vec.close()
    broken = functools.partial(GymEnv, functools.partial(SharedArray, 3), "mine/shared")
    vec = form(broken, 1, seed=0)
    rows = [vec.reset()] + [vec.step(np.eye(3, dtype=np.float32)[:1]) for _ in range(3)]
    assert rows[-1].info["interrupted"][0] and rows[-1].obs["vector"][0, 0] == 2
    vec.close()


@pytest.mark.parametrize("task", EVERY)
def test_same_seed_twice_and_another_seed(task: str) -> None:
    def play(**options: Any) -> list[Step]:
        vec = make(task, **options)
        actions = random_actions(vec.spec, 2, 40)
        rows = [vec.reset(), *(vec.step(a) for a in actions)]
        vec.close()
        return rows

    first, again, other = play(), play(), play(seed=8)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert all(r.obs.keys() == first[0].obs.keys() for r in first)
    if task != "toy/ones":
        assert not all(same(a, b) for a, b in zip(first, other, strict=True))
        evaluation = play(purpose="eval")
        assert not all(same(a, b) for a, b in zip(first, evaluation, strict=True))


@pytest.mark.parametrize("task", SMALL)
def test_restore_equals_the_uninterrupted_run(task: str) -> None:
    steps, more = 31, 30
    whole = make(task)
    actions = random_actions(whole.spec, 2, steps + more)
    row = whole.reset()
    log: list[list[np.ndarray]] = [[], []]
    for action in actions[:steps]:
        ended = row.is_last
        row = whole.step(action)
        for slot in range(2):
            log[slot] = [] if ended[slot] else [*log[slot], action[slot]]
    resumed = make(task)
    shape = (-1, whole.spec.action_size)
    found = resumed.restore(
        list(whole.episodes), [np.asarray(a, np.float32).reshape(shape) for a in log]
    )
    assert same(found, row) and np.array_equal(found.is_first, row.is_first)
    for action in actions[steps:]:
        assert same(resumed.step(action), whole.step(action))
    assert np.array_equal(resumed.episodes, whole.episodes)
    if task not in ("torch/dots",):
        assert whole.episodes.max() > 0, "the test has to cross an episode boundary"
    whole.close()
    resumed.close()


@pytest.mark.parametrize("episode", [0, 3])
@pytest.mark.parametrize("task", ["atari/pong", "dmc/cartpole_swingup", "toy/dot"])
def test_an_episode_does_not_know_its_predecessors(task: str, episode: int) -> None:
    """Trap 23 for every simulator: reached by playing or begun directly, the bits are equal."""
    played, direct = make(task), make(task)
    action = random_actions(played.spec, 2, 1)[0]
    row = played.reset()
    while played.episodes[0] < episode or not row.is_first[0]:
        row = played.step(action)
    begun = direct.restore(list(played.episodes), [action[:0]] * 2)
    for _ in range(8):
        assert np.array_equal(row.obs["image"][0], begun.obs["image"][0])
        row, begun = played.step(action), direct.step(action)
    played.close()
    direct.close()


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_trap_16_frames_are_agent_steps_times_action_repeat(repeat: int) -> None:
    vec = make("toy/counter", 1, action_repeat=repeat, time_limit=2)
    assert vec.spec.action_repeat == vec.settings.action_repeat == repeat
    key = counter_code(vec.reset().obs["image"][0])[0]
    row = vec.step(np.eye(4, dtype=np.float32)[:1])
    frames = counter_code(row.obs["image"][0])[1]
    assert frames == min(repeat, counter_length(key))
    assert row.reward[0] == sum(range(1, repeat + 1))


def test_trap_21_evaluation_settings_and_slots() -> None:
    train = make("toy/counter", 2)
    evaluation = make("toy/counter", 5, seed=9, purpose="eval")
    envs.require_same_settings(train.settings, evaluation.settings)
    other = EnvSettings("toy/counter", image_size=16, time_limit=3)
    with pytest.raises(EnvError, match="time_limit: trained with None, evaluated with 3"):
        envs.require_same_settings(train.settings, other)
    envs.require_same_settings(train.settings, other, allowed={"time_limit"})
    # constructed once and used again: the second evaluation sees the same episodes
    first = evaluation.reset()
    for action in random_actions(evaluation.spec, 5, 13):
        evaluation.step(action)
    assert same(first, evaluation.reset()) and (evaluation.episodes == 0).all()


def test_trap_26_declared_bounds_are_met_by_what_is_installed() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    declared = [Requirement(r) for r in tomllib.loads(text)["project"]["dependencies"]]
    for requirement in declared:
        found = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(found, prereleases=True), (requirement, found)
    mujoco = next(r for r in declared if r.name == "mujoco")
    assert not mujoco.specifier.contains("4.0.0") and mujoco.specifier.contains("3.17.0")
    make("dmc/cartpole_swingup", 1).close()


def test_closed_forms_of_the_toys() -> None:
    vec = make("toy/chain", 4)
    row = vec.reset()
    start = row.obs["vector"].argmax(1)
    returns, discount = np.zeros(4), 1.0
    for _ in range(CHAIN_LENGTH):
        row = vec.step(np.tile(np.float32([0, 1]), (4, 1)))
        returns += discount * row.reward * (vec.episodes == 0)
        discount *= 0.9
    assert np.allclose(returns, [chain_value(int(s), 0.9) for s in start])
    assert chain_value(CHAIN_LENGTH - 1, 0.9) == 0
    identity = make("toy/identity", 1)
    row = identity.reset()
    total = 0.0
    while not row.is_last[0]:
        y, x = np.argwhere(row.obs["image"][0, :, :, 0])[0] // 8
        row = identity.step(np.eye(4, dtype=np.float32)[[2 * y + x]])
        total += row.reward[0]
    assert total == IDENTITY_STEPS
    ones = make("toy/ones", 1)
    ones.reset()
    rows = [ones.step(np.zeros((1, 1), np.float32)) for _ in range(ONES_STEPS)]
    assert all(r.reward[0] == 1 for r in rows) and rows[-1].is_last[0]
    assert not rows[-1].is_terminal[0]


@pytest.mark.parametrize(
    "task",
    ["toy/counter", "toy/identity", "toy/chain", "toy/dot", "toy/catch", "dmc/cartpole_balance"],
)
def test_gymnasium_check_env(task: str) -> None:
    options: dict[str, Any] = {"render": "quick"} if task.startswith("dmc") else {}
    if task != "toy/chain":
        options["render_mode"] = "rgb_array"
    env = gymnasium.make(f"reverie.envs:{gym_id(task)}", **options)
    check_env(env.unwrapped)
    first, again = env.reset(seed=3)[0], env.reset(seed=3)[0]
    assert all(np.array_equal(first[k], again[k]) for k in again)
    env.close()


def test_gymnasium_rendering_needs_a_picture() -> None:
    with pytest.raises(EnvError, match="render_mode"):
        gymnasium.make(gym_id("toy/chain"), render_mode="rgb_array")


def test_a_users_own_gymnasium_env() -> None:
    envs.register("mine/grid", SmallGrid)
    for workers in ("inline", "process"):
        vec = make_vec("mine/grid", 2, seed=0, image_size=16, workers=workers)  # type: ignore[arg-type]
        assert vec.spec.image_shape == (16, 16, 2) and vec.spec.vector_size == 3
        row = vec.reset()
        assert row.obs["image"].dtype == np.uint8 and row.obs["vector"].dtype == np.float32
        row = vec.step(np.float32([[-1], [1]]))
        assert row.reward.tolist() == [-2, 6] and (row.obs["image"] == 1).all()
        vec.close()
    cartpole = make_vec("gym/CartPole-v1", 1, seed=0)
    assert cartpole.spec.vector_size == 4 and cartpole.spec.image_shape is None
    assert cartpole.spec.discrete and cartpole.spec.action_size == 2


@pytest.mark.parametrize("pattern", ["toy/countr", "dmc/cartpole-swingup", "pong", "gym/Nope-v9"])
def test_unknown_tasks_are_named_with_a_way_out(pattern: str) -> None:
    with pytest.raises(EnvError, match=r"Did you mean|reverie tasks|installed Gymnasium"):
        make_vec(pattern, 1, seed=0)


def test_wrong_calls_are_refused() -> None:
    vec = make("toy/ones")
    with pytest.raises(EnvError, match="reset"):
        vec.step(np.zeros((2, 1), np.float32))
    vec.reset()
    for action in (np.zeros((2, 1)), np.zeros((1, 1), np.float32), np.float32([[np.nan], [0]])):
        with pytest.raises(EnvError, match="expected f"):
            vec.step(action)
    with pytest.raises(EnvError, match="lambda"):
        ProcessVec(lambda: Truncating(), 1, seed=0)
    with pytest.raises(EnvError, match="num_envs=0"):
        make("toy/ones", 0)
    with pytest.raises(EnvError, match="image_size >= 1"):
        make("toy/dot", 1, image_size=0)
    log = np.zeros((ONES_STEPS + 1, 1), np.float32)
    with pytest.raises(EnvError, match="ended before"):
        vec.restore([0, 0], [log, log])


@pytest.mark.parametrize("setting", [{"gray": True}, {"life_loss": True}, {"sticky": 0.25}])
@pytest.mark.parametrize("task", ["toy/dot", "torch/dots", "gym/CartPole-v1", "dmc/walker_walk"])
def test_other_suites_refuse_what_only_games_have(task: str, setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(EnvError, match=f"expected {name} .*only atari"):
        make_vec(task, 1, seed=0, **setting)


def test_rows_belong_to_the_receiver() -> None:
    for workers in ("inline", "process"):
        vec = make("toy/counter", 2, workers=workers)
        first = vec.reset()
        kept = first.obs["image"].copy()
        second = vec.step(random_actions(vec.spec, 2, 1)[0])
        assert np.array_equal(first.obs["image"], kept)
        second.obs["image"][:] = 0
        second.is_last[:] = True  # must not make the environment reset
        assert not vec.step(random_actions(vec.spec, 2, 1)[0]).is_first.any()
        vec.close()
