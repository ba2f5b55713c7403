"""`reverie inspect RUN`: what a trained agent imagines, as pictures and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from reverie.agents.checkpoint import CheckpointError, best, checkpoints, load, load_latest
from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.demo_evaluation import task_spec
from reverie.agents.demonstrations import load_demonstrations
from reverie.agents.devices import memory_advice, resolve_device
from reverie.agents.inspection.inspector import FOLDER, inspect_agent, log_panels, write_panels
from reverie.agents.inspection.panels import Panel
from reverie.agents.inspection.scenes import Look
from reverie.agents.inspection.stored import stored_replay
from reverie.agents.logger import Logger
from reverie.agents.registry import build_agent, build_imitator, family
from reverie.agents.resolve import load as load_config
from reverie.agents.resolve import with_overrides

Tag = Literal["latest", "best"]


def main(args: Sequence[str]) -> int:
    """Inspect from command-line flags; returns the exit status."""
    return tyro.cli(show, args=list(args), prog="reverie inspect")


def show(
    run: tyro.conf.Positional[Path],
    tag: Tag = "latest",
    out: Path | None = None,
    horizon: int = 20,
    windows: int = 32,
    shown: int = 4,
    library: int = 4096,
    probe: int = 500,
    device: str = "auto",
    tensorboard: bool = True,
) -> int:
    """Roll a run's model out from stored moments and show what that resembles.

    Args:
        run: run directory, as training printed it.
        tag: the newest checkpoint, or the one with the best evaluation during training.
        out: folder of the files; none: <run>/inspection/<step>-<tag>.
        horizon: imagined steps, where the model knows no bound.
        windows: moments that errors are averaged over.
        shown: moments that are drawn.
        library: stored frames that neighbours are searched in, about.
        probe: updates of a decoder that draws what can be read from the features; 0: none.
        device: auto, cpu, cuda or cuda:N.
        tensorboard: also write an event file into the folder, for tensorboard --logdir.
    """
    console = Console()
    if min(horizon, windows, shown, library) < 1 or probe < 0:
        raise ConfigError(
            [
                "expected --horizon, --windows, --shown and --library >= 1 and --probe >= 0, found "
                f"{horizon}, {windows}, {shown}, {library} and {probe}"
            ]
        )
    look = Look(horizon=horizon, windows=windows, shown=shown, library=library, probe=probe)
    cfg, step, state, notes = read_run(run, tag, device=device)
    torch.set_num_threads(cfg.train.threads)
    with memory_advice(cfg):
        panels, more = panels_of(run, cfg, state, step=step, look=look)
    for note in [*notes, *more]:
        console.print(f"note: {note}")
    if not panels:
        console.print(
            f"{cfg.agent} has nothing to show: it predicts nothing, or the run holds no episode "
            f"longer than {look.context} steps"
        )
        return 1
    folder = out or run / FOLDER / f"{step:010d}-{tag}"
    paths = write_panels(folder, panels)
    if tensorboard:
        logger = Logger(folder)
        log_panels(logger, step, panels)
        logger.close()
    console.print(table(panels, title=f"{cfg.agent}-{cfg.size} on {cfg.task} at {step:,}"))
    for path in paths:
        console.print(f"written: {path}", soft_wrap=True)
    return 0


def read_run(
    run: Path, tag: Tag, *, device: str = "auto"
) -> tuple[RunConfig, int, dict[str, Any], list[str]]:
    """Settings (eager, on `device`), step, state and notes of a checkpoint.

    Raises:
        ConfigError: this is no run directory, or it has no such checkpoint.
        CheckpointError: no checkpoint can be read.
    """
    config = run / "config.toml"
    if not config.is_file():
        raise ConfigError([f"run: expected a run directory with config.toml, found none in {run}"])
    plain = {"compile": "off", "precision": "fp32", "device": device}
    cfg = with_overrides(load_config(config), {"train": plain})
    if not checkpoints(run):
        raise ConfigError([f"run: {run} has no checkpoint yet; train it first"])
    if tag == "best":
        path = best(run)
        if path is None:
            raise ConfigError([f"run: {run} was never evaluated; use --tag latest"])
        found = load(path)
        return cfg, found.step, found.state, []
    latest = load_latest(run)
    if latest is None:
        raise CheckpointError(f"{run} lost its checkpoints while they were read; try again")
    step, state, notes = latest
    return cfg, step, state, notes


def panels_of(
    run: Path, cfg: RunConfig, state: dict[str, Any], *, step: int, look: Look
) -> tuple[list[Panel], list[str]]:
    """Panels of a run's state, and notes on what could not be read."""
    if family(cfg.agent) == "act_jepa":
        data = load_demonstrations(cfg)
        imitator = build_imitator(
            data.spec.env_spec(cfg.task),
            cfg,
            tasks=data.tasks,
            statistics=data.train.statistics(),
        )
        imitator.load_state_dict(state["agent"])
        windows = data.held_out or data.train
        return inspect_agent(imitator, windows, cfg, step=step, look=look), []
    spec = task_spec(cfg)
    agent = build_agent(spec, cfg)
    agent.load_state_dict(state["agent"])
    device = resolve_device(cfg.train.device)
    with stored_replay(run, state["replay"], spec, cfg, device=device) as (replay, notes):
        return inspect_agent(agent, replay, cfg, step=step, look=look), notes


def table(panels: Sequence[Panel], *, title: str) -> Table:
    """The numbers of all panels."""
    found = Table("number", "value", title=title)
    for panel in panels:
        for name, value in panel.scalars.items():
            found.add_row(name, f"{value:.4f}")
    return found
