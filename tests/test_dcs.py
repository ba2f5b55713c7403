"""The Distracting Control Suite: ranges, clocks, seeds, and that nothing but pixels changes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from distractor_stage import CountingSource, Stage, model_arrays

from reverie.envs import EnvError
from reverie.envs.distractors import dcs, dcs_background, dcs_camera, dcs_colour
from reverie.envs.distractors.textures import Texture, sky_texture
from reverie.envs.specs import Array

pytestmark = pytest.mark.dmc

TASKS = {
    "ball_in_cup": "ball_in_cup_catch",
    "cartpole": "cartpole_swingup",
    "cheetah": "cheetah_run",
    "finger": "finger_spin",
    "reacher": "reacher_easy",
    "walker": "walker_walk",
}
STOCK_POSES = {"cartpole": (0.0, -4.0, 1.0), "finger": (0.0, -1.0, 0.8), "reacher": (0, 0, 0.75)}


def built(name: str, source: CountingSource | None = None) -> dcs.Dcs:
    made = dcs.PRESETS[name].build(source or CountingSource(), "train", "preset")
    assert isinstance(made, dcs.Dcs)
    return made


def test_every_level_comes_together_and_singly_static_and_moving() -> None:
    names = {f"dcs-{level}{moving}" for level in dcs.LEVELS for moving in ("", "-dynamic")}
    singles = {f"{name}-{part}" for name in names for part in ("camera", "colour", "background")}
    assert set(dcs.PRESETS) == names | singles
    whole, single = built("dcs-medium"), built("dcs-hard-dynamic-colour")
    assert whole.camera and whole.colour and whole.film
    assert single.colour and not single.camera and not single.film
    preset = dcs.PRESETS["dcs-easy"]
    assert all(preset.defined(domain, "any") for domain in TASKS)
    assert not preset.defined("hopper", "hop")
    with pytest.raises(EnvError, match="expected the mask 'preset', found 'exact'"):
        preset.build(CountingSource(), "train", "exact")


@pytest.mark.slow
@pytest.mark.parametrize("domain", TASKS)
def test_states_and_rewards_are_those_of_the_plain_task(domain: str) -> None:
    with Stage(TASKS[domain]) as plain, Stage(TASKS[domain], built("dcs-hard-dynamic")) as other:
        for seed in (0, 1):
            states, rewards, pictures = plain.play(seed, 12)
            states_too, rewards_too, pictures_too = other.play(seed, 12)
            assert rewards == rewards_too
            assert all(map(np.array_equal, states, states_too))
            assert not any(map(np.array_equal, pictures, pictures_too))


def test_same_seed_same_pictures_whatever_came_before() -> None:
    with Stage("walker_walk", built("dcs-hard-dynamic")) as stage:
        first = stage.play(3, 6)[2]
        other = stage.play(4, 6)[2]
        again = stage.play(3, 6)[2]
    with Stage("walker_walk", built("dcs-hard-dynamic")) as fresh:
        anew = fresh.play(3, 6)[2]
    assert all(map(np.array_equal, first, again))
    assert all(map(np.array_equal, first, anew))
    assert not any(map(np.array_equal, first, other))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("part", dcs.PARTS)
def test_every_part_is_seeded_and_independent_of_the_others(part: dcs.Part, steps: int) -> None:
    """The original's colours ignore their seed."""

    def drawn(name: str, seed: int) -> Array:
        made = built(name)
        with Stage("cartpole_swingup", made) as stage:
            stage.reset(seed)
            for _ in range(steps):
                stage.step()
            if part == "camera":
                assert made.camera
                return np.append(made.camera.sphere, made.camera.roll)
            if part == "colour":
                return stage.physics.model.mat_rgba[:, :3].copy()
            assert made.film
            return np.array([made.film.index, made.film.position, made.film.direction])

    alone = [drawn(f"dcs-hard-dynamic-{part}", seed) for seed in (0, 1, 0)]
    assert np.array_equal(alone[0], alone[2]) and not np.array_equal(alone[0], alone[1])
    assert np.array_equal(drawn("dcs-hard-dynamic", 0), alone[0])


@pytest.mark.slow
@pytest.mark.parametrize(("level", "scale"), [("easy", 0.1), ("medium", 0.2), ("hard", 0.3)])
@pytest.mark.parametrize("domain", TASKS)
def test_the_camera_keeps_to_its_range(domain: str, level: str, scale: float) -> None:
    made = built(f"dcs-{level}-dynamic-camera")
    camera = made.camera
    assert camera is not None
    quarter = np.pi / 2 * scale
    with Stage(TASKS[domain], made) as stage:
        starts, speeds = [], []
        for seed in range(25):
            stage.reset(seed)
            data = stage.physics.data
            centre = data.subtree_com[1] if domain in ("cheetah", "walker") else np.zeros(3)
            stock = data.cam_xpos[0] - centre
            radius = float(np.linalg.norm(stock))
            if domain in STOCK_POSES:
                assert np.allclose(stock, STOCK_POSES[domain])
            low, high = radius * (1 - 0.5 * scale), radius * (1 + 1.5 * scale)
            starts.append((camera.sphere - camera.low) / (camera.high - camera.low))
            polar, azimuth = np.arccos(stock[2] / radius), np.arctan2(stock[1], stock[0])
            for _ in range(60):
                before = dcs_camera.cartesian(camera.sphere)
                rolled = camera.roll
                made.after_simulator_step()
                at = dcs_camera.cartesian(camera.sphere)
                assert low - 1e-9 <= np.linalg.norm(at) <= high + 1e-9
                assert abs(camera.roll) <= quarter
                assert abs(camera.roll - rolled) <= np.pi / 50 * scale + 1e-12
                angles = camera.sphere[1:]
                if domain == "reacher":
                    assert (np.abs(angles) <= quarter + 1e-9).all()
                else:
                    assert at[1] <= 1e-9 and at[2] >= -1e-9, "in front of the agent, not below it"
                    assert abs(angles[0] - azimuth) <= quarter + 1e-9
                    assert abs(angles[1] - polar) <= quarter + 1e-9
                speeds.append(np.linalg.norm(at - before) / (0.4 * scale * radius / 4))
        spread = np.array(starts)
        assert (spread.min(0) < 0.2).all() and (spread.max(0) > 0.8).all(), "the whole range"
        assert np.quantile(speeds, 0.9) <= 1 + 1e-6 and np.max(speeds) > 0.8


def test_the_camera_gathers_speed_as_published() -> None:
    made = built("dcs-hard-dynamic-camera")
    camera, scale = made.camera, 0.3
    assert camera is not None
    moves, turns = [], []
    with Stage("finger_spin", made) as stage:
        for seed in range(500):
            stage.reset(seed)
            camera.sphere = (camera.low + camera.high) / 2
            camera.velocity, camera.roll, camera.roll_velocity = np.zeros(3), 0.0, 0.0
            before = dcs_camera.cartesian(camera.sphere)
            made.after_simulator_step()
            moves.append(dcs_camera.cartesian(camera.sphere) - before)
            turns.append(camera.roll)
    radius = float(np.hypot(1.0, 0.8))
    assert np.allclose(np.std(moves, 0), 0.1 * scale * radius / 4, rtol=0.1)
    assert np.isclose(np.std(turns), np.pi / 300 * scale, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("domain", TASKS)
def test_the_camera_looks_at_the_agent(domain: str) -> None:
    made = built("dcs-hard-dynamic-camera")
    with Stage(TASKS[domain], made) as stage:
        for seed in range(4):
            stage.reset(seed)
            data = stage.physics.data
            for _ in range(15):
                stage.step()
                stock = data.cam_xpos[0].copy(), data.cam_xmat[0].reshape(3, 3).copy()
                far = np.linalg.norm(stock[0] - data.subtree_com[1])
                made.before_render(stage.camera)
                position, pose = data.cam_xpos[0].copy(), data.cam_xmat[0].reshape(3, 3).copy()
                made.after_render(np.zeros(0))
                assert np.array_equal(data.cam_xpos[0], stock[0])
                assert np.allclose(pose @ pose.T, np.eye(3)) and np.linalg.det(pose) > 0
                ahead = data.subtree_com[1] - position
                angle = np.arccos(-pose[:, 2] @ ahead / np.linalg.norm(ahead))
                assert angle < np.deg2rad(22.5), "the agent is in the picture"
                if domain in ("cheetah", "walker"):
                    exact = stock[0] - far * stock[1][:, 2] - position
                    assert np.allclose(-pose[:, 2], exact / np.linalg.norm(exact))
                level = pose @ np.array([np.cos(made_roll(made)), -np.sin(made_roll(made)), 0.0])
                assert domain == "reacher" or abs(level[2]) < 1e-9, "rolled by more than the roll"


def made_roll(made: dcs.Dcs) -> float:
    assert made.camera
    return made.camera.roll


def test_a_camera_above_swings_over_the_pole_without_a_jump() -> None:
    made = built("dcs-hard-dynamic-camera")
    assert made.camera
    with Stage("reacher_easy", made) as stage:
        stage.reset(0)
        made.camera.sphere = np.array([0.75, 0.1, 0.02])
        made.camera.velocity = np.array([-0.04, 0.0, 0.0])
        made.after_simulator_step()
        assert made.camera.sphere[2] < 0, "past the pole"
        assert abs(made.camera.sphere[1]) <= np.pi / 2 * 0.3
    straight = dcs_camera.look(np.array([0.0, 0.0, -1.0]), upright=False)
    assert np.allclose(straight, np.eye(3)), "the stock pose of reacher"


def test_the_mode_of_the_moved_camera_counts() -> None:
    """The original reads that of camera 0."""
    walk = dcs_camera.CameraWalk(0.1, dynamic=False)
    with Stage("reacher_easy") as stage:
        stage.reset(0)
        for camera, centre in ((0, np.zeros(3)), (1, stage.physics.data.subtree_com[3])):
            walk.attach(stage.physics, camera, quadrant=False)
            walk.reset(np.random.default_rng(0))
            stock = np.linalg.norm(stage.physics.data.cam_xpos[camera] - centre)
            assert np.isclose(walk.low[0], stock * 0.95)


@pytest.mark.parametrize(("level", "scale"), [("easy", 0.1), ("medium", 0.2), ("hard", 0.3)])
def test_colours_keep_to_their_box(level: str, scale: float) -> None:
    made = built(f"dcs-{level}-dynamic-colour")
    with Stage("finger_spin", made) as stage:
        made.close()
        stock = stage.physics.model.mat_rgba.copy()
        made.attach(stage.physics, domain="finger", task="spin", camera_id=0, size=48)
        seen, moves = [], []
        for seed in range(30):
            made.reset(np.random.default_rng(seed))
            seen.append(stage.physics.model.mat_rgba.copy())
            for _ in range(40):
                made.after_simulator_step()
                seen.append(stage.physics.model.mat_rgba.copy())
                moves.append(seen[-1] - seen[-2])
        far = np.array(seen) - stock
        assert (far[..., 3] == 0).all()
        assert np.abs(far).max() <= scale + 1e-6 and np.abs(far).max() > 0.95 * scale
        assert np.min(seen) >= 0 and np.max(seen) <= 1
        # walls shorten some steps
        inside = np.array(moves)[..., :3]
        assert 0.8 < inside.std() / (0.03 * scale) < 1.0
        first = np.array(seen[::41])[..., :3]
        assert np.isclose(np.abs(first - stock[:, :3]).mean(), scale * 0.45, rtol=0.2), "uniform"


def test_static_presets_change_at_resets_only() -> None:
    made = built("dcs-hard")
    with Stage("finger_spin", made) as stage:
        stage.reset(0)
        assert made.camera and made.film
        drawn = made.camera.sphere.copy(), made.film.position, stage.physics.model.mat_rgba.copy()
        for _ in range(5):
            stage.step()
        kept = made.camera.sphere, made.film.position, stage.physics.model.mat_rgba
        assert all(map(np.array_equal, drawn, kept))
        stage.reset(1)
        assert not np.array_equal(drawn[0], made.camera.sphere)
        assert not np.array_equal(drawn[2], stage.physics.model.mat_rgba)


@pytest.mark.parametrize("repeat", [1, 3])
def test_the_film_bounces_once_per_simulator_step(repeat: int) -> None:
    made = built("dcs-easy-dynamic-background", CountingSource(clips=1))
    film = made.film
    assert film is not None
    starts = set()
    with Stage("cartpole_swingup", made, repeat=repeat) as stage:
        for seed in range(12):
            stage.reset(seed)
            starts.add((film.position, film.direction))
            bounce = [*range(7), *range(5, 0, -1)]
            at = film.position if film.direction > 0 else (12 - film.position) % 12
            for count in range(1, 10):
                stage.step()
                assert film.position == bounce[(at + count * repeat) % 12]
    assert len(starts) > 6 and {way for _, way in starts} == {-1, 1}


def test_the_number_of_clips_follows_level_and_split() -> None:
    for clips in (4, 8, 60):
        for split, most in (("train", clips), ("test", 30)):
            source = CountingSource(clips=80)
            film = dcs_background.SkyFilm(source, split, videos=clips, dynamic=False)
            for seed in range(600):
                film.reset(np.random.default_rng(seed))
            assert set(source.opened) == set(range(most))


@pytest.mark.parametrize(
    ("domain", "alpha", "share"),
    [("reacher", 0.0, 0.7), ("walker", 1.0, 0.3), ("finger", 0.3, 0.3)],
)
def test_the_film_is_on_the_sky_behind_a_ground_of_the_domains_opacity(
    domain: str, alpha: float, share: float
) -> None:
    made = built("dcs-easy-dynamic-background", CountingSource(clips=1))
    with Stage(TASKS[domain], made) as stage:
        stage.reset(0)
        grid = stage.physics.model.name2id("grid", "material")
        assert np.isclose(stage.physics.model.mat_rgba[grid, 3], alpha)
        assert made.film
        pictures = {}
        for _ in range(5):
            stage.step()
            pictures[made.film.position] = stage.picture()
        first, last = min(pictures), max(pictures)
        seen = pictures[last].astype(int)[..., 1] - pictures[first][..., 1]
        assert (seen == last - first).mean() > share


def test_the_film_is_seen_the_right_way_round() -> None:
    made = built("dcs-easy-background", CountingSource(clips=1, size=32))
    with Stage("cartpole_swingup", made) as stage:
        stage.reset(0)
        sky = stage.picture()[:12].astype(int)
    assert (sky[:, :20, 0] > 200).all() and (sky[:, -20:, 0] < 50).all(), "red is on the left"


def test_the_sky_is_found_by_its_type() -> None:
    """The original takes texture 0."""
    from dm_control import mujoco

    assets = """<mujoco><asset>
      <texture name="a" type="2d" builtin="flat" width="8" height="8" rgb1="1 0 0"/>
      {sky}
    </asset><worldbody><geom size="1"/></worldbody></mujoco>"""
    sky = '<texture name="b" type="skybox" builtin="flat" width="8" height="8" rgb1="0 1 0"/>'
    physics = mujoco.Physics.from_xml_string(assets.format(sky=sky))
    assert sky_texture(physics.model) == 1
    with pytest.raises(EnvError, match="at most 8 pixels for this texture, found 128"):
        Texture(physics, 1, side=128)
    with pytest.raises(EnvError, match="no texture of type skybox"):
        sky_texture(mujoco.Physics.from_xml_string(assets.format(sky="")).model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcs-hard-dynamic", "dcs-easy"])
@pytest.mark.parametrize("domain", ["cheetah", "reacher"])
def test_closing_gives_everything_back(domain: str, name: str) -> None:
    with Stage(TASKS[domain]) as plain, Stage(TASKS[domain]) as stage:
        plain.reset(7)
        stage.picture()
        before = model_arrays(stage.physics.model)
        stage.distraction = built(name)
        stage.distraction.attach(stage.physics, domain=domain, task="", camera_id=0, size=48)
        stage.play(0, 3)
        changed = model_arrays(stage.physics.model)
        assert {k for k in before if not np.array_equal(before[k], changed[k])} >= {
            "mat_rgba",
            "tex_data",
            "tex_height",
        }
        stage.distraction.close()
        stage.distraction.close()
        stage.distraction = None
        stage.reset(7)
        after = model_arrays(stage.physics.model)
        wrong = [k for k in before if not np.array_equal(before[k], after[k])]
        assert set(wrong) <= {"geom_pos"}, "reacher's own reset moves its target"
        assert np.array_equal(stage.picture(), plain.picture()), "the renderer's copy as well"


def test_a_sky_of_128_pixels_is_cheap_to_send(record_property: object) -> None:
    made = built("dcs-hard-dynamic-background", CountingSource(size=dcs.SKY_SIZE))
    with Stage("cartpole_swingup", made) as stage, Stage("cartpole_swingup") as plain:
        large = Texture(plain.physics, sky_texture(plain.physics.model), side=800)
        stage.reset(0)
        assert made.film
        costs = []
        for texture in (made.film._sky, large):
            texture.upload()
            start = time.process_time()
            for _ in range(10):
                texture.upload()
            costs.append((time.process_time() - start) / 10)
        assert callable(record_property)
        record_property("sky_upload_128_ms", costs[0] * 1e3)
        record_property("sky_upload_800_ms", costs[1] * 1e3)
        assert costs[0] < costs[1] / 3


def test_colour_steps_are_the_published_multiples() -> None:
    assert dcs_colour.STEP == 0.03 and (dcs_camera.SPEED_STEP, dcs_camera.TOP_SPEED) == (0.1, 0.4)
    assert (dcs_camera.ROLL_STEP, dcs_camera.TOP_ROLL) == (np.pi / 300, np.pi / 50)
    assert dcs.LEVELS == {"easy": (0.1, 4), "medium": (0.2, 8), "hard": (0.3, 60)}
