"""Windows of demonstrations: what a slow slicing of episodes gives, drawn fast."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_demos import TASKS, point_spec, shard_writer, walk, write_demos

from reverie.agents.demos.store import DemoDataset, DemoError, DemoSpec, open_dataset
from reverie.agents.demos.windows import DemoWindows, Images
from reverie.envs.specs import Array

WHOLE, IMAGE = "observation.environment_state", "observation.image"


def sliced(dataset: DemoDataset, number: int, frame: int, chunk: int) -> dict[str, Any]:
    """A window as a slice of one episode."""
    columns, length = dataset.episode(number), dataset.episodes[number].length
    rows = [min(frame + ahead, length - 1) for ahead in range(chunk)]
    found = {"vector": columns[WHOLE][rows], "action": columns["action"][rows]}
    if IMAGE in columns:
        found["image"] = columns[IMAGE][rows]
    return {**found, "is_pad": np.array([frame + ahead >= length for ahead in range(chunk)])}


def assert_windows(windows: DemoWindows, episodes: list[int], tasks: tuple[str, ...]) -> None:
    """Every window is the slice that begins at its frame."""
    dataset, place = windows.dataset, 0
    batch = windows.gather(torch.arange(len(windows)))
    keys = {"vector", "action", "is_pad", "task"}
    keys |= set() if windows.images == "none" else {"image"}
    assert set(batch.keys()) == keys
    for number in episodes:
        ref = dataset.episodes[number]
        assert windows.start_index(number) == place
        for frame in range(ref.length):
            wanted = sliced(dataset, number, frame, windows.chunk)
            if windows.images == "first":
                wanted["image"] = wanted["image"][:1]
            for name in keys - {"task"}:
                found = batch[name][place].numpy()
                assert found.dtype == wanted[name].dtype and np.array_equal(found, wanted[name])
            assert tasks[int(batch["task"][place])] == ref.task
            assert windows.episode_of(place) == number
            place += 1
    assert place == len(windows)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    chunk=st.integers(1, 12),
    images=st.sampled_from(["none", "first", "all"]),
    data=st.data(),
)
def test_windows_are_slices_of_single_episodes(
    lengths: list[list[int]], chunk: int, images: Images, data: st.DataObject
) -> None:
    spec = point_spec(image_size=None if images == "none" else 3)
    with TemporaryDirectory() as folder:
        for place, own in enumerate(lengths):
            path = Path(folder, f"{place}")
            with shard_writer(path, task=TASKS[place % 2], spec=spec) as writer:
                for number, length in enumerate(own):
                    seed = 10 * place + number
                    writer.add(walk(spec, length, seed=seed), success=True, seed=seed)
        dataset = open_dataset(Path(folder))
        numbers = range(len(dataset.episodes))
        episodes = data.draw(st.lists(st.sampled_from(numbers), min_size=1, unique=True))
        tasks = ("toy/none", *reversed(TASKS))
        windows = DemoWindows(dataset, episodes, chunk=chunk, tasks=tasks, images=images)
        assert_windows(windows, episodes, tasks)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    folder = tmp_path_factory.mktemp("demos")
    return open_dataset(write_demos(folder, images=True, shard_episodes=2))


def windows_of(dataset: DemoDataset, **options: Any) -> DemoWindows:
    usual: dict[str, Any] = {"chunk": 5, "tasks": TASKS, "images": "all"}
    return DemoWindows(dataset, range(len(dataset.episodes)), **{**usual, **options})


def test_a_batch_has_the_promised_kinds(dataset: DemoDataset) -> None:
    batch = windows_of(dataset).sample(7, np.random.default_rng(0))
    found = {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()}
    assert batch.batch_size == (7,) and found == {
        "vector": (torch.float32, (7, 5, 4)),
        "action": (torch.float32, (7, 5, 2)),
        "is_pad": (torch.bool, (7, 5)),
        "task": (torch.int64, (7,)),
        "image": (torch.uint8, (7, 5, 16, 16, 3)),
    }
    assert "image" not in windows_of(dataset, images="none").gather(np.array([0]))
    assert windows_of(dataset, images="first").gather(np.array([0]))["image"].shape[1] == 1


def test_draws_are_a_function_of_the_generator(dataset: DemoDataset) -> None:
    windows = windows_of(dataset)
    first, second = (windows.sample(64, np.random.default_rng(3)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first.keys())
    other = windows.sample(64, np.random.default_rng(4))
    assert not torch.equal(first["vector"], other["vector"])
    wanted = windows.gather(np.random.default_rng(3).integers(0, len(windows), 64))
    assert all(torch.equal(first[name], wanted[name]) for name in first.keys())


def test_a_batch_is_a_copy(dataset: DemoDataset) -> None:
    windows = windows_of(dataset)
    first = windows.gather(torch.tensor([3, 3]))
    kept = first.clone()
    second = windows.gather(torch.tensor([9, 9]))
    assert all(torch.equal(first[name], kept[name]) for name in kept.keys())
    for value in (*first.values(), *second.values()):
        value.zero_()
    again = windows.gather(torch.tensor([3, 3]))
    assert all(torch.equal(again[name], kept[name]) for name in kept.keys())


def test_statistics_are_those_of_numpy(dataset: DemoDataset) -> None:
    episodes = [1, 4]
    windows = DemoWindows(dataset, episodes, chunk=5, tasks=TASKS, images="none")
    found = windows.statistics()
    assert found.keys() == {"vector_mean", "vector_std", "action_mean", "action_std"}
    for name, column in (("vector", WHOLE), ("action", "action")):
        rows = np.concatenate([dataset.episode(n)[column] for n in episodes]).astype(np.float64)
        for kind in ("mean", "std"):
            wanted = torch.from_numpy(getattr(rows, kind)(axis=0).astype(np.float32))
            torch.testing.assert_close(found[f"{name}_{kind}"], wanted, rtol=1e-6, atol=1e-7)
    every = windows_of(dataset).statistics()
    assert not torch.equal(every["vector_mean"], found["vector_mean"])


def test_a_constant_has_no_deviation_and_there_may_be_no_vector(tmp_path: Path) -> None:
    spec = DemoSpec(2, False, 0, 0, (4, 4, 1), 1.0)
    columns = walk(point_spec(image_size=4), 6)
    del columns["vector"]
    columns |= {"action": np.full((6, 2), 0.3, np.float32), "image": columns["image"][..., :1]}
    with shard_writer(tmp_path / "x", task="toy/a", spec=spec) as writer:
        writer.add(columns, success=True, seed=0)
    windows = windows_of(open_dataset(tmp_path), tasks=["toy/a"])
    assert "vector" not in windows.gather(np.array([0, 5]))
    found = windows.statistics()
    assert found["vector_mean"].shape == found["vector_std"].shape == (0,)
    assert found["action_std"].tolist() == [0.0, 0.0]
    assert torch.equal(found["action_mean"], torch.full((2,), 0.3))


def test_images_stay_on_the_disk(dataset: DemoDataset) -> None:
    windows = windows_of(dataset)
    for held in windows._maps:
        assert isinstance(held.base, np.memmap) and not held.flags.owndata
    assert all(isinstance(column, torch.Tensor) for column in windows._columns.values())
    assert windows_of(dataset, images="none")._maps == []


@pytest.mark.parametrize("index", [[-1], [78], [[0]], []], ids=str)
def test_frames_that_are_not_there_are_refused(index: list[Any], dataset: DemoDataset) -> None:
    with pytest.raises((IndexError, ValueError), match="expected"):
        windows_of(dataset).gather(np.array(index, np.int64))


def test_what_cannot_be_drawn_is_refused(dataset: DemoDataset, tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"b-000, episode 0: expected one of toy/a, found the task"):
        windows_of(dataset, tasks=["toy/a"])
    with pytest.raises(DemoError, match="at least 1 frame"):
        windows_of(dataset, chunk=0)
    with pytest.raises(DemoError, match="at least 1 episode"):
        DemoWindows(dataset, [], chunk=5, tasks=TASKS, images="none")
    blind = open_dataset(write_demos(tmp_path, episodes=1))
    with pytest.raises(DemoError, match="--observe both") as caught:
        windows_of(blind, images="first")
    assert str(tmp_path / "a-000") in str(caught.value)


def big(folder: Path) -> DemoDataset:
    """300 episodes of 86 frames with a 39-D state."""
    spec, rng = DemoSpec(4, False, 39, 4, None, 80.0), np.random.default_rng(0)

    def episode() -> dict[str, Array]:
        return {
            "vector": rng.standard_normal((86, 39), dtype=np.float32),
            "action": rng.uniform(-1, 1, (86, 4)).astype(np.float32),
            "reward": np.zeros(86, np.float32),
            "done": np.arange(86) == 85,
            "success": np.zeros(86, bool),
        }

    for place in range(6):
        with shard_writer(folder / f"{place}", task=f"toy/{place}", spec=spec) as writer:
            for seed in range(50):
                writer.add(episode(), success=True, seed=seed)
    return open_dataset(folder)


def test_a_batch_of_windows_costs_less_than_half_a_millisecond(tmp_path: Path) -> None:
    dataset = big(tmp_path)
    windows = windows_of(dataset, chunk=20, tasks=dataset.tasks, images="none")
    rng, times = np.random.default_rng(0), []
    for _ in range(300):
        start = time.perf_counter()
        windows.sample(64, rng)
        times.append(time.perf_counter() - start)
    assert len(windows) == 25_800
    assert min(times) < 0.5e-3, f"{1e3 * min(times):.3f} ms"
