"""Imagined rollouts in a world whose latent is known: contexts, retrieval, errors, pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from known_world import POLICY, SIDE, Place, Torus, TorusLens, picture, walk
from torch import Tensor

from reverie.agents.inspection.contexts import draw_contexts, draw_windows, outside, unbroken
from reverie.agents.inspection.dreams import dream_panels, numbers
from reverie.agents.inspection.neighbours import FrameLibrary
from reverie.agents.inspection.probe_decoder import ProbeDecoder, picture_size, to_uint8
from reverie.agents.inspection.scenes import Look, Scene, make_scene
from reverie.agents.replay.buffer import Replay

CPU = torch.device("cpu")
LOOK = Look(context=5, horizon=12, windows=16, shown=2, library=900)


def scene_of(model: Torus, *, replay: Replay | None = None, look: Look = LOOK) -> Scene:
    rng = np.random.default_rng(3)
    found = make_scene(TorusLens(model), replay or walk(), look, rng=rng, seed=3, device=CPU)
    assert found is not None
    return found


# contexts


def test_contexts_lie_within_one_episode_and_are_rows_of_the_replay() -> None:
    replay = walk(episode=25)
    windows = draw_contexts(
        replay, np.random.default_rng(0), count=8, context=5, horizon=12, device=CPU
    )
    assert windows is not None
    rows = windows.rows
    assert rows["image"].shape == (8, 17, SIDE, SIDE, 3) and rows["image"].dtype == torch.uint8
    assert not rows["is_first"][:, 1:].any()
    for k, (slot, start) in enumerate(zip(windows.slots, windows.starts, strict=True)):
        stored = replay.read(int(start), int(start) + 17)
        for key, value in rows.items():
            assert np.array_equal(value[k].numpy(), stored[key][:, slot]), key
    assert len({*zip(windows.slots, windows.starts, strict=True)}) == 8, "no window twice"


def test_short_episodes_shorten_the_horizon_and_shorter_ones_show_nothing() -> None:
    rng = np.random.default_rng(0)
    windows = draw_contexts(walk(episode=8), rng, count=6, context=5, horizon=12, device=CPU)
    assert windows is not None and 6 < windows.rows["reward"].shape[1] <= 8
    assert not windows.rows["is_first"][:, 1:].any()
    replay = walk(episode=5)
    assert draw_contexts(replay, rng, count=6, context=5, horizon=12, device=CPU) is None
    tiny = walk(rows=4)
    assert draw_contexts(tiny, rng, count=6, context=5, horizon=12, device=CPU) is None


def test_windows_never_cross_a_hole_in_the_replay() -> None:
    replay = walk(rows=90)
    replay._runs = [(0, 20), (40, 90)]
    windows = draw_windows(replay, np.random.default_rng(0), count=500, length=15, device=CPU)
    assert windows is not None and len(windows.starts) == 2 * (6 + 36)
    inside = (windows.starts + 15 <= 20) | (windows.starts >= 40)
    assert inside.all()


def test_unbroken_counts_rows_before_the_next_episode() -> None:
    is_first = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]]).bool()
    assert unbroken(is_first).tolist() == [4, 2, 1]


def test_rows_of_shown_windows_are_kept_out_of_the_library() -> None:
    replay = walk(rows=60, episode=100)
    rng = np.random.default_rng(1)
    shown = draw_windows(replay, rng, count=3, length=10, device=CPU)
    stored = draw_windows(replay, rng, count=40, length=10, device=CPU)
    assert shown is not None and stored is not None
    keep = outside(stored, shown)
    taken = {
        (s, t + k)
        for s, t in zip(shown.slots.tolist(), shown.starts.tolist(), strict=True)
        for k in range(10)
    }
    wanted = [
        [(s, t + k) not in taken for k in range(10)]
        for s, t in zip(stored.slots.tolist(), stored.starts.tolist(), strict=True)
    ]
    assert keep.tolist() == wanted and not keep.all() and keep.any()


# retrieval


def test_the_nearest_neighbour_of_a_stored_latent_is_the_frame_itself() -> None:
    places = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 2, indexing="ij"), -1).view(-1, 2)
    code = Torus().features(Torus().observe({"vector": places}))
    order = torch.randperm(len(code), generator=torch.Generator().manual_seed(0))
    near = FrameLibrary(code).nearest(code[order])
    assert torch.equal(near.frame, order)
    assert near.distance.max() < 1e-5
    shifted = 1000.0 + code  # a common part as large as that of real features
    near = FrameLibrary(shifted).nearest(shifted[order])
    assert torch.equal(near.frame, order)


def test_libraries_are_searched_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(3, 20, 6, generator=g)
    near = FrameLibrary(features).nearest(features[:, [4, 7]] + 0.01)
    assert near.frame.tolist() == [[4, 7]] * 3 and near.distance.shape == (3, 2)
    alone = [FrameLibrary(one).nearest(one[[4, 7]] + 0.01) for one in features]
    assert torch.allclose(near.distance, torch.stack([one.distance for one in alone]), atol=1e-6)


def test_frames_of_the_dream_are_those_of_the_simulated_future() -> None:
    scene = scene_of(Torus())
    assert scene.frames is not None and scene.horizon == 12
    dreamt = scene.frames[scene.near["recorded"].frame[:, 1:]]
    assert torch.equal(dreamt, scene.rows["image"][:, 5:]), "under recorded actions: what happened"
    assert scene.near["recorded"].distance.max() < 1e-5
    start = scene.rows["vector"][:, 4]
    future = (start[:, None] + POLICY * torch.arange(13)[:, None]) % SIDE
    wandered = scene.frames[scene.near["policy"].frame]
    assert np.array_equal(wandered.numpy(), picture(future)), "and where the policy would go"


def test_shuffled_actions_are_clearly_worse_and_holding_still_too() -> None:
    scene = scene_of(Torus())
    assert scene.errors.shuffled is not None
    assert scene.errors.recorded.max() < 1e-5
    assert scene.errors.shuffled[:, 3:].mean() > 0.5
    assert scene.errors.held[:, 3:].mean() > 0.3
    found = numbers(scene)
    assert found["error_last"] < 1e-5 < 0.5 < found["error_shuffled_last"]
    assert found["neighbour_distance"] < 1e-5


def test_misaligned_and_ignored_actions_show() -> None:
    late, blind = scene_of(Torus(late=True)).errors, scene_of(Torus(sees=False)).errors
    assert late.recorded[:, 0].mean() > 0.1, "off by one from the first step on"
    assert blind.shuffled is not None
    assert torch.equal(blind.recorded, blind.shuffled), "ignored: the control is no worse"
    assert torch.equal(blind.recorded, blind.held)


class Drunk(Torus):
    """Strays at random; its dreams are samples."""

    def rollout(self, start: Place, actions: Tensor) -> Place:
        return super().rollout(start, actions + torch.randint(-1, 2, actions.shape))


def test_errors_are_those_of_the_dream_that_is_pictured() -> None:
    scene = scene_of(Drunk())
    assert scene.errors.recorded[:, 3:].mean() > 0.1
    pictured = scene.library.distance(scene.recorded.code[:, 1:], scene.real.code[:, 5:])
    assert torch.equal(pictured, scene.errors.recorded)


def test_a_model_without_actions_has_no_shuffled_control() -> None:
    model = Torus()
    model.action_conditioned = False  # type: ignore[misc]
    scene = scene_of(model)
    assert scene.errors.shuffled is None and "error_shuffled_last" not in numbers(scene)


def test_no_shown_row_is_among_the_frames_that_are_searched() -> None:
    replay = walk(rows=120, slots=1, episode=200)
    ring: Any = replay._ring
    ring.arrays["image"][0, :, 0, 0, 0] = np.arange(120)  # every frame knows its row
    scene = scene_of(Torus(), replay=replay, look=Look(context=5, horizon=6, windows=3))
    assert scene.frames is not None
    searched = {*scene.frames[:, 0, 0, 0].tolist()}
    shown = {*scene.rows["image"][..., 0, 0, 0].flatten().tolist()}
    assert len(shown) > 11 and len(searched) > 60 and searched.isdisjoint(shown)


def test_a_look_is_a_function_of_seed_and_replay() -> None:
    first, again = scene_of(Torus()), scene_of(Torus())
    assert torch.equal(first.rows["image"], again.rows["image"])
    assert torch.equal(first.near["policy"].distance, again.near["policy"].distance)


# pictures


def test_an_animation_has_a_frame_for_every_row_and_shows_its_pictures() -> None:
    scene = scene_of(Torus())
    panels = {panel.name: panel for panel in dream_panels(scene, shown=2, title="torus")}
    assert panels.keys() == {"rollout_0", "rollout_1", "error", "numbers"}
    frames = panels["rollout_1"].frames
    assert frames is not None and frames.dtype == np.uint8 and len(frames) == 5 + 12
    assert panels["error"].frames is not None and len(panels["error"].frames) == 1
    # what happened, and what resembles both dreams: one dot each, 20 times enlarged
    green = (frames[9] == (0, 255, 0)).all(-1)
    assert green.sum() == 3 * 20 * 20
    columns = np.flatnonzero(green.any(0))
    assert len(columns) == 3 * 20
    space = SIDE * 20 + 2 * 3 + 8  # a frame, its outline, and the gap between two
    assert columns[20] - columns[0] == space, "recorded actions lead where they led"
    assert np.array_equal(green[:, columns[:20]], green[:, columns[20:40]])
    assert len({frame.tobytes() for frame in frames}) == len(frames), "the cursor moves"


def test_vectors_without_images_are_drawn_as_curves() -> None:
    scene = scene_of(Torus())._replace(frames=None)
    panel = dream_panels(scene, shown=1, title="torus")[0]
    assert panel.frames is not None and len(panel.frames) == 1


# the probe decoder


@pytest.mark.slow
def test_the_probe_decoder_learns_what_the_features_hold() -> None:
    g = torch.Generator().manual_seed(0)
    places = torch.randint(0, SIDE, (300, 2), generator=g)
    code = Torus().features(Torus().observe({"vector": places}))
    images = torch.from_numpy(picture(places)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    probe = ProbeDecoder(code.shape[-1], (2 * SIDE, 2 * SIDE, 3), seed=0, device=CPU)
    probe.fit(code, images, updates=300)
    drawn = to_uint8(probe.pictures(code))
    assert drawn.shape == images.shape and drawn.dtype == torch.uint8
    usual = (images.float() - images.float().mean(0)).square().mean()
    assert (drawn.float() - images).square().mean() < 0.2 * usual, "better than the mean picture"
    probe.fit(torch.zeros_like(code), images, updates=60)
    blind = to_uint8(probe.pictures(torch.zeros_like(code)))
    assert (blind.float() - images).square().mean() > 0.8 * usual, "and shows nothing else"


@pytest.mark.parametrize(
    ("side", "drawn"), [(8, 8), (16, 16), (36, 32), (64, 64), (84, 64), (96, 64)]
)
def test_the_probe_decoder_fits_every_image_size(side: int, drawn: int) -> None:
    shape = (side, side, 1)
    assert picture_size(shape) == drawn
    probe = ProbeDecoder(5, shape, seed=0, device=CPU)
    images = torch.zeros(3, *shape, dtype=torch.uint8)
    assert np.isfinite(probe.fit(torch.randn(3, 5), images, updates=1))
    assert probe.pictures(torch.randn(2, 4, 5)).shape == (2, 4, 1, drawn, drawn)


def test_equal_seeds_give_equal_probes() -> None:
    g = torch.Generator().manual_seed(0)
    code = torch.randn(50, 4, generator=g)
    images = torch.randint(0, 256, (50, 8, 8, 3), generator=g, dtype=torch.uint8)

    def drawn(seed: int, disturb: Any = None) -> torch.Tensor:
        probe = ProbeDecoder(4, (8, 8, 3), seed=seed, device=CPU)
        if disturb:
            torch.rand(5)
        probe.fit(code, images, updates=5)
        return probe.pictures(code)

    before = torch.random.get_rng_state()
    first = drawn(1)
    assert torch.equal(torch.random.get_rng_state(), before), "its random numbers are its own"
    assert torch.equal(first, drawn(1, disturb=True))
    assert not torch.equal(drawn(1), drawn(2))
