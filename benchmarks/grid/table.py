"""How a grid is doing: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reverie.agents.progress import PipeConsole, duration, silence
from reverie.agents.runs.status import read_status
from reverie.benchmarks.grid.cells import Cell, CellState, Grid

REDRAW_S = 1.0
PLAIN_S = 30.0
"""Between two lines where there is no terminal; what ends is told at once."""

SHOWN = 12
"""Rows of running cells on a terminal."""


class GridTable:
    """Shows cells; a reader that goes away (`| head`) never ends the grid."""

    def __init__(
        self,
        grid: Grid,
        *,
        stream: TextIO | None = None,
        every: float = PLAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """On anything but a terminal a line every `every` seconds."""
        self._grid, self._clock = grid, clock
        self._stream = stream or sys.stdout
        self._console = PipeConsole(file=self._stream, highlight=False)
        self._every = REDRAW_S if self._console.is_terminal else every
        self._next = -math.inf
        self._cells: dict[str, Cell] = {}
        self._states: dict[str, CellState] = {}
        self._seconds: dict[str, float] = {}
        self._broken = False
        self._live: Live | None = None

    def set(self, cell: Cell, state: CellState, *, record: Mapping[str, Any] | None = None) -> None:
        """Note how a cell stands; `record` is its state.json, if it has just ended."""
        self._cells[cell.id], self._states[cell.id] = cell, state
        record = self._grid.state(cell) if record is None and state == "done" else record
        if state == "done" and record:
            self._seconds[cell.id] = float(record.get("seconds", 0.0))

    def say(self, message: str, *, counted: bool = False) -> None:
        """A line that stays; `counted` adds how many cells are done."""
        if counted:
            states = Counter(self._states.values())
            message = f"[{states['done']}/{len(self._states)}] {message}"
        self._guarded(lambda: self._console.print(Text(message), soft_wrap=True))

    def draw(self) -> None:
        """Show where everything stands, if it is time to."""
        if self._clock() < self._next or self._broken:
            return
        self._next = self._clock() + self._every
        live = self._running()
        if not self._console.is_terminal:
            self.say(self.line(live))
            return

        def show() -> None:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(self._picture(live), refresh=True)

        self._guarded(show)

    def close(self) -> None:
        """Leave the terminal as it was; safe to call twice."""
        if self._live is not None:
            self._guarded(self._live.stop)
            self._live = None

    def line(self, live: Sequence[Mapping[str, Any]]) -> str:
        """Counts and the time left, in one line."""
        states = Counter(self._states.values())
        parts = [f"{states['done']}/{len(self._states)} done", f"{len(live)} running"]
        parts += [f"{states[name]} {name}" for name in ("failed", "interrupted") if states[name]]
        return " | ".join([*parts, f"ETA {duration(self._left(live))}"])

    def _running(self) -> list[dict[str, Any]]:
        """What is known of the cells that have begun and not ended."""
        rows = []
        for name, state in self._states.items():
            cell = self._cells[name]
            record = self._grid.state(cell) if state == "running" else {}
            if record.get("state") not in ("running", "done"):  # done: its process still ends
                continue
            status = read_status(self._grid.run(cell))
            step, steps = int(status.get("step", 0)), int(status.get("steps", 0))
            spent = record["seconds"] + max(0.0, time.time() - record["started"])
            score = (status.get("evaluation") or {}).get("mean")
            share = min(1.0, step / steps) if steps else 0.0
            row = {"cell": cell, "step": step, "steps": steps, "share": share, "spent": spent}
            rows.append(row | {"score": score, "host": record.get("host", "")})
        return rows

    def _left(self, live: Sequence[Mapping[str, Any]]) -> float:
        shares = {row["cell"].id: row["share"] for row in live}
        spent = {row["cell"].id: row["spent"] for row in live}
        arms = {name: cell.arm for name, cell in self._cells.items()}
        open_ = [n for n, s in self._states.items() if s in ("waiting", "running")]
        return time_left(arms, self._seconds, open_, shares, spent)

    def _picture(self, live: Sequence[Mapping[str, Any]]) -> Group:
        arms = Table("arm", "done", "running", "waiting", "failed", title=self._grid.suite)
        for arm in dict.fromkeys(cell.arm for cell in self._cells.values()):
            own = [name for name, cell in self._cells.items() if cell.arm == arm]
            states = Counter(self._states[name] for name in own)
            moving = sum(row["cell"].arm == arm for row in live)
            lost = states["failed"] + states["interrupted"]
            still = len(own) - states["done"] - moving - lost
            arms.add_row(arm, f"{states['done']}/{len(own)}", *map(str, (moving, still, lost)))
        cells = Table("running", "step", "%", "score", "time", "host")
        for row in live[:SHOWN]:
            score = "-" if row["score"] is None else f"{row['score']:.4g}"
            step = f"{row['step']:,}/{row['steps']:,}"
            times = (f"{row['share']:.0%}", score, duration(row["spent"]), row["host"])
            cells.add_row(row["cell"].id, step, *times)
        return Group(arms, cells, Text(self.line(live)))

    def _guarded(self, write: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            write()
            self._stream.flush()
        except (OSError, ValueError):
            self._broken = True
            silence(self._stream)
            if self._live is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._live.stop()
                self._live = None


def time_left(
    arms: Mapping[str, str],
    seconds: Mapping[str, float],
    left: Sequence[str],
    shares: Mapping[str, float],
    spent: Mapping[str, float],
) -> float:
    """Seconds until all of `left` is done, if as many cells run at once as now; NaN: unknown.

    Args:
        arms: arm of every cell.
        seconds: what finished cells took.
        left: cells to do.
        shares: part of its budget that each running cell has spent.
        spent: seconds that each running cell has taken.
    """
    known: dict[str, list[float]] = {}
    for name, took in seconds.items():
        known.setdefault(arms[name], []).append(took)
    for name, share in shares.items():
        if share > 0 and arms[name] not in known:
            known.setdefault(arms[name], []).append(spent[name] / share)
    if not left:
        return 0.0
    if not known:
        return math.nan
    every = [took for times in known.values() for took in times]
    overall = sum(every) / len(every)
    needed = {
        name: sum(known[arm]) / len(known[arm]) if (arm := arms[name]) in known else overall
        for name in left
    }
    rest = [needed[name] * (1 - shares.get(name, 0.0)) for name in left]
    return max(max(rest), sum(rest) / max(1, len(shares)))
