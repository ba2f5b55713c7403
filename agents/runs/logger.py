"""The record of a run: metrics.jsonl, episodes.jsonl and TensorBoard; it never ends the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverie.agents.inspection.panels import encode_gif, encode_png
from reverie.agents.runs.jsonl import JsonLines, Record, keep_records, read_jsonl
from reverie.agents.runs.projector import Points, write_projector
from reverie.agents.runs.tensorboard_events import LAYOUT, EventFile, Layout, Setting

__all__ = ["EPISODES", "METRICS", "Logger", "read_jsonl"]

METRICS = "metrics.jsonl"
EPISODES = "episodes.jsonl"
_log = logging.getLogger(__name__)


class Logger:
    """Writes metrics and episodes; counts in `lost` the records that no disk would take.

    A backend that fails costs one warning and is tried again with every record; a TensorBoard
    that cannot be imported is given up.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resume_step: int | None = None,
        tensorboard: bool = True,
        layout: Layout = LAYOUT,
    ) -> None:
        """Append to the files of `run_dir`.

        After a resume from `resume_step`, what was recorded later is dropped: it happens again.
        `layout` is that of TensorBoard's custom scalars.
        """
        self.lost = 0
        self._warned: set[str] = set()
        self._files: dict[str, JsonLines] = {}
        self._run_dir = run_dir
        self._purge_step = None if resume_step is None else resume_step + 1
        self._events: EventFile | None = None
        self._tensorboard, self._layout = tensorboard, layout
        self._closed = False
        if resume_step is not None:
            self._guard(METRICS, lambda: self._forget(METRICS, resume_step), counts=False)
            self._guard(EPISODES, lambda: self._forget(EPISODES, resume_step), counts=False)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by path, for example "loss/reward"; `step` counts agent steps."""
        plain = {name: float(value) for name, value in values.items()}
        self._append(METRICS, {"step": step, "time": time.time(), **plain})
        self._to_tensorboard(lambda events: events.scalars(step, plain))

    def episode(self, record: Mapping[str, Any]) -> None:
        """Record one finished episode; "step", if given, says when."""
        self._append(EPISODES, {"time": time.time(), **record})

    def text(self, step: int, tag: str, content: str) -> None:
        """Record a Markdown text in TensorBoard."""
        self._to_tensorboard(lambda events: events.text(step, tag, content))

    def gif(self, step: int, tag: str, frames: NDArray[np.uint8], fps: float) -> None:
        """Record an animation uint8 [T, H, W, 3] in TensorBoard."""
        self._to_tensorboard(lambda events: events.picture(step, tag, encode_gif(frames, fps)))

    def image(self, step: int, tag: str, picture: NDArray[np.uint8]) -> None:
        """Record a picture uint8 [H, W, 3] in TensorBoard."""
        self._to_tensorboard(lambda events: events.picture(step, tag, encode_png(picture)))

    def embedding(self, name: str, points: Points) -> None:
        """Show latents in TensorBoard's projector, in place of those that had this name."""
        if self._tensorboard:
            self._guard("the projector", lambda: write_projector(self._run_dir, name, points))

    def hparams(
        self,
        step: int,
        values: Mapping[str, Setting],
        metrics: Sequence[str],
        *,
        first: Collection[str] = (),
    ) -> None:
        """Add the run to TensorBoard's table of settings and the last values of `metrics`.

        The columns named in `first` come first.
        """
        self._to_tensorboard(lambda events: events.hparams(step, values, metrics, first=first))

    def close(self) -> None:
        """Close all files; safe to call twice."""
        self._closed = True
        for name, file in self._files.items():
            self._guard(name, file.close, counts=False)
        self._files.clear()
        if self._events is not None:
            self._guard("TensorBoard", self._events.close, counts=False)
            self._events = None

    def _append(self, name: str, record: Record) -> None:
        assert not self._closed, "the logger is closed"

        def write() -> None:
            if name not in self._files:
                self._files[name] = JsonLines(self._run_dir / name)
            self._files[name].append(record)

        self._guard(name, write)

    def _to_tensorboard(self, write: Callable[[EventFile], None]) -> None:
        if not self._tensorboard:
            return

        def open_and_write() -> None:
            if self._events is None:
                self._events = EventFile(
                    self._run_dir, purge_step=self._purge_step, layout=self._layout
                )
            write(self._events)

        try:
            self._guard("TensorBoard", open_and_write)
        except Exception as error:  # whatever a broken installation raises, the run goes on
            self._tensorboard = False
            _log.warning("TensorBoard does not work (%r): metrics go to %s only", error, METRICS)

    def _forget(self, name: str, step: int) -> None:
        keep_records(self._run_dir / name, lambda record: record.get("step", 0) <= step)

    def _guard(self, backend: str, action: Callable[[], None], *, counts: bool = True) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self.lost += counts
            if backend not in self._warned:
                _log.warning("%s: a record is lost, the run goes on: %s", backend, error)
                self._warned.add(backend)
