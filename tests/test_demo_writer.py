"""Writing demonstrations: a shard appears whole or not at all, whatever happens."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import run_child, start_child, wait_for_line
from small_demos import point_spec, shard_writer, walk, write_demos

from reverie.agents.demos import writer as demo_writer
from reverie.agents.demos.store import DemoError, ShardWriter, open_dataset, read_shard
from reverie.envs.specs import Array

SPEC = point_spec(image_size=8)
Columns = dict[str, Array]


def writer(folder: Path) -> ShardWriter:
    return shard_writer(folder / "below" / "x", task="toy/x", spec=SPEC)


def left(folder: Path) -> list[Path]:
    """Files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_shard_is_published_by_the_block_or_by_close(tmp_path: Path) -> None:
    with writer(tmp_path) as one:
        one.add(walk(SPEC, 5), success=True, seed=0)
        assert not (tmp_path / "below" / "x").exists(), "nobody sees a shard that grows"
    assert len(read_shard(tmp_path / "below" / "x")) == 1
    with pytest.raises(DemoError, match="the shard is closed"):
        one.add(walk(SPEC, 5), success=True, seed=1)
    with pytest.raises(DemoError, match="found one; delete it"):
        writer(tmp_path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_writer_leaves_no_shard(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), writer(tmp_path) as one:
        one.add(walk(SPEC, 5), success=True, seed=0)
        assert left(tmp_path)
        raise error
    assert left(tmp_path) == []
    with pytest.raises(DemoError, match="closed"):
        one.close()


def test_a_shard_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"below/x: expected an episode"), writer(tmp_path):
        pass
    assert left(tmp_path) == []


KILLED = """
import sys, time
from pathlib import Path
from small_demos import point_spec, shard_writer, walk

spec = point_spec(image_size=8)
writer = shard_writer(Path(sys.argv[1]) / "x-[1]", task="toy/x", spec=spec)
writer.add(walk(spec, 5), success=True, seed=0)
print("written", flush=True)
time.sleep(60)
"""


def test_what_a_killed_writer_left_is_no_shard_and_goes_with_the_next(tmp_path: Path) -> None:
    child = start_child(KILLED, tmp_path)
    wait_for_line(child, "written")
    with shard_writer(tmp_path / "x-[1]", task="toy/x", spec=SPEC) as other:
        other.add(walk(SPEC, 5), success=True, seed=0)
        assert len(list(tmp_path.iterdir())) == 2, "a writer that lives is left alone"
    child.kill()
    child.communicate()
    assert len(open_dataset(tmp_path).episodes) == 1
    for file in (tmp_path / "x-[1]").iterdir():
        file.unlink()
    (tmp_path / "x-[1]").rmdir()
    with pytest.raises(DemoError, match="found none"):
        open_dataset(tmp_path)
    with shard_writer(tmp_path / "x-[1]", task="toy/x", spec=SPEC) as other:
        other.add(walk(SPEC, 5), success=True, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["x-[1]"]


FULL = """
import resource, signal, sys
from pathlib import Path
from reverie.agents.demos.store import DemoError
from small_demos import point_spec, shard_writer, walk

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
spec = point_spec(image_size=8)
episodes = [walk(spec, 20, seed=seed) for seed in range(30)]
for most in (30, 5_000, 12_000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with shard_writer(Path(sys.argv[1]), task="toy/x", spec=spec) as writer:
            for seed, columns in enumerate(episodes):
                writer.add(columns, success=True, seed=seed)
    except DemoError as error:
        print(most, error)
"""


def test_a_full_disk_names_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    said = run_child(FULL, tmp_path / "x").splitlines()
    words = f"{tmp_path / 'x'}: the shard could not be written (File too large)"
    assert [line.split()[0] for line in said] == ["30", "5000", "12000", "100000"]
    assert all(words in line and "Free some space" in line for line in said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["mkdir", "fsync", "write_synced", "rename"])
def test_a_disk_that_fails_at_any_step_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = {"mkdir": Path, "rename": demo_writer.os}.get(step, demo_writer)
    monkeypatch.setattr(place, step, full)
    with pytest.raises(DemoError, match="No space left on device") as caught:
        with writer(tmp_path) as one:
            one.add(walk(SPEC, 5), success=True, seed=0)
    assert str(tmp_path / "below" / "x") in str(caught.value)
    assert left(tmp_path) == []


def changed(name: str, change: Callable[[Array], Array]) -> Callable[[Columns], Columns]:
    return lambda columns: {**columns, name: change(columns[name])}


WRONG: dict[str, tuple[Callable[[Columns], Columns], str]] = {
    "nan": (changed("vector", lambda v: v + np.float32("nan")), "episode 1, frame 0: expected fin"),
    "action": (
        changed("action", lambda a: a * 3),
        "action.npy, episode 1, frame 0: expected actions",
    ),
    "dtype": (
        changed("reward", lambda r: r.astype("f8")),
        "expected float32 [5], found float64 [5]",
    ),
    "short": (
        changed("image", lambda i: i[1:]),
        "image.npy, episode 1: expected uint8 [5, 8, 8, 3]",
    ),
    "early end": (
        changed("done", np.logical_not),
        "next.done.npy, episode 1, frame 0: expected no",
    ),
    "missing": (lambda c: {k: c[k] for k in c if k != "vector"}, "episode 1: missing column"),
    "additional": (lambda c: {**c, "x": c["done"]}, "x.npy, episode 1: additional column"),
    "empty": (
        lambda c: {k: v[:0] for k, v in c.items()},
        "episode 1: expected a frame, found none",
    ),
    "nothing": (lambda c: {}, "episode 1: expected a frame, found none"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_bad_episode_is_refused_and_the_shard_stays_good(kind: str, tmp_path: Path) -> None:
    change, words = WRONG[kind]
    columns = walk(SPEC, 5, seed=3)
    columns["action"][0] = 0.9
    with writer(tmp_path) as one:
        one.add(walk(SPEC, 5), success=True, seed=0)
        with pytest.raises(DemoError) as caught:
            one.add(change(columns), success=True, seed=1)
        one.add(columns, success=True, seed=2)
    assert words in str(caught.value) and str(tmp_path / "below" / "x") in str(caught.value)
    shard = read_shard(tmp_path / "below" / "x")
    assert [facts["seed"] for facts in shard.header["episodes"]] == [0, 2]
    assert np.array_equal(shard.episode(1)["action"], columns["action"])


def test_equal_episodes_make_equal_files(tmp_path: Path) -> None:
    one, two = (write_demos(tmp_path / name, images=True) for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in left(one))
    assert len(files) == 18
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
