"""`reverie bench report`: its files, what it says, and that equal runs give equal tables."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_runs import edit, make_grid, make_run, set_state

from reverie.agents.resolve import resolve
from reverie.agents.trainer import train
from reverie.benchmarks import cli
from reverie.benchmarks.reference import games, method_scores
from reverie.benchmarks.report.command import COLUMNS, report

Capture = pytest.CaptureFixture[str]
TOY = {
    (label, task): [level, level + 1.0]
    for level, label in ((1.0, "ours"), (3.0, "rainbow"))
    for task in ("toy/catch", "toy/dot")
}


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_written_and_says_the_same(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    grid = make_grid(tmp_path / "grid", TOY)
    for label in ("ours", "rainbow"):
        edit(grid / f"runs/toy/dot/{label}/1/status.json", state="running")
        set_state(grid, f"{label}--toy-dot--1", state="running")
    page = tmp_path / "deep" / "page.html"
    words = ["bench", "report", str(grid), "--html", str(page), "--common-seeds"]
    assert cli.main(words) == 0
    folder = grid / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        "curves-toy.png",
        "improvement-toy.png",
        "report.html",
        "report.json",
        "report.md",
        "scores-toy.png",
        "scores.csv",
    ]
    assert page.read_bytes() == (folder / "report.html").read_bytes()
    rows = lines(folder / "scores.csv")
    assert tuple(rows[0]) == COLUMNS and len(rows) == 4
    assert (rows[0]["label"], rows[0]["seed"], rows[0]["score"]) == ("ours", "0", "1.0")
    assert rows[0]["run"] == "runs/toy/catch/ours/0" and rows[0]["normalised"] == ""
    found = json.loads((folder / "report.json").read_text())
    assert [run["score"] for run in found["runs"]] == [1.0, 1.0, 3.0, 3.0]
    assert found["groups"]["toy"]["pairs"][0]["probability"]["value"] == 0.0
    assert [one["state"] for one in found["unfinished"]] == ["running", "running"]
    text = (folder / "report.md").read_text()
    for words_said in (
        "toy: cut to common seeds, 2 finished runs left out",
        "Not finished, and counted nowhere.",
        "One seed says nothing about others: no intervals for ours, rainbow.",
        "nothing is averaged over tasks",
        "reverie train spr --task x",
        "Some CPU, 2 cores",
        "commit 0123456789",
        "| 1:01 |",
    ):
        assert words_said in text, words_said
    assert "/secret/place" not in text
    told = capsys.readouterr().out
    assert str(folder / "report.md") in told and "toy/catch" in told and "card.md into 4" in told
    assert (grid / "runs/toy/dot/ours/0/card.md").is_file()
    assert not (grid / "runs/toy/dot/ours/1/card.md").exists()


@pytest.mark.slow
def test_tables_do_not_depend_on_the_machine_the_time_or_the_place(tmp_path: Path) -> None:
    a, b = (make_grid(tmp_path / name, TOY) for name in ("a", "b"))
    for run in b.glob("runs/*/*/*/*"):
        edit(run / "status.json", time=99_999.0)
        edit(run / "fingerprint.json", cpu="Another CPU", host="elsewhere")
        edit(run / "fingerprint.json", time=1.0)
    for cell in b.glob("cells/*"):
        edit(cell / "state.json", seconds=7.0, attempts=3)
    for grid in (a, b):
        assert report((grid,), out=tmp_path / f"out-{grid.name}") == 0
    tables = [(tmp_path / f"out-{name}" / "scores.csv").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    pictures = [sorted((tmp_path / f"out-{name}").glob("*.png")) for name in "ab"]
    for left, right in zip(*pictures, strict=True):
        assert left.read_bytes() == right.read_bytes(), left.name


@pytest.mark.slow
def test_a_report_of_atari_100k_stands_beside_published_scores(tmp_path: Path) -> None:
    known = method_scores("SPR (rliable 100 runs)")
    scores = {("ours", one.task): [known[one.task]] * 2 for one in games()}
    grid = make_grid(tmp_path / "grid", scores)
    assert report((grid,)) == 0
    text = (grid / "report" / "report.md").read_text()
    main, *apart = text.split("not to be compared with the others")
    own = next(line for line in main.splitlines() if line.startswith("| ours (here)"))
    assert "0.407" in own and "0.396" in own and "0.616" in own
    assert "| SPR (rliable 100 runs) | 100 | 0.337 | 0.396 | 0.616 | 0.577 |" in main
    assert all("ours (here)" not in part.partition("Raw scores")[0] for part in apart[:-1])
    assert "| DreamerV3 v1 (arXiv 2023) | mean | 1.130 | 1.12 |" in text
    assert "| DreamerV3 v1 (arXiv 2023) | median | 0.560 | 0.49 |" in text
    assert "| SPR (paper) | mean | 0.703 | 0.704 |" in text
    assert "46 printed aggregates of 21 methods" in text and "44 agree" in text
    table = [line for line in text.splitlines() if line.startswith("| atari/pong | -5.4 | -20.7")]
    assert len(table) == 1 and "| 14.6 |" in table[0]
    rows = lines(grid / "report" / "scores.csv")
    pong = next(row for row in rows if row["task"] == "atari/pong")
    assert float(pong["normalised"]) == pytest.approx((-5.4 + 20.7) / 35.3)


def test_further_evaluations_are_all_shown(tmp_path: Path) -> None:
    own: dict[str, Any] = {"others": {"clean": {"mean": 8.0}, "train": {"mean": 6.0}}}
    grid = make_grid(tmp_path / "grid", {("ours", "toy/dot"): [1.0, 2.0]}, evaluation=own)
    assert report((grid,)) == 0
    text = (grid / "report" / "report.md").read_text()
    assert "| toy/dot (clean) | ours | 8 [8, 8] |" in text and "toy/dot (train)" in text
    views = [row["view"] for row in lines(grid / "report" / "scores.csv")]
    assert views == ["", "clean", "train"] * 2


# bad input is one clear error


@pytest.mark.parametrize(
    "kind", ["nothing", "unknown", "ragged", "mixed", "game", "corrupt", "out"]
)
def test_bad_input_is_one_error_without_a_traceback(
    kind: str, tmp_path: Path, capsys: Capture
) -> None:
    grid = make_grid(tmp_path / "grid", TOY)
    words = [str(grid)]
    if kind == "nothing":
        words = [str(tmp_path / "gone")]
    elif kind == "unknown":
        (grid / "runs/toy/dot/ours/1/config.toml").write_text("agnet = 'spr'\n")
    elif kind == "ragged":
        shutil.rmtree(grid / "runs/toy/dot/ours/1")
    elif kind == "mixed":
        make_run(tmp_path / "b", 1.0, seed=5, train={"steps": 30_000})
        words.append(str(tmp_path / "b"))
    elif kind == "game":
        words = [str(make_run(tmp_path / "b", 1.0, task="atari/venture"))]
    elif kind == "corrupt":
        (grid / "runs/toy/dot/ours/1/metrics.jsonl").write_text("{\n")
    else:
        (grid / "report").write_text("a file")
    assert cli.main(["bench", "report", *words]) == 2
    shown = capsys.readouterr().err
    said = {
        "nothing": "expected a directory, found nothing",
        "unknown": "agnet: unknown setting; did you mean agent?",
        "ragged": "ragged seeds",
        "mixed": "mixed budget",
        "game": "one of Atari 100k's 26 games, found 'atari/venture'",
        "corrupt": "metrics.jsonl is corrupt",
        "out": "choose another --out",
    }[kind]
    assert said in shown and "1 problem in" in shown and "Traceback" not in shown, shown


# what training really leaves behind


@pytest.mark.slow
def test_real_runs_are_read(tmp_path: Path) -> None:
    for agent in ("rainbow", "mudreamer"):
        run = tmp_path / "runs" / agent
        own = {"agent": agent, "task": "toy/catch", "run": str(run)}
        assert train(resolve(own, configs=["debug"])) == 0
    assert report((tmp_path / "runs",)) == 0
    found = json.loads((tmp_path / "runs" / "report" / "report.json").read_text())
    assert {run["terms"]["budget"] for run in found["runs"]} == {"192 agent steps"}
    for run in found["runs"]:
        assert run["curve"]["step"] == [96, 192] and run["curve"]["value"][-1] == run["score"]
        assert run["made"]["versions"]["torch"] and run["seconds"] > 0
        assert (tmp_path / "runs" / run["name"] / "card.md").is_file()
