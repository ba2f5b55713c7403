"""Natural backgrounds: what they replace and leave alone, their clocks, how they are asked for."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from distractor_stage import CountingSource, Stage, model_arrays

from reverie.envs.distractors import natural
from reverie.envs.distractors.masks import blue_mask
from reverie.envs.distractors.natural import FLOOR_SHOWN, NaturalPreset
from reverie.envs.distractors.player import ClipPlayer, Showing
from reverie.envs.distractors.presets import (
    PRESETS,
    clip_size,
    has_splits,
    names,
    preset,
    uses_clips,
)
from reverie.envs.distractors.sources import make_source
from reverie.envs.registry import make_env, make_vec
from reverie.envs.specs import Array, EnvError

SIZE = 48


def stage(task: str, name: str | None, *, mask: Any = "preset", source: Any = None) -> Stage:
    if name is None:
        return Stage(task)
    found = source or make_source("procedural", size=SIZE)
    return Stage(task, natural.PRESETS[name].build(found, "train", mask))


def player(showing: Showing, *, clips: int = 3, seed: int = 0) -> ClipPlayer:
    found = ClipPlayer(showing, CountingSource(clips=clips), "train")
    found.reset(np.random.default_rng(seed))
    return found


def level(shown: Array) -> int:
    """Number of the counting clip's frame."""
    return int(shown[0, -1, 1])


# what stays


@pytest.mark.dmc
@pytest.mark.parametrize("name", natural.PRESETS)
def test_physics_and_rewards_are_those_of_the_plain_task(name: str) -> None:
    found = []
    for distractor in (None, name):
        with stage("cheetah_run", distractor) as played:
            found.append([played.play(seed, 6) for seed in (0, 1)])
    for plain, distracted in zip(*found, strict=True):
        assert np.array_equal(plain[0], distracted[0]) and plain[1] == distracted[1]
        assert not np.array_equal(plain[2], distracted[2])


@pytest.mark.dmc
@pytest.mark.parametrize("task", ["cartpole_swingup", "finger_spin", "walker_walk", "reacher_hard"])
@pytest.mark.parametrize("name", ["dreamerpro", "tpc", "mudreamer"])
def test_what_is_not_blue_keeps_every_bit_and_the_rest_is_the_film(name: str, task: str) -> None:
    with stage(task, None) as plain, stage(task, name) as distracted:
        frames = []
        (_, _, before), player = plain.play(3, 4), distracted.distraction.player
        distracted.reset(3)
        after = [distracted.picture()]
        frames.append(player.frame())
        for _ in range(4):
            distracted.step()
            after.append(distracted.picture())
            frames.append(player.frame())
    for scene, seen, film in zip(before, after, frames, strict=True):
        red, green, blue = np.moveaxis(scene.astype(int), -1, 0)
        cut = (blue > red) & (blue > green)
        assert 0.8 < cut.mean() < 1.0
        assert np.array_equal(seen[~cut], scene[~cut]) and np.array_equal(seen[cut], film[cut])


def test_the_blue_rule_is_strict() -> None:
    picture = np.array([[[9, 9, 10], [10, 9, 10], [9, 10, 10], [0, 0, 1], [0, 0, 0]]], np.uint8)
    assert blue_mask(picture).tolist() == [[True, False, False, True, False]]


@pytest.mark.dmc
@pytest.mark.parametrize(
    "task", ["reacher_easy", "finger_spin", "quadruped_escape", "cheetah_run", "stacker_stack_2"]
)
def test_segmentation_keeps_all_of_every_body(task: str) -> None:
    import mujoco

    with stage(task, None) as plain, stage(task, "dreamerpro", mask="exact") as distracted:
        for step in range(3):
            (scene, seen) = (one.play(5, step)[2][-1] for one in (plain, distracted))
            segmented = plain.camera.render(segmentation=True)
            index, kind = segmented[..., 0], segmented[..., 1]
            model = plain.physics.model
            types = np.append(model.geom_type, -1)[np.where(kind == 5, index, -1)]
            assert int(mujoco.mjtObj.mjOBJ_GEOM) == 5
            flat = np.isin(types, [0, 1])  # plane and height field
            body = (index >= 0) & ~((kind == 5) & flat)
            assert 0 < body.mean() < 0.5
            assert np.array_equal(seen[body], scene[body]), task
            film = distracted.distraction.player.frame()
            assert np.array_equal(seen[~body], film[~body]), task
            if task == "reacher_easy":
                target = model.name2id("target", "geom")
                assert (index == target).any() and body[index == target].all()
                assert not body[0, 0], "a corner shows wall or ground"


@pytest.mark.dmc
@pytest.mark.parametrize("task", ["cheetah_run", "cartpole_swingup"])
def test_a_repainted_floor_stays_where_the_original_has_a_grey_one(task: str) -> None:
    with stage(task, "dbc", source=CountingSource(size=SIZE)) as played:
        seen = played.play(0, 1)[2][-1]
        floor = played.camera.render(segmentation=True)[..., 0] == 0
        film = played.distraction.player.frame()
    assert floor.mean() > 0.05
    dark = ((seen >= 8) & (seen <= 60)).all(-1) & (seen[..., 2] == seen[..., 0])
    if task.partition("_")[0] in FLOOR_SHOWN:
        assert dark[floor].mean() > 0.95
    else:
        assert (seen[floor] == film[floor]).all(-1).mean() > 0.95


@pytest.mark.dmc
@pytest.mark.parametrize("name", natural.PRESETS)
def test_closing_gives_the_model_back(name: str) -> None:
    with Stage("walker_walk") as plain:
        plain.reset(0)
        expected = model_arrays(plain.physics.model)
    with stage("walker_walk", name) as played:
        played.play(0, 2)
        changed = model_arrays(played.physics.model)
        assert (name in ("dbc", "repo")) == any(
            not np.array_equal(changed[key], expected[key]) for key in ("mat_rgba", "tex_data")
        )
        played.distraction.close()
        found = model_arrays(played.physics.model)
    for key in ("mat_rgba", "tex_data", "tex_height", "geom_rgba"):
        assert np.array_equal(found[key], expected[key]), key


# clocks


@pytest.mark.parametrize(("name", "pace"), [("dreamerpro", 1), ("dbc", 1), ("tpc", 3), ("repo", 3)])
def test_a_clock_runs_at_its_pace_under_action_repeat(name: str, pace: int) -> None:
    shown = player(natural.PRESETS[name].showing)
    assert shown.clip is not None
    places = []
    for _ in range(2):
        for _ in range(3):  # the action repeat
            shown.after_simulator_step()
        shown.after_agent_step()
        places.append((shown.clip, shown.position))
    whole = player(natural.PRESETS[name].showing)
    for count in range(1, 2 * pace + 1):
        whole._turn()
        if count % pace == 0:
            clip, position = places[count // pace - 1]
            assert clip.id == whole.clip.id and position == whole.position  # type: ignore[union-attr]


def test_a_clip_wraps_or_another_one_follows() -> None:
    wraps = player(Showing("agent", start="zero"))
    first = wraps.clip
    assert first is not None and wraps.position == 0
    for step in range(1, 2 * first.length):
        wraps.after_agent_step()
        assert level(wraps.frame()) == step % first.length
    draws = player(Showing("agent", start="zero", end="next"), clips=40)
    seen = [draws.clip]
    for _ in range(400):
        draws.after_agent_step()
        if draws.position == 0:
            seen.append(draws.clip)
    assert len({clip.id for clip in seen if clip}) > 5


def test_starts_are_anywhere_or_at_zero_and_limits_hold() -> None:
    everywhere = {(p.clip.id, p.position) for p in (player(SHOW, seed=s) for s in range(300))}  # type: ignore[union-attr]
    assert everywhere == {(f"train-{i}", at) for i in range(3) for at in range(7 + i)}
    capped = [player(dataclasses.replace(SHOW, frames=4, clips=2), seed=s) for s in range(99)]
    assert {p.position for p in capped} == {0, 1, 2, 3}
    assert {p.clip.id for p in capped} == {"train-0", "train-1"}  # type: ignore[union-attr]
    seconds = player(Showing("agent", start="zero", seconds=0.1))  # at 30 frames per second
    for _ in range(3):
        seconds.after_agent_step()
    assert seconds.position == 0


SHOW = Showing("agent")


def test_a_reel_is_clips_one_behind_the_other_up_to_its_length() -> None:
    reel = player(Showing("agent", total=10))
    places = set()
    for _ in range(25):
        assert reel.clip is not None
        places.add((reel.clip.id, reel.position))
        reel.after_agent_step()
    assert places == {("train-0", i) for i in range(7)} | {("train-1", i) for i in range(3)}
    starts = {(p.clip.id, p.position) for p in (player(reel.showing, seed=s) for s in range(200))}  # type: ignore[union-attr]
    assert starts == places


def test_grey_is_grey() -> None:
    shown = player(Showing("agent", gray=True))
    picture = shown.frame()
    assert picture.dtype == np.uint8 and (picture == picture[..., :1]).all()
    assert int(picture[0, 0, 0]) > int(picture[0, -1, 0]), "red counts"


def test_only_repo_is_tested_on_the_clips_of_training() -> None:
    for name, one in natural.PRESETS.items():
        tested = one.player(CountingSource(), "test")
        assert tested.split == ("train" if name == "repo" else "test"), name
        assert one.player(CountingSource(), "train").split == "train"


# how they are asked for


def pictures(env: Any, steps: int = 5) -> list[Array]:
    rng = np.random.default_rng(0)
    seen = [env.reset().obs["image"]]
    for _ in range(steps):
        action = rng.uniform(-1, 1, env.spec.action_size).astype(np.float32)
        seen.append(env.step(np.tile(action, (env.num_envs, 1))).obs["image"])
    env.close()
    return seen


@pytest.mark.dmc
@pytest.mark.slow
@pytest.mark.parametrize("name", ["natural", "dcs-hard-dynamic"])
def test_same_seed_same_frames_whatever_the_workers(name: str) -> None:
    found = []
    for workers in ("inline", "process"):
        slots = 1 if workers == "inline" else 2
        vec = make_vec(
            "dmc/cartpole_swingup",
            slots,
            seed=7,
            image_size=32,
            render="quick",
            workers=workers,  # type: ignore[arg-type]
            distractor=name,
        )
        found.append(pictures(vec))
    for alone, pair in zip(*found, strict=True):
        assert np.array_equal(alone[0], pair[0])
        assert not np.array_equal(pair[0], pair[1]), "another slot has other films"


def test_another_split_and_another_source_are_other_films() -> None:
    seen = [
        pictures(make_vec("toy/dot", 1, seed=0, image_size=32, distractor="tpc", **own))
        for own in ({}, {"split": "test"}, {"distractor_source": "noise"})
    ]
    for other in seen[1:]:
        assert not np.array_equal(seen[0][0], other[0])


def test_the_dots_of_the_toy_world_stay_and_all_else_is_film() -> None:
    plain = make_vec("toy/dot", 1, seed=0, image_size=32)
    film = make_vec("toy/dot", 1, seed=0, image_size=32, distractor="natural")
    assert "distractor=dreamerpro,source=procedural,mask=exact,split=train" in film.spec.protocol
    before, after = pictures(plain), pictures(film)
    for scene, seen in zip(before, after, strict=True):
        dots = (scene[0, ..., :2] == 255).any(-1)
        assert dots.sum() in range(4, 33)
        assert np.array_equal(seen[0][dots][:, :2], scene[0][dots][:, :2])
        assert (seen[0][dots][:, 2] == 0).all()
        assert len(np.unique(seen[0][~dots], axis=0)) > 100
    assert not np.array_equal(after[0][0][~dots], after[1][0][~dots])


@pytest.mark.parametrize(
    ("task", "own", "message"),
    [
        ("dmc/lqr_lqr_2_1", {"distractor": "natural"}, "expected a task that the distractor"),
        ("dmc/quadruped_run", {"distractor": "dcs-easy"}, "expected a task that the distractor"),
        ("toy/dot", {"distractor": "dcs-easy"}, "expected a task that the distractor"),
        ("toy/catch", {"distractor": "natural"}, "expected a dmc task or toy/dot or"),
        ("dmc/walker_run", {"distractor": "naturel"}, "Did you mean natural"),
        ("dmc/walker_run", {"distractor": "tpc", "observe": "state"}, "nothing distracts from"),
        ("dmc/walker_run", {"distractor": "tpc", "distractor_source": "no/such"}, "no such folder"),
        ("dmc/walker_run", {"distractor": "tpc", "distractor_mask": "red"}, "distractor_mask"),
        ("dmc/walker_run", {"distractor": "dcs-easy", "distractor_mask": "blue"}, "mask"),
        ("toy/dot", {"distractor": "tpc", "action_repeat": 2}, "action_repeat 1"),
        ("toy/dot", {"distractor": "tpc", "distractor_mask": "blue"}, "the mask preset or exact"),
    ],
)
def test_what_cannot_be_shown_is_one_error(task: str, own: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_vec(task, 4, seed=0, **own)
    with pytest.raises(EnvError, match=message):
        make_env(task, **own)


def test_every_preset_says_what_it_is() -> None:
    assert {"natural", *natural.PRESETS, "subtle", "dmcgb-video_hard"} < set(names())
    assert preset("natural") is PRESETS["dreamerpro"]
    for name, one in PRESETS.items():
        assert one.name == name and one.summary and one.defined("cartpole", "swingup"), name
        assert clip_size(name, 64) == (128 if name.startswith("dcs") else 64)
    shown = {name for name in PRESETS if uses_clips(name)}
    assert {"tpc", "dcs-easy", "dcs-hard-dynamic-background", "dmcgb-video_easy"} < shown
    assert not {"subtle", "dcs-easy-camera", "dmcgb-color_hard"} & shown
    assert isinstance(preset("tpc"), NaturalPreset)
    assert shown - {name for name in PRESETS if has_splits(name)} == {"repo"}
    assert {name for name in names() if has_splits(name)} - {"natural"} < shown


@pytest.mark.dmc
@pytest.mark.parametrize("name", natural.PRESETS)
def test_a_film_costs_little_of_a_step(name: str) -> None:
    film = natural.PRESETS[name].build(make_source("procedural", size=64), "train", "preset")
    with Stage("walker_walk", film, size=64) as played:
        played.reset(0)
        scene, costs = played.camera.render().copy(), []
        for _ in range(12):
            start = time.process_time()
            for _ in range(50):
                film.after_simulator_step()
                film.after_simulator_step()
                film.after_agent_step()
                film.before_render(played.camera)
                film.after_render(scene)
            costs.append((time.process_time() - start) / 50)
    assert min(costs) < 3e-4, costs
