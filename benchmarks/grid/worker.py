"""One cell in this process: wait until nobody works on it, prepare, train, say how it ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.runlock import InUseError, RunLock
from reverie.benchmarks import cli
from reverie.benchmarks.grid.cells import Cell, Grid

PREPARE, DONE = "prepare", "done.json"

POLL_S = 2.0
"""Between two looks at a lock that another process holds."""

GRACE_S = 120.0
"""What a cell has for its last save once its driver is gone."""

PREEMPTED = (130, 143)
"""Exit statuses of a run that a signal stopped; the same words continue it."""

REASON_LENGTH = 400


def work(grid: Grid, cell: Cell, *, stop_at_eof: bool) -> int:
    """Run a cell with its output in its log; returns the exit status.

    `stop_at_eof`: end, saved, when standard input closes, which is how an executor that dies takes
    its cells along.
    """
    if stop_at_eof:
        _end_with_parent()
    grid.folder(cell).mkdir(parents=True, exist_ok=True)
    screen = os.dup(1)
    os.write(screen, f"{cell.id}: output goes to {grid.log(cell)}\n".encode())
    _redirect(grid.log(cell))
    code = run_cell(grid, cell)
    with contextlib.suppress(OSError):  # nobody has to listen
        record = grid.state(cell)
        reason = f": {record['reason']}" if record.get("reason") else ""
        os.write(screen, f"{cell.id}: {record.get('state')}{reason}\n".encode())
    return code


def run_cell(grid: Grid, cell: Cell, *, poll: float = POLL_S) -> int:
    """Prepare and train, or find the work done; returns the exit status."""
    lock = wait_for(grid.folder(cell), poll)
    try:
        if grid.run(cell).exists():  # someone may train there by hand
            wait_for(grid.run(cell), poll).release()
        if grid.finished(cell):
            grid.note(cell, grid.state(cell) | {"state": "done", "reason": ""})
            return 0
        return _attempt(grid, cell)
    finally:
        lock.release()


def wait_for(folder: Path, poll: float = POLL_S) -> RunLock:
    """The lock of a folder, as soon as its holder is gone: an orphan that saves and ends."""
    told = 0
    while True:
        try:
            return RunLock(folder)
        except InUseError as error:
            pid = int(error.holder.get("pid", -1))
            if pid != told:
                host = error.holder.get("host", "?")
                _say(f"waits for process {pid} on host {host}, which works in {folder}")
                told = pid
            time.sleep(poll)


def _attempt(grid: Grid, cell: Cell) -> int:
    earlier = grid.state(cell)
    record: dict[str, Any] = {
        "state": "running",
        "attempts": int(earlier.get("attempts", 0)) + 1,
        "reason": "",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.time(),
        "ended": None,
        "seconds": float(earlier.get("seconds", 0.0)),
    }
    grid.note(cell, record)
    begin, said = (
        time.monotonic(),
        os.stat(grid.log(cell)).st_size if grid.log(cell).exists() else 0,
    )
    _say(f"attempt {record['attempts']} on {record['host']}, process {record['pid']}")
    code = _prepare(grid, cell, again=earlier.get("state") == "failed")
    if code == 0:
        code = _call(["train", *cell.words, "--run", str(grid.run(cell))])
    record["seconds"] += time.monotonic() - begin
    record |= {"ended": time.time(), "code": code}
    if grid.finished(cell):
        record["state"] = "done"
    elif code in PREEMPTED:
        record |= {"state": "interrupted", "reason": "stopped by a signal; it was saved"}
    else:
        why = last_words(_tail(grid.log(cell), said)) or f"exit status {code}"
        record |= {"state": "failed", "reason": why}
    grid.note(cell, record)
    return code


def _prepare(grid: Grid, cell: Cell, *, again: bool) -> int:
    """Run the cell's preparation, unless it has succeeded before and nothing speaks against it."""
    if not cell.prepare:
        return 0
    name = hashlib.sha256(json.dumps(cell.prepare).encode()).hexdigest()[:16]
    folder = grid.path / PREPARE / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = wait_for(folder)
    try:
        if (folder / DONE).exists() and not again:
            return 0
        code = _call(cell.prepare)
        if code == 0:
            write_atomic(folder / DONE, (json.dumps(cell.prepare) + "\n").encode())
        return code
    finally:
        lock.release()


def _call(words: Sequence[str]) -> int:
    _say(shlex.join(["reverie", *words]))
    sys.argv = ["reverie", *words]  # which the fingerprint of the run keeps
    try:
        return cli.main(words)
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def last_words(text: str) -> str:
    """Why a process ended, of all that it said: its last explanation, or its last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    starts = [n for n, line in enumerate(lines) if line.startswith("reverie: ")]
    if not starts:
        return lines[-1].strip()[:REASON_LENGTH] if lines else ""
    found = lines[starts[-1]].removeprefix("reverie: ")
    for line in lines[starts[-1] + 1 :]:
        if not line.startswith(" "):
            break
        found += " " + line.strip()
    return found[:REASON_LENGTH]


def _tail(log: Path, start: int) -> str:
    sys.stdout.flush()
    try:
        with open(log, "rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines if not line.startswith("grid: "))


def _say(text: str) -> None:
    sys.stdout.write(f"grid: {time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stdout.flush()


def _redirect(log: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end_with_parent() -> None:
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(pipe, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(143)  # it hangs; every file is safe at any moment

    threading.Thread(target=watch, daemon=True, name="driver-watch").start()
