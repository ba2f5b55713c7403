"""LeRobot data reads as it is, whoever wrote it, and ours is what their readers look for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_doubles import EPISODES, handmade_lerobot, picture, small_demos
from PIL import Image
from pyarrow import parquet

from reverie.agents.demos.format import ENVIRONMENT as WHOLE
from reverie.agents.demos.format import IMAGE, STATE
from reverie.agents.demos.lerobot import from_lerobot, to_lerobot
from reverie.agents.demos.store import DemoError, open_dataset


def test_handmade_lerobot_data_reads_to_the_pairs_it_holds(tmp_path: Path) -> None:
    shards = from_lerobot(handmade_lerobot(tmp_path / "hand"), tmp_path / "d", task_names="hand")
    assert [shard.name for shard in shards] == ["pull-it-000", "push-it-000"]
    dataset = open_dataset(tmp_path / "d")
    assert dataset.tasks == ("hand/pull-it", "hand/push-it")
    spec = dataset.spec
    assert (spec.action_size, spec.vector_size, spec.proprio_size) == (1, 3, 2)
    assert spec.image_shape == (2, 3, 3) and spec.fps == 20 and not spec.discrete
    found = [(ref.length, ref.success, ref.seed) for ref in dataset.episodes]
    assert found == [(2, False, 0), (1, False, 2), (3, True, 1)]
    # the two states together are the vector; row t has the action taken at observation t
    first, last, solved = (dataset.episode(number) for number in range(3))
    assert first[WHOLE].tolist() == [[0, 1, -1], [2, 3, -2]]
    assert last[WHOLE].tolist() == [[20, 21, -6]]
    assert solved[WHOLE].tolist() == [[10, 11, -3], [12, 13, -4], [14, 15, -5]]
    assert solved[STATE].tolist() == [[10, 11], [12, 13], [14, 15]]
    assert first["action"].tolist() == [[0.0], [0.25]]
    assert solved["action"].tolist() == [[-0.5], [0.75], [1.0]]
    assert solved["next.reward"].tolist() == [2.5, 3.5, 4.5]
    assert solved["next.success"].tolist() == [False, True, True]
    assert solved["next.done"].tolist() == [False, False, True]
    assert np.array_equal(solved[IMAGE], np.stack([picture(2), picture(3), picture(4)]))
    assert np.array_equal(last[IMAGE], picture(5)[None])


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {}
DAMAGED["length"] = (
    {"episodes": [EPISODES[0] | {"length": 1, "dataset_to_index": 1}, *EPISODES[1:]]},
    r"file-000.parquet: episode 0: expected 1 frames, found 2",
)
DAMAGED["range"] = (
    {"episodes": [EPISODES[0], EPISODES[1] | {"dataset_from_index": 3}, EPISODES[2]]},
    r"meta/episodes/.*: expected episode 1 at frames 2 to 5, found episode 1 at 3 to 5",
)
DAMAGED["a gap"] = (
    {"episodes": [EPISODES[0], EPISODES[2]]},
    r"meta/episodes/.*: expected episode 1 at frames 2 to 3, found episode 2",
)
DAMAGED["file"] = (
    {"episodes": [*EPISODES[:2], EPISODES[2] | {"file": 0}]},
    r"file-000.parquet: episode 2: expected 1 frames, found 0",
)
DAMAGED["missing file"] = (
    {"episodes": [*EPISODES[:2], EPISODES[2] | {"file": 7}]},
    r"file-007.parquet: not a complete Parquet file",
)
DAMAGED["frame"] = (
    {"frames": {"frame_index": [0, 1, 0, 2, 1, 0]}},
    r"file-000.parquet: episode 1: frame 1: expected frame_index 1, found 2",
)
DAMAGED["index"] = (
    {"frames": {"index": [0, 1, 2, 3, 9, 5]}},
    r"file-000.parquet: episode 1: frame 2: expected index 4, found 9",
)
DAMAGED["order"] = (
    {"frames": {"episode_index": [1, 1, 0, 0, 0, 2]}},
    r"file-000.parquet: episode 0: expected it before episode 1",
)
DAMAGED["task"] = (
    {"frames": {"task_index": [1, 1, 0, 1, 0, 1]}},
    r"file-000.parquet: episode 1: expected one task, found \[0, 1\]",
)
DAMAGED["strange task"] = (
    {"frames": {"task_index": [1, 1, 0, 0, 0, 8]}},
    r"file-001.parquet: episode 2: task 8 is not in meta/tasks.parquet",
)
DAMAGED["hole"] = (
    {"frames": {"action": [0.0, 0.0, 0.0, None, 0.0, 0.0]}},
    r"file-000.parquet: episode 1: action: expected a value in every frame",
)
DAMAGED["total"] = ({"info": {"total_frames": 7}}, r"info.json: expected 3 episodes and 6 frames")
DAMAGED["version"] = ({"info": {"codebase_version": "v2.1"}}, r"expected a LeRobotDataset v3")
DAMAGED["path"] = ({"info": {"data_path": "data/{chunk}"}}, r"info.json: expected a data_path")


@pytest.mark.parametrize("kind", DAMAGED)
def test_lerobot_data_that_contradicts_itself_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    changes, message = DAMAGED[kind]
    folder = handmade_lerobot(tmp_path / "hand", **changes)
    with pytest.raises(DemoError, match=message):
        from_lerobot(folder, tmp_path / "d", task_names="hand")
    assert not list(tmp_path.glob("d/*")), "nothing half read stays"


def test_a_whole_state_is_not_joined_to_its_beginning(tmp_path: Path) -> None:
    whole = {STATE: [[3, 4]] * 6, WHOLE: [[3, 4, 5]] * 6, "action": [0.1 * n for n in range(6)]}
    folder = handmade_lerobot(tmp_path / "hand", frames=whole, whole=3)
    from_lerobot(folder, tmp_path / "d", task_names="hand")
    dataset = open_dataset(tmp_path / "d")
    assert (dataset.spec.vector_size, dataset.spec.proprio_size) == (3, 2)
    assert dataset.episode(0)[WHOLE].tolist() == [[3, 4, 5], [3, 4, 5]]


def test_texts_of_tasks_become_names(tmp_path: Path) -> None:
    folder = handmade_lerobot(tmp_path / "hand")

    def names(given: Any) -> list[str]:
        out = tmp_path / f"d{len(list(tmp_path.iterdir()))}"
        from_lerobot(folder, out, task_names=given)
        return list(open_dataset(out).tasks)

    assert names({"Push it.": "a/x", "Pull it!": "a/b"}) == ["a/b", "a/x"]
    assert names({"Push it.": "a/x", "Pull it!": "a/x"}) == names("a/x") == ["a/x"]
    with pytest.raises(DemoError, match=r"the task 'Push it.' has no name"):
        names({"Pull it!": "a/b"})
    with pytest.raises(DemoError, match=r'expected a task as "suite/name", found \'Pull it!\''):
        names(None)


def test_what_a_lerobot_dataset_does_not_tell_is_not_made_up(tmp_path: Path) -> None:
    features = {"action": {"dtype": "float32", "shape": [1]}} | {
        STATE: {"dtype": "float32", "shape": [2]}
    }
    folder = handmade_lerobot(tmp_path / "hand", info={"features": features})
    from_lerobot(folder, tmp_path / "d", task_names="hand/one")
    dataset = open_dataset(tmp_path / "d")
    assert [ref.success for ref in dataset.episodes] == [None] * 3
    episode = dataset.episode(1)
    assert episode["next.reward"].tolist() == [0, 0, 0] and not episode["next.success"].any()
    assert episode["next.done"].tolist() == [False, False, True]
    assert dataset.spec.image_shape is None and dataset.spec.proprio_size == 0


PICTURES = {"dtype": "image", "shape": [2, 3, 3]}
NUMBERS = {name: {"dtype": "float32", "shape": [1]} for name in ("action", "next.reward")}


@pytest.mark.parametrize(
    ("features", "camera", "message"),
    [
        ({"a": PICTURES, "b": PICTURES}, None, r"found \['a', 'b'\]; name one with --camera"),
        ({"a": PICTURES}, "b", r"expected --camera one of \['a'\], found b"),
        ({"a": {**PICTURES, "dtype": "video"}}, None, "a is stored as video"),
        ({"a": {**PICTURES, "shape": [2, 3, 12]}}, None, "channels, which PNG can hold, found 12"),
        ({"observation.images.top": {**PICTURES, "shape": [3, 3, 3]}}, None, r"found \(2, 3, 3\)"),
        ({"a": PICTURES}, None, r"expected the columns \['a'\], found none"),
        ({"action": {"dtype": "int64", "shape": [1]}}, None, "expected action as a row of numbers"),
    ],
)
def test_features_that_cannot_be_taken_in(
    features: dict[str, Any], camera: str | None, message: str, tmp_path: Path
) -> None:
    folder = handmade_lerobot(tmp_path / "hand", info={"features": NUMBERS | features})
    with pytest.raises(DemoError, match=message):
        from_lerobot(folder, tmp_path / "d", task_names="hand", camera=camera)


def test_an_action_out_of_range_names_the_foreign_file(tmp_path: Path) -> None:
    folder = handmade_lerobot(tmp_path / "hand", frames={"action": [0, 0, 0, 200.0, 0, 0]})
    with pytest.raises(DemoError, match=r"file-000.parquet: episode 1: .* frame 1: .*\[200.\]"):
        from_lerobot(folder, tmp_path / "d", task_names="hand")
    assert not list(tmp_path.glob("d/*"))


def test_a_damaged_picture_names_file_episode_and_frame(tmp_path: Path) -> None:
    folder = handmade_lerobot(tmp_path / "hand", broken=4)
    with pytest.raises(DemoError, match=r"episode 1: observation.images.top: .* frame 2 is damag"):
        from_lerobot(folder, tmp_path / "d", task_names="hand")


def test_a_lerobot_export_holds_what_their_readers_look_for(tmp_path: Path) -> None:
    dataset = small_demos(tmp_path / "d")
    folder = to_lerobot(dataset, tmp_path / "out", file_megabytes=0)
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["splits"] == {"train": "0:9"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (9, 18, 2)
    assert info["features"][IMAGE]["dtype"] == "image" and info["fps"] == 12.5
    (table,) = [parquet.read_table(p) for p in folder.glob("meta/episodes/*/*.parquet")]
    rows = table.to_pylist()
    assert [row["length"] for row in rows] == [1, 3, 2] * 3
    assert [row["dataset_from_index"] for row in rows] == [0, 1, 4, 6, 7, 10, 12, 13, 16]
    assert [row["dataset_to_index"] for row in rows] == [1, 4, 6, 7, 10, 12, 13, 16, 18]
    assert [row["tasks"] for row in rows] == [["walk/far"]] * 6 + [["walk/home"]] * 3
    # no file may grow: every episode begins a new one
    assert [row["data/file_index"] for row in rows] == list(range(9))
    data = parquet.read_table(folder / info["data_path"].format(chunk_index=0, file_index=7))
    wanted = dataset.episode(7)
    assert data["index"].to_pylist() == [13, 14, 15]
    assert data["frame_index"].to_pylist() == [0, 1, 2]
    assert data["episode_index"].to_pylist() == [7, 7, 7]
    assert data["task_index"].to_pylist() == [1, 1, 1]
    assert data["timestamp"].to_pylist() == pytest.approx([0, 0.08, 0.16])
    assert data["action"].to_pylist() == wanted["action"].tolist()
    assert data[STATE].to_pylist() == wanted[STATE].tolist()
    for moment, cell in enumerate(data[IMAGE].to_pylist()):
        with Image.open(io.BytesIO(cell["bytes"])) as file:
            assert file.format == "PNG"
            assert np.array_equal(np.asarray(file), wanted[IMAGE][moment])
    tasks = parquet.read_table(folder / "meta/tasks.parquet")
    assert tasks["task"].to_pylist() == ["walk/far", "walk/home"]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_of_a_lerobot_export_are_those_of_all_frames(tmp_path: Path) -> None:
    dataset = small_demos(tmp_path / "d")
    folder = to_lerobot(dataset, tmp_path / "out")
    assert len(list(folder.glob("data/*/*"))) == 1, "many episodes share a file"
    stats = json.loads((folder / "meta/stats.json").read_text())
    for name, axes in (("action", 0), (STATE, 0), (IMAGE, (0, 1, 2))):
        rows = np.concatenate([dataset.episode(n)[name] for n in range(9)]).astype(np.float64)
        rows = rows / 255 if name == IMAGE else rows
        for key in ("min", "max", "mean", "std"):
            found = np.array(stats[name][key])
            assert found.shape == ((3, 1, 1) if name == IMAGE else rows.shape[1:])
            wanted = getattr(rows, key)(axis=axes)
            np.testing.assert_allclose(found.reshape(-1), wanted, rtol=1e-6, atol=1e-7)
        assert stats[name]["count"] == [18]
