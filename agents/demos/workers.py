"""Recording several tasks at once: a process for each, with a pipe that also tells it to stop."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from reverie.agents.demos.make import Job, RecordingStopped, Tally, record
from reverie.agents.demos.store import DemoError
from reverie.agents.stopping import StopRequest
from reverie.envs.specs import EnvError

POLL_S = 0.2
PATIENCE_S = 60.0
"""How long a process that was told to stop may take."""

Running = dict[Connection, tuple[Job, BaseProcess]]


def record_all(
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    report: Callable[[Tally], None] = lambda tally: None,
    stop: Callable[[], bool] = bool,
) -> list[Tally]:
    """Record the jobs, up to `workers` at the same time; one worker is this process itself.

    Raises as `record` does; what the others have not finished is given up then.
    """
    if workers == 1 or len(jobs) == 1:
        return [record(job, report=report, stop=stop) for job in jobs]
    tallies: dict[str, Tally] = {}
    waiting, running = list(jobs), Running()
    try:
        while waiting or running:
            if stop():
                raise RecordingStopped("recording was interrupted by a request to stop")
            while waiting and len(running) < workers:
                _start(waiting.pop(0), running)
            for connection in wait(list(running), POLL_S):
                assert isinstance(connection, Connection)
                _receive(connection, running, tallies, report)
    finally:
        _end(running)
    return [tallies[job.settings.task] for job in jobs]


def _start(job: Job, running: Running) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(job, theirs), name=job.settings.task)
    process.start()
    theirs.close()  # or nobody would notice the end of the process
    running[ours] = (job, process)


def _receive(
    connection: Connection,
    running: Running,
    tallies: dict[str, Tally],
    report: Callable[[Tally], None],
) -> None:
    job, process = running[connection]
    task = job.settings.task
    try:
        message = connection.recv()
    except (EOFError, ConnectionResetError):
        del running[connection]
        connection.close()
        process.join()
        if task not in tallies or tallies[task].episodes < job.episodes:
            raise DemoError(
                f"{task}: the process that recorded it ended with status {process.exitcode}; the "
                "same command continues with finished shards, --workers 1 shows the cause"
            ) from None
        return
    if isinstance(message, Exception):
        raise message
    tallies[task] = message
    report(message)


def _end(running: Running) -> None:
    """Close the pipes, which tells the processes to stop, and wait for them."""
    for connection in running:
        connection.close()
    for _, process in running.values():
        process.join(PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()


def _work(job: Job, connection: Connection) -> None:
    """Record in a process of its own, which outlives neither the parent nor its interest."""
    with StopRequest() as stop:
        try:
            record(
                job,
                report=connection.send,
                # the parent never writes: what can be read is the end of the pipe
                stop=lambda: bool(stop) or connection.poll(),
            )
        except (DemoError, EnvError) as error:
            with contextlib.suppress(BrokenPipeError):
                connection.send(error)
        except (RecordingStopped, BrokenPipeError):
            return
