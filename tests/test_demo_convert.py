"""Demonstrations survive Minari and LeRobot bit for bit, and conversions fail in words."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from convert_doubles import BOTH, handmade_lerobot, handmade_minari, small_demos
from pyarrow import parquet

from reverie.agents.demos.lerobot import from_lerobot, to_lerobot
from reverie.agents.demos.minari import from_minari, to_minari
from reverie.agents.demos.store import DemoDataset, DemoError, DemoSpec, open_dataset
from reverie.benchmarks import cli

Capture = pytest.CaptureFixture[str]
Convert = Callable[[DemoDataset, Path], list[Path]]

KINDS = {
    "state and image": BOTH,
    "state": DemoSpec(1, False, vector_size=3, proprio_size=0, image_shape=None, fps=80),
    "image": DemoSpec(2, False, vector_size=0, proprio_size=0, image_shape=(4, 3, 1), fps=60),
    "discrete": DemoSpec(4, True, vector_size=1, proprio_size=1, image_shape=(3, 3, 4), fps=1),
}


@pytest.fixture(autouse=True)
def own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def by_lerobot(dataset: DemoDataset, folder: Path) -> list[Path]:
    return from_lerobot(to_lerobot(dataset, folder / "lerobot"), folder / "back")


def by_minari(dataset: DemoDataset, folder: Path) -> list[Path]:
    return from_minari(to_minari(dataset, "demos/back-v0", folder / "other"), folder / "back")


def assert_same(found: DemoDataset, wanted: DemoDataset) -> None:
    assert found.spec == wanted.spec and found.tasks == wanted.tasks
    assert len(found.episodes) == len(wanted.episodes) > 1
    for number, (ours, theirs) in enumerate(zip(found.episodes, wanted.episodes, strict=True)):
        for name in ("task", "length", "success", "seed"):
            assert getattr(ours, name) == getattr(theirs, name), (number, name)
        columns, expected = found.episode(number), wanted.episode(number)
        assert set(columns) == set(expected)
        for name, values in expected.items():
            assert columns[name].dtype == values.dtype, name
            assert columns[name].shape == values.shape, name
            assert columns[name].tobytes() == values.tobytes(), (number, name)
    names = ("task", "generator", "seed", "protocol", "settings")
    for ours, theirs in zip(found.shards, wanted.shards, strict=True):
        assert [ours.header[name] for name in names] == [theirs.header[name] for name in names]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convert", [by_lerobot, by_minari])
def test_a_round_trip_changes_no_bit(convert: Convert, kind: str, tmp_path: Path) -> None:
    dataset = small_demos(tmp_path / "d", KINDS[kind])
    shards = convert(dataset, tmp_path)
    assert [shard.name for shard in shards] == ["far-000", "far-001", "home-000"]
    assert_same(open_dataset(tmp_path / "back"), dataset)
    left = [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]
    assert not left


@pytest.mark.parametrize("convert", [by_lerobot, by_minari])
def test_notes_that_no_longer_fit_are_refused(convert: Convert, tmp_path: Path) -> None:
    dataset = small_demos(tmp_path / "d")
    convert(dataset, tmp_path)
    (path, *rest) = [*tmp_path.glob("lerobot/meta/reverie.json")] or [
        *tmp_path.glob("other/*/*/data/metadata.json")
    ]
    assert not rest
    read = (
        (lambda: from_lerobot(tmp_path / "lerobot", tmp_path / "again"))
        if "lerobot" in path.parts
        else (lambda: from_minari(tmp_path / "other/demos/back-v0", tmp_path / "again"))
    )
    before = json.loads(path.read_text())
    for damage, message in (
        (lambda notes: notes["episodes"].pop(), "name 8 episodes, found 9; someone changed"),
        (lambda notes: notes.update(format=2), "expected notes of format 1, found 2"),
        (lambda notes: notes.pop("spec"), "the notes of reverie are damaged"),
    ):
        content = json.loads(json.dumps(before))
        damage(content.get("reverie", content))
        path.write_text(json.dumps(content))
        with pytest.raises(DemoError, match=message):
            read()
    path.write_text(json.dumps(before))
    assert len(read()) == 3


def test_another_task_than_the_noted_one_is_refused(tmp_path: Path) -> None:
    dataset = small_demos(tmp_path / "d")
    by_minari(dataset, tmp_path)
    with pytest.raises(DemoError, match="expected episodes of walk/far, found its own notes on"):
        from_minari(tmp_path / "other/demos/back-v0", tmp_path / "again", task="walk/far")
    folder = to_lerobot(dataset, tmp_path / "lerobot")
    tasks = pyarrow.table({"task_index": [0, 1], "task": ["walk/home", "walk/far"]})
    parquet.write_table(tasks, folder / "meta/tasks.parquet")
    with pytest.raises(DemoError, match="episode 0: expected the task walk/home, found walk/far"):
        from_lerobot(folder, tmp_path / "again")


@pytest.mark.parametrize("convert", [by_lerobot, by_minari])
def test_an_export_that_fails_leaves_nothing_and_one_that_is_there_stays(
    convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = small_demos(tmp_path / "d")
    whole = DemoDataset.episode

    def breaks(dataset: DemoDataset, number: int) -> dict[str, Any]:
        if number == 5:
            raise OSError(28, "No space left on device")
        return whole(dataset, number)

    monkeypatch.setattr(DemoDataset, "episode", breaks)
    with pytest.raises(DemoError, match=r"could not be written .No space left"):
        convert(dataset, tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and all(path.is_relative_to(tmp_path / "d") for path in written)
    monkeypatch.undo()
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    convert(dataset, tmp_path)
    assert os.environ["MINARI_DATASETS_PATH"] == "elsewhere"
    with pytest.raises(DemoError, match="found one"):
        convert(dataset, tmp_path)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_demos(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    for convert, extra in ((by_lerobot, "lerobot-io"), (by_minari, "minari")):
        with pytest.raises(DemoError, match=rf'pip install "reverie\[{extra}\]"'):
            convert(dataset, tmp_path)


def test_odd_names_and_pictures_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    dataset = small_demos(tmp_path / "d")
    for name in ("no-version", "../up-v0", "a b-v0", ""):
        with pytest.raises(DemoError, match="expected a Minari id such as"):
            to_minari(dataset, name, tmp_path / "minari")
    stacked = DemoSpec(1, False, 0, 0, image_shape=(4, 4, 12), fps=1)
    with pytest.raises(DemoError, match="channels, which PNG can hold, found 12"):
        to_lerobot(small_demos(tmp_path / "e", stacked), tmp_path / "out")
    assert not (tmp_path / "minari").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["lerobot", "minari"])
def test_the_command_line_converts_there_and_back(to: str, tmp_path: Path, capsys: Capture) -> None:
    wanted = small_demos(tmp_path / "d")
    out, name = tmp_path / "out", ["--dataset-id", "walk/both-v0"] if to == "minari" else []
    assert cli.main(["demos", "export", f"{tmp_path}/d", "--to", to, "--out", str(out), *name]) == 0
    shown = capsys.readouterr().out
    assert "9 episodes written to" in shown and str(out) in shown
    source = out / "walk/both-v0" if to == "minari" else out
    assert cli.main(["demos", "import", str(source), "--out", f"{tmp_path}/back"]) == 0
    assert f"next: reverie demos show {tmp_path}/back" in capsys.readouterr().out
    assert_same(open_dataset(tmp_path / "back"), wanted)


def test_the_command_line_takes_in_strangers_and_refuses_what_makes_no_sense(
    tmp_path: Path, capsys: Capture
) -> None:
    source = str(handmade_lerobot(tmp_path / "hand"))
    out = ["--out", str(tmp_path / "d")]
    names = ["--names", "Push it.=hand/push", "Pull it!=hand/pull"]
    assert cli.main(["demos", "import", source, *out, *names]) == 0
    assert open_dataset(tmp_path / "d").tasks == ("hand/pull", "hand/push")
    other = str(handmade_minari())
    for words, message in (
        (["import", source, *out, "--fps", "3"], "--fps: says nothing about a LeRobotDataset"),
        (["import", other, *out, *names], "--names: says nothing about a Minari dataset"),
        (["import", source, *out, "--names", "x"], "expected \"text=suite/name\", found 'x'"),
        (["import", str(tmp_path), *out], "found neither"),
        (["export", source, "--to", "minari", *out], "--dataset-id: expected with --to minari"),
        (["import", source, *out, *names], "delete it or choose another"),
    ):
        assert cli.main(["demos", *words]) in (1, 2)
        assert message in capsys.readouterr().err
