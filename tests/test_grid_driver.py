"""The loop of a grid: what runs again, what is given up, what is shown."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from grid_doubles import Scripted, counting, make_grid, save, status

from reverie.agents.configs import ConfigError
from reverie.benchmarks.grid import local
from reverie.benchmarks.grid.cells import Cell, Grid
from reverie.benchmarks.grid.driver import Driver
from reverie.benchmarks.grid.table import GridTable, time_left
from reverie.benchmarks.grid.worker import last_words


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return make_grid(tmp_path, [counting(seed) for seed in range(3)])


def begin(grid: Grid, cell: Cell, state: str, code: int, **values: object) -> None:
    """What a cell's process leaves behind."""
    attempts = grid.state(cell).get("attempts", 0) + 1
    grid.folder(cell).mkdir(parents=True, exist_ok=True)
    record = {"attempts": attempts, "reason": "", "seconds": 1.0, "started": 0.0, "code": code}
    grid.note(cell, record | {"state": state, **values})


def finish(grid: Grid, cell: Cell) -> int:
    grid.run(cell).mkdir(parents=True, exist_ok=True)
    status(grid.run(cell), "done", 20, 20)
    begin(grid, cell, "done", 0)
    return 0


def fail(grid: Grid, cell: Cell, *, code: int = 1) -> int:
    begin(grid, cell, "failed", code, reason="boom")
    return code


def driver(grid: Grid, executor: Scripted, *, retries: int = 1) -> tuple[Driver, io.StringIO]:
    said = io.StringIO()
    return Driver(grid, executor, retries=retries, table=GridTable(grid, stream=said)), said


def test_finished_cells_are_not_submitted_and_slots_are_kept(grid: Grid) -> None:
    finish(grid, grid.cells[1])
    executor = Scripted(lambda cell, _: finish(grid, cell), slots=1)
    loop, said = driver(grid, executor)
    assert loop.run(grid.cells) == 0
    assert executor.order == [grid.cells[0].id, grid.cells[2].id]
    assert executor.most == 1 and executor.closed
    assert "[3/3] count--toy-count--2 done" in said.getvalue()


@pytest.mark.parametrize(("retries", "starts"), [(0, 1), (1, 2), (3, 4)])
def test_a_failing_cell_is_given_up_and_the_others_go_on(
    retries: int, starts: int, grid: Grid
) -> None:
    bad = grid.cells[0]
    executor = Scripted(lambda c, _: fail(grid, c) if c == bad else finish(grid, c))
    loop, said = driver(grid, executor, retries=retries)
    assert loop.run(grid.cells) == 1
    assert executor.order.count(bad.id) == starts and len(executor.order) == starts + 2
    assert f"{bad.id} failed: boom" in said.getvalue()
    assert grid.state(bad)["attempts"] == starts


def test_a_cell_that_gets_further_each_time_is_not_given_up(grid: Grid) -> None:
    cell = grid.cells[0]

    def play(cell: Cell, attempt: int) -> int:
        if attempt == 6:
            return finish(grid, cell)
        save(grid.run(cell), attempt)
        return -signal.SIGKILL

    executor = Scripted(play)
    loop, said = driver(grid, executor, retries=0)
    assert loop.run([cell]) == 0 and len(executor.order) == 6
    assert "killed by SIGKILL; the machine may be out of memory; it runs again" in said.getvalue()


def test_wrong_settings_are_not_tried_again(grid: Grid) -> None:
    executor = Scripted(lambda cell, _: fail(grid, cell, code=2))
    assert driver(grid, executor, retries=5)[0].run(grid.cells[:1]) == 1
    assert len(executor.order) == 1


def test_a_lost_machine_costs_an_attempt(grid: Grid) -> None:
    executor = Scripted(lambda c, n: "lost by Ray: node died" if n == 1 else finish(grid, c))
    loop, said = driver(grid, executor)
    assert loop.run(grid.cells[:1]) == 0 and len(executor.order) == 2
    assert "lost by Ray: node died; it runs again" in said.getvalue()


def test_a_process_that_dies_leaves_its_reason_behind(grid: Grid) -> None:
    cell = grid.cells[0]

    def play(cell: Cell, attempt: int) -> int:
        begin(grid, cell, "running", 0, started=0.0)
        return -signal.SIGSEGV

    assert driver(grid, Scripted(play), retries=0)[0].run([cell]) == 1
    record = grid.state(cell)
    assert (record["state"], record["reason"]) == ("failed", "killed by SIGSEGV")
    assert record["seconds"] > 1 and record["attempts"] == 1 and grid.standing(cell) == "failed"


def test_the_word_of_an_earlier_attempt_is_not_taken_for_that_of_the_last(grid: Grid) -> None:
    cell = grid.cells[0]
    fail(grid, cell)
    assert driver(grid, Scripted(lambda *_: 127), retries=0)[0].run([cell]) == 1
    record = grid.state(cell)
    assert "exit status 127 before it began" in record["reason"] and record["attempts"] == 2


def test_fault_23_a_signal_stops_the_driver_and_asks_cells_to_save(grid: Grid) -> None:
    def play(cell: Cell, attempt: int) -> int:
        if cell == grid.cells[0]:
            signal.raise_signal(signal.SIGTERM)
            return finish(grid, cell)
        begin(grid, cell, "interrupted", 143)
        return 143

    executor = Scripted(play)
    loop, said = driver(grid, executor)
    assert loop.run(grid.cells) == 143
    assert executor.stopped and executor.closed and "stopping" in said.getvalue()
    assert len(executor.order) == 2, "nothing is started behind a signal"
    assert [grid.standing(cell) for cell in grid.cells] == ["done", "interrupted", "waiting"]


def test_cells_that_had_not_begun_when_they_were_stopped_wait(grid: Grid) -> None:
    def play(cell: Cell, attempt: int) -> int:
        signal.raise_signal(signal.SIGINT)
        return -signal.SIGTERM

    assert driver(grid, Scripted(play, slots=1))[0].run(grid.cells) == 130
    assert grid.standing(grid.cells[0]) == "waiting" and not grid.state(grid.cells[0])


def test_a_running_cell_whose_process_is_gone_was_interrupted(grid: Grid) -> None:
    cell, host = grid.cells[0], socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    begin(grid, cell, "running", 0, host=host, pid=os.getpid())
    assert grid.standing(cell) == "running"
    begin(grid, cell, "running", 0, host=host, pid=gone.pid)
    assert grid.standing(cell) == "interrupted"
    begin(grid, cell, "running", 0, host="elsewhere", pid=gone.pid)
    assert grid.standing(cell) == "running"
    begin(grid, cell, "done", 0)
    assert grid.standing(cell) == "waiting", "only the run itself says that it is done"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\nreverie: x is wrong\n", "x is wrong"),
        ("reverie: 2 problems:\n  - a\n  - b\nbye\n", "2 problems: - a - b"),
        ("reverie: first\nreverie: last\n", "last"),
        ("Traceback (most recent call last):\n  File\nKeyError: 'x'\n\n", "KeyError: 'x'"),
        ("", ""),
    ],
)
def test_the_reason_is_the_last_explanation(text: str, reason: str) -> None:
    assert last_words(text) == reason


def test_time_left_knows_what_each_arm_takes() -> None:
    arms = {"a0": "a", "a1": "a", "b0": "b", "b1": "b"}
    assert math.isnan(time_left(arms, {}, ["a0"], {}, {}))
    assert time_left(arms, {"a0": 10.0}, [], {}, {}) == 0
    assert time_left(arms, {"a0": 10.0, "b0": 30.0}, ["a1", "b1"], {}, {}) == 40
    assert time_left(arms, {"a0": 10.0, "b0": 30.0}, ["a1", "b1"], {"a1": 0.5, "b1": 0.5}, {}) == 15
    # nothing is finished: running cells tell
    assert time_left(arms, {}, ["a0", "a1"], {"a0": 0.25}, {"a0": 5.0}) == 15 + 20


def test_plain_lines_tell_counts_and_time(grid: Grid) -> None:
    said, now = io.StringIO(), [0.0]
    table = GridTable(grid, stream=said, every=30, clock=lambda: now[0])
    cell = grid.cells[0]
    for other in grid.cells:
        table.set(other, "waiting")
    table.set(cell, "running")
    begin(grid, cell, "running", 0, started=0.0)
    grid.run(cell).mkdir(parents=True)
    status(grid.run(cell), "running", 5, 20, evaluation={"mean": 3.5})
    for now[0] in (0.0, 10.0, 31.0):
        table.draw()
    lines = said.getvalue().splitlines()
    assert len(lines) == 2 and lines[0].startswith("0/3 done | 1 running | ETA ")
    assert "?" not in lines[0]


def test_the_live_table_shows_arms_and_running_cells(grid: Grid) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = Terminal()
    table = GridTable(grid, stream=said)
    finish(grid, grid.cells[1])
    for cell, state in zip(grid.cells, ("running", "done", "waiting"), strict=True):
        table.set(cell, state)  # type: ignore[arg-type]
    begin(grid, grid.cells[0], "running", 0, host="box")
    grid.run(grid.cells[0]).mkdir(parents=True)
    status(grid.run(grid.cells[0]), "running", 5, 20, evaluation={"mean": 3.5})
    table.draw()
    table.close()
    for text in ("1/3", "5/20", "25%", "3.5", "box", "ETA"):
        assert text in said.getvalue(), text


def test_fault_21_a_closed_output_never_ends_the_grid(grid: Grid) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    executor = Scripted(lambda cell, _: finish(grid, cell))
    table = GridTable(grid, stream=Closed(), every=0)
    assert Driver(grid, executor, retries=0, table=table).run(grid.cells) == 0


def test_slots_share_gpus_and_take_turns() -> None:
    def devices(*gpus: str, **wanted: float) -> list[str | None]:
        jobs = wanted.pop("jobs", None)
        found = local.slots(gpus, jobs=None if jobs is None else int(jobs), **wanted)  # type: ignore[arg-type]
        assert all(slot["OMP_NUM_THREADS"] == "1" for slot in found)
        return [slot.get("CUDA_VISIBLE_DEVICES") for slot in found]

    assert devices("0", "1") == ["0", "1"] * 4
    assert devices("0", "1", gpus_per_run=0.5, jobs=3) == ["0", "1", "0"]
    assert devices("0", "1", "2", gpus_per_run=1) == ["0", "1", "2"]
    assert devices("0", "1", "2", gpus_per_run=2) == ["0,1"]
    assert devices("0", gpus_per_run=0.3) == ["0"] * 3
    assert devices("0", gpus_per_run=0, jobs=2) == ["", ""], "CPU runs must not see the GPU"
    assert devices(jobs=3) == [None] * 3
    assert len(devices()) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("share", [-1.0, 1.5, 3.0])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="--gpus-per-run"):
        local.slots(("0", "1"), jobs=None, gpus_per_run=share)


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, MIG-7")
    assert local.visible_gpus() == ["2", "MIG-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert local.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(local.shutil, "which", lambda name: "/bin/" + name)
    listed = subprocess.CompletedProcess([], 0, stdout="GPU 0: A\n  MIG 1g: x\nGPU 1: A\n")
    monkeypatch.setattr(local.subprocess, "run", lambda *a, **k: listed)
    assert local.visible_gpus() == ["0", "1"]


def test_states_are_whole_files(grid: Grid) -> None:
    cell = grid.cells[0]
    begin(grid, cell, "failed", 1, reason="ö")
    text = (grid.folder(cell) / "state.json").read_text()
    assert json.loads(text) == grid.state(cell)
    (grid.folder(cell) / "state.json").write_text(text[:10])
    assert grid.state(cell) == {} and grid.standing(cell) == "waiting"
