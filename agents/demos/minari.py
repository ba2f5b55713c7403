"""Demonstrations as a Minari dataset (HDF5) and back.

Minari holds what was seen after the last action too, so an episode of T actions has T + 1
observations; ours has T. Written, the last frame stands twice, and the metadata say so; read, the
last observation is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from reverie.agents.demos.exchange import (
    Imported,
    Notes,
    Origin,
    describe,
    read_notes,
    require_packages,
    require_task,
    to_float32,
    write_shards,
)
from reverie.agents.demos.format import ENVIRONMENT, IMAGE, STATE, Array
from reverie.agents.demos.store import DemoDataset, DemoError, DemoSpec
from reverie.envs.gym_export import observation_space

ROOT = "MINARI_DATASETS_PATH"
DATASET_ID = re.compile(r"([-\w][-\w/]*[-\w]/)?[-\w]+-v\d+")
NOTES = "reverie"
"""Key of our notes in the metadata."""


# to Minari


def to_minari(dataset: DemoDataset, dataset_id: str, root: Path) -> Path:
    """Write all episodes as <root>/<dataset_id>, which is returned.

    `minari.load_dataset(dataset_id)` finds it with MINARI_DATASETS_PATH=<root>. Observations and
    actions are those of reverie's Gymnasium environments ("image", "vector"); pictures are stored
    without loss. `infos["success"]` has T + 1 entries, as Minari has one for the reset.
    """
    require_packages("minari", "minari", "h5py")
    import minari

    folder = root / dataset_id
    if not DATASET_ID.fullmatch(dataset_id):
        raise DemoError(f"expected a Minari id such as push/expert-v0, found {dataset_id!r}")
    if folder.exists():
        raise DemoError(f"{folder}: expected no such dataset, found one; choose another version")
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".tmp-{os.getpid()}"
    buffers = (_to_buffer(dataset, number) for number in range(len(dataset.episodes)))
    try:
        with _datasets_at(temporary):
            written = minari.create_dataset_from_buffers(
                dataset_id,
                [next(buffers)],
                observation_space=observation_space(dataset.spec.env_spec(dataset.tasks[0])),
                action_space=_action_space(dataset.spec),
                algorithm_name=", ".join(sorted({s.header["generator"] for s in dataset.shards})),
                description=f"Demonstrations of {', '.join(dataset.tasks)}.",
                data_format="hdf5",
                jpeg_encoding=False,
            )
            for buffer in buffers:  # one at a time: the pictures of all of them are many gigabytes
                written.update_dataset_from_buffer([buffer])
            about = [{"task": one.task, "last_observation": "repeated"} for one in dataset.episodes]
            written.storage.update_episode_metadata(about)
            notes = {**describe(dataset), "last_observation": "repeated"}
            written.storage.update_metadata({NOTES: notes})
        _publish(temporary, root, dataset_id)
    except OSError as error:
        raise DemoError(
            f"{folder}: could not be written ({error.strerror or error}); nothing of it is left"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _datasets_at(root: Path) -> Iterator[None]:
    """Let Minari look below `root`, without its advice on what to tell about a dataset."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        if before is None:
            del os.environ[ROOT]
        else:
            os.environ[ROOT] = before


def _publish(temporary: Path, root: Path, dataset_id: str) -> None:
    """Move a complete dataset to its place, with the namespaces it needs."""
    namespace = dataset_id.rpartition("/")[0]
    if namespace:
        with _datasets_at(root):
            from minari import namespace as namespaces

            if namespace not in namespaces.list_local_namespaces():
                namespaces.create_namespace(namespace)
    os.rename(temporary / dataset_id, root / dataset_id)


def _action_space(spec: DemoSpec) -> spaces.Space[Any]:
    if spec.discrete:
        return spaces.Discrete(spec.action_size)
    return spaces.Box(-1.0, 1.0, (spec.action_size,), np.float32)


def _to_buffer(dataset: DemoDataset, number: int) -> Any:
    from minari.data_collector import EpisodeBuffer

    columns, episode = dataset.episode(number), dataset.episodes[number]
    observations = {}
    vector = columns.get(ENVIRONMENT, columns.get(STATE))
    for key, values in (("image", columns.get(IMAGE)), ("vector", vector)):
        if values is not None:
            observations[key] = np.concatenate([values, values[-1:]])
    action, done = columns["action"], columns["next.done"]
    # reverie's tasks end for good where they are solved, and otherwise at a time limit
    solved = done & columns["next.success"]
    return EpisodeBuffer(
        id=None,
        seed=episode.seed,
        observations=observations,
        actions=action.argmax(1) if dataset.spec.discrete else action,
        rewards=columns["next.reward"],
        terminations=solved,
        truncations=done & ~solved,
        infos={"success": np.concatenate([[False], columns["next.success"]])},
    )


# from Minari


def from_minari(
    path: Path,
    out: Path,
    *,
    task: str | None = None,
    proprio_size: int = 0,
    fps: float | None = None,
) -> list[Path]:
    """Write the episodes of a Minari dataset as shards below `out`.

    Numbers become float32, all that are not a picture one vector in the order of the space;
    actions of a bounded Box are scaled to [-1, 1]. Without infos["success"] nobody knows what was
    solved.

    Args:
        path: the dataset's folder, <MINARI_DATASETS_PATH>/<dataset id>.
        out: folder of the shards; one, or of our own exports those there were.
        task: name of the task; none: the one our own export noted.
        proprio_size: leading entries of the vector that belong to the robot itself.
        fps: steps per second of the episodes, which Minari does not tell; none: 1.

    Raises:
        DemoError: the files are damaged, or hold what shards cannot.
    """
    require_packages("minari", "minari", "h5py")
    import minari

    data = path / "data" if (path / "data").is_dir() else path
    try:
        source = minari.MinariDataset(data)
        notes = source.storage.metadata.get(NOTES)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise DemoError(f"{data}: not a readable Minari dataset ({error})") from None
    known = None if notes is None else read_notes(notes, len(source), data / "metadata.json")
    if known is None:
        if task is None:
            raise DemoError(f"{data}: expected the name of its task in --task, found none")
        name = f"Minari dataset {source.id}"
        origins = [Origin(require_task(task, str(data)), name, 0, "unknown", {})]
        reader = _reader(source, proprio_size, 1.0 if fps is None else fps, data)
    else:
        origins = known.origins
        if task is not None and {origin.task for origin in origins} != {task}:
            found = ", ".join(sorted({origin.task for origin in origins}))
            raise DemoError(f"{data}: expected episodes of {task}, found its own notes on {found}")
        reader = _Reader(known.spec, source.observation_space, source.action_space)
    return write_shards(out, reader.spec, origins, _episodes(source, reader, known, data))


@dataclass(frozen=True)
class _Reader:
    """What the values of a dataset mean."""

    spec: DemoSpec
    observations: spaces.Space[Any]
    actions: spaces.Space[Any]


def _reader(source: Any, proprio_size: int, fps: float, where: Path) -> _Reader:
    actions = source.action_space
    discrete = isinstance(actions, spaces.Discrete)
    if not discrete and not (isinstance(actions, spaces.Box) and len(actions.shape) == 1):
        raise DemoError(f"{where}: expected Discrete actions or a flat Box, found {actions}")
    images, vectors = _leaves(source.observation_space, where)
    if len(images) > 1:
        raise DemoError(f"{where}: expected at most one picture, found {sorted(images)}")
    size = sum(int(np.prod(space.shape)) for space in vectors.values())
    if not 0 <= proprio_size <= size:
        raise DemoError(
            f"{where}: expected --proprio-size from 0 to {size}, the size of the vector, "
            f"found {proprio_size}"
        )
    spec = DemoSpec(
        action_size=int(actions.n) if discrete else actions.shape[0],
        discrete=discrete,
        vector_size=size,
        proprio_size=proprio_size,
        image_shape=next((_image_shape(space) for space in images.values()), None),
        fps=fps,
    )
    return _Reader(spec, source.observation_space, actions)


def _leaves(
    space: spaces.Space[Any], where: Path | str, name: str = ""
) -> tuple[dict[str, spaces.Box], dict[str, spaces.Box]]:
    """Pictures and other numbers of a space, by their path in it."""
    if isinstance(space, spaces.Dict):
        images: dict[str, spaces.Box] = {}
        vectors: dict[str, spaces.Box] = {}
        for key, part in space.spaces.items():
            some, others = _leaves(part, where, f"{name}/{key}" if name else key)
            images |= some
            vectors |= others
        return images, vectors
    if not isinstance(space, spaces.Box):
        raise DemoError(f"{where}: expected Box observations, or a Dict of them, found {space}")
    if space.dtype == np.uint8 and len(space.shape) in (2, 3):
        return {name: space}, {}
    return {}, {name: space}


def _image_shape(space: spaces.Box) -> tuple[int, int, int]:
    height, width, *channels = space.shape
    return height, width, channels[0] if channels else 1


def _episodes(source: Any, reader: _Reader, notes: Notes | None, data: Path) -> Iterator[Imported]:
    """Read one episode after the other."""
    numbers = [int(number) for number in source.episode_indices]
    for place, number in enumerate(numbers):
        where = f"{data / 'main_data.hdf5'}: episode {number}"
        try:
            (episode,) = source.iterate_episodes([number])
            (about,) = source.storage.get_episode_metadata([number])
        except (OSError, KeyError, ValueError, AssertionError) as error:
            raise DemoError(f"{where}: not readable ({error})") from None
        columns = _to_columns(episode, reader, where)
        if notes is None:
            seed = about.get("seed")
            seed = place if seed is None else int(seed)
            told = "success" in (episode.infos or {})
            success = bool(columns["next.success"].any()) if told else None
            yield Imported(columns, 0, success, seed, where)
        else:
            noted = notes.episodes[place]
            yield Imported(columns, noted["shard"], noted["success"], noted["seed"], where)


def _to_columns(episode: Any, reader: _Reader, where: str) -> dict[str, Array]:
    """Pairs of an episode: row t has observation t of T + 1 and action t of T."""
    count = len(episode.rewards)
    for name in ("terminations", "truncations"):
        found = len(getattr(episode, name))
        if found != count:
            raise DemoError(f"{where}: expected {count} frames of {name}, found {found}")
    ends = np.asarray(episode.terminations, bool) | np.asarray(episode.truncations, bool)
    columns = _observations(episode.observations, reader, count, where)
    columns["action"] = _actions(np.asarray(episode.actions), reader, where)
    columns["next.reward"] = to_float32(np.asarray(episode.rewards))
    columns["next.done"] = ends
    columns["next.success"] = _success(episode.infos, count, where)
    for name, values in columns.items():
        if len(values) != count:
            raise DemoError(f"{where}: expected {count} frames of {name}, found {len(values)}")
    early = np.flatnonzero(ends[:-1])
    if len(early):
        raise DemoError(f"{where}: frame {early[0]}: expected no end before frame {count - 1}")
    return columns


def _observations(found: Any, reader: _Reader, count: int, where: str) -> dict[str, Array]:
    images, vectors = _leaves(reader.observations, where)
    parts = {name: np.asarray(_leaf(found, name)) for name in [*images, *vectors]}
    for name, values in parts.items():
        if len(values) != count + 1:
            raise DemoError(
                f"{where}: expected {count + 1} observations{name and ' ' + name} for {count} "
                f"actions, found {len(values)}"
            )
    parts = {name: values[:-1] for name, values in parts.items()}
    columns = {}
    for name, space in images.items():
        columns[IMAGE] = parts[name].reshape(count, *_image_shape(space))
    if vectors:
        rows = [parts[name].reshape(count, -1) for name in vectors]
        vector = np.concatenate([to_float32(part) for part in rows], 1)
        size = reader.spec.proprio_size
        columns[STATE] = vector[:, :size] if size else vector
        if size:
            columns[ENVIRONMENT] = vector
    return columns


def _leaf(found: Any, name: str) -> Any:
    for key in name.split("/") if name else ():
        found = found[key]
    return found


def _actions(found: Array, reader: _Reader, where: str) -> Array:
    space = reader.actions
    if isinstance(space, spaces.Discrete):
        numbers = found.reshape(-1) - space.start
        strange = np.flatnonzero((numbers < 0) | (numbers >= space.n))
        if len(strange):
            frame = strange[0]
            raise DemoError(f"{where}: frame {frame}: {found[frame]} is no action of {space}")
        hot: Array = np.eye(reader.spec.action_size, dtype=np.float32)[numbers]
        return hot
    assert isinstance(space, spaces.Box)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not np.isfinite([low, high]).all() or ((low == -1) & (high == 1)).all():
        return to_float32(found)
    scaled = (found - low) / (high - low) * 2 - 1
    return to_float32(scaled)


def _success(infos: Mapping[str, Any] | None, count: int, where: str) -> Array:
    """Whether the task was solved after every action; infos may begin with one for the reset."""
    if not infos or "success" not in infos:
        return np.zeros(count, bool)
    found = np.asarray(infos["success"]).astype(bool)
    if found.shape not in ((count,), (count + 1,)):
        raise DemoError(
            f"{where}: expected {count} or {count + 1} values of success, found {found.shape}"
        )
    return found[len(found) - count :]
