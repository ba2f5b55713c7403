"""Grids in processes: cells and drivers are killed; the same command ends with the same table."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grid_doubles import (
    COMMAND,
    alive,
    counting,
    ends,
    expected,
    finishes,
    make_grid,
    result,
    results,
    running,
    start,
    start_driver,
    until,
)

from reverie.agents.runs.runlock import RunLock
from reverie.agents.runs.status import read_status
from reverie.benchmarks import cli
from reverie.benchmarks.grid.cells import open_grid

pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]


def test_fault_23_killed_and_failing_cells_are_tried_again_and_give_their_reasons(
    tmp_path: Path,
) -> None:
    cells = [
        counting(0, "kill=7"),
        counting(1, "fail=3"),
        counting(2, "fail=3", "always"),
        counting(3, "exit=2"),
        counting(4),
    ]
    grid = make_grid(tmp_path / "a grid", cells)
    code, output = ends(start_driver(grid))
    assert code == 1, output
    assert [grid.standing(cell) for cell in cells] == ["done", "done", "failed", "failed", "done"]
    killed, once, always, wrong, plain = (grid.state(cell) for cell in cells)
    assert killed["attempts"] == once["attempts"] == always["attempts"] == 2
    assert wrong["attempts"] == plain["attempts"] == 1
    assert always["reason"] == "the world broke at step 3"
    assert wrong["reason"] == "1 problem in the configuration: - size: expected S"
    assert f"{cells[0].id} failed: killed by SIGKILL" in output
    assert killed["reason"] == once["reason"] == ""
    # what failed is tried again by the same command, what is done is not
    assert ends(start_driver(grid))[0] == 1
    assert grid.state(cells[2])["attempts"] == 4 and grid.state(cells[4])["attempts"] == 1
    for cell in (cells[0], cells[1], cells[4]):
        assert finishes(grid, cell) == 1
        assert read_status(grid.run(cell))["evaluation"] == result(cell.seed, 20)


def test_fault_23_a_killed_driver_takes_its_cells_along_saved_and_its_command_goes_on(
    tmp_path: Path,
) -> None:
    cells = [counting(seed, "steps=40", "pause=0.1") for seed in range(4)]
    grid = make_grid(tmp_path, cells)
    driver = start_driver(grid)
    pids = until(lambda: len(found := running(grid)) == 2 and found)
    driver.kill()
    driver.communicate()
    begin = time.monotonic()
    until(lambda: not any(alive(pid) for pid in pids.values()), seconds=20)
    assert time.monotonic() - begin < 5, "fault 25: no orphan stays"
    for cell in cells[:2]:
        assert grid.state(cell)["state"] == "interrupted" and grid.reached(cell) > 0
        assert read_status(grid.run(cell))["state"] == "preempted"
    assert ends(start_driver(grid))[0] == 0
    assert results(grid) == expected(grid, 40)
    assert [grid.state(cell)["attempts"] for cell in cells] == [2, 2, 1, 1]
    assert all(finishes(grid, cell) == 1 for cell in cells)


def test_fault_23_a_driver_that_is_asked_to_stop_waits_for_the_saves(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, [counting(seed, "steps=40", "pause=0.1") for seed in range(3)])
    driver = start_driver(grid)
    until(lambda: len(running(grid)) == 2)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal's ^C: to all that belong to the driver
    assert ends(driver, 30)[0] == 130
    assert [grid.standing(cell) for cell in grid.cells] == ["interrupted", "interrupted", "waiting"]
    assert all(read_status(grid.run(cell))["state"] == "preempted" for cell in grid.cells[:2])
    assert ends(start_driver(grid))[0] == 0
    assert results(grid) == expected(grid, 40)


def test_fault_10_an_orphan_is_waited_for(tmp_path: Path) -> None:
    """A cell that outlives its driver keeps its lock: its successor neither fails nor trains."""
    grid = make_grid(tmp_path, [counting(0, "steps=40", "pause=0.1")])
    cell = grid.cells[0]
    orphan = start(*COMMAND, "bench", "cell", str(tmp_path), "0")
    until(lambda: running(grid))
    code, output = ends(start_driver(grid))
    assert code == 0 and "failed" not in output, output
    assert ends(orphan, 10)[0] == 0
    assert f"waits for process {orphan.pid}" in grid.log(cell).read_text()
    assert finishes(grid, cell) == 1 and grid.state(cell)["attempts"] == 1


def test_a_run_that_someone_trains_by_hand_is_waited_for(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, [counting(0)])
    grid.run(grid.cells[0]).mkdir(parents=True)
    lock = RunLock(grid.run(grid.cells[0]))
    child = start(*COMMAND, "bench", "cell", str(tmp_path), grid.cells[0].id)
    log = grid.log(grid.cells[0])
    until(lambda: log.exists() and f"waits for process {os.getpid()}" in log.read_text())
    assert child.poll() is None
    lock.release()
    assert ends(child, 30)[0] == 0 and grid.standing(grid.cells[0]) == "done"


def test_fault_10_two_drivers_on_one_grid_are_one_error(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "g"
    out.mkdir()
    lock = RunLock(out)
    assert cli.main(["bench", "run", "smoke", "--out", str(out)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(
        f"reverie: another driver works on the grid {out}: process {os.getpid()}"
    )
    assert "choose another --out" in shown and shown.count("\n") == 1
    lock.release()
    assert cli.main(["bench", "run", "smoke", "--plan", "--out", str(out)]) == 0


def test_equal_preparations_run_once_and_again_after_a_failure(tmp_path: Path) -> None:
    made = tmp_path / "demos"
    words = ("demos", "make", str(made))
    cells = [counting(seed, "steps=5", prepare=words) for seed in range(4)]
    grid = make_grid(tmp_path / "g", cells)
    made.with_suffix(".fail").touch()
    assert ends(start_driver(grid))[0] == 1 and not made.exists()
    assert grid.state(cells[0])["reason"] == "no expert"
    made.with_suffix(".fail").unlink()
    fresh = make_grid(tmp_path / "h", cells)
    assert ends(start_driver(fresh))[0] == 0
    assert made.read_text().splitlines() == ["made"]
    # a cell that failed looks again: demonstrations may have been deleted
    assert ends(start_driver(grid))[0] == 0
    assert len(made.read_text().splitlines()) == 1 + len(cells)


def test_a_slurm_array_needs_no_driver(tmp_path: Path) -> None:
    """What the documented script does: a number for every task of the array."""
    grid = make_grid(tmp_path, [counting(seed, "steps=5") for seed in range(3)])
    children = [start(*COMMAND, "bench", "cell", str(tmp_path), str(n)) for n in range(3)]
    ended = [ends(child) for child in children]
    assert [code for code, _ in ended] == [0, 0, 0]
    assert ended[1][1].splitlines()[-1] == f"{grid.cells[1].id}: done"
    assert results(grid) == expected(grid, 5)


REVERIE = (sys.executable, "-m", "reverie.benchmarks.cli")
SMALL = ("--agents", "mudreamer", "spr", "--tasks", "catch", "--seeds", "2", "--jobs", "2")


@pytest.mark.timeout(600)
def test_fault_23_a_grid_of_real_runs_ends_with_the_same_table_after_many_kills(
    tmp_path: Path,
) -> None:
    """Training for real: drivers and cells are killed at random moments, with SIGKILL."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = (*REVERIE, "bench", "run", "smoke", *SMALL)
    code, output = ends(start(*words, "--out", str(whole)), 300)
    assert code == 0 and f"report: reverie bench report {whole}" in output, output
    rng = random.Random(0)
    words = (*words, "--retries", "9", "--out", str(broken))
    kills = 0
    for _ in range(3):
        driver = start(*words)
        for _ in range(2):
            kills += kill_a_cell(broken, driver, rng)
        driver.kill()
        driver.communicate()
    code, output = ends(start(*words), 300)
    assert code == 0, output
    assert kills >= 4
    grid = open_grid(broken)
    assert results(grid) == results(open_grid(whole)) and None not in results(grid).values()
    assert sum(grid.state(cell)["attempts"] for cell in grid.cells) > len(grid.cells)


def kill_a_cell(path: Path, driver: subprocess.Popen[str], rng: random.Random) -> bool:
    """SIGKILL to a cell that trains, at a random moment; False: the driver was faster."""
    until(lambda: (path / "grid.json").exists())
    grid = open_grid(path)
    until(lambda: running(grid) or driver.poll() is not None, seconds=120)
    found = list(running(grid).values())
    if not found:
        return False
    time.sleep(rng.random())
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(found), signal.SIGKILL)
        return True
    return False
