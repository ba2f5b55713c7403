"""`reverie play` as a command: files, refusals, sets of tasks, views, pictures for the eye."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from point_world import TASKS, point_config, write_points

from reverie.agents import trainer
from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.inspection.episodes import play_episode
from reverie.agents.registry import build_agent
from reverie.agents.resolve import resolve, with_overrides
from reverie.agents.trainer import View, train
from reverie.benchmarks import cli, play
from reverie.benchmarks.evaluation import load_run
from reverie.envs import registry

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("played") / "a run"
    own = {"steps": 100, "eval_every": 0, "device": "cpu"}
    tree = {"agent": "mudreamer", "task": "toy/dot", "run": str(run), "train": own}
    assert train(resolve(tree, configs=["debug"])) == 0
    return run


def opened(path: Path) -> Any:
    return Image.open(io.BytesIO(path.read_bytes()))


def frames_of(path: Path) -> int:
    return int(opened(path).n_frames)


def test_the_command_films_an_episode_and_leaves_the_run_alone(
    finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert cli.main(["play", str(finished)]) == 0
    assert "toy/dot: score " in capsys.readouterr().out
    (film,) = (finished / "play").iterdir()
    assert film.name == "0000000100-latest-0-0.gif" and frames_of(film) == 51
    assert all(path.read_bytes() == content for path, content in before.items())
    short = ["--steps", "4", "--fps", "5"]
    outs = {}
    for name, words in {
        "same": [],
        "again": [],
        "seed": ["--seed", "5"],
        "episode": ["--episode", "1"],
        "best": ["--checkpoint", "best", "--greedy"],
    }.items():
        outs[name] = tmp_path / f"{name}.gif"
        assert cli.main(["play", str(finished), *short, *words, "--out", str(outs[name])]) == 0
        assert frames_of(outs[name]) == 5
    told = capsys.readouterr().out
    assert told.count("more steps were not asked for") == 5
    content = {name: path.read_bytes() for name, path in outs.items()}
    assert content["same"] == content["again"]
    assert len({content[name] for name in ("same", "seed", "episode", "best")}) == 4


@pytest.mark.parametrize(
    ("words", "mark"),
    [
        ([], ""),
        (["--steps", "500", "--horizon", "15", "--view", "test", "--fps", "5"], ""),
        (["--steps", "40"], "-steps40"),
        (["--horizon", "4"], "-horizon4"),
        (["--greedy"], "-greedy"),
        (["--no-pictures"], "-undrawn"),
        (["--view", "clean"], "-clean"),
        (
            ["--steps", "4", "--greedy", "--horizon", "2", "--view", "train"],
            "-train-greedy-horizon2-steps4",
        ),
    ],
)
def test_films_made_with_other_flags_lie_side_by_side(
    words: list[str], mark: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    scene = {"env": {"distractor": "natural"}}
    trained = load_run(finished)
    distracted = dataclasses.replace(trained, cfg=with_overrides(trained.cfg, scene))
    monkeypatch.setattr(play, "load_run", lambda *_, **__: distracted)
    monkeypatch.setattr(play, "filmed", lambda *_: (None, None))
    monkeypatch.setattr(play, "told", lambda *_: "")
    monkeypatch.setattr(play, "write_film", lambda file, film, fps: written.append(file))
    assert cli.main(["play", str(finished), *words]) == 0
    assert written == [finished / "play" / f"0000000100-latest-0-0{mark}.gif"]


@pytest.mark.parametrize(
    ("distractor", "view", "wanted"),
    [
        ("none", "train", "expected test, found 'train'; nothing distracts from toy/dot"),
        ("none", "clean", "expected test, found 'clean'; nothing distracts from toy/dot"),
        ("repo", "train", "expected test or clean, found 'train'; tests of repo show what"),
        ("repo", "clean", ""),
        ("dreamerpro", "train", ""),
    ],
)
def test_a_view_that_shows_nothing_else_is_refused(
    distractor: str, view: View, wanted: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_run(finished)
    cfg = with_overrides(trained.cfg, {"env": {"distractor": distractor}})
    monkeypatch.setattr(play, "load_run", lambda *_, **__: dataclasses.replace(trained, cfg=cfg))
    monkeypatch.setattr(play, "_tasks", lambda *_: ())
    if not wanted:
        assert play.show(finished, view=view) == 0
        return
    with pytest.raises(ConfigError) as caught:
        play.show(finished, view=view)
    assert f"view: {wanted}" in str(caught.value)


def test_what_cannot_be_played_is_said(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    run = str(finished)
    for words, wanted in (
        ([str(tmp_path)], "expected a run directory"),
        ([run, "--steps", "0"], "expected --steps and --horizon >= 1"),
        ([run, "--episode", "-1"], "--episode >= 0"),
        ([run, "--out", "film.avi"], "ends in .gif or .mp4"),
        ([run, "--view", "train"], "view: expected test, found 'train'"),
        ([run, "--task", "toy/home"], "expected one of toy/dot, found 'toy/home'"),
    ):
        assert cli.main(["play", *words]) == 2
        assert wanted in " ".join(capsys.readouterr().err.split())


def test_every_task_of_a_set_has_a_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(registry.TASK_SETS, "point/both", TASKS)
    demos = write_points(tmp_path / "demos", episodes=20, length=10)
    run = tmp_path / "run"
    cfg = point_config(run, demos, task="point/both", train={"eval_episodes": 0})
    assert train(cfg) == 0
    assert cli.main(["play", str(run)]) == 0
    names = {path.name for path in (run / "play").iterdir()}
    assert names == {f"0000000024-latest-0-0-{name}.gif" for name in ("a", "b")}
    told = capsys.readouterr().out
    assert "point/a: score" in told and "point/b: score" in told
    out = tmp_path / "b.gif"
    assert cli.main(["play", str(run), "--task", "point/b", "--out", str(out)]) == 0
    assert out.is_file() and "point/a" not in capsys.readouterr().out
    before = (run / "play" / "0000000024-latest-0-0-a.gif").read_bytes()
    (run / "play" / "0000000024-latest-0-0-b.gif").unlink()
    assert cli.main(["play", str(run), "--task", "point/b"]) == 0
    assert {path.name for path in (run / "play").iterdir()} == names
    assert (run / "play" / "0000000024-latest-0-0-a.gif").read_bytes() == before


def test_a_distracted_task_is_played_in_the_view_of_its_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def spy(cfg: RunConfig, purpose: Any, count: int, **kwargs: Any) -> Any:
        seen.append((purpose, count, kwargs["view"]))
        return trainer.build_env(cfg, purpose, count, **kwargs)

    monkeypatch.setattr(play, "build_env", spy)
    tree = {"task": "toy/dot", "env": {"distractor": "natural"}, "train": {"device": "cpu"}}
    cfg = resolve(tree, configs=["debug"])
    pictures = []
    for view in ("test", "train", "clean"):
        wish = play.Wish(view=view)
        env, _ = play._opened(cfg, wish)
        pictures.append(env.reset().obs["image"].tobytes())
        env.close()
    assert seen == [("eval", 1, "test"), ("eval", 1, "train"), ("eval", 1, "clean")]
    assert len(set(pictures)) == 3


@pytest.mark.dmc
@pytest.mark.slow
def test_a_task_whose_state_is_read_is_drawn_for_the_eye() -> None:
    tree = {
        "task": "dmc/cartpole_balance",
        "env": {"observe": "state", "time_limit": 6},
        "train": {"device": "cpu"},
    }
    cfg = resolve(tree, configs=["debug"])
    found = {}
    for pictures in (True, False):
        env, spec = play._opened(cfg, play.Wish(pictures=pictures))
        agent: Any = build_agent(spec, cfg)
        played = play_episode(agent, agent, env, cfg, episode=0, steps=9, mode="eval")
        env.close()
        assert spec.image_shape is None and set(played.obs) == {"vector"}
        found[pictures] = played
    assert found[False].images is None
    assert found[True].images is not None and found[True].images.float().std() > 5
    assert torch.equal(found[True].obs["vector"], found[False].obs["vector"])
    assert found[True].score == found[False].score
