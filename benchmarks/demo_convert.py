"""`reverie demos export` and `import`: demonstrations in the formats of Minari and of LeRobot."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from reverie.agents.configs import ConfigError
from reverie.agents.demos.lerobot import from_lerobot, to_lerobot
from reverie.agents.demos.minari import from_minari, to_minari
from reverie.agents.demos.store import DemoError, open_dataset

Kind = Literal["lerobot", "minari"]


def main(args: Sequence[str]) -> int:
    """Export or import demonstrations: the first of `args` says which; returns the exit status."""
    verb, *rest = args
    if verb == "export":
        return tyro.cli(export, args=rest, prog="reverie demos export")
    assert verb == "import", verb
    return tyro.cli(take_in, args=rest, prog="reverie demos import")


def export(
    demos: tyro.conf.Positional[Path],
    to: Kind,
    out: Path,
    dataset_id: str | None = None,
) -> int:
    """Write demonstrations as a LeRobotDataset v3.0 or as a Minari dataset.

    Args:
        demos: a shard, or a folder above shards.
        to: lerobot (Parquet with pictures as PNG) or minari (HDF5; the last frame of every episode
            stands twice, as the observation after it was not kept).
        out: lerobot: the new folder of the dataset; minari: the folder of all datasets,
            MINARI_DATASETS_PATH for those who read them.
        dataset_id: Minari's name of the dataset, such as push/expert-v0.
    """
    if (dataset_id is None) == (to == "minari"):
        raise ConfigError(
            [f"--dataset-id: expected with --to minari and only there, found {dataset_id}"]
        )
    dataset = open_dataset(demos)
    if dataset_id is None:
        written = to_lerobot(dataset, out)
        use = f"LeRobotDataset({dataset.tasks[0]!r}, root={str(written)!r})"
    else:
        written = to_minari(dataset, dataset_id, out)
        place = f"MINARI_DATASETS_PATH={shlex.quote(str(out.resolve()))}"
        use = f"minari.load_dataset({dataset_id!r}) with {place}"
    console = Console(highlight=False)
    console.print(f"{len(dataset.episodes)} episodes written to {written}", soft_wrap=True)
    console.print(f"next: {use}", soft_wrap=True)
    return 0


def take_in(
    source: tyro.conf.Positional[Path],
    out: Path,
    task: str | None = None,
    names: tuple[str, ...] = (),
    proprio_size: int = 0,
    fps: float | None = None,
    camera: str | None = None,
) -> int:
    """Write the episodes of a LeRobotDataset v3 or a Minari dataset as demonstrations.

    Args:
        source: the dataset's folder; what is in it says which format it is.
        out: folder of the new shards.
        task: the task "suite/name" of all episodes; of a LeRobotDataset also just "suite", where
            the names follow from its texts. None: as the dataset says.
        names: a LeRobotDataset's texts of tasks and their names, each as "text=suite/name".
        proprio_size: of a Minari dataset, the leading entries of the vector that belong to the
            robot itself.
        fps: of a Minari dataset, its steps per second.
        camera: of a LeRobotDataset, the feature of the pictures, where there are several.
    """
    lerobot = (source / "meta" / "info.json").exists()
    if not lerobot and not any(source.glob("metadata.json")) and not any(source.glob("data/meta*")):
        raise DemoError(
            f"{source}: expected meta/info.json of a LeRobotDataset or data/metadata.json of a "
            "Minari dataset, found neither"
        )
    foreign: dict[str, object] = {"--names": names, "--camera": camera}
    if lerobot:
        foreign = {"--proprio-size": proprio_size, "--fps": fps}
    kind = "LeRobotDataset" if lerobot else "Minari dataset"
    problems = [f"{name}: says nothing about a {kind}" for name, value in foreign.items() if value]
    if problems:
        raise ConfigError(problems)
    if lerobot:
        texts = dict(_pair(name) for name in names)
        shards = from_lerobot(source, out, task_names=texts or task, camera=camera)
    else:
        shards = from_minari(source, out, task=task, proprio_size=proprio_size, fps=fps)
    console = Console(highlight=False)
    for shard in shards:
        console.print(str(shard), soft_wrap=True)
    console.print(f"next: reverie demos show {shlex.quote(str(out))}", soft_wrap=True)
    return 0


def _pair(name: str) -> tuple[str, str]:
    text, equals, task = name.rpartition("=")
    if not equals:
        raise ConfigError([f'--names: expected "text=suite/name", found {name!r}'])
    return text, task
