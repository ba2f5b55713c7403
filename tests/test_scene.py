"""`reverie eval` in front of another scene: DMControl-GB's protocol, and clips that have moved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from clip_files import pictures, two_splits, write_clip

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.resolve import dump, load, resolve, with_overrides
from reverie.agents.runs.rundir import RunDirError, read_status
from reverie.agents.trainer import Trainer, train
from reverie.benchmarks import cli, evaluation
from reverie.benchmarks.report.collect import collect

Capture = pytest.CaptureFixture[str]
OWN_FILE = "evaluation-000000096.json"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache of clips for this file, apart from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REVERIE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def config(run: Path, **env: Any) -> RunConfig:
    short = {"steps": 96, "eval_every": 0, "eval_episodes": 1}
    tree = {"task": "toy/dot", "run": str(run), "train": short, "env": env}
    return resolve(tree, configs=["debug"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the plain task."""
    run = tmp_path_factory.mktemp("plain") / "run"
    assert train(config(run)) == 0
    return run


@pytest.fixture
def filmed(tmp_path: Path) -> Path:
    """A finished run in front of the folder `videos` beside it."""
    folder = two_splits(tmp_path / "videos")
    assert train(config(tmp_path / "run", distractor="tpc", distractor_source=str(folder))) == 0
    return tmp_path / "run"


def score(run: Path, *flags: str, file: str = OWN_FILE) -> dict[str, Any]:
    """The only new file of an evaluation by these flags."""
    before = set(run.glob("evaluation-*"))
    assert cli.main(["eval", str(run), *flags]) == 0
    (new,) = set(run.glob("evaluation-*")) - before
    assert new.name == file
    record: dict[str, Any] = json.loads(new.read_text())
    new.unlink()
    return record


def terms(result: dict[str, Any]) -> dict[str, str]:
    pairs = [part.partition("=") for part in result["protocol"].split(",")]
    assert len({key for key, _, _ in pairs}) == len(pairs), result["protocol"]
    return {key: value for key, _, value in pairs}


# another scene


def test_an_agent_of_the_plain_task_plays_in_front_of_a_film(plain: Path) -> None:
    flags = ("--distractor", "natural", "--controls")
    record = score(plain, *flags, file="evaluation-000000096+dreamerpro.json")
    assert set(record["results"]) == {"none", "random", "zero", "blank"}, "the test clips alone"
    assert (record["distractor"], record["trained_on"]) == ("dreamerpro", "trained=none")
    for result in record["results"].values():
        told = terms(result)
        shown = {"distractor": "dreamerpro", "source": "procedural", "mask": "exact"}
        assert told | shown | {"split": "test", "trained": "none"} == told
    own = score(plain)["results"]["none"]
    assert record["results"]["none"]["returns"] != own["returns"], "the film is there"
    assert "trained" not in terms(own)


def test_the_source_of_the_film_can_be_chosen(plain: Path, tmp_path: Path) -> None:
    two_splits(tmp_path / "videos")
    flags = ("--distractor", "tpc", "--distractor-source")
    found = [
        terms(score(plain, *flags, source, file="evaluation-000000096+tpc.json")["results"]["none"])
        for source in ("noise", str(tmp_path / "videos"))
    ]
    assert found[0]["source"] == "noise" and found[1]["source"].startswith("folder videos ")


def test_an_agent_of_a_film_plays_the_plain_task_or_another(filmed: Path) -> None:
    status = read_status(filmed)["evaluation"]
    record = score(filmed, "--distractor", "none", file="evaluation-000000096+none.json")
    told, source = terms(record["results"]["none"]), terms(status)["source"]
    assert (told["trained"], told["trained_source"]) == ("tpc", source)
    assert told["distractor"] == "drift" and "source" not in told
    assert record["results"]["none"]["mean"] == status["others"]["clean"]["mean"]
    record = score(filmed, "--distractor", "dbc", file="evaluation-000000096+dbc.json")
    told = terms(record["results"]["none"])
    assert (told["distractor"], told["source"], told["trained"]) == ("dbc", source, "tpc")


def test_the_same_scene_by_name_is_the_own_score(plain: Path, filmed: Path) -> None:
    assert "trained" not in terms(score(plain, "--distractor", "none")["results"]["none"])
    record = score(filmed, "--distractor", "tpc")
    assert set(record["results"]) == {"none", "train", "clean"}
    assert record["results"]["none"]["mean"] == read_status(filmed)["evaluation"]["mean"]


def test_a_report_counts_no_score_of_another_scene(plain: Path) -> None:
    assert cli.main(["eval", str(plain), "--distractor", "tpc"]) == 0
    (result,) = collect([plain]).results
    assert (result.task, result.score) == ("toy/dot", read_status(plain)["evaluation"]["mean"])
    assert "trained" not in result.protocol and result.views == {}
    (plain / "evaluation-000000096+tpc.json").unlink()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distractor", "tcp"], "found 'tcp'"),
        (["--distractor", "dmcgb-video_easy"], "toy/dot: expected a task that the distractor"),
        (["--distractor", "none", "--distractor-source", "noise"], "nothing distracts"),
        (["--distractor-source", "noise"], "nothing distracts"),
        (["--distractor", "tpc", "--distractor-source", "nowhere"], "no such folder"),
        (["--distractor", "tpc", "--distractor-mask", "blue"], "mask preset or exact"),
    ],
)
def test_what_cannot_be_shown_is_one_error(
    plain: Path, capfd: Capture, flags: list[str], message: str
) -> None:
    assert cli.main(["eval", str(plain), *flags]) != 0
    said = capfd.readouterr().err
    assert said.count(message) == 1 and "Traceback" not in said
    assert not list(plain.glob("evaluation-*"))


def test_a_source_for_a_preset_without_clips_is_an_error(tmp_path: Path) -> None:
    cfg = resolve({"task": "dmc/walker_walk", "env": {"distractor": "tpc"}}, configs=["debug"])
    flags = evaluation.Scene("dmcgb-color_hard")
    changed, told = evaluation.place(tmp_path, cfg, flags)
    assert changed.env.distractor == "dmcgb-color_hard"
    assert told == "trained=tpc,trained_source=procedural"
    with pytest.raises(ConfigError, match="dmcgb-color_hard shows no clips"):
        evaluation.place(tmp_path, cfg, evaluation.Scene("dmcgb-color_hard", "noise"))


# clips that have moved, or changed


def test_a_folder_that_moved_is_named_and_the_score_is_the_own(
    filmed: Path, tmp_path: Path, capfd: Capture
) -> None:
    status = read_status(filmed)["evaluation"]
    (tmp_path / "videos").rename(tmp_path / "moved")
    (tmp_path / "moved" / "train" / "a.npy").rename(tmp_path / "moved" / "train" / "z.npy")
    assert cli.main(["eval", str(filmed)]) == 1
    assert "no such folder" in capfd.readouterr().err
    record = score(filmed, "--distractor-source", str(tmp_path / "moved"))
    assert set(record["results"]) == {"none", "train", "clean"}
    assert record["results"]["none"]["mean"] == status["mean"]
    digits = [terms(one)["source"].split()[-1] for one in (record["results"]["none"], status)]
    assert digits[0] == digits[1]

    write_clip(tmp_path / "moved" / "test" / "more.npy", pictures(8))
    record = score(
        filmed,
        "--distractor-source",
        str(tmp_path / "moved"),
        file="evaluation-000000096+tpc.json",
    )
    told = terms(record["results"]["none"])
    assert told["source"] != told["trained_source"] == terms(status)["source"]


def test_an_evaluation_refuses_changed_clips_and_names_them(
    filmed: Path, tmp_path: Path, capfd: Capture
) -> None:
    write_clip(tmp_path / "videos" / "test" / "more.npy", pictures(8))
    (tmp_path / "videos" / "train" / "a.npy").unlink()
    assert cli.main(["eval", str(filmed)]) == 1
    said = capfd.readouterr().err
    assert "train: " in said and "-a.npy is gone" in said and "-more.npy is new" in said
    assert "--distractor-source" in said and not list(filmed.glob("evaluation-*"))


def test_clips_that_change_while_a_run_learns_spoil_no_final_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = two_splits(tmp_path / "videos")
    cfg = config(tmp_path / "run", distractor="tpc", distractor_source=str(folder))
    update = Trainer._update
    more = folder / "test" / "more.npy"

    def adding(trainer: Trainer) -> None:
        update(trainer)
        if trainer.updates == 2:
            write_clip(more, pictures(8))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", adding)
        with pytest.raises(RunDirError, match=r"test: \w+-more\.npy is new"):
            train(cfg)
    status = read_status(tmp_path / "run")
    assert status["state"] == "failed" and "more.npy is new" in status["reason"]
    more.unlink()
    monkeypatch.setattr(Trainer, "_update", lambda self: pytest.fail("all of it was saved"))
    assert train(cfg) == 0
    assert read_status(tmp_path / "run")["evaluation"]["step"] == 96


def test_a_refused_continuation_leaves_a_finished_run_as_it_is(
    filmed: Path, tmp_path: Path
) -> None:
    other = two_splits(tmp_path / "other")
    write_clip(other / "test" / "more.npy", pictures(8))
    kept = {path: path.read_bytes() for path in filmed.glob("*.json*")}
    assert filmed / "status.json" in kept
    with pytest.raises(RunDirError, match="began with other clips"):
        train(config(filmed, distractor="tpc", distractor_source=str(other)))
    assert {path: path.read_bytes() for path in filmed.glob("*.json*")} == kept


def test_a_folder_is_the_same_one_in_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noise").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text, meant in (
        ("videos", tmp_path / "videos"),
        ("./noise", tmp_path / "noise"),
        ("~/videos", tmp_path / "videos"),
        (str(tmp_path / "x"), tmp_path / "x"),
    ):
        cfg = config(tmp_path / "run", distractor="tpc", distractor_source=text)
        assert cfg.env.distractor_source == str(meant)
        cfg = with_overrides(config(tmp_path / "run", distractor="tpc"), {"env": vars(cfg.env)})
        assert cfg.env.distractor_source == str(meant)
    file = tmp_path / "config.toml"
    file.write_text(dump(cfg))
    monkeypatch.chdir(os.sep)
    assert load(file) == cfg
    for word in ("procedural", "noise", "static", "procedural-shift"):
        cfg = config(tmp_path / "run", distractor="tpc", distractor_source=word)
        assert cfg.env.distractor_source == word


def test_the_name_of_a_folder_tells_what_is_in_it(tmp_path: Path) -> None:
    from reverie.envs.distractors.folder import FolderSource

    def name(folder: Path) -> str:
        return FolderSource(folder, size=8).name

    first = name(two_splits(tmp_path / "a" / "videos"))
    assert first == name(two_splits(tmp_path / "b" / "videos"))
    renamed = name(two_splits(tmp_path / "films"))
    assert renamed != first and renamed.split()[-1] == first.split()[-1]
    write_clip(tmp_path / "b" / "videos" / "test" / "more.npy", pictures(8))
    other = name(tmp_path / "b" / "videos")
    assert other.split()[:2] == first.split()[:2] and other != first
