"""`reverie bench imitation`: which runs it plans, and what it says about finished ones."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from grid_doubles import COMMAND

from reverie.agents.configs import ConfigError
from reverie.agents.demos.demonstrations import make_command
from reverie.agents.resolve import run_directory
from reverie.benchmarks import imitation
from reverie.benchmarks.imitation import Cell, plan, summary


def test_every_arm_is_trained_with_every_seed_and_the_control_without_a_guard() -> None:
    cells = plan("six", ("act-jepa", "act", "no-stop-gradient"), (0, 1), ("train.steps=300",))
    assert [(cell.arm, cell.cfg.seed) for cell in cells] == [
        (arm, seed) for arm in ("act-jepa", "act", "no-stop-gradient") for seed in (0, 1)
    ]
    assert all(cell.cfg.train.steps == 300 for cell in cells)
    assert [cell.cfg.act_jepa.model.w_jepa for cell in cells[::2]] == [1.0, 0.0, 1.0]
    assert [cell.cfg.act_jepa.model.guard for cell in cells[::2]] == ["ema", "ema", "none"]
    assert len({cell.run for cell in cells}) == 6


def test_wrong_arms_and_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="found 'gail'"):
        plan("six", ("gail",), (0,))
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        plan("six", ("act",), (0,), ("train.steps",))


def test_demonstrations_are_recorded_under_the_time_limit_of_the_runs() -> None:
    command = make_command(plan("three", ("act",), (0,))[0].cfg)
    assert "--time-limit 200" in command and "--observe both" in command


def test_runs_lie_where_training_has_them_and_are_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = functools.partial(imitation.LocalExecutor, command=COMMAND)
    monkeypatch.setattr(imitation, "LocalExecutor", local)
    cells = plan("six", ("act", "bc"), (0,))
    assert imitation.train(cells, jobs=2) == 0
    assert all(cell.done and cell.run == run_directory(cell.cfg) for cell in cells)
    # other settings are other runs of the same grid
    more = [*cells, *plan("six", ("act",), (0,), ("train.steps=300",))]
    assert imitation.train(more, jobs=1) == 0
    assert [len((cell.run / "finishes").read_text().splitlines()) for cell in more] == [1, 1, 1]


def finish(cell: Cell, folder: Path, *, success: float, rmse: float, failed: list[str]) -> Cell:
    """The cell with a run that ended so."""
    run = folder / cell.arm / str(cell.seed)
    run.mkdir(parents=True)
    status = {"evaluation": {"success": success, "episodes": 50}, "health": {"alarms": failed}}
    (run / "status.json").write_text(json.dumps({"state": "done", **status}))
    rows: list[dict[str, Any]] = [{"step": 1, "probe/rmse_10": 9.0}, {"step": 2}]
    rows[1]["probe/rmse_10"] = rmse
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Cell(cell.arm, cell.seed, cell.words, cell.cfg, run)


def test_the_summary_pools_successes_and_compares_last_probes(tmp_path: Path) -> None:
    ends = {
        "act-jepa": (0.6, 0.8, []),
        "act": (0.5, 1.0, []),
        "no-stop-gradient": (0.5, 1.0, ["x"]),
    }
    cells = [
        finish(cell, tmp_path, success=end[0] + 0.1 * cell.seed, rmse=end[1], failed=end[2])
        for cell in plan("six", tuple(ends), (0, 1))
        for end in (ends[cell.arm],)
    ]
    record = summary(cells)
    own = record["arms"]["act-jepa"]
    assert own["success"] == pytest.approx(0.65) and own["episodes"] == 100
    assert own["interval"][0] < 0.65 < own["interval"][1]
    told = "; ".join(record["verdicts"])
    assert "act-jepa against act: probe/rmse_10 -20% (no overlap of seeds)" in told
    assert "no-stop-gradient: collapse gates fail in 2 of 2 runs" in told
