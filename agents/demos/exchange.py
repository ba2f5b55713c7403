"""What the converters of demonstrations share: origins that survive a foreign format, new folders.

Foreign formats have no place for who made an episode, from which seed, under which protocol. We
put that beside their data, where they ignore it, and take it up again when we read.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.format import Array
from reverie.agents.demos.store import DemoDataset, DemoError, DemoSpec, ShardWriter
from reverie.agents.runs.files import fsync

FORMAT = 1
"""Version of what `describe` returns."""

TASK = re.compile(r"[\w.-]+/[\w./-]+")
"""What the name of a task looks like."""


@dataclass(frozen=True)
class Origin:
    """Where the episodes of one shard come from."""

    task: str
    """Their task."""
    generator: str
    """Who played."""
    seed: int
    """Root of their start states."""
    protocol: str
    """Rules of the world they were played in."""
    settings: dict[str, Any]
    """How they were made."""


@dataclass(frozen=True)
class Imported:
    """One episode on its way into a shard."""

    columns: dict[str, Array]
    """Columns by their names in the store."""
    shard: int
    """Number of its origin."""
    success: bool | None
    """Whether it was solved; None: nobody says."""
    seed: int
    """Seed of its start; its own number where nobody says."""
    where: str
    """File and episode it comes from, for errors."""


@dataclass(frozen=True)
class Notes:
    """What we wrote beside foreign data."""

    spec: DemoSpec
    """Sizes."""
    origins: list[Origin]
    """One per shard."""
    episodes: list[dict[str, Any]]
    """Shard, seed and success of every episode."""


def describe(dataset: DemoDataset) -> dict[str, Any]:
    """Everything of a dataset that a foreign format would lose, for its metadata."""
    origins = [
        Origin(**{name: shard.header[name] for name in Origin.__dataclass_fields__})
        for shard in dataset.shards
    ]
    numbers = {id(shard): number for number, shard in enumerate(dataset.shards)}
    return {
        "format": FORMAT,
        "spec": asdict(dataset.spec),
        "shards": list(map(asdict, origins)),
        "episodes": [
            {"shard": numbers[id(ref.shard)], "seed": ref.seed, "success": ref.success}
            for ref in dataset.episodes
        ],
    }


def read_notes(found: Mapping[str, Any], episodes: int, path: Path) -> Notes:
    """Return what `describe` wrote, if it still fits the data of so many episodes."""
    try:
        if found["format"] != FORMAT:
            raise DemoError(
                f"{path}: expected notes of format {FORMAT}, found {found['format']}; a newer "
                "reverie wrote them"
            )
        shape = found["spec"]["image_shape"]
        spec = DemoSpec(**{**found["spec"], "image_shape": shape and tuple(shape)})
        notes = Notes(spec, [Origin(**one) for one in found["shards"]], list(found["episodes"]))
        for one in notes.episodes:
            notes.origins[one["shard"]], int(one["seed"]), one["success"]
    except (LookupError, TypeError, ValueError) as error:
        raise DemoError(f"{path}: the notes of reverie are damaged ({error!r})") from None
    if len(notes.episodes) != episodes:
        raise DemoError(
            f"{path}: the notes of reverie name {len(notes.episodes)} episodes, found {episodes}; "
            "someone changed the data since, remove the notes to read it as that of a stranger"
        )
    return notes


def write_shards(
    out: Path, spec: DemoSpec, origins: list[Origin], episodes: Iterable[Imported]
) -> list[Path]:
    """Write imported episodes, a shard for every origin, as <out>/<name of the task>-<number>."""
    paths: dict[int, Path] = {}
    with contextlib.ExitStack() as stack:
        writers: dict[int, ShardWriter] = {}
        for episode in episodes:
            if episode.shard not in writers:
                paths = _shard_paths(out, origins)
                origin = origins[episode.shard]
                writer = ShardWriter(paths[episode.shard], spec=spec, **asdict(origin))
                writers[episode.shard] = stack.enter_context(writer)
            try:
                writers[episode.shard].add(
                    episode.columns, success=episode.success, seed=episode.seed
                )
            except DemoError as error:
                raise DemoError(f"{episode.where}: cannot be a demonstration: {error}") from error
        return [writers[number].close() for number in sorted(writers)]


def _shard_paths(out: Path, origins: list[Origin]) -> dict[int, Path]:
    counts: dict[str, int] = {}
    result = {}
    for number, origin in enumerate(origins):
        name = origin.task.partition("/")[2].replace("/", "-")
        result[number] = out / f"{name}-{counts.get(name, 0):03d}"
        counts[name] = counts.get(name, 0) + 1
    return result


def require_task(task: str, where: str) -> str:
    """Return the name of a task, if it is one."""
    if not TASK.fullmatch(task):
        raise DemoError(
            f'{where}: expected a task as "suite/name", found {task!r}; say what it stands for '
            "with --task"
        )
    return task


def require_packages(extra: str, *names: str) -> None:
    """Say which extra brings the packages of a converter, if one of them is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise DemoError(
                f'this conversion needs the package {error.name}: pip install "reverie[{extra}]"'
            ) from None


def to_float32(values: Array) -> Array:
    """Numbers as shards hold them; what is too large becomes infinite, which they refuse."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `folder` at the end or, on an exception, nothing."""
    if folder.exists():
        raise DemoError(f"{folder}: expected a folder that is not there yet, found one; delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            fsync(path)
        os.rename(temporary, folder)
        fsync(folder.parent)
    except OSError as error:
        raise DemoError(
            f"{folder}: could not be written ({error.strerror or error}); nothing of it is left. "
            "Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
