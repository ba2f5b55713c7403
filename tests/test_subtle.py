"""DMC-Subtle: a running model with small objects is the model compiled with small objects."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from distractor_stage import CountingSource, Stage, model_arrays

from reverie.envs import EnvError
from reverie.envs.distractors import subtle
from reverie.envs.specs import Array

pytestmark = pytest.mark.dmc

NAMES = (
    "ball_in_cup_catch",
    "cartpole_swingup",
    "finger_turn_hard",
    "point_mass_easy",
    "reacher_hard",
)
WRITTEN = {
    "ball_in_cup": [
        ('type="sphere" size=".025"', f'type="sphere" size="{0.025 / 12}"'),
        ('width="0.003"', f'width="{0.003 / 12}"'),
    ],
    "cartpole": [('size="0.045"', f'size="{0.045 / 20}"')],
    "point_mass": [
        ('type="sphere" size=".01" material="self"', f'size="{0.01 / 6}" material="self"'),
        ('type="sphere" size=".015"', f'type="sphere" size="{0.015 / 6}"'),
    ],
}


def size(stage: Stage, kind: str, name: str) -> float:
    model = stage.physics.model
    return float(getattr(model, f"{kind}_size")[model.name2id(name, kind), 0])


@pytest.mark.parametrize("task", ["catch", "swingup", "easy"])
def test_the_model_is_the_one_compiled_with_smaller_sizes(task: str) -> None:
    import mujoco

    domain = {"catch": "ball_in_cup", "swingup": "cartpole", "easy": "point_mass"}[task]
    text, assets = importlib.import_module(f"dm_control.suite.{domain}").get_model_and_assets()
    smaller = text.decode()
    for old, new in WRITTEN[domain]:
        assert smaller.count(old) == 1
        smaller = smaller.replace(old, new)
    wanted = mujoco.MjModel.from_xml_string(smaller, assets)
    with Stage(f"{domain}_{task}") as stage:
        stock = model_arrays(stage.physics.model)
        made = subtle.Shrunk()
        made.attach(stage.physics, domain=domain, task=task, camera_id=0, size=32)
        found = model_arrays(stage.physics.model)
        changed = {k for k in stock if not np.array_equal(stock[k], found[k])}
        assert "geom_size" in changed and "body_inertia" in changed
        for name, value in found.items():
            assert np.allclose(value, getattr(wanted, name), rtol=1e-6, atol=1e-12), name
        assert np.isclose(stage.physics.model.stat.meaninertia, wanted.stat.meaninertia)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind", "name", "wanted"),
    [
        ("ball_in_cup_catch", "geom", "ball", 0.025 / 12),
        ("cartpole_balance", "geom", "pole_1", 0.045 / 20),
        ("point_mass_hard", "geom", "pointmass", 0.01 / 6),
        ("point_mass_easy", "geom", "target", 0.015 / 6),
        ("finger_turn_easy", "site", "target", 0.03 / 2),
        ("finger_turn_hard", "site", "target", 0.03 / 2),
        ("reacher_easy", "geom", "target", 0.015 / 3),
        ("reacher_hard", "geom", "target", 0.015 / 3),
    ],
)
def test_sizes_hold_after_every_reset(task: str, kind: str, name: str, wanted: float) -> None:
    with Stage(task, subtle.Shrunk()) as stage:
        for seed in range(3):
            stage.reset(seed)
            assert np.isclose(size(stage, kind, name), wanted, rtol=1e-6)
            assert np.isfinite([stage.step() for _ in range(3)]).all()


@pytest.mark.slow
@pytest.mark.parametrize("task", NAMES)
def test_pictures_are_subtle_and_seeded(task: str) -> None:
    def drawn(made: subtle.Shrunk | None) -> Array:
        with Stage(task, made) as stage:
            stage.reset(1)
            return stage.picture()

    stock, small = drawn(None), drawn(subtle.Shrunk())
    assert np.array_equal(small, drawn(subtle.Shrunk()))
    assert 0 < (stock != small).any(-1).mean() < 0.25


def test_a_smaller_target_is_harder_to_hit() -> None:
    """Rewards are those of the sizes that are seen."""
    with Stage("reacher_easy") as plain, Stage("reacher_easy", subtle.Shrunk()) as small:
        for stage in (plain, small):
            stage.reset(0)
            data, model = stage.physics.data, stage.physics.model
            target = model.name2id("target", "geom")
            model.geom_pos[target, :2] = data.geom_xpos[model.name2id("finger", "geom"), :2]
            model.geom_pos[target, 0] += 0.03
            stage.physics.forward()
        rewards = [s.env.task.get_reward(s.physics) for s in (plain, small)]
    assert rewards == [1.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("task", NAMES)
def test_closing_gives_everything_back(task: str) -> None:
    with Stage(task) as stage:
        stage.reset(5)
        before = model_arrays(stage.physics.model)
        domain, _, name = task.rpartition("_")
        domain, name = (domain, name) if domain != "finger_turn" else ("finger", "turn_hard")
        made = stage.distraction = subtle.Shrunk()
        made.attach(stage.physics, domain=domain, task=name, camera_id=0, size=32)
        stage.play(5, 2)
        changed = model_arrays(stage.physics.model)
        assert any(not np.array_equal(before[k], changed[k]) for k in before)
        made.close()
        stage.distraction = None
        for given_back in ("at once", "after a reset"):
            after = model_arrays(stage.physics.model)
            assert [k for k in before if not np.array_equal(before[k], after[k])] == [], given_back
            stage.reset(5)


def test_where_it_is_defined() -> None:
    preset = subtle.PRESETS["subtle"]
    assert preset.defined("cartpole", "swingup") and preset.defined("finger", "turn_hard")
    assert not preset.defined("cartpole", "two_poles") and not preset.defined("finger", "spin")
    assert not preset.defined("walker", "walk")
    with pytest.raises(EnvError, match="expected the mask 'preset', found 'blue'"):
        preset.build(CountingSource(), "train", "blue")
    with (
        Stage("cartpole_two_poles") as stage,
        pytest.raises(EnvError, match=r"expected .* of shape"),
    ):
        made = subtle.Shrunk()
        made.attach(stage.physics, domain="cartpole", task="two_poles", camera_id=0, size=32)
