"""DMControl-GB: colours as a recompiled model has them, films in the place of the green screen."""

from __future__ import annotations

import colorsys
import importlib

import numpy as np
import pytest
from distractor_stage import IMAGE, CountingSource, Stage, model_arrays

from reverie.envs import EnvError
from reverie.envs.distractors import dmcgb
from reverie.envs.specs import Array

pytestmark = pytest.mark.dmc

LEVELS: tuple[dmcgb.Level, ...] = ("easy", "hard")
TASKS = {"cartpole": "cartpole_swingup", "reacher": "reacher_easy", "walker": "walker_walk"}


def film(level: dmcgb.Level, mask: str = "preset", clips: int = 3) -> dmcgb.Filmed:
    source = CountingSource(clips=clips, size=IMAGE)
    made = dmcgb.PRESETS[f"dmcgb-video_{level}"].build(source, "test", mask)
    assert isinstance(made, dmcgb.Filmed)
    return made


def test_a_hundred_settings_per_level_around_the_stock_colours() -> None:
    spreads = []
    for level in LEVELS:
        settings = dmcgb.colour_settings(level)
        assert settings.shape == (100, 4, 3) and len(np.unique(settings, axis=0)) == 100
        assert settings.min() >= 0 and settings.max() <= 1
        assert np.array_equal(settings, dmcgb.colour_settings(level))
        assert np.allclose(settings[:, 2], np.minimum(settings[:, 1] + 0.1, 1.0))
        free = settings[:, 0, 1] - dmcgb.SELF[1]  # in the middle, so that clipping hardly matters
        assert abs(free.mean()) < 0.05
        spreads.append(free.std())
    assert 0.08 < spreads[0] < 0.12 and 0.15 < spreads[1] < 0.23


def recompiled(domain: str, setting: Array) -> dict[str, Array]:
    """Textures and materials of the model compiled with other colours in its files."""
    import mujoco

    suite = importlib.import_module(f"dm_control.suite.{domain}")
    text, assets = suite.get_model_and_assets()
    assets = {name: data.decode() for name, data in assets.items()}
    body, dark, light, sky = (" ".join(map(str, colour)) for colour in setting)
    materials, skybox = "./common/materials.xml", "./common/skybox.xml"
    changed = assets[materials].replace(
        'rgb1=".1 .2 .3" rgb2=".2 .3 .4"', f'rgb1="{dark}" rgb2="{light}"'
    )
    changed = changed.replace('name="self" rgba=".7 .5 .3 1"', f'name="self" rgba="{body} 1"')
    assert changed.count(body) and changed.count(dark)
    assets[skybox] = assets[skybox].replace('rgb1=".4 .6 .8"', f'rgb1="{sky}"')
    assets[materials] = changed
    found = {name: data.encode() for name, data in assets.items()}
    model = mujoco.MjModel.from_xml_string(text.decode(), found)
    return {"tex_data": model.tex_data.copy(), "mat_rgba": model.mat_rgba.copy()}


@pytest.mark.parametrize("level", LEVELS)
def test_colours_equal_those_of_a_recompiled_model(level: dmcgb.Level) -> None:
    made = dmcgb.Recoloured(level)
    with Stage("walker_walk", made) as stage:
        for setting in dmcgb.colour_settings(level)[[0, 50]]:
            made.paint(setting)
            wanted, model = recompiled("walker", setting), stage.physics.model
            assert np.allclose(model.mat_rgba, wanted["mat_rgba"], atol=1e-6)
            off = model.tex_data.astype(np.int16) - wanted["tex_data"]
            assert np.abs(off).max() <= 1
            assert (made._grid.pixels != made._grid.stock).any(-1).mean() > 0.9
            assert (made._sky.pixels != made._sky.stock).any(-1).mean() > 0.5


def test_settings_are_drawn_by_the_episodes_seed() -> None:
    made = dmcgb.Recoloured("hard")
    with Stage("cartpole_swingup", made) as stage:
        pictures = {}
        for seed in (0, 1, 2, 0):
            stage.reset(seed)
            if seed in pictures:
                assert np.array_equal(pictures[seed], stage.picture())
            pictures[seed] = stage.picture()
            stage.step()
    assert len({picture.tobytes() for picture in pictures.values()}) == 3
    drawn = {int(np.random.default_rng([seed, 5]).integers(100)) for seed in range(900)}
    assert len(drawn) == 100


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(dmcgb.PRESETS))
def test_states_and_rewards_are_those_of_the_plain_task(name: str) -> None:
    made = dmcgb.PRESETS[name].build(CountingSource(size=IMAGE), "train", "preset")
    with Stage("walker_walk") as plain, Stage("walker_walk", made) as other:
        states, rewards, pictures = plain.play(2, 6)
        states_too, rewards_too, pictures_too = other.play(2, 6)
    assert rewards == rewards_too and all(map(np.array_equal, states, states_too))
    assert not any(map(np.array_equal, pictures, pictures_too))


def test_the_green_box_is_that_of_hue_saturation_and_value() -> None:
    levels = np.array([0, 20, 51, 69, 70, 71, 120, 140, 204, 255], np.uint8)
    picture = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(40, 25, 3)
    found = dmcgb.green_screen(picture)
    for pixel, green in zip(picture.reshape(-1, 3).tolist(), found.ravel(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
        wanted = 100 <= hue * 360 <= 185 and saturation >= 80 / 255 and value >= 70 / 255
        edge = min(abs(hue * 360 - 100), abs(hue * 360 - 185), abs(saturation - 80 / 255)) < 1e-4
        assert edge or wanted == green, pixel
    assert 0.05 < found.mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("domain", TASKS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_film_takes_the_sky_and_the_floor_only_at_hard(level: dmcgb.Level, domain: str) -> None:
    task = TASKS[domain]
    with Stage(task) as plain, Stage(task, film(level)) as keyed:
        with Stage(task, film(level, "exact")) as exact:
            for stage in (plain, keyed, exact):
                stage.reset(3)
            stock, cut, found = plain.picture(), keyed.picture(), exact.picture()
            seen = plain.camera.render(segmentation=True)
            clip = exact.distraction._clip.frame(0)
            model = plain.physics.model
            names = [model.id2name(geom, "geom") for geom in range(model.ngeom)]
    kept = seen[..., 0] >= 0
    if level == "hard":
        kept &= ~np.isin(seen[..., 0], [names.index(n) for n in names if n in ("floor", "ground")])
    assert np.array_equal(found[kept], stock[kept]), "bit-identical outside the mask"
    assert np.array_equal(found[~kept], clip[~kept])
    assert 0.01 < kept.mean() < 0.99 or domain == "reacher"
    differ = (cut != found).any(-1)
    assert differ.mean() < 0.01, "the green box finds what the simulator knows"


def test_clips_begin_with_their_first_frame_and_turn_at_agent_steps() -> None:
    made = film("hard")
    with Stage("cartpole_swingup", made, repeat=3) as stage:
        drawn = set()
        for seed in range(20):
            stage.reset(seed)
            drawn.add(made.index)
            for count in range(11):
                assert made.position == count % (7 + made.index)
                stage.step()
        assert drawn == {0, 1, 2}
        assert int(stage.picture()[0, -1, 1]) == made.position
    many = {level: film(level, clips=150) for level in LEVELS}
    for level, most in (("easy", 10), ("hard", 100)):
        for seed in range(1500):
            many[level].reset(np.random.default_rng(seed))
        opened = many[level]._source
        assert isinstance(opened, CountingSource) and set(opened.opened) == set(range(most))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(dmcgb.PRESETS))
def test_closing_gives_everything_back(name: str) -> None:
    made = dmcgb.PRESETS[name].build(CountingSource(size=IMAGE), "train", "preset")
    with Stage("walker_walk") as stage:
        stage.reset(7)
        before, picture = model_arrays(stage.physics.model), stage.picture()
        stage.distraction = made
        made.attach(stage.physics, domain="walker", task="walk", camera_id=0, size=IMAGE)
        stage.reset(7)
        assert not np.array_equal(stage.picture(), picture)
        assert not np.array_equal(stage.physics.model.tex_data, before["tex_data"])
        made.close()
        made.close()
        stage.distraction = None
        stage.reset(7)
        after = model_arrays(stage.physics.model)
        assert [k for k in before if not np.array_equal(before[k], after[k])] == []
        assert np.array_equal(stage.picture(), picture)


def test_wrong_masks_and_sizes_say_so() -> None:
    source = CountingSource(size=IMAGE)
    with pytest.raises(EnvError, match="expected the mask preset, found 'exact'"):
        dmcgb.PRESETS["dmcgb-color_easy"].build(source, "train", "exact")
    with pytest.raises(EnvError, match="expected the mask preset or exact, found 'blue'"):
        dmcgb.PRESETS["dmcgb-video_easy"].build(source, "train", "blue")
    made = dmcgb.Filmed("easy", CountingSource(size=16), "train", exact=False)
    with pytest.raises(EnvError, match="pictures' 48 pixels, found 16"):
        Stage("walker_walk", made)
    preset = dmcgb.PRESETS["dmcgb-video_easy"]
    assert preset.defined("walker", "walk") and not preset.defined("fish", "swim")
    assert not preset.defined("reacher", "easy"), "its sky is never seen"
    assert dmcgb.PRESETS["dmcgb-video_hard"].defined("reacher", "easy")
