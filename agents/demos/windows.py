"""Windows of demonstrations: a chunk of frames from every frame on, padded behind the episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from reverie.agents.demos.format import ACTION, IMAGE
from reverie.agents.demos.store import DemoDataset, DemoError

Array = NDArray[Any]
Images = Literal["none", "first", "all"]


class DemoWindows:
    """Windows [B, P] of episodes, drawn by index arithmetic on `device`.

    Vectors and actions lie on the device once. Images stay in their memory maps and cross in the
    windows that ask for them.
    """

    def __init__(
        self,
        dataset: DemoDataset,
        episodes: Sequence[int],
        *,
        chunk: int,
        tasks: Sequence[str],
        images: Images = "none",
        device: torch.device | str = "cpu",
    ) -> None:
        """Take `episodes`, numbers in the dataset; `tasks` numbers the tasks.

        Args:
            dataset: where the episodes are.
            episodes: at least one.
            chunk: frames P of a window.
            tasks: those of all episodes, and maybe more.
            images: none, those of the first frames, or of all frames of a window.
            device: where the batches are.
        """
        _check(dataset, episodes, chunk, tasks, images)
        self.dataset, self.episodes, self.chunk = dataset, tuple(episodes), chunk
        self.images, self.device = images, torch.device(device)
        refs = [dataset.episodes[number] for number in self.episodes]
        lengths = np.array([ref.length for ref in refs])
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        places = list(tasks)

        def flat(column: Sequence[Array]) -> Tensor:
            return torch.from_numpy(np.concatenate(column)).to(self.device)

        own = [ref.shard.episode(ref.index) for ref in refs]
        rows = [slice(*ref.shard.offset[ref.index : ref.index + 2].tolist()) for ref in refs]
        self._columns = {"action": flat([columns[ACTION] for columns in own])}
        if dataset.spec.vector_size:
            pairs = zip(refs, rows, strict=True)
            self._columns["vector"] = flat([ref.shard.vector[span] for ref, span in pairs])
        self._last = flat([np.repeat(self._starts[1:] - 1, lengths)])
        self._task = flat([np.repeat([places.index(ref.task) for ref in refs], lengths)])
        self._ahead = torch.arange(chunk, device=self.device)
        # plain views of the maps: slicing a memmap object takes longer than copying an image
        self._maps = [np.asarray(columns[IMAGE]) for columns in own] if images != "none" else []

    def __len__(self) -> int:
        """Number of windows: one begins at every frame."""
        return int(self._starts[-1])

    def sample(self, batch_size: int, rng: np.random.Generator) -> TensorDict:
        """Windows that begin at frames drawn uniformly, with replacement."""
        return self.gather(rng.integers(0, len(self), batch_size))

    def gather(self, index: Tensor | Array) -> TensorDict:
        """Windows [B] that begin at the frames `index` [B], in a batch of their own.

        Behind its episode's end a window repeats the last frame.

        Returns:
            "action" float32 [B, P, A], "is_pad" bool [B, P] (behind the end), "task" int64 [B];
            "vector" float32 [B, P, V] where there is one; "image" uint8 [B, 1 or P, H, W, C].
        """
        host = torch.as_tensor(index).long().cpu()
        if host.dim() != 1 or not len(host):
            raise ValueError(f"expected indices [B], B > 0, found {tuple(host.shape)}")
        low, high = torch.aminmax(host)
        if low < 0 or high >= len(self):
            raise IndexError(f"expected frames in 0..{len(self) - 1}, found {low}..{high}")
        first = host.to(self.device, non_blocking=True)
        last = self._last.index_select(0, first)[:, None]
        frames = first[:, None] + self._ahead
        rows = torch.minimum(frames, last).view(-1)
        batch = {
            name: column.index_select(0, rows).view(len(host), self.chunk, -1)
            for name, column in self._columns.items()
        }
        batch["is_pad"] = frames > last
        batch["task"] = self._task.index_select(0, first)
        if self.images != "none":
            batch["image"] = self._pictures(host.numpy())
        return TensorDict(batch, batch_size=[len(host)], device=self.device)

    def statistics(self) -> dict[str, Tensor]:
        """Mean and standard deviation of vector and action over all frames, float32, no floor.

        Returns:
            vector_mean, vector_std [V], action_mean, action_std [A].
        """
        found = {}
        for name in ("vector", "action"):
            column = self._columns.get(name, torch.zeros(len(self), 0)).cpu().double()
            mean = column.mean(0)
            std = (column - mean).square().mean(0).sqrt()
            found[f"{name}_mean"] = mean.float().to(self.device)
            found[f"{name}_std"] = std.float().to(self.device)
        return found

    def start_index(self, episode: int) -> int:
        """Index of the window at the start of an episode, given by its number in the dataset."""
        return int(self._starts[self.episodes.index(episode)])

    def episode_of(self, index: int) -> int:
        """Number in the dataset of the episode in which a window begins."""
        return self.episodes[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def _pictures(self, index: Array) -> Tensor:
        """Images of windows, read in the order of the files."""
        length = 1 if self.images == "first" else self.chunk
        shape = self.dataset.spec.image_shape
        assert shape is not None, "checked when the windows were made"
        pin = self.device.type == "cuda"
        images = torch.empty((len(index), length, *shape), dtype=torch.uint8, pin_memory=pin)
        out = images.numpy()
        episode = np.searchsorted(self._starts, index, side="right") - 1
        begin = index - self._starts[episode]
        # whole slices are copied: 64 windows of 20 frames cost 64 calls and one pass over memory
        for row in np.argsort(index, kind="stable").tolist():
            found = self._maps[episode[row]][begin[row] : begin[row] + length]
            out[row, : len(found)] = found
            out[row, len(found) :] = found[-1]
        return images.to(self.device, non_blocking=True)


def _check(
    dataset: DemoDataset, episodes: Sequence[int], chunk: int, tasks: Sequence[str], images: Images
) -> None:
    if chunk < 1 or not episodes:
        raise DemoError(
            f"expected a chunk of at least 1 frame and at least 1 episode, found {chunk} and "
            f"{len(episodes)}"
        )
    for number in episodes:
        ref = dataset.episodes[number]
        if ref.task not in tasks:
            raise DemoError(
                f"{ref.shard.path}, episode {ref.index}: expected one of {', '.join(tasks)}, found "
                f"the task {ref.task}"
            )
    if images != "none" and dataset.spec.image_shape is None:
        path = dataset.shards[0].path
        raise DemoError(
            f"{path}: expected images, found demonstrations without; make some with reverie demos "
            "make --observe both"
        )
