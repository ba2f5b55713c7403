"""Metrics and episodes survive kills, resumes, full disks and missing backends."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from children import run_child
from google.protobuf import text_format
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from reverie.agents.runs import tensorboard_events
from reverie.agents.runs.jsonl import JsonLines, keep_records, read_jsonl
from reverie.agents.runs.logger import EPISODES, METRICS, Logger
from reverie.agents.runs.projector import Points, sprite_sheet, write_projector


def tensorboard(run_dir: Path) -> EventAccumulator:
    found = EventAccumulator(str(run_dir))
    found.Reload()
    return found


def points(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in tensorboard(run_dir).Scalars(tag)]


def test_scalars_and_episodes_arrive_in_every_backend(tmp_path: Path) -> None:
    logger = Logger(tmp_path)
    logger.scalars(10, {"loss/reward": 0.5, "speed/updates": np.float32(2)})
    logger.scalars(20, {"loss/reward": math.nan, "loss/kl": math.inf})
    logger.episode({"step": 15, "return": np.float64(3.25), "length": np.int64(7), "slot": 0})
    logger.text(0, "config", "seed = 0")
    logger.close()
    logger.close()
    first, second = read_jsonl(tmp_path / METRICS)
    assert (first["step"], first["loss/reward"], first["speed/updates"]) == (10, 0.5, 2.0)
    assert math.isnan(second["loss/reward"]) and second["loss/kl"] == math.inf
    (episode,) = read_jsonl(tmp_path / EPISODES)
    assert (episode["step"], episode["return"], episode["length"]) == (15, 3.25, 7)
    assert points(tmp_path, "speed/updates") == [(10, 2.0)]
    assert [step for step, _ in points(tmp_path, "loss/reward")] == [10, 20]
    (text,) = tensorboard(tmp_path).Tensors("config/text_summary")
    assert text.tensor_proto.string_val == [b"seed = 0"]
    assert logger.lost == 0


def test_lines_are_strict_json(tmp_path: Path) -> None:
    logger = Logger(tmp_path, tensorboard=False)
    logger.scalars(1, {"a": math.nan, "b": -math.inf})
    logger.close()

    def reject(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    json.loads((tmp_path / METRICS).read_text(), parse_constant=reject)


def test_the_custom_scalar_page_is_laid_out(tmp_path: Path) -> None:
    logger = Logger(tmp_path)
    logger.scalars(1, {"a": 1.0})
    logger.close()
    (config,) = tensorboard(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    assert {"Returns", "Losses", "Health", "Speed"} <= {
        category.title for category in layout.category
    }


def test_pictures_and_animations_arrive_whole(tmp_path: Path) -> None:
    frames = np.zeros((7, 12, 20, 3), np.uint8)
    for time, frame in enumerate(frames):
        frame[:, 2 * time : 2 * time + 4] = (200, 40, 10 * time)
    logger = Logger(tmp_path)
    logger.gif(3, "film", frames, fps=5)
    logger.image(3, "still", frames[2])
    logger.close()
    (film,) = tensorboard(tmp_path).Images("film")
    (still,) = tensorboard(tmp_path).Images("still")
    assert (film.step, film.width, film.height) == (still.step, still.width, still.height)
    with Image.open(io.BytesIO(film.encoded_image_string)) as animation:
        assert animation.format == "GIF" and animation.info["duration"] == 200
        assert animation.info["loop"] == 0, "it repeats for ever"
        shown = [np.asarray(one.convert("RGB"), int) for one in ImageSequence.Iterator(animation)]
    assert np.abs(np.stack(shown) - frames).max() <= 16
    with Image.open(io.BytesIO(still.encoded_image_string)) as picture:
        assert picture.format == "PNG" and (np.asarray(picture) == frames[2]).all()


def test_a_cloud_keeps_its_distances_and_every_point_its_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(5, 300)) + 40.0).astype(np.float32)
    sprites = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 6, 3), np.uint8)
    labels = {"kind": ["a\tb", "c", "d", "e", "f"], "value": [0.5, 1.0, 2.0, 3.0, 4.0]}
    logger = Logger(tmp_path)
    logger.embedding("x/one", Points(vectors[::-1], None, {"name": list("abcde")}))
    logger.embedding("two", Points(vectors, None, {}))
    logger.embedding("x/one", Points(vectors, sprites, labels))
    logger.close()
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    two, one = config.embeddings
    assert (two.tensor_name, one.tensor_name) == ("two", "x/one") and not two.metadata_path
    rows = np.loadtxt(tmp_path / one.tensor_path)
    assert rows.shape == tuple(one.tensor_shape) == (5, 5), "five points span no more directions"
    for row in range(5):
        found = np.linalg.norm(rows - rows[row], axis=1)
        assert np.allclose(found, np.linalg.norm(vectors - vectors[row], axis=1), rtol=1e-3)
    assert (tmp_path / one.metadata_path).read_text().splitlines()[:2] == [
        "kind\tvalue",
        "a b\t0.5",
    ]
    assert list(one.sprite.single_image_dim) == [6, 4]
    with Image.open(tmp_path / one.sprite.image_path) as sheet:
        grid = np.asarray(sheet).reshape(3, 4, 3, 6, 3)
    assert [int(grid[k // 3, 0, k % 3, 0, 0]) for k in range(6)] == [0, 1, 2, 3, 4, 255]


def test_one_column_of_labels_has_no_head_and_small_pictures_shrink(tmp_path: Path) -> None:
    points = Points(np.eye(4, dtype=np.float32), None, {"name": list("abcd")})
    write_projector(tmp_path, "p", points)
    assert (tmp_path / "projector" / "p" / "labels.tsv").read_text() == "a\nb\nc\nd\n"
    size, picture = sprite_sheet(np.zeros((2, 5000, 10, 3), np.uint8))
    with Image.open(io.BytesIO(picture)) as sheet:
        assert size == (2500, 5) and sheet.size == (10, 5000)


def test_fault_05_a_cloud_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "projector").write_text("in the way")
    logger = Logger(tmp_path)
    logger.embedding("p", Points(np.eye(4, dtype=np.float32), None, {}))
    logger.embedding("p", Points(np.full((4, 4), np.nan, np.float32), None, {}))
    logger.scalars(1, {"loss": 1.0})
    logger.close()
    assert logger.lost == 2 and caplog.text.count("the projector: a record is lost") == 1
    assert (
        points(tmp_path, "loss") == [(1, 1.0)]
        and not (tmp_path / "projector_config.pbtxt").exists()
    )


def test_a_resume_forgets_what_will_happen_again(tmp_path: Path) -> None:
    logger = Logger(tmp_path)
    for step in (10, 20, 30):
        logger.scalars(step, {"loss": step})
        logger.episode({"step": step})
    logger.close()
    logger = Logger(tmp_path, resume_step=20)
    logger.scalars(30, {"loss": 33})
    logger.episode({"step": 31})
    logger.close()
    steps = [(r["step"], r["loss"]) for r in read_jsonl(tmp_path / METRICS)]
    assert steps == [(10, 10.0), (20, 20.0), (30, 33.0)]
    assert [record["step"] for record in read_jsonl(tmp_path / EPISODES)] == [10, 20, 31]
    assert points(tmp_path, "loss") == [(10, 10.0), (20, 20.0), (30, 33.0)]


def test_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    file = tmp_path / METRICS
    file.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    lines = JsonLines(file)
    lines.append({"step": 3})
    lines.append({"step": 4})
    lines.close()
    assert [record["step"] for record in read_jsonl(file)] == [1, 3, 4]
    assert keep_records(file, lambda record: record["step"] != 3) == 1
    assert file.read_text() == '{"step": 1}\n{"step": 4}\n'


def test_records_are_on_the_disk_at_once(tmp_path: Path) -> None:
    logger = Logger(tmp_path)
    logger.scalars(1, {"loss": 1.0})
    assert len(list(read_jsonl(tmp_path / METRICS))) == 1
    assert points(tmp_path, "loss") == [(1, 1.0)]
    logger.close()


def test_fault_05_metrics_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / METRICS).symlink_to("/dev/full")
    (tmp_path / EPISODES).symlink_to("/dev/full")
    logger = Logger(tmp_path, resume_step=3)
    for step in range(4, 9):
        logger.scalars(step, {"loss": 1.0})
        logger.episode({"step": step})
    logger.close()
    assert logger.lost == 10
    assert sorted(record.args[0] for record in caplog.records) == [EPISODES, METRICS]
    assert len(points(tmp_path, "loss")) == 5, "the other backend goes on"


FULL_DISK = """
import logging, resource, signal, sys
from pathlib import Path
from reverie.agents.runs.logger import Logger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logger = Logger(Path(sys.argv[1]))
logger.scalars(0, {"loss": 0.0})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
for step in range(1, 101):
    logger.scalars(step, {"loss": float(step)})
lost = logger.lost
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
logger.scalars(101, {"loss": 101.0})
assert logger.lost == lost
logger.close()
print("lost", lost)
"""


def test_fault_05_a_disk_that_fills_up_and_is_emptied(tmp_path: Path) -> None:
    said = run_child(FULL_DISK, tmp_path)
    lost = int(said.split("lost ")[-1])
    recorded = [int(record["step"]) for record in read_jsonl(tmp_path / METRICS)]
    drawn = [step for step, _ in points(tmp_path, "loss")]
    assert recorded[-1] == drawn[-1] == 101, "the run records again once there is room"
    assert recorded == sorted(recorded) and drawn == sorted(drawn)
    assert lost == 2 * 102 - len(recorded) - len(drawn) and lost > 100
    assert said.count("a record is lost, the run goes on") == 2, "one warning per file"


@pytest.mark.parametrize("broken", ["tensorboard", "tensorboard.summary.writer.record_writer"])
def test_fault_21_tensorboard_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    for name in [name for name in sys.modules if name.startswith(broken)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, broken, None)
    logger = Logger(tmp_path)
    for step in range(3):
        logger.scalars(step, {"loss": 1.0})
        logger.text(step, "note", "x")
    logger.close()
    assert len(list(read_jsonl(tmp_path / METRICS))) == 3
    assert len(caplog.records) == 1 and "TensorBoard does not work" in caplog.text
    assert not list(tmp_path.glob("events*"))


def test_fault_21_a_tensorboard_that_raises_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise TypeError("Descriptors cannot be created directly")  # protobuf's way to say: too old

    monkeypatch.setattr(tensorboard_events, "import_module", broken)
    logger = Logger(tmp_path)
    logger.scalars(1, {"loss": 1.0})
    logger.scalars(2, {"loss": 1.0})
    logger.close()
    assert len(list(read_jsonl(tmp_path / METRICS))) == 2 and len(caplog.records) == 1


def test_fault_21_the_run_directory_vanishes(tmp_path: Path) -> None:
    logger = Logger(tmp_path / "gone")
    logger.scalars(1, {"loss": 1.0})
    logger.episode({"step": 1})
    logger.close()
    assert logger.lost == 3
    os.mkdir(tmp_path / "gone")
    logger = Logger(tmp_path / "gone")
    logger.scalars(1, {"loss": 1.0})
    logger.close()
    assert logger.lost == 0
