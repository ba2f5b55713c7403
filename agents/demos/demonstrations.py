"""The demonstrations of a run: where they lie, which of them it learns from, how to make them."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.demos.store import DemoDataset, DemoSpec, open_dataset, split
from reverie.agents.demos.windows import DemoWindows, Images
from reverie.agents.devices import resolve_device
from reverie.envs.experts import expert_tasks
from reverie.envs.registry import members


@dataclass(frozen=True)
class Demonstrations:
    """What a run learns from, and what it is examined on."""

    spec: DemoSpec
    """Sizes."""
    tasks: tuple[str, ...]
    """Tasks of the run; their place is their number."""
    train: DemoWindows
    """Windows to learn from."""
    held_out: DemoWindows | None
    """Windows never learned from; None: no episode is held out."""
    digest: str
    """Names the episodes: a run continues on those it began with."""


def demo_folder(cfg: RunConfig) -> Path:
    """Folder of a run's demonstrations: `demos.path`, or the place that `reverie demos` chooses."""
    if cfg.demos.path is not None:
        return Path(cfg.demos.path)
    pixels = cfg.env.image_size if "image" in cfg.act_jepa.model.inputs else None
    return default_folder(cfg.task, image_size=pixels)


def default_folder(task: str, *, image_size: int | None) -> Path:
    """Folder of a task's, or a set's, demonstrations; `image_size` None: without images."""
    *suite, name = task.split("/")
    return Path("demos", *suite, name if image_size is None else f"{name}-{image_size}px")


def load_demonstrations(cfg: RunConfig) -> Demonstrations:
    """Open, check and split the demonstrations of a run.

    Raises:
        ConfigError: there are none where the settings look, or none of some task.
        DemoError: a file is damaged, or there are too few episodes.
    """
    folder, tasks = demo_folder(cfg), members(cfg.task)
    if not folder.exists():
        raise ConfigError(
            [
                f"demos.path: expected demonstrations of {cfg.task} in {folder}, found no such "
                f"folder; make them: {make_command(cfg)}"
            ]
        )
    dataset = open_dataset(folder, verify=cfg.demos.verify)
    missing = [task for task in tasks if task not in dataset.tasks]
    if missing:
        raise ConfigError(
            [
                f"demos.path: expected demonstrations of {', '.join(missing)} in {folder}, found "
                f"those of {', '.join(dataset.tasks)}; choose another --task or --demos.path, or "
                f"make them: {make_command(cfg)}"
            ]
        )
    own = [episode for episode in dataset.episodes if episode.task in tasks]
    dataset = replace(dataset, tasks=tasks, episodes=own)
    wanted = cfg.demos
    learned, kept = split(dataset, train=wanted.train_episodes, held_out=wanted.held_out_episodes)
    windows = partial(
        DemoWindows,
        dataset,
        chunk=cfg.act_jepa.model.chunk,
        tasks=tasks,
        images=_images(cfg),
        device=resolve_device(cfg.train.device),
    )
    return Demonstrations(
        dataset.spec,
        tasks,
        windows(learned),
        windows(kept) if kept else None,
        digest=_digest(dataset, [*learned, *kept]),
    )


def _images(cfg: RunConfig) -> Images:
    """Frames of a window whose picture the model asks for."""
    model = cfg.act_jepa.model
    if "image" not in model.inputs:
        return "none"
    return "all" if "image" in model.targets and model.w_jepa > 0 else "first"


def make_command(cfg: RunConfig) -> str:
    """Command line that makes the demonstrations a run looks for."""
    wanted = cfg.demos.train_episodes + cfg.demos.held_out_episodes
    words = ["reverie demos make", f"--task {cfg.task}", f"--episodes {wanted}"]
    if not set(members(cfg.task)) <= set(expert_tasks()):
        words.append("--run RUN")  # a trained agent plays where no expert can
    if "image" in cfg.act_jepa.model.inputs:
        words.append(f"--observe both --image-size {cfg.env.image_size} --render {cfg.env.render}")
    if cfg.env.time_limit is not None:
        words.append(f"--time-limit {cfg.env.time_limit}")
    if cfg.demos.path is not None:
        words.append(f"--out {shlex.quote(cfg.demos.path)}")
    return " ".join(words)


def _digest(dataset: DemoDataset, episodes: list[int]) -> str:
    found = [dataset.episodes[number] for number in episodes]
    actions = [one.shard.header["columns"]["action"]["sha256"] for one in found]
    keys = [(one.task, one.seed, one.index, one.length) for one in found]
    return hashlib.sha256(repr((keys, actions)).encode()).hexdigest()[:16]
