"""Damaged demonstrations: every kind is refused, with the file and the episode in the message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_damage import forge, forge_header, rewrite
from small_demos import write_demos

from reverie.agents.demos.store import DemoError, open_dataset, read_shard
from reverie.envs.specs import Array

STATE, WHOLE = "observation.state", "observation.environment_state"

Damage = Callable[[Path], object]


def put(name: str, frame: int, value: Any, entry: int = 0) -> Damage:
    """Change one number; checksums are made to hold."""

    def change(column: Array) -> Array:
        rows = column.reshape(len(column), -1)
        rows[frame, entry % rows.shape[1]] = value
        return column

    return lambda path: rewrite(path, name, change)


def column(name: str, change: Callable[[Array], Array]) -> Damage:
    return lambda path: rewrite(path, name, change)


def truncate(name: str, keep: float) -> Damage:
    def cut(path: Path) -> None:
        file = path / f"{name}.npy"
        data = file.read_bytes()
        file.write_bytes(data[: int(keep * len(data))])

    return cut


def head(**changes: Any) -> Damage:
    return lambda path: forge_header(path, **changes)


def flip(name: str) -> Damage:
    def damage(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[-2] ^= 1
        (path / name).write_bytes(bytes(data))

    return damage


def then_forge(damage: Damage) -> Damage:
    """Damage a file, then make the checksums hold."""

    def both(path: Path) -> None:
        damage(path)
        forge(path)

    return both


def without(key: str) -> Damage:
    def drop(path: Path) -> None:
        header = json.loads((path / "header.json").read_text())
        del header["columns"][key]
        forge_header(path, columns=header["columns"])

    return drop


# episodes of 12, 13 and 14 frames: frame 14 is the third of episode 1
BAD: dict[str, tuple[Damage, str]] = {
    "nan state": (put(WHOLE, 14, np.nan, 3), f"{WHOLE}.npy, episode 1, frame 2: expected finite"),
    "inf reward": (
        put("next.reward", 38, np.inf),
        "next.reward.npy, episode 2, frame 13: expected",
    ),
    "nan action": (put("action", 12, np.nan), "action.npy, episode 1, frame 0: expected finite"),
    "large action": (put("action", 11, -1.01), "action.npy, episode 0, frame 11: expected actions"),
    "other state": (
        put(STATE, 25, 9.0),
        f"{STATE}.npy, episode 2, frame 0: expected the beginning",
    ),
    "early end": (put("next.done", 14, True), "next.done.npy, episode 1, frame 2: expected no end"),
    "offset kind": (
        column("ep_offset", lambda c: c.astype("f8")),
        "ep_offset.npy, episodes 0 to 2",
    ),
    "offset count": (column("ep_offset", lambda c: c[:-1]), "ep_offset.npy, episodes 0 to 2"),
    "offset start": (put("ep_offset", 0, 1), "ep_offset.npy, episode 0: expected its start at"),
    "empty episode": (put("ep_offset", 2, 12), "ep_offset.npy, episode 1: expected its end behind"),
    "misordered": (put("ep_offset", 1, 30), "ep_offset.npy, episode 1: expected its end behind"),
    "ragged": (put("ep_offset", 3, 38), "ep_offset.npy, episode 2: expected the last episode to"),
    "too far": (put("ep_offset", 3, 2**62), "ep_offset.npy, episode 2: expected the last episode"),
    "wrong dtype": (
        column("action", lambda c: c.astype("f8")),
        "action.npy, episodes 0 to 2: expec",
    ),
    "big endian": (
        column("action", lambda c: c.astype(">f4")),
        "action.npy, episodes 0 to 2: expec",
    ),
    "wrong shape": (
        column("action", lambda c: c[:, :1]),
        "expected float32 [39, 2], found float32",
    ),
    "short column": (
        column("next.done", lambda c: c[:-1]),
        "next.done.npy, episodes 0 to 2: expec",
    ),
    "a number": (
        column("next.done", lambda c: c[0]),
        "next.done.npy, episodes 0 to 2: expected rows",
    ),
    "pickle": (
        column("action", lambda c: np.array([{}] * 39, object)),
        "action.npy, episodes 0 to 2: not a complete .npy file",
    ),
    "missing": (
        lambda path: (path / "action.npy").unlink(),
        "action.npy, episodes 0 to 2: missing",
    ),
    "additional": (
        lambda path: np.save(path / "more.npy", np.zeros(39)),
        "more.npy, episodes 0 to 2: additional column; expected exactly action",
    ),
    "not in header": (without("action"), "action.npy, episodes 0 to 2: missing column in header"),
    "truncated": (truncate(WHOLE, 0.7), f"{WHOLE}.npy, from episode 1 on: expected 752 bytes"),
    "cut at a frame": (
        truncate("next.done", 0.999),
        "next.done.npy, from episode 2 on: expected 167",
    ),
    "emptied": (
        truncate("action", 0),
        "action.npy, from episode 0 on: expected 440 bytes, found 0",
    ),
    "truncated offset": (
        truncate("ep_offset", 0.9),
        "ep_offset.npy, episodes 0 to 2: expected 160",
    ),
    "forged cut": (
        then_forge(truncate("action", 0.5)),
        "action.npy, episodes 0 to 2: not a complete .npy file",
    ),
    "forged nothing": (
        then_forge(truncate("action", 0)),
        "action.npy, episodes 0 to 2: not a complete .npy file",
    ),
    "checksum": (flip("action.npy"), "action.npy, episodes 0 to 2: checksum error"),
    "image": (flip("observation.image.npy"), "observation.image.npy, episodes 0 to 2: checksum"),
    "header sum": (
        lambda path: forge_header(path, seal=False, seed=3),
        "header.json, episodes 0 to 2: checksum error",
    ),
    "one seed": (
        head(episodes=[{"seed": 0, "success": True}] * 2 + [{"seed": "x", "success": True}]),
        "header.json, episode 2: expected seed and success, found {'seed': 'x'",
    ),
    "no success": (head(episodes=[{"seed": 0}] * 3), "header.json, episode 0: expected seed and"),
    "fewer episodes": (
        head(episodes=[{"seed": 0, "success": True}] * 2),
        "ep_offset.npy, episodes 0 to 1: expected int64 [3], found int64 [4]",
    ),
    "no episodes": (head(episodes=[]), "header.json: expected episodes, found none"),
    "no header": (lambda path: (path / "header.json").unlink(), "header.json: cannot be read"),
    "not JSON": (flip("header.json"), "header.json: not the header of a shard"),
    "a list": (lambda path: (path / "header.json").write_text("[]"), "header.json: not the"),
    "newer": (
        head(format=2),
        "header.json: expected format 1, found 2; read it with the version of",
    ),
    "no seed": (head(seed=None), "header.json: missing or malformed: seed"),
    "two facts": (head(fps="10", discrete=1), "header.json: missing or malformed: discrete, fps"),
    "no size": (head(action_size=0), "header.json: expected positive sizes"),
    "flat image": (head(image_shape=[16, 16]), "header.json: expected image_shape as three sizes"),
    "no record": (
        head(columns={"action": 3}),
        "header.json: malformed record of the column action",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard without fault; waiting for the disk once is enough."""
    folder = tmp_path_factory.mktemp("whole")
    return write_demos(folder, tasks=["toy/a"], images=True) / "a-000"


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_told_by_file_and_episode(kind: str, whole: Path, tmp_path: Path) -> None:
    damage, words = BAD[kind]
    path = tmp_path / "a-000"
    shutil.copytree(whole, path)
    read_shard(path)
    damage(path)
    with pytest.raises(DemoError) as caught:
        open_dataset(tmp_path)
    message = str(caught.value)
    assert words in message and message.startswith(str(path)), message


@pytest.mark.parametrize("wrong", [[1, 1, 0, 0], [0, 0, 0, 0], [0.5, 0.5, 0, 0], [2, -1, 0, 0]])
def test_actions_that_are_not_one_hot_are_told(wrong: list[float], tmp_path: Path) -> None:
    path = write_demos(tmp_path, tasks=["toy/a"], discrete=True) / "a-000"
    read_shard(path)

    def change(action: Array) -> Array:
        action[13] = wrong
        return action

    rewrite(path, "action", change)
    with pytest.raises(DemoError, match=r"action\.npy, episode 1, frame 1: expected a one-hot"):
        read_shard(path)


def test_checksums_can_be_left_out_but_no_other_check(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "a-000"
    shutil.copytree(whole, path)
    flip("observation.image.npy")(path)
    assert len(open_dataset(tmp_path, verify=False).episodes) == 3
    put("action", 0, 7.0)(path)
    with pytest.raises(DemoError, match="episode 0, frame 0"):
        open_dataset(tmp_path, verify=False)


def test_a_copied_shard_is_refused(whole: Path, tmp_path: Path) -> None:
    for name in ("a-000", "copy"):
        shutil.copytree(whole, tmp_path / name)
    with pytest.raises(DemoError, match=r"copy, episode 0: the same as episode 0 of .*a-000"):
        open_dataset(tmp_path)
