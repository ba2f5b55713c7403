"""`reverie bench compare`: pairs by task and seed, regressions, and what scripts are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import edit, make_grid

from reverie.agents.configs import ConfigError
from reverie.benchmarks import cli
from reverie.benchmarks.report.compare import main

Capture = pytest.CaptureFixture[str]
DMC = ("dmc/walker_walk", "dmc/cheetah_run")


def grids(
    path: Path, a: list[float], b: list[float], *, tasks: tuple[str, ...] = DMC, **settings: Any
) -> list[str]:
    sides = {"a": a, "b": b}
    return [
        str(make_grid(path / name, {("mudreamer", task): scores for task in tasks}, **settings))
        for name, scores in sides.items()
    ]


def found(words: list[str], path: Path) -> tuple[int, dict[str, Any], list[str]]:
    out = path / "deep" / "found.json"
    status = main([*words, "--out", str(out)])
    tree = json.loads(out.read_text())
    return status, {one["task"]: one for one in tree["differences"]}, tree["notes"]


def test_differences_are_of_pairs_and_not_of_means(tmp_path: Path) -> None:
    # seeds spread by hundreds, pairs differ by ten to thirty
    words = grids(tmp_path, [100.0, 500.0, 900.0], [110.0, 520.0, 930.0])
    status, rows, notes = found(words, tmp_path)
    assert status == 0 and notes == []
    one = rows["dmc/walker_walk"]
    assert (one["a"], one["b"]) == (500.0, 520.0)
    assert one["difference"]["value"] == pytest.approx(20.0)
    assert one["difference"]["low"] == pytest.approx(10.0), "three pairs: their range"
    assert one["difference"]["high"] == pytest.approx(30.0)
    assert one["verdict"] == "better" and not one["regression"]
    whole = rows[""]
    assert whole["difference"]["value"] == pytest.approx(0.02) and whole["group"] == "dmc"
    assert 0.01 <= whole["difference"]["low"] < 0.02 < whole["difference"]["high"] <= 0.03


@pytest.mark.parametrize(
    ("b", "status", "verdict"),
    [
        ([90.0, 480.0, 870.0], 3, "REGRESSION"),
        ([90.0, 480.0, 910.0], 0, "interval contains 0"),
        ([100.0, 500.0, 900.0], 0, "interval contains 0"),
        ([101.0, 500.5, 903.0], 0, "better"),
    ],
)
def test_a_regression_is_a_difference_whose_interval_lies_below_zero(
    b: list[float], status: int, verdict: str, tmp_path: Path, capsys: Capture
) -> None:
    words = grids(tmp_path, [100.0, 500.0, 900.0], b)
    got, rows, _ = found(words, tmp_path)
    assert got == status and rows["dmc/cheetah_run"]["verdict"] == verdict
    shown = capsys.readouterr().out
    assert ("3 regressions shown" if status else "No regression shown") in shown


def test_one_regression_among_tasks_decides(tmp_path: Path) -> None:
    a, b = grids(tmp_path, [100.0, 500.0], [200.0, 700.0])
    low = Path(b) / "runs/dmc/cheetah_run/mudreamer"
    for seed, score in ((0, 90.0), (1, 450.0)):
        record = json.loads((low / str(seed) / "status.json").read_text())
        record["evaluation"]["mean"] = score
        (low / str(seed) / "status.json").write_text(json.dumps(record))
        rows = (low / str(seed) / "metrics.jsonl").read_text().splitlines()
        last = json.loads(rows[-1]) | {"eval/mean": score}
        (low / str(seed) / "metrics.jsonl").write_text(f"{rows[0]}\n{json.dumps(last)}\n")
    status, found_rows, _ = found([a, b], tmp_path)
    assert status == 3 and found_rows["dmc/cheetah_run"]["regression"]
    assert found_rows["dmc/walker_walk"]["verdict"] == "better"


def test_one_pair_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    status, rows, _ = found(grids(tmp_path, [100.0], [50.0]), tmp_path)
    assert status == 0 and rows["dmc/walker_walk"]["verdict"] == "no interval: only one pair"
    assert rows[""]["difference"]["low"] is None
    assert rows[""]["difference"]["value"] == pytest.approx(-0.05)


def test_runs_without_a_partner_are_listed_and_left_out(tmp_path: Path) -> None:
    a, b = grids(tmp_path, [100.0, 200.0, 300.0], [110.0, 210.0])
    edit(Path(b) / "runs/dmc/walker_walk/mudreamer/1/status.json", state="preempted")
    status, rows, notes = found([a, b], tmp_path)
    assert status == 0 and rows["dmc/walker_walk"]["seeds"] == [0]
    assert rows["dmc/cheetah_run"]["seeds"] == [0, 1]
    assert "only in A: mudreamer on dmc/walker_walk, seed 1" in notes
    assert "only in A: mudreamer on dmc/cheetah_run, seed 2" in notes
    assert "B: runs/dmc/walker_walk/mudreamer/1 is done, left out" not in notes
    assert any(note.startswith("B: runs/dmc/walker_walk/mudreamer/1 is ") for note in notes)
    assert rows[""]["difference"]["low"] is None, "one task has a single pair"


def test_labels_of_one_grid_are_compared_by_name(tmp_path: Path) -> None:
    scores = {("ours", "toy/catch"): [1.0, 2.0], ("rainbow", "toy/catch"): [3.0, 5.0]}
    grid = make_grid(tmp_path / "grid", scores)
    status, rows, _ = found([f"rainbow={grid}", f"ours={grid}"], tmp_path)
    assert status == 3 and rows["toy/catch"]["difference"]["value"] == -2.5
    assert "" not in rows, "toy scores have no common scale"
    status, rows, _ = found([str(grid), str(grid)], tmp_path)
    assert status == 0 and rows["toy/catch"]["difference"]["value"] == 0.0
    with pytest.raises(ConfigError, match="one of ours, rainbow, found 'spr'"):
        main([f"spr={grid}", str(grid)])


def test_what_cannot_be_compared_is_one_error(tmp_path: Path, capsys: Capture) -> None:
    a = make_grid(tmp_path / "a", {("ours", "toy/catch"): [1.0]})
    b = make_grid(tmp_path / "b", {("ours", "toy/dot"): [1.0]})
    c = make_grid(tmp_path / "c", {("ours", "toy/catch"): [1.0]}, train={"steps": 30_000})
    for words, said in (
        ((a, b), "ours on toy/catch in A and"),
        ((a, c), "toy/catch: mixed budget"),
        ((a, tmp_path / "gone"), "expected a directory, found nothing"),
    ):
        assert cli.main(["bench", "compare", *map(str, words)]) == 2
        shown = capsys.readouterr()
        assert said in shown.err and "Traceback" not in shown.err, shown.err
