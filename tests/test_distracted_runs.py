"""Runs of distracted tasks: their settings, their place, three scores, the clips they record."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import Child, assert_same, final_state

from reverie.agents.clips_record import CLIPS
from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.flags import config_from_args
from reverie.agents.resolve import dump, load, resolve, run_directory, with_overrides
from reverie.agents.runs.jsonl import read_jsonl
from reverie.agents.runs.rundir import RunDirError, read_status
from reverie.agents.trainer import build_env, other_views, train
from reverie.benchmarks import cli
from reverie.benchmarks.report.places import Place
from reverie.benchmarks.report.runs import Result, read


def tree(run: Path, **env: Any) -> dict[str, Any]:
    own = {"distractor": "dreamerpro", **env}
    return {"agent": "mudreamer", "task": "toy/dot", "run": str(run), "env": own}


def config(run: Path, **env: Any) -> RunConfig:
    return resolve(tree(run, **env), configs=["debug"])


def clips(folder: Path, *, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for clip in range(2):
            place = folder / split / f"clip{clip}"
            place.mkdir(parents=True, exist_ok=True)
            for frame in range(3):
                picture = rng.integers(0, 256, (24, 24, 3), np.uint8)
                Image.fromarray(picture).save(place / f"{frame}.png")
    return folder


def test_the_flag_is_a_setting_and_a_part_of_the_task() -> None:
    words = ["mudreamer", "--task", "dmc/walker_run"]
    cfg = config_from_args([*words, "--distractor", "tpc"])
    assert cfg.env.distractor == "tpc"
    assert run_directory(cfg) == Path("runs/dmc/walker_run+tpc/mudreamer-S/0")
    assert run_directory(config_from_args(words)) == Path("runs/dmc/walker_run/mudreamer-S/0")
    noise = config_from_args([*words, "--distractor", "tpc", "--env.distractor-source", "noise"])
    assert run_directory(noise).parent.name.startswith("mudreamer-S-")
    with pytest.raises(ConfigError, match=r"--distractor: is --env\.distractor under"):
        config_from_args([*words, "--distractor", "tpc", "--env.distractor", "dbc"])
    with pytest.raises(ConfigError, match=r"distractor: expected a value, found none"):
        config_from_args([*words, "--distractor"])


@pytest.mark.parametrize(
    ("task", "name"),
    [("dmc/walker_run", "dreamerpr"), ("dmc/quadruped_run", "dcs-easy"), ("atari/pong", "tpc")],
)
def test_what_cannot_distract_is_refused_with_the_settings(task: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"env\.distractor: .*"):
        resolve({"task": task, "env": {"distractor": name}})


def test_an_alias_is_the_same_run_under_one_name(tmp_path: Path) -> None:
    words = ["mudreamer", "--task", "dmc/walker_run", "--distractor"]
    alias, own = (config_from_args([*words, name]) for name in ("natural", "dreamerpro"))
    assert alias == own and alias.env.distractor == "dreamerpro"
    assert run_directory(alias) == Path("runs/dmc/walker_run+dreamerpro/mudreamer-S/0")
    changed = with_overrides(alias, {"env": {"distractor": "natural"}})
    assert changed.env.distractor == "dreamerpro"
    file = tmp_path / "config.toml"
    file.write_text(dump(own).replace('"dreamerpro"', '"natural"'))
    assert "natural" in file.read_text() and load(file) == own


def test_a_run_that_began_under_an_alias_is_read_and_continued(tmp_path: Path) -> None:
    assert train(config(tmp_path, distractor="natural")) == 0
    file = tmp_path / "config.toml"
    text = file.read_text()
    assert "dreamerpro" in text and "natural" not in text
    file.write_text(text.replace('"dreamerpro"', '"natural"'))
    assert train(config(tmp_path)) == 0
    assert cli.main(["eval", str(tmp_path), "--episodes", "1"]) == 0
    result, faults = read(Place(tmp_path, tmp_path.name))
    assert isinstance(result, Result) and not faults
    assert (result.task, result.group) == ("toy/dot+dreamerpro", "toy+dreamerpro")
    with pytest.raises(RunDirError, match=r"env\.distractor: the run has 'dreamerpro', asked"):
        train(config(tmp_path, distractor="tpc"))


@pytest.mark.parametrize(
    ("agent", "env", "message"),
    [
        ("act-jepa", {"distractor": "tpc"}, "act-jepa learns from demonstrations, .*leave it out"),
        ("act", {"distractor": "tpc"}, "act learns from demonstrations"),
        ("bc", {"distractor": "natural"}, "bc learns from demonstrations"),
        ("mudreamer", {"distractor_source": "noise"}, "'noise', but nothing distracts: name a"),
        ("mudreamer", {"distractor_mask": "exact"}, "'exact', but nothing distracts: name a"),
        ("spr", {"distractor": "dcs-easy-camera", "distractor_source": "noise"}, "shows no clips"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    agent: str, env: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"env\.distractor\w*: .*{message}"):
        resolve({"agent": agent, "task": "dmc/cartpole_swingup", "env": env})


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("none", ()),
        ("dreamerpro", ("train", "clean")),
        ("dmcgb-video_easy", ("train", "clean")),
        ("dcs-easy-background", ("train", "clean")),
        ("repo", ("clean",)),
        ("subtle", ("clean",)),
        ("dcs-hard-dynamic-camera", ("clean",)),
        ("dcs-easy-colour", ("clean",)),
        ("dmcgb-color_hard", ("clean",)),
    ],
)
def test_only_views_that_differ_are_scored(name: str, views: tuple[str, ...]) -> None:
    own = {"task": "dmc/cartpole_swingup", "env": {"distractor": name}}
    assert other_views(resolve(own)) == views


def test_tested_on_the_clips_of_training_there_are_two_scores(tmp_path: Path) -> None:
    assert train(config(tmp_path, distractor="repo")) == 0
    score = read_status(tmp_path)["evaluation"]
    assert "split=train" in score["protocol"] and set(score["others"]) == {"clean"}
    assert cli.main(["eval", str(tmp_path), "--episodes", "1"]) == 0
    (path,) = tmp_path.glob("evaluation-*.json")
    assert list(json.loads(path.read_text())["results"]) == ["none", "clean"]


def test_the_score_of_unseen_clips_comes_with_two_others(tmp_path: Path) -> None:
    assert train(config(tmp_path)) == 0
    score = read_status(tmp_path)["evaluation"]
    assert "distractor=dreamerpro" in score["protocol"] and "split=test" in score["protocol"]
    assert set(score["others"]) == {"train", "clean"}
    assert "split=train" in score["others"]["train"]["protocol"]
    assert "dreamerpro" not in score["others"]["clean"]["protocol"]
    assert all(other["episodes"] == score["episodes"] for other in score["others"].values())
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "eval/mean" in row]
    assert [("eval_clean/mean" in row, "eval_train/mean" in row) for row in rows] == [
        (False, False),
        (True, True),
    ], "only the last evaluation takes the time"
    assert rows[-1]["eval_clean/mean"] == score["others"]["clean"]["mean"]

    assert cli.main(["eval", str(tmp_path), "--controls"]) == 0
    (path,) = tmp_path.glob("evaluation-*.json")
    results = json.loads(path.read_text())["results"]
    assert list(results) == ["none", "random", "zero", "blank", "train", "clean"]
    assert results["none"]["mean"] == score["mean"]
    for view in ("train", "clean"):
        assert results[view]["mean"] == score["others"][view]["mean"], view
        assert results[view]["protocol"] == score["others"][view]["protocol"], view


def test_what_is_seen_behind_the_scene_differs_between_the_views(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    pictures = {}
    for view in ("test", "train", "clean"):
        env = build_env(cfg, "eval", 1, view=view)
        pictures[view] = env.reset().obs["image"]
        env.close()
    assert not np.array_equal(pictures["test"], pictures["train"])
    assert not np.array_equal(pictures["test"], pictures["clean"])
    bodies = [(picture[..., :2] == 255).any(-1) for picture in pictures.values()]
    assert all(body.any() for body in bodies)


@pytest.mark.slow
@pytest.mark.fault
def test_fault_01_a_killed_distracted_run_continues_with_the_same_bits(tmp_path: Path) -> None:
    assert train(config(tmp_path / "whole")) == 0
    parts = tree(tmp_path / "parts")
    child = Child(parts, agent="mudreamer", configs=("debug",), UPDATE_SECONDS="0.05")
    child.wait_for("ready 9")
    child.process.send_signal(signal.SIGKILL)
    child.finish()
    child = Child(parts, agent="mudreamer", configs=("debug",))
    assert child.finish() == 0, child.output
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_a_run_records_its_clips_and_refuses_others(tmp_path: Path) -> None:
    folder = clips(tmp_path / "videos")
    cfg = config(tmp_path / "run", distractor_source=str(folder))
    assert train(cfg) == 0
    record = json.loads((tmp_path / "run" / CLIPS).read_text())
    hashes = {clip["sha256"] for split in ("train", "test") for clip in record[split]}
    assert len(hashes) == 4, record
    assert "source=folder" in read_status(tmp_path / "run")["evaluation"]["protocol"]
    moved = folder.rename(tmp_path / "moved")
    elsewhere = config(tmp_path / "run", distractor_source=str(moved))
    assert train(elsewhere) == 0, "the same clips"
    clips(moved, seed=1)
    with pytest.raises(RunDirError, match="began with other clips"):
        train(elsewhere)


@pytest.mark.parametrize("task", ["toy/dot", "dmc/walker_run"])
@pytest.mark.parametrize("wrong", ["clips", "mask"])
def test_what_cannot_be_shown_leaves_no_run(
    tmp_path: Path, task: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    if wrong == "clips":
        own = ["dreamerpro", "--env.distractor-source", str(tmp_path / "videos")]
    else:
        own = ["dreamerpro" if task == "toy/dot" else "dcs-easy", "--env.distractor-mask", "blue"]
    run = tmp_path / "run"
    words = ["train", "mudreamer", "--task", task, "--config", "debug", "--run", str(run)]
    assert cli.main([*words, "--distractor", *own]) == 1
    found = "found none. Put" if wrong == "clips" else "mask"
    assert found in capsys.readouterr().err
    assert not run.exists()
