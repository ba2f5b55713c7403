"""`reverie bench verify`: which runs are fit, where they lie, and what scripts are told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from reverie.agents.configs import ConfigError
from reverie.agents.resolve import dump, resolve
from reverie.benchmarks import cli
from reverie.benchmarks.reference import games, spr_spread
from reverie.benchmarks.verify import (
    FREE,
    PROTOCOL,
    QUIET,
    USELESS,
    Run,
    collect,
    judge,
    main,
    verify,
)

Capture = pytest.CaptureFixture[str]


def make_run(
    folder: Path,
    score: float,
    *,
    task: str = "atari/alien",
    seed: int = 0,
    status: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """What a finished run leaves behind, as far as it is looked at."""
    folder.mkdir(parents=True)
    own = {"agent": "spr", "task": task, "seed": seed, "run": str(folder), **settings}
    (folder / "config.toml").write_text(dump(resolve(own)))
    final = {"step": 100_000, "count": 0, "mean": score, "episodes": 100, "protocol": PROTOCOL}
    record = {"state": "done", "step": 100_000, "evaluation": final | (evaluation or {})}
    (folder / "status.json").write_text(json.dumps(record | (status or {})))
    return folder


def problems(*runs: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        collect(runs)
    return caught.value.problems


# where scores lie: Alien 639.9 to 1222.6 for one run, 680.1 to 1101.4 for three, 710 to 1032.4


@pytest.mark.parametrize(
    ("scores", "text", "status"),
    [
        ([639.9], "inside the 90 % band", 0),
        ([1222.6], "inside the 90 % band", 0),
        ([639.8], "outside, below the 90 % band", 3),
        ([1222.7], "outside, above the 90 % band", 3),
        ([100.0, 900.0, 1100.0], "inside the 95 % band", 0),  # mean 700
        ([600.0, 700.0, 710.0], "outside, below the 95 % band", 3),  # mean 670
        ([700.0] * 5, "outside, below the 95 % band", 3),  # inside of the band of three
        ([1030.0] * 5, "inside the 95 % band", 0),
        ([1050.0] * 5, "outside, above the 95 % band", 3),
        ([841.9] * 2, "no band for 2 runs, use 1, 3 or 5", 4),
        ([841.9] * 6, "no band for 6 runs, use 1, 3 or 5", 4),
    ],
)
def test_one_game_and_its_exit_status(
    scores: list[float], text: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [make_run(Path(str(i)), score, seed=i) for i, score in enumerate(scores)]
    assert main([*map(str, runs), "--out", "deep/found.json"]) == status
    (found,) = json.loads(Path("deep/found.json").read_text())["games"]
    assert found["text"] == text
    assert found["mean"] == pytest.approx(sum(scores) / len(scores))
    assert found["place"] == (text.split(" ")[0] if status == 0 else found["place"])


def test_games_are_judged_one_by_one_and_any_outside_decides(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    pong = [make_run(tmp_path / f"p{i}", -5.0 + i, task="atari/pong", seed=i) for i in (2, 0, 1)]
    krull = make_run(tmp_path / "k", 9000.0, task="atari/krull", seed=7)
    two = [make_run(tmp_path / f"b{i}", 16.0, task="atari/breakout", seed=i) for i in range(2)]
    assert verify((*pong,)) == 0
    assert verify((*pong, *two)) == 4
    capsys.readouterr()
    out = tmp_path / "found.json"
    assert verify((*pong, krull, *two), out=out) == 3
    found = json.loads(out.read_text())
    assert PROTOCOL in found["protocol"] and "100,000 agent steps" in found["protocol"]
    first, second, third = found["games"]
    assert [one["task"] for one in (first, second, third)] == [
        "atari/breakout",
        "atari/krull",
        "atari/pong",
    ]
    assert (first["noise"], first["place"]) == ("useless alone", "undecided")
    assert first["low"] is first["high"] is first["level"] is None
    assert (second["noise"], second["place"], second["level"]) == ("low", "above", 0.9)
    assert second["runs"] == [{"path": str(krull), "seed": 7, "score": 9000.0}]
    assert (second["low"], second["high"], second["published"]) == (2920.4, 4399.4, 3681.6)
    assert (third["noise"], third["place"], third["level"]) == ("middling", "inside", 0.95)
    assert [run["seed"] for run in third["runs"]] == [0, 1, 2] and third["mean"] == -4.0
    shown = capsys.readouterr().out
    for text in (
        "0: -5.0",
        "2: -3.0",
        "-4.0",
        "Pong",
        "2920.4 to 4399.4",
        "no band for 2 runs",
        str(out),
    ):
        assert text in shown
    assert "sticky=0" in shown and "100 full games" in shown


def test_every_game_has_a_verdict_and_the_published_mean_is_inside() -> None:
    found = {
        one.task: [Run("x", seed, spr_spread(one.task).mean) for seed in range(5)]
        for one in games()
    }
    verdicts = judge(found)
    assert [one.task for one in verdicts] == list(found)
    assert {one.text for one in verdicts} == {"inside the 95 % band"}


# what is no fit run


def test_a_run_of_the_right_kind_may_differ_in_how_it_was_computed(tmp_path: Path) -> None:
    train = {"device": "cuda", "compile": "graph", "precision": "bf16", "threads": 4}
    assert {f"train.{name}" for name in train} == set(FREE)
    run = make_run(tmp_path / "a", 800.0, seed=5, train=train)
    assert collect([run]) == {"atari/alien": [Run(str(run), 5, 800.0)]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent": "rainbow"}, "expected agent spr, found rainbow"),
        ({"agent": "dreamerv3", "size": "M"}, "expected agent spr, found dreamerv3"),
        ({"size": "nano"}, "expected size S, found nano"),
        ({"task": "toy/catch"}, "one of Atari 100k's 26 games, found 'toy/catch'"),
        ({"task": "atari/venture"}, "one of Atari 100k's 26 games, found 'atari/venture'"),
        ({"train": {"steps": 50_000}}, "expected train.steps 100000, found 50000"),
        ({"train": {"final_episodes": 10}}, "expected train.final_episodes 100, found 10"),
        ({"env": {"sticky": 0.25}}, "expected env.sticky 0.0, found 0.25"),
        ({"spr": {"optim": {"lr": 2e-4}}}, "changed from the presets: spr.optim.lr = 0.0002"),
        ({"env": {"life_loss": False}}, "changed from the presets: env.life_loss = False"),
        ({"status": {"state": "preempted"}}, "finished run, found it preempted; its command"),
        ({"status": {"state": "running"}}, "finished run, found it running"),
        ({"status": {"evaluation": None}}, "100 episodes at step 100000, found None at step None"),
        ({"evaluation": {"step": 90_000}}, "100 episodes at step 100000, found 100 at step 90000"),
        ({"evaluation": {"episodes": 10}}, "100 episodes at step 100000, found 10 at step"),
        ({"evaluation": {"mean": None}}, "expected a finite score, found None"),
        ({"evaluation": {"mean": float("nan")}}, "expected a finite score, found nan"),
        ({"evaluation": {"protocol": "sticky=0.25"}}, "noops=0-29.*, found sticky=0.25"),
    ],
)
def test_an_unfit_run_is_refused_with_the_reason(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "a", 800.0, **settings)
    (problem,) = problems(run)
    assert problem.startswith(f"{run}: ") and re.search(message, problem), problem


def test_without_readable_files_the_reason_is_said(tmp_path: Path) -> None:
    assert "expected a run directory with config.toml" in problems(tmp_path / "none")[0]
    a, b = make_run(tmp_path / "a", 1.0), make_run(tmp_path / "b", 1.0)
    (a / "status.json").write_text("{")
    (b / "config.toml").write_text("from = 'another version'")
    first, second = problems(a, b)
    assert "no readable status.json" in first
    assert "from: unknown setting" in second
    assert problems() == ["expected at least one RUN"]


def test_all_unfit_runs_are_listed_at_once_with_all_reasons(
    tmp_path: Path, capsys: Capture
) -> None:
    fit = make_run(tmp_path / "fit", 800.0)
    two = make_run(
        tmp_path / "two", 800.0, agent="rainbow", seed=1, status={"state": "failed"}, size="nano"
    )
    gone = tmp_path / "gone"
    found = problems(fit, two, gone)
    assert len(found) == 2 and str(fit) not in " ".join(found)
    for text in ("agent spr, found rainbow", "size S, found nano", "found it failed"):
        assert text in found[0]
    assert cli.main(["bench", "verify", str(fit), str(two), str(gone)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "2 problems" in shown.err and "Traceback" not in shown.err


def test_a_seed_counts_once_in_a_game(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", 800.0, seed=3), make_run(tmp_path / "b", 900.0, seed=3)
    other = make_run(tmp_path / "c", 3600.0, seed=3, task="atari/krull")
    (problem,) = problems(a, other, b)
    assert problem == f"{b}: seed 3 of atari/alien is that of {a} already"
    assert "seed 3" in problems(a, a)[0]
    assert list(collect([a, other])) == ["atari/alien", "atari/krull"]


# what it says of itself


def test_help_is_the_manual(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "verify", "--help"])
    assert caught.value.code == 0
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    quiet, _, rest = shown.partition("Useless alone")
    for one in games():
        spread = spr_spread(one.name)
        assert (one.name in quiet) == (spread.sd < QUIET * abs(spread.mean)), one.name
        assert (re.search(rf"\b{one.name}\b", rest) is not None) == (one.name in USELESS)
    for text in ("90 % band", "95 % of all cases", "3 any game outside", "4 none outside"):
        assert text in shown


@pytest.mark.atari
def test_the_protocol_is_what_a_final_evaluation_says() -> None:
    from reverie.agents.trainer import build_env

    env = build_env(resolve({"agent": "spr", "task": "atari/pong"}), "eval", 1)
    try:
        assert env.spec.protocol == PROTOCOL
    finally:
        env.close()


# grids


def make_grid(path: Path, cells: list[tuple[str, int]]) -> Path:
    """A grid of Alien; the cells of spr are finished."""
    tree = []
    for agent, seed in cells:
        run = f"runs/atari/alien/{agent}/{seed}"
        make_run(path / run, 800.0 + seed, seed=seed, agent=agent)
        cell = {"id": f"{agent}--atari-alien--{seed}", "arm": agent, "task": "atari/alien"}
        words = [agent, "--task", "atari/alien", "--seed", str(seed)]
        tree.append({**cell, "seed": seed, "words": words, "run": run, "prepare": []})
    grid = {"schema": 1, "suite": "atari100k", "cells": tree}
    (path / "grid.json").write_text(json.dumps(grid))
    return path


def test_a_grid_stands_for_its_runs_of_spr(tmp_path: Path) -> None:
    cells = [("spr", 0), ("rainbow", 0), ("spr", 1), ("spr", 2)]
    grid = make_grid(tmp_path / "grid", cells)
    found = collect([grid])["atari/alien"]
    assert [(run.seed, run.score) for run in found] == [(0, 800.0), (1, 801.0), (2, 802.0)]
    assert verify((grid,)) == 0
    (grid / "runs/atari/alien/spr/1/status.json").unlink()
    assert "runs/atari/alien/spr/1: expected a finished run" in problems(grid)[0]
    other = make_grid(tmp_path / "other", [("rainbow", 0)])
    assert problems(other) == [f"{other}: expected a grid with runs of spr, found one of rainbow"]
