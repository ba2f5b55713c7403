"""The card of a run: a head that hubs can read, and how to do the run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import edit, make_run

from reverie.agents.configs import ConfigError
from reverie.agents.flags import config_from_args
from reverie.agents.resolve import load
from reverie.benchmarks.report.card import write_card


def parts(path: Path) -> tuple[dict[str, Any], str]:
    start, head, body = path.read_text().split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head), body


def test_the_head_says_task_metric_value_and_seed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 812.5, task="dmc/walker_walk", agent="mudreamer", seed=4)
    path = write_card(run)
    assert path == run / "card.md"
    head, body = parts(path)
    assert head["library_name"] == "reverie" and head["license"] == "mit"
    assert head["tags"] == ["reinforcement-learning", "robotics", "dmc", "mudreamer"]
    (index,) = head["model-index"]
    (result,) = index["results"]
    assert index["name"] == "mudreamer-S-dmc-walker_walk-seed4"
    assert result["task"]["type"] == "reinforcement-learning"
    assert result["dataset"] == {"type": "dmc/walker_walk", "name": "dmc/walker_walk"}
    assert result["metrics"] == [
        {
            "type": "mean_reward",
            "value": "812.50 +/- 0.50",
            "name": "mean return",
            "args": {"seed": 4, "episodes": 10},
            "verified": False,
        }
    ]
    for said in ("812.50 +/- 0.50", "seed 4", "MIT", "Some CPU, 2 cores", "commit 0123456789"):
        assert said in body
    assert "None." in body, "no setting was changed"


def test_success_and_further_evaluations_are_metrics(tmp_path: Path) -> None:
    evaluation = {"mean": 90.0, "others": {"clean": {"mean": 7.0, "std": 1.0}}}
    run = make_run(
        tmp_path / "a", 0.8, task="metaworld/reach-v3", agent="act", evaluation=evaluation
    )
    head, body = parts(write_card(run))
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert [(m["type"], m["name"], m["value"]) for m in metrics] == [
        ("mean_reward", "mean return", "90.00 +/- 0.50"),
        ("success_rate", "success", 0.8),
        ("mean_reward", "mean return (clean)", "7.00 +/- 1.00"),
    ]
    assert "| clean | 7.00 +/- 1.00 | not defined |" in body and "robotics" in head["tags"]


def test_the_run_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "a", 1.0, spr={"optim": {"lr": 2e-4}}, seed=3)
    _, body = parts(write_card(run))
    assert "- `spr.optim.lr` = `0.0002`" in body
    typed, exact = (line for line in body.splitlines() if line.startswith("reverie train"))
    assert typed == "reverie train spr --task x"
    monkeypatch.chdir(run)
    words = exact.partition("#")[0].split()[2:]
    again, before = config_from_args(words), load(run / "config.toml")
    assert again.run == "again" and again.seed == 3
    assert again.spr == before.spr and again.train == before.train and again.env == before.env


def test_a_run_that_no_command_started_says_how_all_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 1.0)
    edit(run / "fingerprint.json", argv=["/bin/pytest", "-q"], git=None, versions=None)
    (run / "metrics.jsonl").unlink()
    _, body = parts(write_card(run))
    (only,) = (line for line in body.splitlines() if line.startswith("reverie train"))
    assert "--config config.toml" in only and "versions: not recorded" in body
    assert "| final | 1.00 | not defined |" in body


def test_only_a_finished_run_has_a_card(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 1.0, status={"state": "running"})
    with pytest.raises(ConfigError, match="expected a finished run, found it running"):
        write_card(run)
    with pytest.raises(ConfigError, match="found it unknown"):
        write_card(tmp_path / "gone")
    assert not (run / "card.md").exists()
    (run / "card.md").mkdir()
    edit(run / "status.json", state="done")
    with pytest.raises(ConfigError, match="cannot write"):
        write_card(run)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
