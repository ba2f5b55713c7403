"""Atari 100k from the command line to the recorded score: what is played, stored and counted."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from runs import Child, assert_same, final_state

from reverie.agents.registry import build_replay
from reverie.agents.resolve import load, resolve
from reverie.agents.runs.checkpoint import load_latest
from reverie.agents.runs.logger import read_jsonl
from reverie.agents.runs.rundir import read_status
from reverie.agents.trainer import build_env, train
from reverie.benchmarks import cli

pytestmark = pytest.mark.atari

SMALL = ["--train.log-every", "10", "--train.eval-episodes", "1", "--train.final-episodes", "2"]
NANO = ["--size", "nano", "--env.image-size", "16", "--train.batch-size", "4"]
NANO += ["--train.batch-length", "16", "--train.train-ratio", "2", "--mudreamer.behavior.horizon"]
NANO += ["4", *SMALL]
"""A world model that plays 2,000 steps in seconds; 30 updates in the 976 steps behind prefill."""


class Run(NamedTuple):
    """What a finished run says of itself."""

    path: Path
    status: dict[str, Any]
    rows: dict[str, Any]
    """Columns [T, ...] of the replay of its one slot."""
    games: list[dict[str, Any]]
    """Finished games of training."""
    metrics: list[dict[str, Any]]


def command(path: Path, *words: str) -> Run:
    """Train by the command line and read everything back."""
    assert cli.main(["train", *words, "--run", str(path)]) == 0
    cfg, found = load(path / "config.toml"), load_latest(path)
    assert found is not None
    env = build_env(cfg, "train", 1)
    replay = build_replay(env.spec, cfg, directory=path / "replay", device="cpu")
    env.close()
    assert replay.load_state_dict(found[1]["replay"]) == []
    rows = {key: column[:, 0] for key, column in replay.read(0, replay.time).items()}
    games = [e for e in read_jsonl(path / "episodes.jsonl") if e["purpose"] == "train"]
    return Run(path, read_status(path), rows, games, list(read_jsonl(path / "metrics.jsonl")))


def ends_of_games(run: Run) -> list[int]:
    """Rows that end the recorded games, found by counting their steps; scores are checked."""
    taken = np.cumsum(~run.rows["is_first"])
    ends, begin = [], 0
    for game in run.games:
        begin_step = taken[ends[-1]] if ends else 0
        end = int(np.searchsorted(taken, begin_step + game["length"]))
        score = float(run.rows["reward"][begin : end + 1].sum())
        assert score == game["score"] and not game["interrupted"]
        ends, begin = [*ends, end], end + 1
    return ends


def assert_counts(run: Run, *, steps: int, updates: int, prefill: int) -> None:
    status, rows = run.status, run.rows
    assert status["state"] == "done" and status["step"] == status["steps"] == steps
    assert status["updates"] == updates and status["nonfinite_updates"] == 0
    assert int((~rows["is_first"]).sum()) == steps, "rows of a reset are no steps"
    assert status["replay_rows"] == len(rows["is_first"])
    learned = [row for row in run.metrics if "count/frames" in row]
    assert [row["count/updates"] for row in learned] == list(range(10, updates + 1, 10))
    assert all(row["count/frames"] == 4 * row["step"] for row in learned)
    assert all(row["step"] > prefill and row["nonfinite"] == 0 for row in learned)
    assert status["evaluation"]["step"] == steps and status["evaluation"]["episodes"] == 2
    scores = [
        e["score"]
        for e in read_jsonl(run.path / "episodes.jsonl")
        if (e["purpose"], e["step"]) == ("eval", steps)
    ]
    assert len(scores) == 2 and status["evaluation"]["mean"] == np.mean(scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "game", "reward"), [("mudreamer", "pong", 1.0), ("dreamerv3", "ms_pacman", 10.0)]
)
def test_a_world_model_plays_two_thousand_real_steps(
    agent: str, game: str, reward: float, tmp_path: Path
) -> None:
    run = command(tmp_path, agent, "--task", f"atari/{game}", "--budget", "2k", *NANO)
    assert_counts(run, steps=2000, updates=976 * 2 // 64, prefill=1024)
    ends, rows = ends_of_games(run), run.rows
    assert len(ends) >= 2
    # whole games: an end per game, and no row for a lost life
    assert np.flatnonzero(rows["is_last"]).tolist() == ends
    assert np.flatnonzero(rows["is_terminal"]).tolist() == ends
    begins = [0, *(end + 1 for end in ends if end + 1 < len(rows["is_last"]))]
    assert np.flatnonzero(rows["is_first"]).tolist() == begins
    assert np.abs(rows["reward"]).max() >= reward, "rewards are neither clipped nor scaled"
    assert (rows["reward"] % reward == 0).all()
    assert rows["image"].shape[1:] == (16, 16, 3)
    protocol = "sticky=0,noops=0-29,actions=minimal,lives=unused,view=16x16 rgb"
    assert run.status["evaluation"]["protocol"] == protocol
    losses = next(row for row in run.metrics if "count/frames" in row)
    assert ("loss/decoder" in losses) == (agent == "dreamerv3")


@pytest.mark.slow
def test_spr_loses_lives_while_whole_games_are_scored(tmp_path: Path) -> None:
    flags = ["--budget", "600", "--train.prefill", "500", "--train.train-ratio", "16", *SMALL]
    flags += ["--spr.epsilon-eval", "0.3"]  # else an untrained agent never serves the ball
    run = command(tmp_path, "spr", "--task", "atari/breakout", "--size", "nano", *flags)
    assert_counts(run, steps=600, updates=100 * 16 // 32, prefill=500)
    ends, rows = ends_of_games(run), run.rows
    lasts = np.flatnonzero(rows["is_last"])
    assert len(ends) >= 2 and set(ends) <= set(lasts.tolist())
    lost = [t for t in lasts.tolist() if t not in ends]
    assert rows["is_terminal"][lasts].all(), "a lost life is a death to the learner"
    for begin, end in zip([-1, *ends], ends, strict=False):
        assert len([t for t in lost if begin < t < end]) == 4, "five lives"
    for t in lost:
        assert rows["is_first"][t + 1] and rows["reward"][t + 1] == 0
        assert np.array_equal(rows["image"][t], rows["image"][t + 1]), "nothing was emulated"
    assert max(game["score"] for game in run.games) > 1
    assert rows["image"].shape[1:] == (84, 84, 1)
    protocol = "sticky=0,noops=0-29,actions=minimal,lives=unused,view=84x84 gray"
    assert run.status["evaluation"]["protocol"] == protocol
    assert cli.main(["eval", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("evaluation-*.json")
    again = json.loads(path.read_text())["results"]["none"]
    for key in ("mean", "episodes", "protocol"):
        assert again[key] == run.status["evaluation"][key]


QUICK: dict[str, Any] = {
    "agent": "spr",
    "task": "atari/breakout",
    "env": {"num_envs": 1},
    "train": {"steps": 200, "prefill": 150, "train_ratio": 2, "checkpoint_every": 40}
    | {"eval_every": 0},
    "spr": {"epsilon_eval": 0.3},
}
"""25 updates of a tiny agent; random play loses the first lives in the prefill."""


def quick(path: Path, **changes: Any) -> dict[str, Any]:
    own = {key: dict(v) if isinstance(v, dict) else v for key, v in QUICK.items()}
    for key, value in changes.items():
        own[key] = {**own.get(key, {}), **value}
    return own | {"run": str(path)}


def test_stickiness_is_one_switch_and_part_of_the_score(tmp_path: Path) -> None:
    flags = ["--config", "debug", "--env.num-envs", "1", "--budget", "90", "--env.time-limit", "50"]
    flags += ["--train.eval-every", "0", *SMALL]
    seen = {}
    for sticky in ("0", "0.25"):
        path = tmp_path / sticky
        words = ["spr", "--task", "atari/breakout", *flags]
        if sticky != "0":
            words += ["--env.sticky", sticky]
        run = command(path, *words)
        assert f"sticky={sticky},noops" in run.status["evaluation"]["protocol"]
        seen[sticky] = run.rows
    random = [rows["action"][:64] for rows in seen.values()]
    assert np.array_equal(*random), "the same actions"
    first, second = (rows["image"][:64] for rows in seen.values())
    assert np.array_equal(first[0], second[0]) and not np.array_equal(first, second)


def test_eval_repeats_the_score_of_a_game(tmp_path: Path, capsys: Any) -> None:
    changes = {"train": {"final_episodes": 3}, "env": {"sticky": 0.25, "time_limit": 150}}
    assert train(resolve(quick(tmp_path, **changes), configs=["debug"])) == 0
    evaluation = read_status(tmp_path)["evaluation"]
    assert cli.main(["eval", str(tmp_path)]) == 0
    assert "sticky=0.25" in capsys.readouterr().out, "the table is labelled"
    (path,) = tmp_path.glob("evaluation-*.json")
    result = json.loads(path.read_text())["results"]["none"]
    for key in ("mean", "episodes", "protocol"):
        assert result[key] == evaluation[key], key
    assert result["episodes"] == 3 and len(set(result["lengths"] + result["returns"])) > 2


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(300)
def test_fault_01_sigkill_between_lives(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "train": {"steps": 420, "train_ratio": 4, "checkpoint_every": 20, "eval_every": 200},
        "env": {"sticky": 0.25, "time_limit": 300},
    }
    whole, parts = (quick(tmp_path / name, **changes) for name in ("whole", "parts"))
    assert train(resolve(whole, configs=["debug"])) == 0
    rng = np.random.default_rng(time.time_ns())
    for _ in range(5):
        child = Child(parts, agent="spr", configs=("debug",), UPDATE_SECONDS="0.005")
        if not child.reaches("ready"):  # a late kill may have left nothing to do
            assert child.finish() == 0, child.output
            break
        child.kill_after(float(rng.uniform(0.1, 1.5)), signal.SIGKILL)
        if child.finish() == 0:
            break
    child = Child(parts, agent="spr", configs=("debug",))
    assert child.finish() == 0, child.output
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    played = [list(read_jsonl(tmp_path / name / "episodes.jsonl")) for name in ("whole", "parts")]
    records = [[{**e, "time": 0} for e in run] for run in played]
    assert records[0] == records[1] and len(records[0]) > 2
