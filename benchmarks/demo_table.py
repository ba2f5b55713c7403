"""`reverie demos show`: are demonstrations whole, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Column, Table

from reverie.agents.demos.store import DemoDataset, EpisodeRef, Shard, open_dataset

COUNTS = ("first_attempt", "attempts", "failures")
"""Settings of a shard that tell where it stands among others, not how it was made."""


def show(path: tyro.conf.Positional[Path]) -> int:
    """Check every file of demonstrations and print what they hold.

    Args:
        path: a shard, or any folder above shards.
    """
    console = Console(highlight=False)
    dataset = open_dataset(path, verify=True)
    console.print(tasks_table(dataset, title=str(path)))
    console.print(columns_table(dataset))
    console.print(actions_table(dataset))
    for line in origins(dataset):
        console.print(line, soft_wrap=True)
    count = len(dataset.episodes)
    console.print(f"verified: {count} episodes, whole and within the rules")
    return 0


def tasks_table(dataset: DemoDataset, *, title: str) -> Table:
    """Episodes of every task."""
    names = ("episodes", "frames", "min", "mean", "max", "solved")
    table = Table(Column("task", overflow="fold"), *names, title=title)
    table.caption = "min, mean, max: length of an episode"
    for task in dataset.tasks:
        episodes = [one for one in dataset.episodes if one.task == task]
        table.add_row(task, *_lengths(episodes), _solved(episodes))
    if len(dataset.tasks) > 1:
        table.add_section()
        table.add_row("all", *_lengths(dataset.episodes), _solved(dataset.episodes))
    return table


def _lengths(episodes: Sequence[EpisodeRef]) -> list[str]:
    lengths = [one.length for one in episodes]
    numbers = (len(lengths), sum(lengths), min(lengths), round(np.mean(lengths)), max(lengths))
    return [f"{number:,}" for number in numbers]


def _solved(episodes: Sequence[EpisodeRef]) -> str:
    known = [one.success for one in episodes if one.success is not None]
    return f"{np.mean(known):.0%}" if known else "-"


def columns_table(dataset: DemoDataset) -> Table:
    """What a frame consists of."""
    table = Table("column", "type", "of one frame")
    for name, values in dataset.episode(0).items():
        table.add_row(name, str(values.dtype), " x ".join(map(str, values.shape[1:])) or "1")
    return table


def actions_table(dataset: DemoDataset) -> Table:
    """How the actions of all episodes are spread, dimension by dimension."""
    numbers = range(len(dataset.episodes))
    actions = np.concatenate([np.asarray(dataset.episode(n)["action"], float) for n in numbers])
    table = Table("action", "mean", "std", "min", "max", "share at a bound")
    at_bound = (np.abs(actions) >= 1).mean(0)
    rows = (actions.mean(0), actions.std(0), actions.min(0), actions.max(0))
    for place, values in enumerate(zip(*rows, strict=True)):
        cells = (f"{value:+.3f}" for value in values)
        table.add_row(str(place), *cells, f"{at_bound[place]:.0%}")
    return table


def origins(dataset: DemoDataset) -> list[str]:
    """One line for each way in which shards were made: who played, from which starts, and how."""
    lines: dict[str, list[Shard]] = {}
    for shard in dataset.shards:
        header = shard.header
        settings = {k: v for k, v in header["settings"].items() if v not in (None, False, 0)}
        told = [f"{k} {v}" for k, v in settings.items() if k not in COUNTS]
        words = [f"seed {header['seed']}", header["protocol"], *told]
        lines.setdefault(f"{header['generator']}; {', '.join(filter(None, words))}", []).append(
            shard
        )
    return [f"{_many(shards)} by {line}" for line, shards in lines.items()]


def _many(shards: Sequence[Shard]) -> str:
    return f"{len(shards)} shard{'s' if len(shards) > 1 else ''} of {_played(shards)}"


def _played(shards: Sequence[Shard]) -> str:
    """Episodes, and what was played and dropped for them."""
    kept = sum(map(len, shards))
    attempts = [shard.header["settings"].get("attempts") for shard in shards]
    if None in attempts:
        return f"{kept} episodes"
    return f"{kept} episodes (of {sum(attempts)} attempts)"
