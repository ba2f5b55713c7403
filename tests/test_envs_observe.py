"""What a task shows: pictures, its state, or both; and sets of tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reverie.agents import launch
from reverie.agents.configs import ConfigError
from reverie.agents.resolve import resolve
from reverie.agents.trainer import build_env
from reverie.benchmarks import cli, doctor
from reverie.envs import EnvError, Step, make_env, make_vec, rendering, tasks
from reverie.envs.dmc import MAX_CONTROL, DmControl
from reverie.envs.registry import TASK_SETS, members, require_known

SMALL: dict[str, Any] = {"image_size": 16, "render": "quick", "time_limit": 5}


def rows_of(observe: Any, task: str = "dmc/cartpole_swingup", **options: Any) -> list[Step]:
    vec = make_vec(task, 1, seed=3, observe=observe, **(SMALL | options))
    actions = np.random.default_rng(0).uniform(-1, 1, (7, 1, vec.spec.action_size))
    rows = [vec.reset(), *(vec.step(a) for a in actions.astype(np.float32))]
    vec.close()
    return rows


@pytest.mark.dmc
def test_state_and_pictures_are_of_the_same_episode() -> None:
    image, state, both = (rows_of(observe) for observe in ("image", "state", "both"))
    for a, b, c in zip(image, state, both, strict=True):
        assert (a.obs.keys(), b.obs.keys()) == ({"image"}, {"vector"})
        assert np.array_equal(a.obs["image"], c.obs["image"])
        assert np.array_equal(b.obs["vector"], c.obs["vector"])
        assert a.reward == b.reward == c.reward and a.is_last == b.is_last == c.is_last
    assert len({row.obs["vector"].tobytes() for row in state[:6]}) == 6
    assert all(r.obs["vector"].dtype == np.float32 for r in state)


@pytest.mark.dmc
@pytest.mark.parametrize(
    ("name", "size"), [("cartpole_swingup", 5), ("hopper_hop", 15), ("fish_swim", 24)]
)
def test_the_vector_is_the_suites_observation_in_its_order(name: str, size: int) -> None:
    env = DmControl(name, observe="state", render="quick")
    assert env.spec.vector_size == size and env.spec.image_shape is None
    assert env.spec.proprio_size == 0 and env.spec.protocol == "observe=state"
    first = env.reset(5)["vector"]
    arrival = env.step(np.full(env.spec.action_size, 0.3, np.float32))
    for vector, moved in ((first, False), (arrival.obs["vector"], True)):
        assert vector.shape == (size,)
        told = env._env.task.get_observation(env._env.physics)
        flat = np.concatenate([np.ravel(part) for part in told.values()])
        assert np.allclose(vector, flat, rtol=1e-6) == moved
    env.close()


@pytest.mark.dmc
def test_a_state_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(rendering, "_library", lambda name: False)
    env = make_env("dmc/cartpole_swingup", observe="state")
    env.reset(0)
    env.step(np.zeros(1, np.float32))
    assert env._env._env.physics._contexts is None  # type: ignore[attr-defined]
    env.close()
    for observe in ("auto", "image", "both"):
        with pytest.raises(EnvError, match=r"no off-screen OpenGL library.*apt-get"):
            make_env("dmc/cartpole_swingup", observe=observe)  # type: ignore[arg-type]


@pytest.mark.dmc
def test_auto_is_written_down_as_what_it_stands_for() -> None:
    vec = make_vec("dmc/cartpole_swingup", 1, seed=0, **SMALL)
    assert vec.settings.observe == "image" and vec.spec.protocol == "render=quick"  # type: ignore[attr-defined]
    vec.close()
    vec = make_vec("dmc/cartpole_swingup", 1, seed=0, observe="both", **SMALL)
    assert vec.spec.protocol == "render=quick,observe=both"
    assert vec.spec.image_shape == (16, 16, 3) and vec.spec.vector_size == 5
    vec.close()
    vec = make_vec("toy/dot", 1, seed=0)
    assert vec.settings.observe == "auto"  # type: ignore[attr-defined]


@pytest.mark.parametrize("observe", ["image", "state", "both"])
@pytest.mark.parametrize("task", ["toy/dot", "torch/dots", "gym/CartPole-v1", "atari/pong"])
def test_other_suites_refuse_the_setting(task: str, observe: Any) -> None:
    with pytest.raises(EnvError, match=rf"{task}: expected observe auto, found {observe}; .*Leave"):
        make_vec(task, 1, seed=0, observe=observe)


def test_a_wrong_word_is_answered_with_the_right_ones() -> None:
    with pytest.raises(EnvError, match="one of auto, image, state, both; found 'pixels'"):
        make_vec("dmc/cartpole_swingup", 1, seed=0, observe="pixels")  # type: ignore[arg-type]


@pytest.mark.dmc
def test_the_setting_reaches_training_and_the_look_before_it(tmp_path: Path) -> None:
    def config(agent: str = "mudreamer", **env: Any) -> Any:
        own = {"agent": agent, "task": "dmc/cartpole_swingup", "run": str(tmp_path / "run")}
        return resolve({**own, "size": "nano", "env": {"render": "quick", **env}})

    both = config(observe="both", image_size=32)
    env = build_env(both, "train", 1)
    assert env.spec.vector_size == 5 and env.spec.image_shape == (32, 32, 3)
    env.close()
    spec = launch._spec(config(observe="state"))
    assert spec is not None and spec.vector_size == 5 and spec.image_shape is None
    assert launch._spec(config()) is None
    with pytest.raises(ConfigError, match="spr learns from images"):
        launch.launch(config("spr", observe="state", image_size=84))
    assert not (tmp_path / "run").exists()


@pytest.mark.dmc
def test_actuators_without_limits_get_some() -> None:
    env = DmControl("lqr_lqr_2_1", observe="state", action_repeat=1)
    assert env._env.action_spec().maximum[0] > 1e9
    env.reset(0)
    for action, control in ((0.25, 0.25 * MAX_CONTROL), (-3.0, -MAX_CONTROL)):
        arrival = env.step(np.float32([action]))
        assert env._env.physics.data.ctrl[0] == control
        assert abs(arrival.reward) < 100
    env.close()


def test_sets_are_tasks_to_learn_together() -> None:
    assert [len(TASK_SETS[f"metaworld/{n}"]) for n in ("six", "fifteen", "fifty")] == [6, 15, 50]
    known = {info.task for info in tasks()}
    for name, group in TASK_SETS.items():
        assert set(group) <= known and len(set(group)) == len(group)
        assert members(name) == group
        for build in (make_env, lambda task: make_vec(task, 1, seed=0)):
            with pytest.raises(EnvError, match=f"{name} is a set of tasks.*{group[0]}"):
                build(name)
    assert members("dmc/walker_walk") == ("dmc/walker_walk",)
    assert members("metaworld/push") == ("metaworld/push",)
    with pytest.raises(EnvError, match="Did you mean metaworld/fifteen"):
        require_known("metaworld/fiveteen")
    with pytest.raises(EnvError, match="the script that registers it"):
        require_known("mine/reach")


def test_tasks_and_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "metaworld/"]) == 0
    shown = capsys.readouterr().out
    assert "metaworld/peg-insert-side" in shown and "set of 15 tasks" in shown
    assert cli.main(["tasks", "metaworld/six"]) == 0
    shown = capsys.readouterr().out
    assert "set of 6 tasks" in shown and "peg-insert" not in shown


def test_meta_world_that_is_not_there_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    for observe in ("auto", "both"):
        with pytest.raises(EnvError, match=r"reverie\[metaworld\].*mujoco 3.3.0"):
            make_env("metaworld/push", observe=observe)  # type: ignore[arg-type]
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_metaworld,))
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "not installed; optional" in shown and "[metaworld]" in shown
