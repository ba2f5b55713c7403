"""Demonstrations on disk: what goes in comes out, and nothing damaged is ever learned from."""

from __future__ import annotations

import shlex
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_demos import point_spec, shard_writer, walk, write_demos

from reverie.agents.demos.store import (
    FORMAT,
    DemoDataset,
    DemoError,
    DemoSpec,
    open_dataset,
    read_shard,
    split,
)
from reverie.envs.specs import Array, EnvSpec

STATE, WHOLE = "observation.state", "observation.environment_state"

SPECS = {
    "split": point_spec(),
    "images": point_spec(image_size=8),
    "discrete": point_spec(discrete=True),
    "no split": DemoSpec(3, False, 5, 0, None, 1.0),
    "images only": DemoSpec(4, True, 0, 0, (6, 5, 1), 60.0),
}


def noise(spec: DemoSpec, length: int, seed: int) -> dict[str, Array]:
    """An episode of awkward numbers."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, spec.action_size)).astype(np.float32)
    action[0] = -1.0
    if spec.discrete:
        action = np.eye(spec.action_size, dtype=np.float32)[rng.integers(0, 4, length)]
    columns = {
        "action": action,
        "reward": rng.choice(np.array([-0.0, 1e-40, 3e38, -7.25], np.float32), length),
        "done": np.arange(length) == length - 1,
        "success": rng.random(length) < 0.5,
    }
    if spec.vector_size:
        columns["vector"] = (1e6 * rng.standard_normal((length, spec.vector_size))).astype("f4")
    if spec.image_shape is not None:
        columns["image"] = rng.integers(0, 256, (length, *spec.image_shape), np.uint8)
    return columns


@pytest.mark.parametrize("kind", SPECS)
def test_columns_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    spec = SPECS[kind]
    episodes = [noise(spec, length, seed) for seed, length in enumerate((3, 1, 17))]
    with shard_writer(tmp_path / "x", task="toy/x", spec=spec, settings={"a": [1]}) as writer:
        for seed, columns in enumerate(episodes):
            writer.add(columns, success=[True, False, None][seed], seed=seed * 2**40)
        path = writer.close(attempts=9)
    dataset = open_dataset(path)
    assert dataset.spec == spec and dataset.tasks == ("toy/x",)
    facts = [(ref.index, ref.length, ref.success, ref.seed) for ref in dataset.episodes]
    assert facts == [(0, 3, True, 0), (1, 1, False, 2**40), (2, 17, None, 2**41)]
    for number, columns in enumerate(episodes):
        found = dataset.episode(number)
        vector = columns.get("vector")
        wanted = {
            "action": columns["action"],
            **{f"next.{name}": columns[name] for name in ("reward", "done", "success")},
        }
        if spec.proprio_size:
            wanted |= {STATE: vector[:, : spec.proprio_size], WHOLE: vector}
        elif vector is not None:
            wanted[STATE] = vector
        if spec.image_shape is not None:
            wanted["observation.image"] = columns["image"]
        assert found.keys() == wanted.keys()
        for name, column in wanted.items():
            assert found[name].dtype == column.dtype and found[name].shape == column.shape
            assert found[name].tobytes() == column.tobytes(), name
    header = dataset.shards[0].header
    assert header["settings"] == {"a": [1], "attempts": 9} and header["format"] == FORMAT
    assert header["generator"] == "straight walk 1" and header["versions"]["numpy"]


def test_what_was_read_can_be_written_again(tmp_path: Path) -> None:
    dataset = open_dataset(write_demos(tmp_path, tasks=["toy/a"], images=True))
    with shard_writer(tmp_path / "copy", task="toy/a", spec=dataset.spec) as writer:
        for number, ref in enumerate(dataset.episodes):
            writer.add(dataset.episode(number), success=ref.success, seed=ref.seed)
    for file in (tmp_path / "a-000").iterdir():
        assert file.read_bytes() == (tmp_path / "copy" / file.name).read_bytes()


def test_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    shard = read_shard(write_demos(tmp_path) / "a-000")
    assert set(shard.header["statistics"]) == set(shard.columns)
    for name, found in shard.header["statistics"].items():
        column = shard.columns[name].astype(np.float64).reshape(shard.frames, -1)
        assert found.keys() == {"mean", "std", "min", "max"}
        for kind, value in found.items():
            np.testing.assert_allclose(value, getattr(np, kind)(column, axis=0), rtol=1e-12)


def test_what_an_agent_needs_to_know(tmp_path: Path) -> None:
    spec = open_dataset(write_demos(tmp_path, images=True)).spec
    assert spec.env_spec("toy/a") == EnvSpec(
        "toy/a", 2, False, image_shape=(16, 16, 3), vector_size=4, proprio_size=2
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {"action_size": 0},
        {"proprio_size": 5},
        {"vector_size": 0, "proprio_size": 0},
        {"image_shape": (8, 0, 3)},
        {"fps": float("nan")},
        {"fps": 0.0},
    ],
    ids=str,
)
def test_sizes_that_nothing_has_are_refused(sizes: dict[str, Any]) -> None:
    usual = {"action_size": 2, "discrete": False, "vector_size": 4, "proprio_size": 2}
    with pytest.raises(DemoError, match="positive sizes and fps"):
        DemoSpec(**{**usual, "image_shape": None, "fps": 10.0, **sizes})


def test_shards_are_found_at_any_depth_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_demos(tmp_path / "1" / "x", tasks=["toy/b", "toy/a"], shard_episodes=2, seed=1)
    write_demos(tmp_path / "0", tasks=["toy/b"])
    shutil.copytree(tmp_path / "0" / "b-000", tmp_path / ".b-007.tmp-12")
    dataset = open_dataset(tmp_path)
    names = [shard.path.relative_to(tmp_path).as_posix() for shard in dataset.shards]
    assert names == ["0/b-000", "1/x/a-000", "1/x/a-001", "1/x/b-000", "1/x/b-001"]
    assert dataset.tasks == ("toy/b", "toy/a")
    assert [len(shard) for shard in dataset.shards] == [3, 2, 1, 2, 1]
    for ref in dataset.episodes:
        assert ref.task == ref.shard.task and ref in dataset.episodes
    with pytest.raises(DemoError, match=r"found none.*reverie demos make"):
        open_dataset(tmp_path / "nothing")


def test_images_are_mapped_and_verified_in_pieces(tmp_path: Path) -> None:
    write_demos(tmp_path, tasks=["toy/a"], episodes=2, length=60, images=True, image_size=256)
    size = (tmp_path / "a-000" / "observation.image.npy").stat().st_size
    tracemalloc.start()
    shard = read_shard(tmp_path / "a-000")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 8 and size > 20e6
    for name, column in shard.columns.items():
        assert isinstance(column, np.memmap) == (name == "observation.image"), name
        assert not column.flags.writeable or name != "observation.image"
    assert isinstance(shard.episode(1)["observation.image"], np.memmap)
    assert isinstance(shard.vector, np.ndarray) and not isinstance(shard.vector, np.memmap)


# what goes together


def shards_of(folder: Path, **facts: Any) -> None:
    """One more shard of toy/a, which differs from the usual ones in `facts`."""
    spec = facts.pop("spec", point_spec())
    with shard_writer(folder / "other", task="toy/a", spec=spec, **facts) as writer:
        writer.add(noise(spec, 4, 0), success=True, seed=77)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"spec": DemoSpec(2, False, 4, 2, None, 20.0)}, "expected fps 10.0 as in"),
        ({"spec": DemoSpec(3, False, 4, 2, None, 10.0)}, "expected action_size 2 as in"),
        ({"spec": DemoSpec(2, False, 5, 2, None, 10.0)}, "expected vector_size 4 as in"),
        ({"spec": DemoSpec(2, False, 4, 1, None, 10.0)}, "expected proprio_size 2 as in"),
        ({"spec": point_spec(image_size=8)}, "expected image_shape None as in"),
        ({"generator": "straight walk 2"}, "mixed versions of toy/a: expected generator 'straight"),
        ({"protocol": "steep"}, "mixed versions of toy/a: expected protocol 'flat' as in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_shards_that_do_not_go_together(facts: dict[str, Any], words: str, tmp_path: Path) -> None:
    shards_of(write_demos(tmp_path, tasks=["toy/a"]), **facts)
    with pytest.raises(DemoError) as caught:
        open_dataset(tmp_path)
    message = str(caught.value)
    assert words in message
    assert f"{tmp_path / 'a-000' / 'header.json'}, episodes 0 to 2" in message
    assert f"{tmp_path / 'other' / 'header.json'}, episode 0" in message


def test_two_tasks_may_have_two_players(tmp_path: Path) -> None:
    spec = point_spec()
    for name in ("a", "b"):
        writer = shard_writer(tmp_path / name, task=f"toy/{name}", spec=spec, generator=name)
        writer.add(noise(spec, 4, 0), success=True, seed=0)
        writer.close()
    assert open_dataset(tmp_path).tasks == ("toy/a", "toy/b")


# splits


def split_of(dataset: DemoDataset, train: int, held_out: int) -> list[list[tuple[str, int]]]:
    parts = split(dataset, train=train, held_out=held_out)
    return [[(ref.task, ref.seed) for ref in map(dataset.episodes.__getitem__, p)] for p in parts]


def test_a_split_takes_the_first_episodes_of_every_task(tmp_path: Path) -> None:
    dataset = open_dataset(write_demos(tmp_path, episodes=5, shard_episodes=2))
    learned, kept = split_of(dataset, 3, 2)
    assert learned == [("toy/a", n) for n in range(3)] + [("toy/b", 100 + n) for n in range(3)]
    assert kept == [("toy/a", 3), ("toy/a", 4), ("toy/b", 103), ("toy/b", 104)]
    learned, kept = split_of(dataset, 1, 0)
    assert learned == [("toy/a", 0), ("toy/b", 100)] and kept == []


def test_too_few_episodes_name_the_command_that_makes_more(tmp_path: Path) -> None:
    folder = tmp_path / "some where"
    write_demos(folder, tasks=["toy/a"], episodes=9)
    spec = point_spec()
    settings = {"observe": "state", "render": "quick", "time_limit": 30, "keep_failures": True}
    writer = shard_writer(folder / "b", task="toy/b", spec=spec, seed=5, settings=settings)
    writer.add(walk(spec, 4), success=False, seed=0)
    writer.close()
    with pytest.raises(DemoError) as caught:
        split(open_dataset(folder), train=4, held_out=3)
    message = str(caught.value)
    assert "toy/b has 1" in message and "toy/a has" not in message
    command = message[message.index("reverie demos make") :]
    assert shlex.split(command) == [
        *("reverie", "demos", "make", "--task", "toy/b", "--episodes", "7", "--seed", "5"),
        *("--out", str(folder), "--observe", "state", "--time-limit", "30", "--keep-failures"),
    ]
