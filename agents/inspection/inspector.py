"""One look into an agent: which panels its family has, where they go, and when in a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from reverie.agents.inspection.chunks import chunk_panels, look_at_chunks
from reverie.agents.inspection.clouds import chunk_cloud, scene_cloud
from reverie.agents.inspection.dreams import dream_panels
from reverie.agents.inspection.panels import Panel, encode
from reverie.agents.inspection.rollouts import Lens
from reverie.agents.inspection.scenes import Look, make_scene
from reverie.agents.registry import family
from reverie.agents.runs.files import write_atomic
from reverie.agents.seeding import stream, torch_seed

if TYPE_CHECKING:
    from reverie.agents.act_jepa import ACTJEPA
    from reverie.agents.configs import RunConfig
    from reverie.agents.runs.logger import Logger

FOLDER = "inspection"
"""In the run directory: a folder of GIF, PNG and JSON files for every step looked at."""

NUMBERS = "numbers.json"
"""Written last: where it is, the look is whole."""

PREFIX = "inspect"
"""Of every tag."""


def inspect_agent(
    agent: Any, source: Any, cfg: RunConfig, *, step: int, look: Look | None = None
) -> list[Panel]:
    """Panels of an agent, a function of its state, `source` and (seed, step).

    Changes nothing: no weight, no statistic, no stream of random numbers, no draw of a replay.

    Args:
        agent: any agent of the suite.
        source: its replay; ACT-JEPA family: windows of demonstrations, best those held out.
        cfg: settings of its run.
        step: agent steps (ACT-JEPA family: updates), for titles and random numbers.
        look: how much is looked at; none: as the settings say.

    Returns:
        [] where there is nothing to see: a model that predicts nothing, or too little experience.
    """
    look = look or Look(probe=cfg.train.inspect_probe)
    rng = stream(cfg.seed, PREFIX, step)
    seed = torch_seed(cfg.seed, PREFIX, step)
    kind = family(cfg.agent)
    unit = "update" if kind == "act_jepa" else "step"
    title = f"{cfg.agent}-{cfg.size} on {cfg.task}, seed {cfg.seed}, {unit} {step:,}"
    if kind == "act_jepa":
        imitator = cast("ACTJEPA", agent)
        chunks = look_at_chunks(imitator, source, look, rng=rng, seed=seed)
        proprio = imitator.spec.proprio_size
        panels = chunk_panels(chunks, source, proprio=proprio, shown=look.shown, title=title)
        return [*panels, chunk_cloud(imitator, chunks)]
    from reverie.agents.inspection.lenses import MuDreamerLens, SPRLens
    from reverie.agents.inspection.similarity import similarities, similarity_panel

    spr = kind == "spr"
    lens: Lens = SPRLens(agent) if spr else MuDreamerLens(agent)
    scene = make_scene(lens, source, look, rng=rng, seed=seed, device=agent.device)
    if scene is None:
        return []
    panels = [*dream_panels(scene, shown=look.shown, title=title), scene_cloud(scene)]
    if spr:
        found = similarities(agent.model, scene.rows, scene.context)
        panels.append(similarity_panel(found, title=title))
    return panels


def write_panels(folder: Path, panels: Sequence[Panel]) -> list[Path]:
    """Write every picture, and the numbers of all panels as numbers.json; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for panel in panels:
        if panel.frames is not None:
            suffix, content = encode(panel)
            written.append(folder / f"{panel.name}{suffix}")
            write_atomic(written[-1], content)
    numbers = {name: value for panel in panels for name, value in panel.scalars.items()}
    written.append(folder / NUMBERS)
    write_atomic(written[-1], (json.dumps(numbers, indent=1) + "\n").encode())
    return written


def log_panels(logger: Logger, step: int, panels: Sequence[Panel]) -> None:
    """Hand panels to the run's records, under `inspect/`."""
    for panel in panels:
        tag = f"{PREFIX}/{panel.name}"
        if panel.frames is not None and len(panel.frames) > 1:
            logger.gif(step, tag, panel.frames, panel.fps)
        elif panel.frames is not None:
            logger.image(step, tag, panel.frames[0])
        if panel.points is not None:
            logger.embedding(tag, panel.points)
    numbers = {f"{PREFIX}/{n}": v for panel in panels for n, v in panel.scalars.items()}
    if numbers:
        logger.scalars(step, numbers)


class Inspector:
    """Looks at a run's agent every `train.inspect_every` steps and at the end; 0: never."""

    def __init__(
        self,
        cfg: RunConfig,
        run_dir: Path,
        logger: Logger,
        *,
        start: int,
        note: Callable[[str], None],
    ) -> None:
        """`start` is the step at which this process begins; looks on disk are not repeated.

        A signal may have come between a step at which one was due and the look itself.
        """
        self._cfg, self._folder, self._logger, self._note = cfg, run_dir / FOLDER, logger, note
        self._every = cfg.train.inspect_every
        whole = self._folder.glob("[0-9]" * 10 + f"/{NUMBERS}")  # not those of `reverie inspect`
        taken = (int(file.parent.name) for file in whole)
        self._last = max((step for step in taken if step <= start), default=0)
        self._count = self._last // self._every if self._every else 0

    def due(self, step: int, *, over: bool) -> bool:
        """Whether to look now."""
        if not self._every or step == self._last:
            return False
        return over or step // self._every > self._count

    def look(self, agent: Any, source: Any, step: int) -> None:
        """Look, write files and records; a full disk or device costs a note, not the run."""
        begin = time.perf_counter()
        self._count, self._last = step // self._every, step
        try:
            panels = inspect_agent(agent, source, self._cfg, step=step)
            if not panels:
                return
            write_panels(self._folder / f"{step:010d}", panels)
        except torch.OutOfMemoryError as error:
            self._every = 0
            self._note(f"no more looks into the agent, the device is full: {error}")
            return
        except OSError as error:
            self._note(f"step {step:,}: pictures could not be written: {error}")
            return
        seconds = time.perf_counter() - begin
        log_panels(self._logger, step, panels)
        self._logger.scalars(step, {f"{PREFIX}/seconds": seconds})
