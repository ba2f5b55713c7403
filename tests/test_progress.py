"""The progress line, its rates, and the cadence of saving; faults 21 and 22."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import environment
from hypothesis import given
from hypothesis import strategies as st

from reverie.agents.progress import WINDOW_S, Cadence, Progress, Rates, duration


class FakeClock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_plain_line_every_so_many_seconds_and_none_per_step() -> None:
    clock, out = FakeClock(), io.StringIO()
    progress = Progress(1000, action_repeat=2, stream=out, every=30, clock=clock)
    for step in range(0, 101):
        progress.update(step, step // 2, {"score": 12.5, "loss": 0.25})
        clock.now += 1
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[-1] == (
        "step 90/1,000 | frames 180 | score 12.5 | loss 0.25 | 1.0 steps/s | 0.50 updates/s"
        " | ETA 15:10"
    )


def test_a_terminal_gets_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    clock, out = FakeClock(), Terminal()
    progress = Progress(10, stream=out, every=30, clock=clock)
    for step in range(11):
        progress.update(step, 0)
        clock.now += 0.15
    progress.note("a checkpoint was passed over")
    progress.close()
    progress.close()
    assert "\r" in out.getvalue() and "step 10/10" in out.getvalue()
    assert "a checkpoint was passed over" in out.getvalue()
    redraws = [n for n in range(11) if f"step {n}/10" in out.getvalue()]
    assert 4 < len(redraws) < 9, "redrawn at intervals, not at every step"


def test_values_stay_until_they_are_replaced_and_markup_is_text() -> None:
    progress = Progress(10, stream=io.StringIO(), clock=FakeClock())
    progress.update(1, 0, {"score": 1.0})
    progress.update(2, 0, {"loss": float("nan")})
    assert "score 1 | loss nan" in progress.line()
    progress.note("[bold]path [/]")


def test_the_last_line_is_shown_on_close() -> None:
    out = io.StringIO()
    progress = Progress(10, stream=out, clock=FakeClock())
    progress.update(1, 0)
    progress.update(10, 0)
    progress.close()
    assert out.getvalue().splitlines()[-1].startswith("step 10/10")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3661, "1:01:01"), (float("inf"), "?"), (float("nan"), "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


PIPED = """
import sys, time
from pathlib import Path
from reverie.agents.progress import Progress
progress = Progress(300, every=0.0)
for step in range(300):
    progress.update(step, step)
    time.sleep(0.002)
progress.note("end")
progress.close()
assert progress.broken
Path(sys.argv[1]).write_text("finished")
"""


def test_fault_21_the_reader_of_stdout_goes_away(tmp_path: Path) -> None:
    done = tmp_path / "done"
    pipe = 'set -o pipefail; "$0" -c "$1" "$2" | head -1'
    ran = subprocess.run(
        ["bash", "-c", pipe, sys.executable, PIPED, str(done)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0 and ran.stderr == "", "no BrokenPipe at exit either"
    assert ran.stdout.startswith("step 0/300") and done.read_text() == "finished"


def test_fault_21_stdout_closed_or_full() -> None:
    closed = io.StringIO()
    progress = Progress(10, stream=closed, every=0, clock=FakeClock())
    closed.close()
    progress.update(1, 0)
    assert progress.broken
    with open("/dev/full", "w") as full:
        progress = Progress(10, stream=full, every=0, clock=FakeClock())
        progress.update(1, 0)
        progress.close()
        assert progress.broken


def test_fault_22_rates_never_divide_by_zero() -> None:
    clock = FakeClock()
    rates = Rates(clock=clock)
    assert rates.steps == rates.updates == 0
    for step in range(3):
        rates.mark(step, step)
    assert rates.steps == 0, "three steps in no time"
    clock.now -= 50
    rates.mark(4, 4)
    assert rates.steps == 0, "a clock that runs backwards"
    assert "ETA ?" in Progress(10, stream=io.StringIO(), clock=clock).line()


def test_fault_22_a_very_long_step_shows_in_the_rate_and_then_fades() -> None:
    clock = FakeClock()
    rates = Rates(clock=clock)
    rates.mark(0, 0)
    clock.now += 3600
    rates.mark(1, 0)
    assert rates.steps == pytest.approx(1 / 3600)
    for step in range(2, 200):
        clock.now += 1
        rates.mark(step, 0)
    assert rates.steps == pytest.approx(1, rel=0.05)
    assert len(rates._marks) < 2 * WINDOW_S + 5


def test_fault_22_short_steps_do_not_fill_the_memory() -> None:
    clock = FakeClock()
    rates = Rates(clock=clock)
    for step in range(10_000):
        clock.now += 0.01
        rates.mark(step, 0)
    assert rates.steps == pytest.approx(100, rel=0.01)
    assert len(rates._marks) < 2 * WINDOW_S + 5


def test_fault_22_the_wall_clock_may_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    cadence, rates = Cadence(seconds=1000.0), Rates()
    rates.mark(0, 0)
    for jump in (1e9, -1e9):
        monkeypatch.setattr(time, "time", lambda jump=jump: jump)
        assert not cadence.due(1)
        rates.mark(1, 1)
        assert rates.steps >= 0


def test_fault_22_cadence_by_steps_and_by_time() -> None:
    clock = FakeClock()
    cadence = Cadence(steps=100, seconds=60, clock=clock)
    assert [step for step in range(1, 350, 7) if cadence.due(step)] == [106, 204, 302]
    clock.now += 61
    assert cadence.due(303), "a slow stretch is saved by time"
    assert not cadence.due(304)
    clock.now += 3600
    assert cadence.due(1000) and not cadence.due(1001), "one long step gives one save, not many"


def test_cadence_off() -> None:
    clock = FakeClock()
    cadence = Cadence(clock=clock)
    clock.now += 1e9
    assert not any(cadence.due(step) for step in range(1000))


@given(st.integers(1, 50), st.lists(st.integers(0, 30), min_size=1), st.integers(0, 40))
def test_cadence_by_steps_does_not_depend_on_where_a_run_was_resumed(
    every: int, gaps: list[int], cut: int
) -> None:
    steps = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    whole = Cadence(steps=every)
    due = [step for step in steps if whole.due(step)]
    cut = min(cut, len(steps) - 1)
    resumed = Cadence(steps=every, start=steps[cut])
    assert [step for step in steps[cut + 1 :] if resumed.due(step)] == [
        step for step in due if step > steps[cut]
    ]
