"""Environments in worker processes that may die, raise or hang without taking the run along."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np

from reverie.envs.settings import EnvSettings
from reverie.envs.single import Ctor, Purpose
from reverie.envs.specs import Array, EnvError, EnvSpec, Step
from reverie.envs.vector import FailureBudget, SlotVec
from reverie.envs.worker import Block, Order, require_main_guard

BOOT = "from reverie.envs.worker import main; main()"
START_TIMEOUT = 120.0
"""Seconds for a worker to import, build and render for the first time."""


class WorkerLost(Exception):
    """A worker died, raised or missed its deadline; the text says which."""


class Worker:
    """Parent's end of one process that owns some slots.

    A plain subprocess and not a `multiprocessing` one: the user's script is then not run again in
    every worker, needs no main guard, and its imports cost nothing there.
    """

    def __init__(self, ctor: Ctor, slots: Sequence[int], memory: int) -> None:
        self.slots = list(slots)
        self.fresh = True
        """Not yet through its first orders, which include the rendering context."""
        self.attached = False
        start = _start_message(ctor, self.slots)
        ours, theirs = socket.socketpair()
        with theirs:
            paths = [os.path.abspath(path) for path in sys.path if os.path.exists(path or ".")]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOT, str(theirs.fileno()), str(memory)],
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        self._pipe = Connection(ours.detach())
        self.send(start)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Send; a dead worker is noticed by `receive`."""
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def receive(self, deadline: float) -> Any:
        """Return the reply's value; raises `WorkerLost`, or `EnvError` for a broken contract."""
        if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
            raise WorkerLost("no answer before the deadline (step_timeout): the worker hangs")
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerLost(f"the worker died: {_exit(self._process)}") from None
        if kind == "invalid":
            raise EnvError(value)
        if kind in ("raised", "failed"):
            raise WorkerLost(value)
        return value

    def stop(self, *, patience: float) -> None:
        """Wait for a worker that was told to close, then kill it."""
        if self._pipe.closed:
            return
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe.close()


def _start_message(ctor: Ctor, slots: list[int]) -> tuple[str | None, bytes, list[int]]:
    try:
        payload = pickle.dumps(ctor)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise EnvError(
            f"The environment constructor cannot be sent to a worker process: {error}. Use a "
            'function of a module, not a lambda or a local one, or workers="inline".'
        ) from error
    if b"__main__" not in payload:
        return None, payload, slots
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:
        raise EnvError(
            "The environment constructor was defined at a prompt, where worker processes cannot "
            'find it. Put it into a file, or use workers="inline".'
        )
    return script, payload, slots


def _exit(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        return "it closed its pipe"
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps the out-of-memory killer" if name == "SIGKILL" else name


class ProcessVec(SlotVec):
    """Slots spread over spawned workers, with a deadline per step and one shared image block.

    A lost worker is replaced; the episodes of its slots end there as interrupted (`is_last`
    without `is_terminal`, `info["interrupted"]`). More than a few losses raise `EnvError`.
    """

    def __init__(
        self,
        ctor: Ctor,
        num_envs: int,
        *,
        seed: int,
        purpose: Purpose = "train",
        step_timeout: float = 60.0,
        num_workers: int | None = None,
        settings: EnvSettings | None = None,
        budget: FailureBudget | None = None,
    ) -> None:
        assert num_envs > 0 and step_timeout > 0
        require_main_guard()
        self._ctor = ctor
        self._timeout = step_timeout
        self._budget = budget or FailureBudget()
        count = min(num_envs, num_workers or os.cpu_count() or 1)
        groups = np.array_split(np.arange(num_envs), count)
        self._workers: list[Worker] = []
        self._block: Block | None = None
        # a file without a name: shared with the workers, gone with the last process that has it
        shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self._memory = tempfile.TemporaryFile(dir=shm)
        self._finalizer = weakref.finalize(self, _close, self._workers, self._memory)
        try:
            memory = self._memory.fileno()
            self._workers += [Worker(ctor, [int(i) for i in g], memory) for g in groups]
            spec = self._first_spec()
        except BaseException:
            self.close()
            raise
        super().__init__(spec, num_envs, seed=seed, purpose=purpose, settings=settings)
        size = Block.size(spec, num_envs)
        self._memory.truncate(size)
        self._block = Block(spec, num_envs, mmap.mmap(memory, size))
        for worker in self._workers:
            self._attach(worker)
        self._last: dict[str, Array] = {}

    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """Stop the workers and free the shared memory."""
        self._finalizer()
        self._block = None

    def _first_spec(self) -> EnvSpec:
        deadline = time.monotonic() + START_TIMEOUT
        spec: EnvSpec | None = None
        for worker in self._workers:
            try:
                spec = worker.receive(deadline)
            except WorkerLost as lost:
                raise EnvError(
                    f"An environment worker could not start. Repair its cause; `reverie doctor` "
                    f"checks rendering and ROMs:\n{lost}"
                ) from None
        assert spec is not None
        return spec

    def _attach(self, worker: Worker) -> None:
        worker.send(self.num_envs)
        worker.attached = True

    def _advance(self, seeds: Sequence[int | None], action: Array) -> Step:
        block = self._open_block()
        self._budget.steps += 1
        block.action[:] = action
        orders = [[(slot, seeds[slot]) for slot in w.slots] for w in self._workers]
        cut: list[int] = []
        while any(orders):
            lost = self._exchange(orders, {}, self._timeout)
            cut += [slot for i in lost for slot, seed in orders[i] if seed is None]
            # a reset that was lost is tried again at once: its row has to be a first one
            orders = [
                [(slot, seed) for slot, seed in order if seed is not None] if i in lost else []
                for i, order in enumerate(orders)
            ]
        return self._keep(block.read(), cut)

    def _replay(self, seeds: Sequence[int], actions: Sequence[Array]) -> Step:
        block = self._open_block()
        orders: list[list[Order]] = [[(s, seeds[s]) for s in w.slots] for w in self._workers]
        logs = {slot: log for slot, log in enumerate(actions) if len(log)}
        longest = max(len(log) for log in actions)
        while any(orders):
            lost = self._exchange(orders, logs, self._timeout * (1 + longest))
            orders = [order if i in lost else [] for i, order in enumerate(orders)]
        return self._keep(block.read(), [])

    def _keep(self, row: Step, cut: list[int]) -> Step:
        for slot in cut:
            for key, value in row.obs.items():
                value[slot] = self._last[key][slot]
            row.reward[slot] = 0.0
            row.is_last[slot] = row.info["interrupted"][slot] = True
            row.is_terminal[slot] = row.info["success"][slot] = False
        self._last = {k: v.copy() for k, v in row.obs.items()}
        return row

    def _exchange(
        self, orders: Sequence[Sequence[Order]], logs: dict[int, Array], timeout: float
    ) -> set[int]:
        """Send orders and wait for all; returns the workers that were lost and replaced."""
        busy = [i for i, order in enumerate(orders) if order]
        lost = {i for i in busy if not self._started(i)}
        for i in busy:
            if i not in lost:
                wanted = {slot: logs[slot] for slot, _ in orders[i] if slot in logs}
                self._workers[i].send(("run", list(orders[i]), wanted))
        begin = time.monotonic()
        broken: EnvError | None = None
        for i in sorted(set(busy) - lost):
            worker = self._workers[i]
            allowed = max(timeout, START_TIMEOUT) if worker.fresh else timeout
            try:
                worker.receive(begin + allowed)
                worker.fresh = False
            except WorkerLost as cause:
                lost.add(i)
                self._replace(i, str(cause))
            except EnvError as error:  # raised when no other answer is left in its pipe
                broken = error
        if broken is not None:
            raise broken
        return lost

    def _started(self, index: int) -> bool:
        """Complete the start of a replacement worker; False if it was lost as well."""
        worker = self._workers[index]
        if worker.attached:
            return True
        try:
            worker.receive(time.monotonic() + START_TIMEOUT)
        except WorkerLost as cause:
            self._replace(index, str(cause))
            return False
        self._attach(worker)
        return True

    def _replace(self, index: int, cause: str) -> None:
        old = self._workers[index]
        old.stop(patience=0)
        self._workers[index] = Worker(self._ctor, old.slots, self._memory.fileno())
        self._budget.record(self.spec.task, f"worker {index} (pid {old.pid})", cause)

    def _open_block(self) -> Block:
        if self._block is None:
            raise EnvError(f"{self.spec.task}: expected open environments, found closed ones.")
        return self._block


def _close(workers: list[Worker], memory: IO[bytes]) -> None:
    for worker in workers:
        worker.send(("close", (), {}))
    for worker in workers:
        worker.stop(patience=2)
    workers.clear()
    memory.close()
