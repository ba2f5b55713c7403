"""Cells as processes of this machine, each in a slot of cores and of a share of a GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from reverie.agents.configs import ConfigError
from reverie.benchmarks.grid.cells import Cell, Grid
from reverie.benchmarks.grid.driver import Handle

COMMAND = (sys.executable, "-m", "reverie.benchmarks.cli")
"""What stands for `reverie` in a new process."""

POLL_S = 0.05


def start_cell(
    command: Sequence[str], grid: Path, cell: str, variables: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start `reverie bench cell`, which ends as soon as this process is gone."""
    log = grid / "cells" / cell / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:  # for what goes wrong before the cell opens it
        return subprocess.Popen(
            [*command, "bench", "cell", str(grid), cell, "--stop-at-eof"],
            stdin=subprocess.PIPE,  # closes, even after SIGKILL, with this process
            stdout=subprocess.DEVNULL,
            stderr=output,
            env={**os.environ, **variables},
            start_new_session=True,  # a terminal's ^C is for the driver, which asks once
        )


class LocalExecutor:
    """One process per slot; slots take turns on the GPUs."""

    def __init__(
        self,
        grid: Grid,
        *,
        jobs: int | None = None,
        gpus_per_run: float | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`jobs` none: as many as the GPUs hold, or one per core without GPUs.

        Raises:
            ConfigError: there is no room for a single cell.
        """
        self._grid, self._command = grid, command
        self._free = slots(visible_gpus(), jobs=jobs, gpus_per_run=gpus_per_run)
        self._slots = len(self._free)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def slots(self) -> int:
        """Cells at once."""
        return self._slots

    def submit(self, cell: Cell) -> Handle:
        """Start a cell in a free slot."""
        slot = self._free.pop(0)
        process = start_cell(self._command, self._grid.path, cell.id, slot)
        self._processes.append(process)
        return Handle(cell, job=(process, slot))

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        """Those whose processes have ended."""
        deadline = time.monotonic() + seconds
        while True:
            ended = [handle for handle in handles if handle.job[0].poll() is not None]
            if ended or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
        for handle in ended:
            process, slot = handle.job
            handle.code = process.returncode
            process.stdin.close()
            self._processes.remove(process)
            self._free.append(slot)
        return ended

    def stop(self, handles: Sequence[Handle]) -> None:
        """SIGTERM, once: a second one would end a cell before it has saved."""
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                handle.job[0].send_signal(signal.SIGTERM)

    def close(self) -> None:
        """What still runs hears that it is alone, saves and ends."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()


def slots(
    gpus: Sequence[str], *, jobs: int | None = None, gpus_per_run: float | None = None
) -> list[dict[str, str]]:
    """Variables of every slot's process: its GPUs, and one thread as runs have by default.

    Raises:
        ConfigError: the numbers leave no slot.
    """
    share = (0.25 if gpus else 0.0) if gpus_per_run is None else gpus_per_run
    problems = []
    if jobs is not None and jobs < 1:
        problems.append(f"--jobs: expected 1 or more, found {jobs}")
    if share < 0 or (share > 1 and share != int(share)):
        problems.append(f"--gpus-per-run: expected 0 to 1, or a whole number, found {share:g}")
    elif share > len(gpus):
        problems.append(f"--gpus-per-run: expected at most {len(gpus)}, found {share:g}")
    if problems:
        raise ConfigError(problems)
    base = {"OMP_NUM_THREADS": "1"}
    if share == 0:
        count = len(os.sched_getaffinity(0)) if jobs is None else jobs
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if gpus else {}
        return [base | hidden for _ in range(count)]
    width = max(1, int(share))
    groups = [",".join(gpus[i : i + width]) for i in range(0, len(gpus) - width + 1, width)]
    places = groups * (1 if share >= 1 else int(1 / share + 1e-9))
    return [base | {"CUDA_VISIBLE_DEVICES": group} for group in places[:jobs]]


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES wants them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [str(n) for n in range(sum(line.startswith("GPU ") for line in lines))]
