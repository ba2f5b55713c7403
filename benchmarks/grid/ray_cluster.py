"""Cells as tasks of a Ray cluster (extra `cluster`): fractions of GPUs, nodes that come and go.

The grid's folder has to lie on a file system that all nodes share, under the same path, and every
node needs reverie installed. Nothing but exit statuses travels through Ray.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reverie.agents.configs import ConfigError
from reverie.benchmarks.grid.cells import Cell, Grid
from reverie.benchmarks.grid.driver import Handle
from reverie.benchmarks.grid.local import start_cell

POLL_S = 0.2

NODE_LOSSES = 3
"""How often Ray itself starts a cell again elsewhere, before the driver hears of it."""


class RayExecutor:
    """Ray Core decides where cells run; it queues what does not fit."""

    def __init__(
        self,
        grid: Grid,
        *,
        address: str,
        jobs: int | None = None,
        gpus_per_run: float | None = None,
        command: Sequence[str] = (),
    ) -> None:
        """Connect to a cluster; `address` "local" starts one on this machine.

        Raises:
            ConfigError: Ray is not installed, does not answer, or has no node for a cell.
        """
        # Ray reads it when it starts
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                [f"--ray: needs Ray: pip install 'reverie[cluster]' ({error})"]
            ) from error
        self._ray, self._grid, self._command = ray, grid, tuple(command)
        self._jobs = jobs
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                [f"--ray: expected a Ray cluster at {address!r}, found none ({error})"]
            ) from error
        resources = ray.cluster_resources()
        share = gpus_per_run
        if share is None:
            share = 0.25 if resources.get("GPU", 0) else 0.0
        if share > resources.get("GPU", 0):
            ray.shutdown()
            raise ConfigError(
                [
                    f"--gpus-per-run: expected at most the cluster's {resources.get('GPU', 0):g} "
                    f"GPUs, found {share:g}"
                ]
            )
        self._task: Any = ray.remote(
            num_cpus=1, num_gpus=share, max_retries=NODE_LOSSES, max_calls=1
        )(supervise)

    @property
    def slots(self) -> int:
        """All that are asked for; Ray keeps the queue, because nodes may join."""
        return sys.maxsize if self._jobs is None else self._jobs

    def submit(self, cell: Cell) -> Handle:
        """Queue a cell."""
        path, folder = str(self._grid.path.absolute()), os.getcwd()
        return Handle(cell, job=self._task.remote(self._command, path, cell.id, folder))

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        """Those whose tasks have ended, or were lost for good."""
        known = {handle.job: handle for handle in handles}
        ready, _ = self._ray.wait(list(known), num_returns=1, timeout=seconds)
        ended = [known[job] for job in ready]
        for handle in ended:
            try:
                handle.code = self._ray.get(handle.job)
            except self._ray.exceptions.TaskCancelledError:
                handle.code = -signal.SIGTERM
            except self._ray.exceptions.RayError as error:
                handle.lost = f"lost by Ray: {' '.join(str(error).split())[:200]}"
        return ended

    def stop(self, handles: Sequence[Handle]) -> None:
        """Cancel tasks; each passes it on to its cell and waits for the save."""
        for handle in handles:
            self._ray.cancel(handle.job, force=False)

    def close(self) -> None:
        """Leave the cluster; what still runs there ends, saved."""
        self._ray.shutdown()


def supervise(command: tuple[str, ...], grid: str, cell: str, folder: str) -> int:
    """Body of a task: one cell in a process of its own; returns its exit status."""
    os.chdir(folder)  # words may name files relative to where the driver was started
    words = command or (sys.executable, "-m", "reverie.benchmarks.cli")
    process = start_cell(words, Path(grid), cell, {"OMP_NUM_THREADS": "1"})
    try:
        while (code := process.poll()) is None:
            time.sleep(POLL_S)  # Ray's interrupt does not reach a call that waits
        return code
    except BaseException:  # cancelled
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
