"""A folder of clips: kinds of files, splits, and every input that cannot be used."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_files import pictures, two_splits, write_clip, write_film, write_gif
from PIL import Image

from reverie.envs.distractors import folder as folder_module
from reverie.envs.distractors.folder import FolderSource, split_of
from reverie.envs.distractors.sources import SPLITS, make_source
from reverie.envs.specs import Array, EnvError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own."""
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clips"


# how far a pixel may be from what was written: films lose detail, gif has a palette
KINDS = {"a.mp4": 6.0, "a.avi": 6.0, "a.webm": 6.0, "a.gif": 6.0, "a": 0.0, "a.npy": 0.0}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_clip_shows_its_pictures(name: str, tmp_path: Path) -> None:
    frames = pictures(5, count=14)
    folder = two_splits(tmp_path / "clips")
    shutil.rmtree(folder / "test")
    write_clip(folder / "test" / name, frames)
    source = make_source(str(folder), size=32)
    assert re.fullmatch(r"folder clips [0-9a-f]{8}", source.name) and source.size == 32
    assert (source.count("train"), source.count("test")) == (2, 1)
    clip = source.open("test", 0)
    assert clip.length == 14
    assert clip.fps == (30.0 if name in ("a", "a.npy") else 25.0)
    for index in range(14):
        frame = clip.frame(index)
        assert frame.dtype == np.uint8 and frame.shape == (32, 32, 3)
        assert not frame.flags.writeable
        assert np.abs(frame.astype(float) - frames[index]).mean() <= KINDS[name]
    with pytest.raises(AssertionError, match="expected 0 <= index < 14"):
        clip.frame(14)
    with pytest.raises(AssertionError, match="expected 0 <= index < 1, found 1"):
        source.open("test", 1)


@pytest.mark.parametrize("name", ["a.mp4", "a"])
def test_pictures_are_squeezed_whole_and_cut_after_the_limit(name: str, tmp_path: Path) -> None:
    wide = np.zeros((20, 32, 96, 3), np.uint8)
    wide[:, :, :48] = (200, 40, 20)  # red left, blue right
    wide[:, :, 48:] = (20, 60, 220)
    folder = two_splits(tmp_path / "clips")
    write_clip(folder / "test" / name, wide)
    source = FolderSource(folder, size=16, frames=9)
    (clip,) = [
        one for one in map(lambda i: source.open("test", i), (0, 1)) if "c.npy" not in one.id
    ]
    assert clip.length == 9
    for side, colour in ((slice(0, 7), (200, 40, 20)), (slice(9, 16), (20, 60, 220))):
        part = clip.frame(8)[:, side].reshape(-1, 3).astype(float)
        assert np.abs(part - colour).max() < 12


def test_the_manifest_has_the_hash_of_every_clip(tmp_path: Path) -> None:
    folder = two_splits(tmp_path / "clips")
    (folder / "LICENSE").write_text("beside clips")
    (folder / "train" / "notes.txt").write_text("beside clips")
    (folder / "train" / ".hidden.mp4").write_text("not looked at")
    source = FolderSource(folder, size=32, frames=10)
    manifest = json.loads(json.dumps(source.manifest()))
    assert (manifest["kind"], manifest["size"], manifest["max_frames"]) == ("folder", 32, 10)
    assert manifest["split_by"] == "train/ and test/" and manifest["folder"] == str(folder)
    (record,) = manifest["test"]
    digest = hashlib.sha256((folder / "test" / "c.npy").read_bytes()).hexdigest()
    assert record == {
        "id": f"{digest[:16]}-c.npy",
        "frames": 10,
        "fps": 30.0,
        "sha256": digest,
        "pixels": hashlib.sha256(pictures(3)[:10].tobytes()).hexdigest(),
    }
    parts = [(folder / "train" / "b" / f"frame{i}.png").read_bytes() for i in range(12)]
    hashes = "".join(hashlib.sha256(part).hexdigest() for part in parts)
    (frames,) = [clip for clip in manifest["train"] if clip["id"].endswith("-b")]
    assert frames["sha256"] == hashlib.sha256(hashes.encode()).hexdigest()
    assert [clip["id"] for clip in manifest["train"]] == [
        source.open("train", index).id for index in range(2)
    ]
    held = source.open("test", 0)
    source.close()
    source.close()
    np.testing.assert_array_equal(held.frame(3), pictures(3)[3])


def many(folder: Path, numbers: range) -> Path:
    for number in numbers:
        write_clip(folder / f"{number}.npy", pictures(number, count=3, size=8))
    return folder


def test_content_decides_where_there_are_no_subfolders(tmp_path: Path) -> None:
    folder = many(tmp_path / "clips", range(20))
    before = FolderSource(folder, size=8).manifest()
    assert before["split_by"] == "content, 70% to train"
    for split in SPLITS:
        assert {split_of(clip["sha256"]) for clip in before[split]} == {split}
    # new names and new clips move none of the others across
    (folder / "3.npy").rename(folder / "other.npy")
    after = FolderSource(many(folder, range(20, 30)), size=8).manifest()
    for split in SPLITS:
        kept = {clip["sha256"] for clip in before[split]}
        assert kept < {clip["sha256"] for clip in after[split]}
    assert sum(len(after[split]) for split in SPLITS) == 30


def test_seven_in_ten_clips_are_for_training() -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(40000)]
    share = np.mean([split_of(content) == "train" for content in hashes])
    assert 0.69 < share < 0.71


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def film(name: str, damage: Callable[[Path], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        write_clip(folder / "train" / name, pictures(7, count=40))
        damage(folder / "train" / name)

    return write


def torn(path: Path) -> None:
    cut(path, 0.6)
    path.write_bytes(path.read_bytes() + b";")


def other_codec(path: Path) -> None:
    data = path.read_bytes()
    assert b"MJPG" in data
    path.write_bytes(data.replace(b"MJPG", b"zz9z"))


def saved(array: Any) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / "train" / "bad.npy", array, allow_pickle=True)


def text(name: str, content: bytes = b"not a clip" * 50) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def copied(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder / "train" / "a.npy", folder / "test" / name)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda f: [shutil.rmtree(f / s) for s in SPLITS], ": expected .* none.* least two"),
    "only train": (lambda f: shutil.rmtree(f / "test"), ": expected train/ and test/, found only"),
    "empty test": (lambda f: (f / "test" / "c.npy").unlink(), "test: expected clips .* found none"),
    "beside": (lambda f: np.save(f / "d.npy", pictures(4)), "d.npy: expected clips in train/ and"),
    "unknown": (text("test/d.flv"), "d.flv: expected mp4, .* Convert it or remove it"),
    "one picture": (text("test/0.png"), "0.png: expected a clip, found a single picture"),
    "dead link": (lambda f: (f / "test/x.npy").symlink_to(f / "gone"), "x.npy: expected a readabl"),
    "empty frames": (lambda f: (f / "train" / "d").mkdir(), "train/d: expected a frame folder"),
    "bad frame": (text("train/b/frame3.png"), "b/frame3.png: corrupt picture"),
    "cut frame": (lambda f: cut(f / "train/b/frame3.png", 0.7), "b/frame3.png: corrupt picture"),
    "no mp4": (text("train/bad.mp4"), "bad.mp4: not a film, or of a codec .*`ffmpeg -i"),
    "no bytes": (text("train/bad.avi", b""), "bad.avi: not a film, or of a codec"),
    "cut mp4": (film("bad.mp4", lambda p: cut(p, 0.6)), "bad.mp4: not a film, or of a codec"),
    "cut avi": (film("bad.avi", lambda p: cut(p, 0.6)), "bad.avi: expected 40 frames, found 2"),
    "cut webm": (film("bad.webm", lambda p: cut(p, 0.6)), "bad.webm: expected 40 frames, found"),
    "codec": (film("bad.avi", other_codec), "bad.avi: not a film, or of a codec .* cannot read"),
    "no gif": (text("train/bad.gif"), "bad.gif: corrupt, or not what its name says"),
    "no end gif": (film("bad.gif", lambda p: cut(p, 1 - 1e-9)), "bad.gif: cut off"),
    "cut gif": (film("bad.gif", lambda p: cut(p, 0.6)), "bad.gif: cut off"),
    "torn gif": (film("bad.gif", torn), "bad.gif: corrupt"),
    "one frame film": (
        lambda f: write_film(f / "train" / "bad.avi", pictures(1, count=1)),
        "bad.avi: expected a clip of at least 2 frames, found 1",
    ),
    "one frame gif": (
        lambda f: write_gif(f / "train" / "bad.gif", pictures(1, count=1)),
        "bad.gif: expected a clip of at least 2 frames, found 1.*`static`",
    ),
    "one frame array": (saved(pictures(1)[:1]), "bad.npy: expected a clip of at least 2 frames"),
    "no frame": (saved(pictures(1)[:0]), "bad.npy: expected a clip of at least 2 frames, found 0"),
    "floats": (saved(pictures(1) / 255), "bad.npy: expected uint8 .* found float64 .12, 32, 32, 3"),
    "grey": (saved(pictures(1)[..., 0]), "bad.npy: expected uint8 .frames.* found uint8"),
    "no size": (saved(pictures(1)[:, :0]), "bad.npy: expected uint8 .* found uint8 .12, 0, 32, 3"),
    "pickle": (saved(np.array([{}], object)), "bad.npy: corrupt, or not what its name says"),
    "cut array": (lambda f: cut(f / "train" / "a.npy", 0.8), "a.npy: corrupt"),
    "overlap": (
        copied("d.npy"),
        "d.npy: expected no clip in both splits, found the .*/train/a.npy",
    ),
    "same pixels": (
        lambda f: write_clip(f / "test" / "d", pictures(1)),
        "test/d: expected no clip in both splits, found the .*train/a.npy. Remove one",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_leaves_nothing_behind(
    case: str, tmp_path: Path, cache: Path
) -> None:
    damage, message = BAD[case]
    folder = two_splits(tmp_path / "clips")
    damage(folder)
    with pytest.raises(EnvError, match=message) as raised:
        FolderSource(folder, size=8)
    assert str(folder) in str(raised.value)
    left = [path for path in cache.glob("*") if path.is_dir()]
    # equal pixels are found in decoded clips, all of which are good
    assert len(left) == (1 if case == "same pixels" else 0), left


def test_contents_that_all_fall_into_one_split_are_refused(tmp_path: Path) -> None:
    folder = many(tmp_path / "clips", range(1))
    with pytest.raises(EnvError, match=r"found 1 in all, and none .* Add clips, or make train/"):
        FolderSource(folder, size=8)


def test_an_unreadable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(EnvError, match=r"expected a readable folder of clips, found .*denied"):
        FolderSource(tmp_path, size=8)


def test_films_need_opencv_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = two_splits(tmp_path / "clips")
    write_clip(folder / "test" / "d.gif", pictures(9))
    film_file = folder / "test" / "e.mp4"
    write_clip(film_file, pictures(8))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(EnvError, match=r"e\.mp4: .*OpenCV, which is missing: `pip install"):
        FolderSource(folder, size=8)
    film_file.unlink()
    assert FolderSource(folder, size=8).count("test") == 2


def test_a_film_that_is_in_two_places_of_a_split_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = two_splits(tmp_path / "clips")
    shutil.copy(folder / "train" / "a.npy", folder / "train" / "again.npy")
    decoded: list[Path] = []
    decode: Any = folder_module.decode

    def counted(path: Path, *args: Any, **options: Any) -> Any:
        decoded.append(path)
        return decode(path, *args, **options)

    monkeypatch.setattr(folder_module, "decode", counted)
    source = FolderSource(folder, size=8)
    assert len(decoded) == 3 and source.count("train") == 3
    assert len({source.open("train", index).id for index in range(3)}) == 3


def test_a_gif_without_times_has_the_usual_rate(tmp_path: Path) -> None:
    folder = two_splits(tmp_path / "clips")
    (folder / "test" / "c.npy").unlink()
    write_gif(folder / "test" / "c.gif", pictures(3))
    clip = FolderSource(folder, size=8).open("test", 0)
    assert clip.fps == 30.0 and clip.length == 12


def shrunk(frame: Array, size: int) -> Array:
    """Mean of each block of a picture whose side is a multiple of `size`."""
    block = len(frame) // size
    return frame.reshape(size, block, size, block, 3).mean(axis=(1, 3))


def test_shrinking_averages(tmp_path: Path) -> None:
    fine = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    folder = two_splits(tmp_path / "clips")
    (folder / "test" / "c.npy").unlink()
    np.save(folder / "test" / "c.npy", fine)
    frame = FolderSource(folder, size=8).open("test", 0).frame(1).astype(float)
    assert np.abs(frame - shrunk(fine[1], 8)).mean() < 6  # every 8th pixel would be off by 60
    assert Image.fromarray(fine[1]).size == (64, 64)
