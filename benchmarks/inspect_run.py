"""`reverie inspect RUN`: what a trained agent imagines, as pictures and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.demos.demonstrations import load_demonstrations
from reverie.agents.demos.evaluation import task_spec
from reverie.agents.devices import memory_advice, resolve_device
from reverie.agents.inspection.inspector import FOLDER, inspect_agent, log_panels, write_panels
from reverie.agents.inspection.panels import Panel
from reverie.agents.inspection.scenes import Look
from reverie.agents.inspection.stored import stored_replay
from reverie.agents.registry import build_agent, build_imitator, family
from reverie.agents.resolve import with_overrides
from reverie.agents.runs.logger import Logger
from reverie.agents.runs.summary import layout
from reverie.benchmarks.evaluation import TrainedRun, load_run

Tag = Annotated[Literal["latest", "best"], tyro.conf.arg(aliases=["--checkpoint"])]


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
        horizon: imagined steps, at most K in the SPR family; ACT-JEPA's shows a chunk.
        windows: moments that errors are averaged over.
        shown: moments that are drawn.
        library: stored frames that neighbours are searched in, about.
        probe: updates of a decoder that draws what can be read from the features; 0, or where
            the model has a decoder of its own (dreamerv3), whose pictures are shown: none.
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
    trained = load_run(run, checkpoint=tag)
    plain = {"compile": "off", "precision": "fp32", "device": device}
    cfg, step = with_overrides(trained.cfg, {"train": plain}), trained.step
    torch.set_num_threads(cfg.train.threads)
    with memory_advice(cfg):
        panels, more = panels_of(run, cfg, trained, look=look)
    for note in [*trained.notes, *more]:
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
        record(folder, cfg, step, panels)
    console.print(table(panels, title=f"{cfg.agent}-{cfg.size} on {cfg.task} at {step:,}"))
    for path in paths:
        console.print(f"written: {path}", soft_wrap=True)
    return 0


def panels_of(
    run: Path, cfg: RunConfig, trained: TrainedRun, *, look: Look
) -> tuple[list[Panel], list[str]]:
    """Panels of a run's checkpoint under `cfg`, and notes on what could not be read."""
    step = trained.step
    if family(cfg.agent) == "act_jepa":
        data = load_demonstrations(cfg)
        imitator = build_imitator(
            data.spec.env_spec(cfg.task),
            cfg,
            tasks=data.tasks,
            statistics=data.train.statistics(),
        )
        imitator.load_state_dict(trained.state)
        windows = data.held_out or data.train
        return inspect_agent(imitator, windows, cfg, step=step, look=look), []
    spec = task_spec(cfg)
    agent = build_agent(spec, cfg)
    agent.load_state_dict(trained.state)
    device = resolve_device(cfg.train.device)
    assert trained.replay is not None, "only imitators learn without a replay"
    with stored_replay(run, trained.replay, spec, cfg, device=device) as (replay, notes):
        return inspect_agent(agent, replay, cfg, step=step, look=look), notes


def record(folder: Path, cfg: RunConfig, step: int, panels: Sequence[Panel]) -> None:
    """Write panels into an event file, laid out as that of a run that looks into itself."""
    watched = with_overrides(cfg, {"train": {"inspect_every": 1}})
    logger = Logger(folder, layout=layout(watched))
    log_panels(logger, step, panels)
    logger.close()


def table(panels: Sequence[Panel], *, title: str) -> Table:
    """The numbers of all panels."""
    found = Table("number", "value", title=title)
    for panel in panels:
        for name, value in panel.scalars.items():
            found.add_row(name, f"{value:.4f}")
    return found
