"""`reverie distractors cost`: its pairs of steps and its table."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, cast

import numpy as np
import pytest

from reverie.benchmarks import cli, distractor_cost
from reverie.envs.dot import dot_spec
from reverie.envs.single import Env

Capture = pytest.CaptureFixture[str]


class Clock:
    """CPU time that only steps use up."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass
class Step:
    is_last: bool


class Slow:
    """Takes `seconds` per step, and ever more; an episode is three steps."""

    spec = dot_spec(16)

    def __init__(self, clock: Clock, seconds: float, log: list[Any]) -> None:
        self.clock, self.seconds, self.log, self.time, self.total = clock, seconds, log, 0, 0

    def reset(self, seed: int) -> None:
        self.clock.now += 100.0  # which no row may show
        self.time = 0
        self.log.append((self.seconds, "reset", seed))

    def step(self, action: Any) -> Step:
        assert self.time < 3, "the episode is over"
        self.time += 1
        self.total += 1
        self.clock.now += self.seconds + 0.001 * self.total
        self.log.append((self.seconds, "step", tuple(np.round(action, 6))))
        return Step(self.time == 3)


def test_steps_are_compared_within_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), []
    monkeypatch.setattr(time, "process_time", clock)
    pair = [cast(Env, Slow(clock, seconds, log)) for seconds in (0.010, 0.012)]
    cost = distractor_cost.measure(pair[0], pair[1], 11)
    assert (cost.added, cost.low, cost.high) == pytest.approx((2.0, 2.0, 2.0))
    # of pairs 6 to 16 after the warm-up, the median is the eleventh
    assert cost.plain == pytest.approx(10.0 + 11)
    plain, distracted = ([(kind, what) for s, kind, what in log if s == x] for x in (0.010, 0.012))
    assert plain == distracted, "the same starts and actions"
    order = [seconds for seconds, kind, _ in log if kind == "step"]
    assert order[:4] == [0.012, 0.010, 0.010, 0.012], "which is first alternates"


def test_the_table_has_a_row_for_each_preset_and_profile(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = ["distractors", "cost", "dreamerpro", "dbc", "--tasks", "toy/home", "--pairs", "4"]
    assert cli.main([*words, "--image-size", "16"]) == 0
    said = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in said.splitlines() if "toy/home" in line]
    named = [[cell.strip() for cell in row[1:3]] for row in rows]
    assert named == [[r, p] for r in ("quick", "reference") for p in ("dreamerpro", "dbc")]
    for row in rows:
        assert float(row[3]) > 0
        low, added, high = map(float, (row[5].split(",")[0], row[4], row[5].split(",")[1]))
        assert low <= added <= high
        assert all(np.isfinite([low, high, float(row[6])]))


def test_what_cannot_be_timed_is_one_error(capsys: Capture) -> None:
    assert cli.main(["distractors", "cost", "tcp", "--pairs", "0"]) == 2
    said = capsys.readouterr().err
    assert "found ['tcp']" in said and "--pairs: expected 1 or more" in said
