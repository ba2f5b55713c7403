"""Decoded clips on disk: whole or absent, decoded by one process, one copy for all of them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import run_child, start_child, wait_for_line
from clip_files import pictures, two_splits, write_clip

from reverie.envs.distractors import clip_cache, folder
from reverie.envs.distractors.clip_cache import Film, cache_root, load_or_decode
from reverie.envs.distractors.folder import FolderSource
from reverie.envs.specs import EnvError


def film(name: str = "0a", seed: int = 0) -> Film:
    return Film(name, f"pixels of {name}", 24.0, pictures(seed, count=5, size=8))


def never() -> Iterator[Film]:
    raise AssertionError("decoded although it is cached")
    yield film()


def sets_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_what_is_decoded_once_is_mapped_afterwards(tmp_path: Path) -> None:
    first = load_or_decode("key", lambda: [film("0a", 0), film("0b", 1)], root=tmp_path)
    again = load_or_decode("key", never, root=tmp_path)
    for films in (first, again):
        assert list(films) == ["0a", "0b"]
        for seed, one in enumerate(films.values()):
            assert (one.fps, one.pixels) == (24.0, f"pixels of {one.content}")
            assert isinstance(one.frames.base, np.memmap) and not one.frames.flags.writeable
            np.testing.assert_array_equal(one.frames, pictures(seed, count=5, size=8))
    assert sets_in(tmp_path) == ["key"]


def test_the_cache_is_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here" / "clips"
    load_or_decode("key", lambda: [film()])
    assert sets_in(tmp_path / "here" / "clips") == ["key"]
    monkeypatch.delenv("REVERIE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "reverie" / "clips"


def test_a_change_of_content_size_or_length_is_another_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, cache = two_splits(tmp_path / "clips"), tmp_path / "cache"
    for size, frames in ((8, 4), (8, 5), (32, 4)):
        FolderSource(clips, size=size, frames=frames, cache=cache)
    assert len(sets_in(cache)) == 3
    np.save(clips / "test" / "c.npy", pictures(9))
    changed = FolderSource(clips, size=32, frames=4, cache=cache)
    assert len(sets_in(cache)) == 4
    np.testing.assert_array_equal(changed.open("test", 0).frame(2), pictures(9)[2])
    # a clip that goes to the other split, or has another name, is the same content
    monkeypatch.setattr(folder, "decode", never)
    shutil.move(clips / "train" / "a.npy", clips / "test" / "d.npy")
    assert FolderSource(clips, size=32, frames=4, cache=cache).count("test") == 2


@pytest.mark.parametrize("damage", ["cut", "grown", "missing", "index", "torn index", "header"])
def test_damaged_clips_are_decoded_again(damage: str, tmp_path: Path) -> None:
    load_or_decode("key", lambda: [film()], root=tmp_path)
    stored, index = tmp_path / "key" / "0a.npy", tmp_path / "key" / "index.json"
    data = stored.read_bytes()
    if damage in ("missing", "index"):
        (stored if damage == "missing" else index).unlink()
    elif damage == "torn index":
        index.write_text(index.read_text()[:-5])
    else:
        changed = {"cut": data[:-1], "grown": data + b"0", "header": b"x" * len(data)}[damage]
        stored.write_bytes(changed)
    again = load_or_decode("key", lambda: [film(seed=3)], root=tmp_path)
    np.testing.assert_array_equal(again["0a"].frames, pictures(3, count=5, size=8))
    assert sets_in(tmp_path) == ["key"]


def test_an_error_in_the_middle_keeps_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Film]:
        yield film("0a")
        assert len(sets_in(tmp_path)) == 1, "something is being written"
        raise EnvError("the second clip is corrupt")

    with pytest.raises(EnvError, match=r"^the second clip is corrupt$"):
        load_or_decode("key", broken, root=tmp_path)
    assert sets_in(tmp_path) == []
    assert list(load_or_decode("key", lambda: [film()], root=tmp_path)) == ["0a"]


KILLED = """
import sys, time
from pathlib import Path
from reverie.envs.distractors import folder

decode, calls = folder.decode, []

def slow(*args, **options):
    if calls:
        print("in the middle", flush=True)
        time.sleep(60)
    calls.append(args)
    return decode(*args, **options)

folder.decode = slow
folder.FolderSource(Path(sys.argv[1]), size=8, cache=Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path) -> None:
    clips, cache = two_splits(tmp_path / "clips"), tmp_path / "cache"
    child = start_child(KILLED, clips, cache)
    wait_for_line(child, "in the middle")
    child.kill()
    child.communicate()
    (left,) = sets_in(cache)
    assert ".tmp-" in left and list((cache / left).glob("*.npy")), "it was killed too early"
    source = FolderSource(clips, size=32, cache=cache)
    assert left in sets_in(cache), "it belongs to another set"
    source = FolderSource(clips, size=8, cache=cache)  # the lock went with the process
    assert source.open("test", 0).length == 12
    assert len(sets_in(cache)) == 2 and not any(".tmp-" in name for name in sets_in(cache))


WORKER = """
import sys, time
from pathlib import Path
from reverie.envs.distractors import folder

decode = folder.decode

def counted(path, *args, **options):
    with open(sys.argv[3], "a") as file:
        file.write(f"{path.name}\\n")
    time.sleep(0.2)
    return decode(path, *args, **options)

folder.decode = counted
print("ready", flush=True)
sys.stdin.readline()
source = folder.FolderSource(Path(sys.argv[1]), size=8, cache=Path(sys.argv[2]))
print(source.manifest()["test"][0]["pixels"])
"""


def test_of_many_workers_one_decodes(tmp_path: Path) -> None:
    clips, cache, decoded = two_splits(tmp_path / "clips"), tmp_path / "cache", tmp_path / "log"
    children = [start_child(WORKER, clips, cache, decoded) for _ in range(3)]
    for child in children:
        wait_for_line(child, "ready")
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(said) == 1 and len(said.pop().strip()) == 64
    assert sorted(decoded.read_text().split()) == ["a.npy", "b", "c.npy"]


MEMORY = """
import sys
from pathlib import Path
from reverie.envs.distractors.clip_cache import load_or_decode

films = load_or_decode("key", None, root=Path(sys.argv[1]))
total = sum(int(film.frames.sum()) for film in films.values())
lines = Path("/proc/self/smaps").read_text().splitlines()
start = next(i for i, line in enumerate(lines) if line.endswith("0a.npy"))
sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[start + 1 : start + 18]}
print(sizes["Rss"], sizes["Private_Dirty"], sizes["Anonymous"])
"""


def test_readers_share_the_pages_of_the_file(tmp_path: Path) -> None:
    frames = np.full((1000, 16, 16, 3), 7, np.uint8)
    load_or_decode("key", lambda: [Film("0a", "", 30.0, frames)], root=tmp_path)
    resident, dirty, own = map(int, run_child(MEMORY, tmp_path).split())
    assert resident >= frames.nbytes // 1024 and dirty == own == 0


def test_a_cache_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvError, match=r"file/key: expected to write .* REVERIE_CACHE"):
        load_or_decode("key", lambda: [film()], root=tmp_path / "file")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clip_cache.np, "save", full)
    with pytest.raises(EnvError, match=r"No space left on device.*Make room, or set REVERIE_CACHE"):
        load_or_decode("key", lambda: [film()], root=tmp_path)
    assert sets_in(tmp_path) == []


def test_without_locks_the_first_to_finish_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    foreign = tmp_path / "key.tmp-1"  # another process at work: not ours to remove
    foreign.mkdir()

    def overtaken() -> Iterator[Film]:
        yield film()
        load_or_decode_elsewhere(tmp_path)

    def load_or_decode_elsewhere(root: Path) -> None:
        monkeypatch.setattr(os, "getpid", lambda: 2)
        load_or_decode("key", lambda: [film(seed=1)], root=root)

    films = load_or_decode("key", overtaken, root=tmp_path)
    np.testing.assert_array_equal(films["0a"].frames, pictures(1, count=5, size=8))
    assert sets_in(tmp_path) == ["key", "key.tmp-1"]


def test_other_errors_of_the_lock_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(EnvError, match="Input/output error"):
        load_or_decode("key", lambda: [film()], root=tmp_path)


def test_a_film_is_decoded_once_for_all_runs(tmp_path: Path) -> None:
    clips, cache = two_splits(tmp_path / "clips"), tmp_path / "cache"
    write_clip(clips / "test" / "d.avi", pictures(4, count=20))
    first = FolderSource(clips, size=8, cache=cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    again = FolderSource(clips, size=8, cache=cache)
    assert first.manifest() == again.manifest()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before
    assert len(before) == 4
