"""Demonstrations on disk: shards, each a folder with a JSON header and one .npy file per column.

Pairs: row t of an episode has what was seen and the action taken at it, unlike rows of replay. The
numbers of episodes and frames and the timestamps follow from `ep_offset` and are not stored.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from reverie.agents.demos.format import (
    FORMAT,
    HEADER,
    IMAGE,
    OFFSET,
    Array,
    DemoError,
    DemoSpec,
    span,
)
from reverie.agents.demos.reader import Shard, read_shard
from reverie.agents.demos.writer import TEMPORARY, ShardWriter

__all__ = [
    "FORMAT",
    "DemoDataset",
    "DemoError",
    "DemoSpec",
    "EpisodeRef",
    "Shard",
    "ShardWriter",
    "open_dataset",
    "read_shard",
    "split",
]


@dataclass(frozen=True)
class EpisodeRef:
    """One episode of a dataset."""

    shard: Shard
    """Where it is."""
    index: int
    """Its number there."""
    task: str
    """Its task."""
    length: int
    """Its frames."""
    success: bool | None
    """Whether the task was solved; None: it knows no success."""
    seed: int
    """Seed of its start."""


@dataclass(frozen=True, eq=False)
class DemoDataset:
    """Shards that go together, as one list of episodes in a fixed order."""

    spec: DemoSpec
    """Sizes of all of them."""
    tasks: tuple[str, ...]
    """Their tasks, in the order in which they come."""
    episodes: list[EpisodeRef]
    """Their episodes; the place in this list is an episode's number."""
    shards: list[Shard]
    """In the order of their names."""

    def episode(self, number: int) -> dict[str, Array]:
        """Columns of an episode under their names in the store; views, images memory-mapped."""
        ref = self.episodes[number]
        return ref.shard.episode(ref.index)


def open_dataset(path: Path, *, verify: bool = True) -> DemoDataset:
    """Read a shard, or all shards below a folder in the order of their names.

    Without `verify` no checksum is computed, which saves reading images; all else is checked.
    """
    marks = [file for name in (HEADER, f"{OFFSET}.npy") for file in path.rglob(name)]
    folders = {mark.parent for mark in marks}
    finished = [
        folder
        for folder in sorted(folders)
        if not any(TEMPORARY.fullmatch(part) for part in folder.relative_to(path).parts)
    ]
    if not finished:
        raise DemoError(
            f"{path}: expected shards of demonstrations, found none; make them: reverie demos make "
            f"--task TASK --out {shlex.quote(str(path))}"
        )
    shards = [read_shard(folder, verify=verify) for folder in finished]
    _require_consistent(shards)
    episodes = [
        EpisodeRef(shard, index, shard.task, length, facts["success"], facts["seed"])
        for shard in shards
        for index, (length, facts) in enumerate(
            zip(np.diff(shard.offset).tolist(), shard.header["episodes"], strict=True)
        )
    ]
    _require_distinct(episodes)
    tasks = tuple(dict.fromkeys(shard.task for shard in shards))
    return DemoDataset(shards[0].spec, tasks, episodes, shards)


def _require_consistent(shards: Sequence[Shard]) -> None:
    first = shards[0]
    of_task: dict[str, Shard] = {}
    for shard in shards:
        for field in fields(DemoSpec):
            ours, theirs = getattr(shard.spec, field.name), getattr(first.spec, field.name)
            if ours != theirs:
                raise DemoError(
                    f"{_header_of(shard)}: expected {field.name} {theirs} as in "
                    f"{_header_of(first)}, found {ours}; keep them in folders of their own"
                )
        other = of_task.setdefault(shard.task, shard)
        for name in ("generator", "protocol"):
            if shard.header[name] != other.header[name]:
                raise DemoError(
                    f"{_header_of(shard)}: mixed versions of {shard.task}: expected {name} "
                    f"{other.header[name]!r} as in {_header_of(other)}, found "
                    f"{shard.header[name]!r}; keep them in folders of their own, or make all anew"
                )


def _header_of(shard: Shard) -> str:
    return f"{shard.path / HEADER}, {span(0, len(shard) - 1)}"


def _require_distinct(episodes: Sequence[EpisodeRef]) -> None:
    """Refuse copies: an episode learned from must not be held out as well."""
    seen: dict[tuple[str, int, int], list[EpisodeRef]] = defaultdict(list)
    for ref in episodes:
        alike = seen[ref.task, ref.seed, ref.length]
        columns = ref.shard.episode(ref.index)
        columns.pop(IMAGE, None)
        for other in alike:
            theirs = other.shard.episode(other.index)
            if all(np.array_equal(column, theirs[name]) for name, column in columns.items()):
                raise DemoError(
                    f"{ref.shard.path}, episode {ref.index}: the same as episode {other.index} of "
                    f"{other.shard.path}; delete the copy"
                )
        alike.append(ref)


def split(dataset: DemoDataset, *, train: int, held_out: int) -> tuple[list[int], list[int]]:
    """Numbers of the first `train` episodes of every task, and of the `held_out` that follow.

    Raises:
        DemoError: a task has fewer; the message has the command that makes more.
    """
    taken: tuple[list[int], list[int]] = ([], [])
    missing = []
    for task in dataset.tasks:
        numbers = [n for n, ref in enumerate(dataset.episodes) if ref.task == task]
        taken[0].extend(numbers[:train])
        taken[1].extend(numbers[train : train + held_out])
        if len(numbers) < train + held_out:
            missing.append(_make_more(dataset, task, train + held_out, len(numbers)))
    if missing:
        raise DemoError(
            f"expected {train} episodes of every task to learn from and {held_out} held out; "
            + "; ".join(missing)
        )
    return sorted(taken[0]), sorted(taken[1])


def _make_more(dataset: DemoDataset, task: str, wanted: int, found: int) -> str:
    """What a task lacks, and the command that continues its last folder."""
    shards = [shard for shard in dataset.shards if shard.task == task]
    last, folder = shards[-1].header, shards[-1].path.parent
    there = sum(len(shard) for shard in shards if shard.path.parent == folder)
    words = [f"--task {task} --episodes {there + wanted - found} --seed {last['seed']}"]
    words.append(f"--out {shlex.quote(str(folder))}")
    flags = {"observe": "observe", "time_limit": "time-limit"}
    if dataset.spec.image_shape is not None:
        flags |= {"image_size": "image-size", "render": "render"}
    settings = last["settings"]
    words += [f"--{flags[key]} {settings[key]}" for key in flags if settings.get(key) is not None]
    if settings.get("keep_failures"):
        words.append("--keep-failures")
    return f"{shards[-1].path}: {task} has {found}; reverie demos make {' '.join(words)}"
