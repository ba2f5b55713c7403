"""The loop of `bench run`: hands cells to an executor until each is done or given up."""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reverie.agents.stop_signals import EXIT_CODES, StopRequest
from reverie.benchmarks.grid.cells import Cell, Grid
from reverie.benchmarks.grid.table import GridTable

LOOK_S = 0.5
"""Between two looks at the cells."""

WRONG_WORDS = 2
"""Exit status of a cell whose settings cannot be: another attempt changes nothing."""


@dataclass(eq=False)
class Handle:
    """A cell that an executor has taken on."""

    cell: Cell
    job: Any = None
    """What the executor knows it by."""
    code: int | None = None
    """Exit status once it has ended; the negative number of the signal that killed it."""
    lost: str = ""
    """What happened to the machine that ran it."""
    attempts: int = 0
    """How often the cell had begun before."""
    reached: int = -1
    """Step of its newest checkpoint before."""


class Executor(Protocol):
    """Where cells run; results are read from disk, so that no answer of it can be lost."""

    @property
    def slots(self) -> int:
        """Cells that it takes on at once."""
        ...

    def submit(self, cell: Cell) -> Handle:
        """Start a cell, or queue it."""
        ...

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        """Those that have ended, after at most so many seconds, with their `code`."""
        ...

    def stop(self, handles: Sequence[Handle]) -> None:
        """Ask cells to save and to end; `wait` still tells when they have."""
        ...

    def close(self) -> None:
        """Let go of everything; cells that still run end by themselves."""
        ...


class Driver:
    """Runs cells; holds nothing that is not on disk, so that it may die at any moment."""

    def __init__(
        self,
        grid: Grid,
        executor: Executor,
        *,
        retries: int,
        table: GridTable,
        look: float = LOOK_S,
    ) -> None:
        """`retries`: further attempts of a cell that ended without having got further."""
        self.grid, self.executor, self.retries, self.table = grid, executor, retries, table
        self._look = look
        self._running: list[Handle] = []
        self._idle: Counter[str] = Counter()

    def run(self, cells: Sequence[Cell]) -> int:
        """Finish `cells`; returns 0, 1 if any is not done, 130 or 143 after a signal."""
        queue = deque(cell for cell in cells if not self.grid.finished(cell))
        for cell in cells:
            self.table.set(cell, "waiting" if cell in queue else "done")
        asked = False
        try:
            with StopRequest() as stop:
                while self._running or (queue and not stop):
                    if stop and not asked:
                        asked = True
                        self.table.say(
                            "stopping: cells save and end; a second signal does not wait"
                        )
                        self.executor.stop(self._running)
                    while queue and not stop and len(self._running) < self.executor.slots:
                        self._submit(queue.popleft())
                    for handle in self.executor.wait(self._running, self._look):
                        self._running.remove(handle)
                        if self._end(handle, stopping=bool(stop)):
                            queue.append(handle.cell)
                    self.table.draw()
        finally:
            self.executor.close()
            self.table.close()
        if stop.code is not None:
            return stop.code
        return 0 if all(self.grid.finished(cell) for cell in cells) else 1

    def _submit(self, cell: Cell) -> None:
        attempts, reached = self.grid.state(cell).get("attempts", 0), self.grid.reached(cell)
        handle = self.executor.submit(cell)
        handle.attempts, handle.reached = attempts, reached
        self._running.append(handle)
        self.table.set(cell, "running")

    def _end(self, handle: Handle, *, stopping: bool) -> bool:
        """Settle how a cell ended; True: it deserves another attempt."""
        cell = handle.cell
        record = settle(self.grid, handle)
        state, reason = record["state"], record["reason"]
        again = False
        if state != "done" and not stopping and record.get("code") != WRONG_WORDS:
            further = self.grid.reached(cell) > handle.reached
            self._idle[cell.id] = 0 if further else self._idle[cell.id] + 1
            again = self._idle[cell.id] <= self.retries
        self.table.set(cell, "waiting" if again else state, record=record)
        told = f"{cell.id} {state}" + (f": {reason}" if reason else "")
        self.table.say(told + ("; it runs again" if again else ""), counted=True)
        return again


def settle(grid: Grid, handle: Handle) -> dict[str, Any]:
    """The cell's last word, written in its place where it had no time for it."""
    cell, record = handle.cell, grid.state(handle.cell)
    if grid.finished(cell):
        if record.get("state") != "done":
            record |= {"state": "done", "reason": ""}
            grid.note(cell, record)
        return record
    begun = record.get("attempts", 0) > handle.attempts
    if begun and record.get("state") != "running" and not handle.lost:
        return record
    state, reason = _cause(handle)
    if state == "interrupted" and not begun:  # it was asked to stop before it had started
        return {"reason": "", **record, "state": grid.standing(cell)}
    now = time.time()
    ran = max(0.0, now - record["started"]) if begun else 0.0
    record |= {"attempts": max(record.get("attempts", 0), handle.attempts + 1)}
    record |= {"state": state, "reason": reason, "code": handle.code}
    record |= {"ended": now, "seconds": record.get("seconds", 0.0) + ran}
    grid.folder(cell).mkdir(parents=True, exist_ok=True)
    grid.note(cell, record)
    return record


def _cause(handle: Handle) -> tuple[str, str]:
    code = handle.code
    if handle.lost:
        return "failed", handle.lost
    if code is None or code >= 0:
        return "failed", f"ended with exit status {code} before it began; see its log"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code in EXIT_CODES:
        return "interrupted", f"stopped by {name} before it could save"
    hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
    return "failed", f"killed by {name}{hint}"
