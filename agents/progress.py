"""How far the run is: one live line on a terminal, one plain line every N seconds elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

Clock = Callable[[], float]
REDRAW_S = 0.2
WINDOW_S = 60.0
"""Rates are means over this time, so that they follow the run but do not flicker."""


class Cadence:
    """Due every so many steps, or so many seconds, whichever comes first.

    Zero turns a rhythm off. Time is monotonic: a jump of the wall clock changes nothing.
    """

    def __init__(
        self, *, steps: int = 0, seconds: float = 0.0, start: int = 0, clock: Clock = time.monotonic
    ) -> None:
        assert steps >= 0 and seconds >= 0, f"negative rhythm: {steps} steps, {seconds} s"
        self._steps, self._seconds, self._clock = steps, seconds, clock
        self._last_step, self._last_time = start, clock()

    def due(self, step: int) -> bool:
        """Whether it is time; if so, counts from here on.

        Steps count on multiples of `steps`, so that a resumed run keeps the same rhythm.
        """
        by_steps = self._steps > 0 and step // self._steps > self._last_step // self._steps
        by_time = self._seconds > 0 and self._clock() - self._last_time >= self._seconds
        if by_steps or by_time:
            self._last_step, self._last_time = step, self._clock()
        return by_steps or by_time


class Rates:
    """Steps and updates per second over the last `WINDOW_S` seconds; 0 until known."""

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int, int]] = deque()

    def mark(self, step: int, updates: int) -> None:
        """Note the counters of this moment."""
        now = self._clock()
        # a mark every half second is enough, however short the steps are
        if len(self._marks) > 1 and now - self._marks[-2][0] < 0.5:
            self._marks.pop()
        self._marks.append((now, step, updates))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_S:
            self._marks.popleft()

    @property
    def steps(self) -> float:
        """Agent steps per second."""
        return self._rate(1)

    @property
    def updates(self) -> float:
        """Updates per second."""
        return self._rate(2)

    def _rate(self, column: int) -> float:
        if len(self._marks) < 2:
            return 0.0
        first, last = self._marks[0], self._marks[-1]
        seconds = last[0] - first[0]
        return max(0.0, (last[column] - first[column]) / seconds) if seconds > 0 else 0.0


class PipeConsole(Console):
    """A console that tells when its reader has gone, instead of ending the process."""

    def on_broken_pipe(self) -> None:
        """Raise what happened."""
        raise BrokenPipeError


class Progress:
    """Shows step, score, losses, rates and the time left; a closed output never ends the run."""

    def __init__(
        self,
        total: int,
        *,
        action_repeat: int = 1,
        unit: Literal["step", "update"] = "step",
        stream: TextIO | None = None,
        every: float = 30.0,
        clock: Clock = time.monotonic,
    ) -> None:
        """`total` agent steps, or updates where nothing is collected.

        On anything but a terminal one line every `every` seconds.
        """
        self.total, self.action_repeat, self.unit = total, action_repeat, unit
        self.rates = Rates(clock=clock)
        self.broken = False
        self._stream = stream or sys.stdout
        self._console = PipeConsole(file=self._stream, highlight=False)
        self._every = REDRAW_S if self._console.is_terminal else every
        self._clock = clock
        self._next = -math.inf
        self._values: dict[str, float] = {}
        self._step = self._updates = 0
        self._live: Live | None = None

    def update(self, step: int, updates: int, values: Mapping[str, float] | None = None) -> None:
        """Take new counters, and new `values` (score, losses) where there are any."""
        self._step, self._updates = step, updates
        self._values |= values or {}
        self.rates.mark(step, updates)
        if self._clock() >= self._next:
            self._next = self._clock() + self._every
            self._show(self.line())

    def note(self, message: str) -> None:
        """Show a message of its own above the line."""
        self._guarded(lambda: self._console.print(Text(message), soft_wrap=True))

    def close(self) -> None:
        """Show the last line and leave the terminal as it was; safe to call twice."""
        if self._next == -math.inf:
            return
        self._next = -math.inf
        self._show(self.line())
        if self._live is not None:
            self._guarded(self._live.stop)
            self._live = None

    def line(self) -> str:
        """The progress line: counters, values, rates, time left."""
        parts = [f"{self.unit} {self._step:,}/{self.total:,}"]
        if self.action_repeat != 1:
            parts.append(f"frames {self._step * self.action_repeat:,}")
        parts += [f"{name} {value:.4g}" for name, value in self._values.items()]
        if self.unit == "step":
            parts.append(f"{self.rates.steps:.1f} steps/s")
        parts.append(f"{self.rates.updates:.2f} updates/s")
        return " | ".join([*parts, f"ETA {self._eta()}"])

    def _eta(self) -> str:
        left = max(0, self.total - self._step)
        rate = self.rates.steps
        if not left:
            return "0:00"
        return duration(left / rate) if rate > 0 else "?"

    def _show(self, line: str) -> None:
        if not self._console.is_terminal:
            self._guarded(lambda: self._console.print(Text(line), soft_wrap=True))
            return

        def draw() -> None:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

        self._guarded(draw)

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write unless the reader has gone (`| head`), which is noticed once and then ignored."""
        if self.broken:
            return
        try:
            write()
            self._stream.flush()
        except (OSError, ValueError):
            self.broken = True
            silence(self._stream)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as people write them: 1:02:03, 4:05."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def silence(stream: TextIO) -> None:
    """Point a broken stream at nothing, or Python fails while flushing it on exit."""
    with contextlib.suppress(OSError, ValueError):
        broken = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, broken)
        os.close(nowhere)
