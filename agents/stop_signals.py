"""Signals that ask a process to save and to end; importing this costs no torch."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
"""Exit code of a run that was asked to stop; SIGUSR1 is how schedulers announce a preemption."""


class StopRequest:
    """Context in which the first signal sets `code` and a second one ends the process at once."""

    def __init__(self) -> None:
        """Signals are left alone until the context is entered."""
        self.code: int | None = None
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        """Whether a signal arrived."""
        return self.code is not None

    def __enter__(self) -> StopRequest:
        """Install the handlers; outside the main thread Python allows none."""
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        code = EXIT_CODES[signal.Signals(number)]
        if self.code is not None:
            # no clean-up: the sender is out of patience, and every file is safe at any moment
            os._exit(code)
        self.code = code
