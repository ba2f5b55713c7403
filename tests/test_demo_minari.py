"""Minari data reads as it is, whoever wrote it, and ours is what their readers look for."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from convert_doubles import handmade_minari, picture, small_demos
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from reverie.agents.demos.format import ENVIRONMENT as WHOLE
from reverie.agents.demos.format import IMAGE, STATE
from reverie.agents.demos.minari import from_minari, to_minari
from reverie.agents.demos.store import DemoError, DemoSpec, open_dataset


@pytest.fixture(autouse=True)
def own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def test_a_minari_export_ends_with_its_last_frame_twice(tmp_path: Path) -> None:
    dataset = small_demos(tmp_path / "d")
    to_minari(dataset, "walk/both-v2", tmp_path / "minari")
    found = minari.load_dataset("walk/both-v2")
    assert set(found.observation_space.spaces) == {"image", "vector"}
    assert found.total_episodes == 9 and found.total_steps == 18
    assert found.storage.metadata["reverie"]["last_observation"] == "repeated"
    for number, episode in enumerate(found.iterate_episodes()):
        wanted, length = dataset.episode(number), dataset.episodes[number].length
        for key, name in (("vector", WHOLE), ("image", IMAGE)):
            seen = episode.observations[key]
            assert len(seen) == length + 1
            assert np.array_equal(seen[:-1], wanted[name]), "row t is what action t was taken at"
            assert np.array_equal(seen[-1], seen[-2])
        assert np.array_equal(episode.actions, wanted["action"])
        assert episode.infos["success"].tolist() == [False, *wanted["next.success"].tolist()]
        assert found.action_space.contains(episode.actions[0])
        ends = episode.terminations[-1], episode.truncations[-1]
        assert ends == [(False, False), (True, False), (False, True)][number % 3]
    (about,) = found.storage.get_episode_metadata([8])
    assert about["task"] == "walk/home" and about["last_observation"] == "repeated"
    assert about["seed"] == dataset.episodes[8].seed


def test_handmade_minari_data_reads_to_pairs_without_the_last_observation(tmp_path: Path) -> None:
    path = handmade_minari()
    (shard,) = from_minari(path, tmp_path / "d", task="hand/reach", proprio_size=1, fps=25)
    assert shard == tmp_path / "d" / "reach-000"
    dataset = open_dataset(shard)
    assert dataset.spec == DemoSpec(2, False, 3, 1, (2, 3, 3), 25)
    found = [(ref.length, ref.success, ref.seed) for ref in dataset.episodes]
    # a success of the reset is none
    assert found == [(3, True, 11), (1, False, 1)] and dataset.tasks == ("hand/reach",)
    long, short = dataset.episode(0), dataset.episode(1)
    # in the order of the space: the goal comes first
    assert long[WHOLE].tolist() == [[-1, 1, 1.5], [-2, 2, 2.5], [-3, 3, 3.5]]
    assert long[STATE].tolist() == [[-1], [-2], [-3]]
    assert long["action"].tolist() == [[-1, -1], [0, 0], [1, 1]]
    assert long["next.reward"].tolist() == [0.5, 1.5, 2.5]
    assert long["next.success"].tolist() == [False, True, True]
    assert long["next.done"].tolist() == [False, False, True]
    assert np.array_equal(long[IMAGE], np.stack([picture(1), picture(2), picture(3)]))
    assert short[WHOLE].tolist() == [[-7, 7, 7.5]] and short["action"].tolist() == [[0.5, 1]]
    assert short["next.done"].tolist() == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": [0.5, 1.5]}, "episode 0: expected 2 frames of terminations, found 3"),
        ({"actions": np.ones((2, 2))}, "episode 0: expected 3 frames of action, found 2"),
        (
            {
                "actions": np.ones((2, 2)),
                "rewards": [0.0, 0.0],
                "terminations": [False, False],
                "truncations": [False, False],
            },
            "episode 0: expected 3 observations view for 2 actions, found 4",
        ),
        ({"truncations": [True]}, "episode 0: expected 3 frames of truncations, found 1"),
        ({"truncations": [True, False, False]}, "episode 0: frame 0: expected no end before"),
        ({"infos": {"success": np.ones(7)}}, r"episode 0: expected 3 or 4 values of success"),
        ({"actions": np.full((3, 2), 3.0)}, r"episode 0: .* frame 0: expected actions in \[-1, 1"),
        ({"actions": np.full((3, 2), 1e300)}, r"episode 0: .* frame 0: expected finite values"),
    ],
)
def test_minari_data_that_contradicts_itself_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = handmade_minari(**changes)
    with pytest.raises(DemoError, match=f"main_data.hdf5: {message}"):
        from_minari(path, tmp_path / "d", task="hand/reach")
    assert not list(tmp_path.glob("d/*"))


def test_a_damaged_minari_file_is_named(tmp_path: Path) -> None:
    path = handmade_minari()
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
    with pytest.raises(DemoError, match=r"main_data.hdf5: episode 1: not readable"):
        from_minari(path, tmp_path / "d", task="hand/reach")
    content = (path / "data/main_data.hdf5").read_bytes()
    (path / "data/main_data.hdf5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DemoError, match=r"main_data.hdf5: episode 0: not readable"):
        from_minari(path, tmp_path / "d", task="hand/reach")
    with pytest.raises(DemoError, match="not a readable Minari dataset"):
        from_minari(tmp_path / "nothing", tmp_path / "d", task="hand/reach")
    with pytest.raises(DemoError, match="expected --proprio-size from 0 to 3"):
        from_minari(path, tmp_path / "d", task="hand/reach", proprio_size=4)
    with pytest.raises(DemoError, match="expected the name of its task in --task"):
        from_minari(path, tmp_path / "d")


def test_discrete_actions_of_minari_start_where_their_space_does(tmp_path: Path) -> None:
    def written(name: str, actions: list[int]) -> Path:
        buffer = EpisodeBuffer(
            observations=np.array([[0.0], [1.0], [2.0]], np.float32),
            actions=np.array(actions),
            rewards=[0.0, 0.0],
            terminations=[False, False],
            truncations=[False, False],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            minari.create_dataset_from_buffers(
                name,
                [buffer],
                observation_space=spaces.Box(-9, 9, (1,), np.float32),
                action_space=spaces.Discrete(3, start=5),
            )
        return Path(os.environ["MINARI_DATASETS_PATH"]) / name

    from_minari(written("good-v0", [7, 5]), tmp_path / "d", task="hand/turn")
    dataset = open_dataset(tmp_path / "d")
    assert dataset.episode(0)["action"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert dataset.spec.discrete and dataset.episodes[0].success is None
    assert dataset.episode(0)["next.done"].tolist() == [False, False]
    with pytest.raises(DemoError, match="episode 0: frame 1: 4 is no action of"):
        from_minari(written("bad-v0", [7, 4]), tmp_path / "e", task="hand/turn")
