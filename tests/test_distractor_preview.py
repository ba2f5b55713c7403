"""`reverie distractors`: sheets, animations and the list of presets."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from reverie.agents.configs import ConfigError
from reverie.benchmarks import cli, distractor_preview
from reverie.envs.distractors.presets import PRESETS
from reverie.envs.specs import Array, EnvError

SIZE = 32
LOOK = ["--image-size", str(SIZE)]


def colour_cell(preset: str, task: str) -> Array | None:
    colours = {("a", "x"): (255, 0, 0), ("a", "y"): (0, 255, 0), ("bb", "y"): (0, 0, 255)}
    if (preset, task) not in colours:
        return None
    return np.full((40, 40, 3), colours[preset, task], np.uint8)


def test_a_sheet_has_a_cell_for_every_preset_and_task() -> None:
    sheet = np.asarray(distractor_preview.contact_sheet(("a", "bb"), ("x", "y"), colour_cell))
    places = {}
    for name, colour in {"a x": (255, 0, 0), "a y": (0, 255, 0), "bb y": (0, 0, 255)}.items():
        rows, columns = np.nonzero((sheet == colour).all(-1))
        assert len(rows) == 40 * 40, "whole and unscaled"
        places[name] = (rows.min(), columns.min())
    assert places["a x"][0] == places["a y"][0] < places["bb y"][0]
    assert places["a x"][1] < places["a y"][1] == places["bb y"][1]
    top, left = places["bb y"][0], places["a x"][1]
    empty = sheet[top : top + 40, left : left + 40]
    assert (empty == 0xEE).all(-1).mean() > 0.5 and len(np.unique(empty)) > 3, "empty, with a word"
    for name in (sheet[: places["a x"][0]], sheet[:, :left]):
        assert (name < 128).any(), "labels"


def test_long_names_of_tasks_do_not_overlap() -> None:
    long = ("dmc/cartpole_swingup_sparse", "dmc/walker_walk")
    sheet = np.asarray(distractor_preview.contact_sheet(("a",), long, lambda *_: None))
    written = (sheet[:16] < 128).any((0, 2))
    gaps = np.diff(np.flatnonzero(written))
    assert gaps.max() > 2 * distractor_preview.GAP, "a gap between the two names"


def test_the_list_names_every_preset_and_where_it_is_defined(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["distractors", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in PRESETS)
    assert cli.main(["distractors", "list", "subtle"]) == 0
    row = capsys.readouterr().out
    assert "cartpole (some)" in row and "reacher" in row and "walker" not in row
    assert "dcs" not in row
    assert distractor_preview.where("dcs-easy") == ", ".join(
        ("ball_in_cup", "cartpole", "cheetah", "finger", "reacher", "walker")
    )
    assert distractor_preview.where("natural") == "all but lqr"
    assert distractor_preview.where("subtle").startswith("ball_in_cup, cartpole (some), finger (so")


@pytest.mark.dmc
@pytest.mark.slow
def test_a_preview_of_real_tasks_is_written_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    words = ["distractors", "preview", "none", "dreamerpro", "dcs-hard", "subtle"]
    tasks = ["--tasks", "dmc/walker_walk", "dmc/reacher_easy"]
    assert cli.main([*words, *tasks, *LOOK, "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["sheet.png"]
    first = out.read_bytes()
    with Image.open(out) as sheet:
        assert sheet.width > 2 * SIZE and sheet.height > 4 * SIZE
    assert cli.main([*words, *tasks, *LOOK, "--out", str(out)]) == 0
    assert out.read_bytes() == first, "the same seed draws the same sheet"
    assert cli.main([*words, *tasks, *LOOK, "--out", str(out), "--split", "test"]) == 0
    assert out.read_bytes() != first


@pytest.mark.dmc
def test_an_animation_has_the_frames_of_an_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["distractors", "preview", "dcs-hard-dynamic", "--animate", "--frames", "5"]
    assert cli.main([*words, *LOOK, "--tasks", "dmc/cheetah_run"]) == 0
    with Image.open("dcs-hard-dynamic.gif") as film:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
    assert len(frames) == 5
    assert not any(np.array_equal(a, b) for a, b in pairwise(frames))


@pytest.mark.dmc
def test_undefined_pairs_are_empty_cells() -> None:
    view = distractor_preview.View(image_size=SIZE)
    assert distractor_preview.first("subtle", "dmc/walker_walk", view) is None
    drawn = distractor_preview.first("dmcgb-video_hard", "dmc/walker_walk", view)
    assert drawn is not None and drawn.shape == (SIZE, SIZE, 3)
    with pytest.raises(EnvError, match="a task in which subtle is defined, found dmc/walker_walk"):
        next(distractor_preview.film("subtle", ["dmc/walker_walk"], view, 3))


def test_only_presets_that_cut_something_out_have_masks() -> None:
    masked = {name for name in PRESETS if distractor_preview.has_masks(name)}
    assert {"dreamerpro", "dbc", "mudreamer", "dmcgb-video_easy"} <= masked
    assert not masked & {"none", "subtle", "dcs-easy", "dmcgb-color_hard"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dcs-esay"], r"expected names of `reverie distractors list`, found \['dcs-esay'\]"),
        (["--animate"], "--animate: expected one preset, found 0"),
        (["dbc", "tpc", "--animate"], "--animate: expected one preset, found 2"),
        (["dbc", "--frames", "1"], "--frames: expected 2 or more, found 1"),
    ],
)
def test_wrong_words_say_so(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distractor_preview.main(["preview", *words])


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sheet.png"
    distractor_preview.write(path, b"old")

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        distractor_preview.write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
