"""The folder of one run: who may write in it, which settings it belongs to, how it stands."""

from __future__ import annotations

import json
import logging
import os
import time
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from reverie.agents.overlays import flatten
from reverie.agents.runs.checkpoint import checkpoints, clean_temporary
from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.fingerprint import changes, fingerprint
from reverie.agents.runs.runlock import RunDirError, RunLock
from reverie.agents.runs.status import STATUS, read_status

__all__ = ["RunDir", "RunDirError", "RunState", "read_status", "write_atomic"]

CONFIG = "config.toml"
FINGERPRINT = "fingerprint.json"

RunState = Literal["running", "done", "failed", "preempted"]
_log = logging.getLogger(__name__)


class RunDir:
    """An opened run directory; holds its lock until `close`, also as a context manager.

    `resumed` tells whether the run had begun before. `notes` says what a person who resumes
    should know. `promise` is "bitwise", or "statistical" once the run has continued under other
    versions, threads or hardware.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: str,
        may_differ: Collection[str] = (),
        fresh: bool = False,
        check: Callable[[Path], None] | None = None,
    ) -> None:
        """Create or reopen `path` for the resolved configuration `config` (TOML).

        `may_differ` names dotted settings that need not agree with the run's own. RunDirError if
        another process holds it, if the settings differ, or if `fresh` and it is in use already.
        `check` is called once the settings agree; what it raises leaves a run as it stands.
        """
        self.path = path
        self.notes: list[str] = []
        self.promise: Literal["bitwise", "statistical"] = "bitwise"
        self._status_failed = False
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(f"cannot create {path}: {error}; choose another --run") from error
        self._lock = RunLock(path)
        try:
            self.resumed = self._check_config(config, may_differ, fresh)
            if self.resumed and check is not None:
                check(path)
            self._clean()
            self._stamp(config)
        except OSError as error:
            self._lock.release()
            raise RunDirError(f"cannot write in {path}: {error}; choose another --run") from error
        except BaseException:
            self._lock.release()
            raise
        self.status("running")

    def status(self, state: RunState, *, reason: str = "", **values: Any) -> None:
        """Replace status.json; a full disk costs one warning, never the run."""
        record = {"state": state, "reason": reason, "pid": os.getpid(), "time": time.time()}
        record |= {"promise": self.promise, **values}
        try:
            write_atomic(self.path / STATUS, _pretty(record))
        except OSError as error:
            if not self._status_failed:
                _log.warning("cannot write %s: %s", self.path / STATUS, error)
            self._status_failed = True

    def close(self) -> None:
        """Release the lock; safe to call twice."""
        self._lock.release()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_config(self, config: str, may_differ: Collection[str], fresh: bool) -> bool:
        file = self.path / CONFIG
        begun = file.exists() or bool(checkpoints(self.path))
        if begun and fresh:
            raise RunDirError(
                f"{self.path} holds a run already: choose another --run, or delete it"
            )
        if not begun:
            return False
        try:
            stored = tomllib.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise RunDirError(
                f"{file} cannot be read ({error}), so it is unknown which settings this run has: "
                "restore the file or choose another --run"
            ) from error
        lines = _differences(stored, tomllib.loads(config), may_differ)
        if lines:
            raise RunDirError(
                f"{self.path} belongs to a run with other settings:\n  "
                + "\n  ".join(lines)
                + "\nuse the settings of the run to continue it, or choose another --run"
            )
        return True

    def _clean(self) -> None:
        if self._lock.taken_over:
            holder = self._lock.taken_over
            self.notes.append(
                f"took over from process {holder.get('pid')} on {holder.get('host')}, which died"
            )
        for leftover in clean_temporary(self.path):
            self.notes.append(f"removed {leftover.name}, left by an interrupted save")
        for leftover in self.path.glob("*.tmp-*"):
            if leftover.is_file():
                leftover.unlink()

    def _stamp(self, config: str) -> None:
        """Record what this start was made with, after comparing it with the one before."""
        now = fingerprint()
        earlier = self._earlier_starts() if self.resumed else []
        lines = changes(earlier[-1], now) if earlier else []
        if lines:
            self._downgrade("the run continues, but no longer bit for bit: " + "; ".join(lines))
        record = {"promise": self.promise, **now, "earlier": earlier}
        write_atomic(self.path / FINGERPRINT, _pretty(record))
        if not self.resumed:  # last, because it is what marks the run as begun
            write_atomic(self.path / CONFIG, config.encode())

    def _earlier_starts(self) -> list[dict[str, Any]]:
        try:
            last = json.loads((self.path / FINGERPRINT).read_bytes())
            earlier, promise = last.pop("earlier"), last.pop("promise")
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            self._downgrade(
                f"{FINGERPRINT} is unreadable, so earlier starts are unknown: {error!r}"
            )
            return []
        if promise != "bitwise":
            self.promise = "statistical"
        return [*earlier, last]

    def _downgrade(self, note: str) -> None:
        self.promise = "statistical"
        self.notes.append(note)
        _log.warning(note)


def _differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], may_differ: Collection[str]
) -> list[str]:
    have, want = _without_aliases(flatten(stored)), flatten(wanted)
    names = [name for name in {**have, **want} if name not in may_differ]
    absent = "(unset)"
    return [
        f"{name}: the run has {have.get(name, absent)!r}, asked for {want.get(name, absent)!r}"
        for name in names
        if have.get(name, absent) != want.get(name, absent)
    ]


def _without_aliases(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run that may have begun under an alias of what distracts."""
    name = flat.get("env.distractor", "none")
    if name == "none":
        return flat
    from reverie.envs.distractors.presets import canonical

    return {**flat, "env.distractor": canonical(str(name))}


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=1, default=str) + "\n").encode()
