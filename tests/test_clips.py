"""Computed clips: what they look like, what they are a function of, and what they cost."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
from children import run_child

from reverie.envs.distractors.procedural import NaturalClip, procedural_source
from reverie.envs.distractors.sources import SPLITS, Clip, ClipSource, Split, make_source
from reverie.envs.specs import Array, EnvError

GREY = np.array([0.299, 0.587, 0.114])
WORDS = ("procedural", "procedural-shift", "static", "noise")


def some(source: ClipSource, split: Split, every: int = 5) -> list[Clip]:
    return [source.open(split, index) for index in range(0, source.count(split), every)]


def stack(clip: Clip, indices: range) -> Array:
    return np.stack([clip.frame(index) for index in indices]).astype(np.float64)


def change(clip: Clip, lag: int = 1) -> float:
    """Mean absolute difference of frames that are `lag` apart, in grey levels."""
    return float(
        np.mean(
            [
                np.abs(clip.frame(index + lag).astype(float) - clip.frame(index)).mean()
                for index in range(0, 900, 60)
            ]
        )
    )


def slope(clip: Clip) -> float:
    """Exponent of the power spectrum: fit of log power against log frequency, 2 to 31 cycles."""
    grey = stack(clip, range(0, 1000, 90)) @ GREY
    size = grey.shape[1]
    window = np.hanning(size)[:, None] * np.hanning(size)
    centred = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(centred)) ** 2).mean(axis=0)
    across = np.fft.fftfreq(size, 1 / size)
    radius = np.hypot(across[:, None], across)
    rings = np.arange(2, size // 2)
    means = [power[np.abs(radius - ring) < 0.5].mean() for ring in rings]
    return float(np.polyfit(np.log(rings), np.log(means), 1)[0])


@pytest.mark.parametrize("split", SPLITS)
def test_procedural_clips_have_the_statistics_of_filmed_ones(split: Split) -> None:
    clips = some(make_source("procedural", size=64), split, every=3)
    slopes = [slope(clip) for clip in clips]
    changes = [change(clip) for clip in clips]
    contrasts = [(stack(clip, range(0, 1000, 90)) @ GREY).std(axis=(1, 2)).mean() for clip in clips]
    # the ranges are those of filmed clips at 64 pixels, the middles their means
    assert -3.8 < min(slopes) and max(slopes) < -2.1 and -3.3 < np.mean(slopes) < -2.7
    assert 0.3 < min(changes) and max(changes) < 8 and 3.0 < np.mean(changes) < 5.0
    assert 46 < min(contrasts) and max(contrasts) < 77 and 55 < np.mean(contrasts) < 66


def test_motion_is_smooth_and_noise_is_not() -> None:
    for clip in some(make_source("procedural", size=64), "train", every=12):
        assert change(clip, 1) < change(clip, 5) < change(clip, 60)
    noise = make_source("noise", size=64).open("train", 0)
    assert change(noise, 1) == pytest.approx(change(noise, 50), abs=1.0)


def test_a_frame_is_what_textures_on_a_torus_give() -> None:
    clip, size = NaturalClip(7, size=24), 24
    for index in (0, 411, 999):
        expected = np.zeros((size, size, 3), np.int64)
        for texture, colours, path in zip(clip._textures, clip._colours, clip._paths, strict=False):
            top, left = path[index]
            whole = np.roll(texture[: 8 * size, : 8 * size], (-top, -left), (0, 1))
            expected += colours[whole[::4, ::4][:size, :size]]
        for blob, (top, left) in zip(
            clip._blobs, [path[index] for path in clip._paths[2:]], strict=True
        ):
            reach = len(blob)
            padded = np.zeros((size + 2 * reach, size + 2 * reach, 3), np.int64)
            padded[top : top + reach, left : left + reach] = blob
            expected += padded[reach:-reach, reach:-reach]
        np.testing.assert_array_equal(clip.frame(index), expected.clip(0, 255))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("size", [8, 33, 84])
def test_frames_keep_their_promises(word: str, size: int) -> None:
    source = make_source(word, size=size)
    assert (source.name, source.size) == (word, size)
    clip, again = source.open("test", 3), source.open("test", 3)
    assert clip.length == 1000 and clip.fps == 30.0
    for index in (999, 0, 500):  # in any order
        frame = clip.frame(index)
        assert frame.dtype == np.uint8 and frame.shape == (size, size, 3)
        assert not frame.flags.writeable
        np.testing.assert_array_equal(frame, again.frame(index))
    for wrong in (-1, 1000):
        with pytest.raises(AssertionError, match="expected 0 <= index < 1000"):
            clip.frame(wrong)
    with pytest.raises(AssertionError, match="expected 0 <= index < 30, found 30"):
        source.open("test", 30)
    source.close()
    source.close()


FINGERPRINTS = """
import json
from reverie.envs.distractors.sources import make_source
print(json.dumps([make_source(word, size=16).manifest() for word in %r]))
"""


def test_other_processes_make_the_same_frames() -> None:
    here = [make_source(word, size=16).manifest() for word in WORDS]
    assert json.loads(run_child(FINGERPRINTS % (WORDS,))) == here


@pytest.mark.parametrize("word", WORDS)
def test_splits_are_disjoint_and_the_manifest_identifies_every_clip(word: str) -> None:
    source = make_source(word, size=16)
    manifest = source.manifest()
    ids = {split: [clip["id"] for clip in manifest[split]] for split in SPLITS}
    kind = word.removesuffix("-shift")
    assert ids["train"] == [f"{kind}-{number}" for number in range(60)]
    assert ids["test"] == [f"{kind}-{number}" for number in range(10000, 10030)]
    clips = [*manifest["train"], *manifest["test"]]
    assert len({clip["sha256"] for clip in clips}) == len(clips) == 90
    clip = source.open("test", 4)
    pixels = b"".join(clip.frame(index).tobytes() for index in (0, 500, 999))
    assert manifest["test"][4] == {
        "id": clip.id,
        "frames": 1000,
        "fps": 30.0,
        "sha256": hashlib.sha256(pixels).hexdigest(),
    }
    assert (manifest["kind"], manifest["size"]) == (word, 16)


def hue_sign(clip: Clip) -> float:
    """Positive where a picture leans to the hues of training: yellow, green, cyan."""
    red, green, blue = stack(clip, range(0, 1000, 200)).mean(axis=(0, 1, 2))
    return float(green - (red + blue) / 2)


def test_the_shift_moves_colour_and_speed_of_the_test_split_only() -> None:
    plain, shifted = (make_source(word, size=32) for word in WORDS[:2])
    for index in (0, 30, 59):
        np.testing.assert_array_equal(
            plain.open("train", index).frame(5), shifted.open("train", index).frame(5)
        )
    before, after = some(plain, "test"), some(shifted, "test")
    assert np.mean([hue_sign(clip) for clip in before]) > 8
    assert np.mean([hue_sign(clip) for clip in after]) < -8
    ratio = np.mean([change(clip) for clip in after]) / np.mean([change(clip) for clip in before])
    assert 1.5 < ratio < 2.2
    half = procedural_source(size=32, shift=0.5)
    assert half.name == "procedural-shift0.5" and half.manifest()["test_shift"] == 0.5
    with pytest.raises(EnvError, match="between 0 and 1, found 2"):
        procedural_source(size=32, shift=2)


def test_static_shows_the_first_frame_for_ever() -> None:
    natural = make_source("procedural", size=32).open("test", 6)
    clip = make_source("static", size=32).open("test", 6)
    for index in (0, 1, 999):
        np.testing.assert_array_equal(clip.frame(index), natural.frame(0))
    assert (natural.frame(999) != natural.frame(0)).mean() > 0.9


def test_noise_is_uniform_and_independent() -> None:
    source = make_source("noise", size=64)
    clips = [source.open("train", 0), source.open("train", 1), source.open("test", 0)]
    frames = stack(clips[0], range(40))
    counts = np.bincount(frames.astype(int).ravel(), minlength=256)
    assert abs(counts / frames.size * 256 - 1).max() < 0.15
    flat = np.stack(
        [frames[0], frames[1], frames[39], clips[1].frame(0), clips[2].frame(0)]
    ).reshape(5, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(5)).max() < 0.05
    shifted = np.corrcoef(flat[0, 32:], flat[1, :-32])[0, 1]
    assert abs(shifted) < 0.05, "frames are pieces of one stream"


def test_a_frame_costs_at_most_a_fifth_of_a_millisecond() -> None:
    clip = make_source("procedural", size=64).open("train", 0)

    def once() -> float:
        start = time.process_time()
        for index in range(200):
            clip.frame(index)
        return (time.process_time() - start) / 200

    assert min(once() for _ in range(7)) < 0.2e-3


@pytest.mark.parametrize(("text", "found"), [("proceduarl", "no such folder"), ("", "no such")])
def test_an_unknown_source_is_refused(text: str, found: str) -> None:
    with pytest.raises(EnvError, match=f"procedural, .*noise or a folder of clips.*{found}"):
        make_source(text, size=64)


def test_a_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "one.mp4").write_bytes(b"")
    with pytest.raises(EnvError, match=r"one\.mp4' \(a file\)"):
        make_source(str(tmp_path / "one.mp4"), size=64)


@pytest.mark.parametrize("word", WORDS)
def test_too_small_a_picture_is_refused(word: str) -> None:
    with pytest.raises(EnvError, match="at least 8 pixels, found 7"):
        make_source(word, size=7)
    with pytest.raises(EnvError, match="at least 1 pixel, found size 0"):
        make_source(word, size=0)
