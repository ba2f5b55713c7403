"""One process per run directory: an advisory lock that says who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

LOCK = "lock"
HEARTBEAT_S = 20.0
STALE_S = 120.0
"""A holder on another machine that has not touched the lock for so long counts as dead."""


class RunDirError(RuntimeError):
    """A run directory cannot be used; the message says who or what stands in the way."""


class InUseError(RunDirError):
    """Another process works there; `holder` is what it said of itself, as far as it is known."""

    def __init__(self, message: str, holder: dict[str, Any]) -> None:
        self.holder = holder
        super().__init__(message)


class RunLock:
    """Exclusive lock on a run directory, released by the kernel even after SIGKILL.

    The lock file also names host, process and boot. Where the file system does not lock across
    machines, a holder elsewhere is believed for as long as it keeps touching the file.
    """

    def __init__(self, run_dir: Path) -> None:
        """Take the lock of an existing folder; InUseError if another process holds it."""
        self.path = run_dir / LOCK
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise RunDirError(
                f"cannot write in {run_dir}: {error}; choose another --run"
            ) from error
        self.taken_over: dict[str, Any] | None = None
        try:
            self._acquire()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Give the lock back; safe to call twice."""
        if self._released.is_set():
            return
        self._released.set()
        self._heart.join()
        os.ftruncate(self._descriptor, 0)  # the file stays: unlinking would race with a successor
        os.close(self._descriptor)

    def _acquire(self) -> None:
        locked = self._flock()
        holder = self._holder()
        if locked is False or (holder and _alive(holder, self.path, kernel_locks=bool(locked))):
            raise InUseError(
                f"{self.path.parent} is in use by process {holder.get('pid', '?')} on host "
                f"{holder.get('host', '?')}: wait for it, stop it, or choose another --run",
                holder,
            )
        self.taken_over = holder or None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(identity()).encode(), 0)

    def _flock(self) -> bool | None:
        """True: taken; False: held by another process; None: the file system cannot lock."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
                return None
            raise
        return True

    def _holder(self) -> dict[str, Any]:
        try:
            found = json.loads(os.pread(self._descriptor, 4096, 0))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a share that is away for a while: try again
                os.utime(self._descriptor)


def identity() -> dict[str, Any]:
    """Who this process is, on whichever machine the lock is read."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "started": _started(os.getpid()),
    }


def _alive(holder: dict[str, Any], lock: Path, *, kernel_locks: bool) -> bool:
    here = identity()
    if holder.get("boot") and holder["boot"] == here["boot"]:
        if kernel_locks:
            return False  # same kernel and the lock was free: nobody holds it
        started = _started(holder.get("pid", -1))
        return bool(started) and started == holder.get("started") and holder != here
    return _age(lock) < STALE_S


def _age(lock: Path) -> float:
    """Seconds since the lock was touched, by the clock of the machine that stores it."""
    probe = lock.with_name(f"{LOCK}.tmp-{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - lock.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty if there is no such process."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
