"""`reverie inspect`, looks during a run, and the files and records that they leave."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from point_world import point_config, write_points
from runs import final_state

from reverie.agents import trainer
from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.inspection import inspector
from reverie.agents.inspection.charts import BLACK, Chart, Line, draw
from reverie.agents.inspection.inspector import Inspector, log_panels, write_panels
from reverie.agents.inspection.panels import Panel, beside, encode, scaled, stacked, written
from reverie.agents.inspection.stored import stored_replay
from reverie.agents.registry import build_replay
from reverie.agents.resolve import load, resolve, run_directory
from reverie.agents.runs.logger import Logger, read_jsonl
from reverie.agents.trainer import Trainer, build_env, train
from reverie.benchmarks import cli

Capture = pytest.CaptureFixture[str]
CPU = torch.device("cpu")
SMALL = ["--windows", "4", "--shown", "1", "--library", "60", "--horizon", "7", "--probe", "2"]


def tree(run: Path, agent: str, **train: Any) -> dict[str, Any]:
    task = "toy/dot" if agent == "mudreamer" else "toy/catch"
    own = {"steps": 120, "eval_every": 60, "checkpoint_every": 60, **train}
    return {"agent": agent, "task": task, "run": str(run), "train": own}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was looked at every 50 steps."""
    run = tmp_path_factory.mktemp("watched") / "a run"
    cfg = resolve(tree(run, "mudreamer", inspect_every=50), configs=["debug"])
    assert train(cfg) == 0
    return run


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


# during a run


def test_a_run_is_looked_at_when_due_and_at_its_end(finished: Path) -> None:
    folders = sorted(path.name for path in (finished / "inspection").iterdir())
    assert [int(name) for name in folders] == [64, 100, 120], "first behind the prefill, untrained"
    for folder in (finished / "inspection").iterdir():
        names = {path.name for path in folder.iterdir()}
        assert names == {"rollout_0.gif", "rollout_1.gif", "error.png", "numbers.json"}
        assert opened(folder / "rollout_0.gif").n_frames == 5 + 20  # type: ignore[attr-defined]
        assert opened(folder / "error.png").size[0] > 400
    rows = [r for r in read_jsonl(finished / "metrics.jsonl") if "inspect/seconds" in r]
    assert [row["step"] for row in rows] == [64, 100, 120]


def test_its_numbers_are_among_its_records(finished: Path) -> None:
    rows = [r for r in read_jsonl(finished / "metrics.jsonl") if "inspect/error_last" in r]
    last = json.loads((finished / "inspection" / "0000000120" / "numbers.json").read_text())
    assert {f"inspect/{name}": value for name, value in last.items()}.items() <= rows[-1].items()
    assert set(last) == {
        *("error_first", "error_last", "error_held_last", "error_shuffled_last"),
        *("neighbour_distance", "neighbour_distance_real", "reward_error"),
    }
    assert 0 <= last["error_first"] <= 2 and last["neighbour_distance"] > 0


def quiet(tmp_path: Path, notes: list[str], *, every: int = 10, start: int = 0) -> Inspector:
    cfg = resolve(tree(tmp_path, "mudreamer", inspect_every=every), configs=["debug"])
    logger = Logger(tmp_path, tensorboard=False)
    return Inspector(cfg, tmp_path, logger, start=start, note=notes.append)


def test_looks_are_due_at_multiples_and_at_the_end_and_not_again_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "inspect_agent", lambda *_, **__: [])
    watch = quiet(tmp_path, [])
    looks = []
    for step in range(0, 36, 4):  # slots advance together: multiples may be jumped over
        if watch.due(step, over=step >= 32):
            looks.append(step)
            watch.look(None, None, step)
    assert looks == [12, 20, 32]
    for step in (20, 32):
        write_panels(tmp_path / "inspection" / f"{step:010d}", [])
    assert not quiet(tmp_path, [], start=32).due(32, over=True), "a finished run is not looked at"
    assert quiet(tmp_path, [], start=25).due(30, over=False)
    assert not quiet(tmp_path, [], start=25).due(29, over=False)
    assert quiet(tmp_path, [], start=19).due(19, over=False), "it was cut off before the look"
    (tmp_path / "inspection" / "0000000020" / "numbers.json").unlink()
    assert quiet(tmp_path, [], start=25).due(25, over=False), "it was cut off while writing"
    assert not quiet(tmp_path, [], every=0).due(100, over=True)


@pytest.mark.parametrize("agent", ["mudreamer", "act-jepa"])
def test_a_look_that_was_cut_off_is_taken_again(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    if agent == "mudreamer":
        cfg = resolve(tree(run, agent, eval_every=50, inspect_every=50), configs=["debug"])
    else:
        demos = write_points(tmp_path / "demos", episodes=20, length=10)
        own = {"eval_every": 6, "inspect_every": 6, "eval_episodes": 0, "checkpoint_every": 5}
        cfg = point_config(run, demos, train={**own, "steps": 12})
    at, looks = cfg.train.inspect_every * 2, []
    plain = Inspector.look

    def cut_off(self: Inspector, *args: Any) -> None:
        looks.append(args[-1])
        if looks.count(at) == 1 and args[-1] == at:
            raise KeyboardInterrupt
        plain(self, *args)

    monkeypatch.setattr(Inspector, "look", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(cfg)
    assert looks[-1] == at
    assert train(cfg) == 0
    assert looks.count(at) == 2 and (run / "inspection" / f"{at:010d}").is_dir()


def test_a_look_that_a_signal_came_before_is_taken_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = resolve(tree(tmp_path, "mudreamer", inspect_every=50), configs=["debug"])
    plain, signalled = Trainer._collect, []

    def collect(self: Trainer) -> None:
        plain(self)
        if self.steps >= 100 and not signalled:
            signalled.append(self.steps)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_collect", collect)
    assert train(cfg) == 143
    (at,) = signalled
    look = tmp_path / "inspection" / f"{at:010d}"
    assert not look.exists()
    assert train(cfg) == 0 and look.is_dir()


def test_a_full_disk_or_device_costs_a_note_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    watch = quiet(tmp_path, notes)

    def fail(error: Exception) -> Any:
        def raise_it(*_: Any, **__: Any) -> Any:
            raise error

        return raise_it

    panel = Panel("p", np.zeros((1, 4, 4, 3), np.uint8))
    monkeypatch.setattr(inspector, "inspect_agent", lambda *_, **__: [panel])
    monkeypatch.setattr(inspector, "write_panels", fail(OSError(28, "No space left on device")))
    watch.look(None, None, 10)
    assert len(notes) == 1 and "No space left" in notes[0] and watch.due(20, over=False)
    monkeypatch.setattr(inspector, "inspect_agent", fail(torch.OutOfMemoryError("full")))
    watch.look(None, None, 20)
    assert len(notes) == 2 and not watch.due(30, over=True), "it would be full again"


def test_settings_of_looks_neither_name_a_run_nor_hinder_its_resume() -> None:
    plain = resolve({"task": "toy/dot"})
    watched = resolve({"task": "toy/dot", "train": {"inspect_every": 500, "inspect_probe": 9}})
    assert run_directory(plain) == run_directory(watched)
    assert {"train.inspect_every", "train.inspect_probe"} <= set(trainer.MAY_DIFFER)
    assert (RunConfig().train.inspect_every, RunConfig().train.inspect_probe) == (0, 0)
    assert resolve(configs=["demo"]).train.inspect_every > 0
    with pytest.raises(ConfigError, match=r"train\.inspect_every: expected at least 0"):
        resolve({"train": {"inspect_every": -1}})


def test_animations_and_stills_are_read_back_from_the_event_files(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = set(events.Tags()["images"])
    assert tags == {"inspect/rollout_0", "inspect/rollout_1", "inspect/error"}
    assert "inspect/error_last" in events.Tags()["scalars"]
    for tag in tags:
        stored = events.Images(tag)
        assert [event.step for event in stored] == [64, 100, 120]
        seen = Image.open(io.BytesIO(stored[-1].encoded_image_string))
        assert seen.size == (stored[-1].width, stored[-1].height)
        assert getattr(seen, "n_frames", 1) == (1 if tag == "inspect/error" else 5 + 20)
        name = tag.partition("/")[2] + (".png" if tag == "inspect/error" else ".gif")
        file = finished / "inspection" / "0000000120" / name
        assert file.read_bytes() == stored[-1].encoded_image_string


# the command


def files_of(run: Path) -> dict[str, bytes]:
    paths = (p for p in run.rglob("*") if p.is_file() and "inspection" not in p.parts)
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def charts(folder: Path) -> dict[str, list[str]]:
    """The custom scalars page of a folder's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    events = EventAccumulator(str(folder))
    events.Reload()
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    return {group.title: [chart.title for chart in group.chart] for group in layout.category}


def test_the_command_shows_a_run_and_leaves_its_files_alone(
    finished: Path, capsys: Capture, tmp_path: Path
) -> None:
    half = finished / "replay" / "segments" / "x.safetensors.tmp-1"
    half.write_bytes(b"a writer is busy")
    before = files_of(finished)
    try:
        assert cli.main(["inspect", str(finished), *SMALL]) == 0
        other = ["--tag", "best", "--out", str(tmp_path), "--shown", "2", "--no-tensorboard"]
        assert cli.main(["inspect", str(finished), *SMALL, *other]) == 0
    finally:
        half.unlink()
    assert files_of(finished).items() >= {k: v for k, v in before.items() if "tmp" not in k}.items()
    assert before["replay/segments/x.safetensors.tmp-1"] == b"a writer is busy"
    folder = finished / "inspection" / "0000000120-latest"
    assert opened(folder / "rollout_0.gif").n_frames == 5 + 7  # type: ignore[attr-defined]
    assert not (folder / "rollout_1.gif").exists() and list(folder.glob("events.*"))
    assert "probe_error" in json.loads((folder / "numbers.json").read_text())
    assert charts(folder) == charts(finished) and "held out" not in charts(folder)["Losses"]
    assert (tmp_path / "rollout_1.gif").is_file() and not list(tmp_path.glob("events.*"))
    assert "error_shuffled_last" in capsys.readouterr().out
    shutil.rmtree(folder)


def test_what_cannot_be_shown_is_said(tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "expected a run directory" in capsys.readouterr().err
    assert cli.main(["inspect", str(tmp_path), "--horizon", "0"]) == 2
    run = tmp_path / "rainbow"
    assert train(resolve(tree(run, "rainbow", eval_episodes=0), configs=["debug"])) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(run), *SMALL]) == 1
    assert "rainbow has nothing to show" in capsys.readouterr().out
    assert cli.main(["inspect", str(run), "--tag", "best"]) == 2
    assert "never evaluated" in capsys.readouterr().err


def test_the_command_shows_what_spr_predicts(tmp_path: Path) -> None:
    run = tmp_path / "spr"
    assert train(resolve(tree(run, "spr", eval_episodes=0), configs=["debug"])) == 0
    assert cli.main(["inspect", str(run), *SMALL]) == 0
    (folder,) = (run / "inspection").iterdir()
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    pictures = {"rollout_0.gif", "error.png", "similarity.png"}
    cloud = {"projector", "projector_config.pbtxt"}
    assert names - {"metrics.jsonl"} == {*pictures, *cloud, "numbers.json"}
    found = json.loads((folder / "numbers.json").read_text())
    ks = [name for name in found if name.startswith("similarity_") and name[-1].isdigit()]
    assert ks == [f"similarity_{k}" for k in range(1, len(ks) + 1)] and len(ks) >= 2
    assert all(-1 <= found[k] <= 1 for k in ks) and "similarity_shuffled_last" in found


def test_the_command_shows_chunks_beside_the_experts(tmp_path: Path) -> None:
    demos = write_points(tmp_path / "demos", episodes=20, length=10)
    run = tmp_path / "run"
    watched = {"inspect_every": 12, "eval_episodes": 0}
    assert train(point_config(run, demos, train=watched)) == 0
    assert sorted(int(p.name) for p in (run / "inspection").iterdir()) == [12, 24]
    assert cli.main(["inspect", str(run), *SMALL]) == 0
    folder = run / "inspection" / "0000000024-latest"
    assert {"chunk_0.png", "error.png", "numbers.json"} <= {p.name for p in folder.iterdir()}
    found = json.loads((folder / "numbers.json").read_text())
    assert set(found) == {
        *("chunk_error", "error_first", "error_last", "error_other_last", "neighbour_distance")
    }


def test_stored_experience_is_that_of_the_checkpoint(finished: Path) -> None:
    cfg = load(finished / "config.toml")
    env = build_env(cfg, "train", cfg.env.num_envs)
    env.close()
    from reverie.agents.runs.checkpoint import load_latest

    found = load_latest(finished)
    assert found is not None
    state = found[1]["replay"]
    whole = build_replay(env.spec, cfg, directory=finished / "replay", device=CPU)
    assert whole.load_state_dict(state) == []
    with stored_replay(finished, state, env.spec, cfg, device=CPU) as (replay, notes):
        assert notes == [] and replay.runs == whole.runs and len(replay) == len(whole) > 0
        (start, stop), *_ = replay.runs
        mine, own = replay.read(start, stop), whole.read(start, stop)
        assert all(np.array_equal(mine[key], own[key]) for key in own)
    newest = state["segments"][-1]
    with stored_replay(finished, state, env.spec, cfg, device=CPU, rows=1) as (replay, _):
        assert replay.runs == ((newest["start"], newest["stop"]),)
    lost = {**state, "segments": [{**newest, "name": "gone.safetensors"}]}
    with stored_replay(finished, lost, env.spec, cfg, device=CPU) as (replay, notes):
        assert len(replay) == 0 and len(notes) == 1 and "gone" in notes[0]


# files and pictures


def moving(count: int = 6) -> Panel:
    frames = np.zeros((count, 20, 30, 3), np.uint8)
    for k in range(count):
        frames[k, :, 5 * k : 5 * k + 5] = (255, 40 * k, 0)
    return Panel("moving", frames, fps=5, scalars={"a": 1.5})


def test_files_hold_what_was_drawn(tmp_path: Path) -> None:
    still = Panel("still", moving().frames[:1] if moving().frames is not None else None)
    paths = write_panels(tmp_path / "new", [moving(), still])
    assert [path.name for path in paths] == ["moving.gif", "still.png", "numbers.json"]
    gif = opened(paths[0])
    assert gif.n_frames == 6 and gif.size == (30, 20) and gif.info["duration"] == 200  # type: ignore[attr-defined]
    drawn = moving().frames
    assert drawn is not None
    for k in range(6):
        gif.seek(k)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - drawn[k]).max() < 12, k
    assert np.array_equal(np.asarray(opened(paths[1])), drawn[0])
    assert json.loads(paths[2].read_text()) == {"a": 1.5}
    assert encode(still)[0] == ".png"


def test_records_get_animations_stills_and_numbers_under_one_prefix() -> None:
    class Calls:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def gif(self, step: int, tag: str, frames: Any, fps: float) -> None:
            self.seen.append(("gif", step, tag, frames.shape, fps))

        def image(self, step: int, tag: str, picture: Any) -> None:
            self.seen.append(("image", step, tag, picture.shape))

        def scalars(self, step: int, values: Any) -> None:
            self.seen.append(("scalars", step, dict(values)))

    calls: Any = Calls()
    log_panels(calls, 3, [moving(), Panel("still", np.zeros((1, 4, 5, 3), np.uint8))])
    assert calls.seen == [
        ("gif", 3, "inspect/moving", (6, 20, 30, 3), 5),
        ("image", 3, "inspect/still", (4, 5, 3)),
        ("scalars", 3, {"inspect/a": 1.5}),
    ]


def test_pixels_stay_sharp_and_columns_aligned() -> None:
    frame = np.arange(4 * 4, dtype=np.uint8).reshape(4, 4, 1)
    large = scaled(frame, 40)
    assert large.shape == (40, 40, 3) and (large[10:20, 20:30] == frame[1, 2]).all()
    assert scaled(np.zeros((200, 200, 3), np.uint8)).shape == (200, 200, 3)
    row = beside([large, large[:10]], gap=4)
    assert (
        row.shape == (40, 84, 3) and (row[10:, 44:] == 255).all() and (row[:, 40:44] == 255).all()
    )
    assert stacked([large, large[:, :10]], gap=2).shape == (82, 40, 3)
    line = written("a very long caption that does not fit", 60)
    assert line.shape[1] == 60 and (line < 100).any()


def test_the_cursor_stands_at_its_row_in_every_chart() -> None:
    lines = [Line("one", np.array([0.0, 1.0, np.nan, 1.0, 0.0]), BLACK)]
    charts = draw([Chart("a", lines, first=-2), Chart("b", lines)], width=400, columns=2)
    assert charts.picture.shape[1] == 400 and charts.columns.shape == (2, 5)
    assert (np.diff(charts.columns, axis=1) > 10).all()
    for row in range(5):
        changed = (charts.with_cursor(row) != charts.picture).any(-1)
        assert np.array_equal(np.flatnonzero(changed.any(0)), np.sort(charts.columns[:, row]))


def test_the_state_of_a_watched_run_knows_nothing_of_looks(finished: Path) -> None:
    assert not [key for key in final_state(finished) if "inspect" in key]
