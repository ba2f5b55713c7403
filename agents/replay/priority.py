"""Prioritised replay of pixels: single frames on a device, stacked and cut into windows there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from reverie.agents.replay.buffer import Replay, ReplayError
from reverie.agents.replay.storage import DeviceRing, Schema
from reverie.agents.replay.sum_tree import SumTree

NewPriority = Literal["one", "max"]


class PriorityReplay(Replay):
    """Ring on a device whose rows are drawn in proportion to priorities, with what follows them.

    Row t can be drawn once `margin` newer rows of its slot exist, unless it ends an episode or
    the stack and the steps of its window touch rows that were overwritten or lost. Its priority
    is leaf `slot * size + t % size` of `tree`; whatever cannot be drawn has priority 0 there.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_envs: int,
        capacity: int,
        directory: Path | None = None,
        device: torch.device | str = "cpu",
        segment_rows: int = 1024,
        history: int = 4,
        predictions: int = 5,
        max_n_step: int = 10,
        margin: int | None = None,
        stratified: bool = False,
        new_priority: NewPriority = "one",
    ) -> None:
        """Stacks hold `history` frames, windows `predictions` steps and up to `max_n_step` rewards.

        `margin` defaults to max_n_step + predictions + 2 rows. `new_priority` is the priority of
        rows that were never drawn: 1, or the largest ever set and at least 1.
        """
        if "image" not in schema:
            raise ReplayError(
                f"prioritised replay stacks pixels: expected a column 'image', found "
                f"{sorted(schema)}; choose an environment with images"
            )
        if history < 1 or predictions < 0 or max_n_step < 1:
            raise ReplayError(
                "expected history >= 1, predictions >= 0 and max_n_step >= 1, found "
                f"{history}, {predictions} and {max_n_step}"
            )
        super().__init__(
            schema,
            num_envs=num_envs,
            capacity=capacity,
            storage="device",
            directory=directory,
            device=device,
            segment_rows=segment_rows,
        )
        self.history = history
        self.predictions = predictions
        self.max_n_step = max_n_step
        self.lookahead = max(max_n_step, predictions + 1)
        self.margin = max_n_step + predictions + 2 if margin is None else margin
        self.stratified = stratified
        self.new_priority = new_priority
        self._check_sizes()
        assert isinstance(self._ring, DeviceRing)
        self._columns, self._flat = self._ring.arrays, self._ring.flat
        self._blank = self._ring.blank
        self.tree = SumTree(num_envs * self.size, device)
        self.max_priority = torch.ones((), dtype=torch.float64, device=device)
        self._one = torch.ones_like(self.max_priority)
        self._longest = torch.full((), max_n_step, device=device)
        self._slots = torch.arange(num_envs, device=device) * self.size
        self._back = torch.arange(1 - history, 1, device=device)
        self._around = torch.arange(1 - history, self.lookahead + 1, device=device)
        self._ahead = self._around[history:]
        self._buffers: dict[tuple[int, ...], Tensor] = {}

    def add(self, rows: Mapping[str, Any]) -> None:
        """See `Replay.add`; one older row per slot becomes eligible, and overwritten ones cease."""
        super().add(rows)
        ripe = self.time - self.margin - 1
        if any(start <= ripe < stop for start, stop in self._eligible()):
            place = ripe % self.size
            value = self._one if self.new_priority == "one" else self.max_priority
            self.tree.write(self._slots + place, value * ~self._columns["is_last"][:, place])
        if self.oldest > 0:
            # the row just overwritten, and those whose stack would reach back to it
            times = (self._back + (self.oldest + self.history - 2)) % self.size
            index = (self._slots[:, None] + times).view(-1)
            self.tree.write(index, torch.zeros_like(index, dtype=torch.float64))

    def can_sample(self, length: int = 1) -> bool:
        """Whether some row can surely be drawn; asks the host's books only, never the device."""
        _check_length(length)
        # the device alone knows which rows end episodes, but two in succession never do
        return any(stop - start >= 2 for start, stop in self._eligible())

    def sample(self, batch_size: int, length: int, rng: np.random.Generator) -> TensorDict:
        """`draw` of the longest return with uniforms from `rng`; `length` must be 1."""
        if not self.can_sample(length):
            raise ReplayError(
                f"no row of {self.time - self.oldest} per slot has {self.margin} newer ones and an "
                "unbroken past; collect more (train.prefill)"
            )
        uniform = torch.from_numpy(rng.random(batch_size)).to(self.max_priority.device)
        return self.draw(uniform, self._longest)

    def draw(self, uniform: Tensor, n_step: Tensor) -> TensorDict:
        """Windows of the rows t that `uniform` [B] in [0, 1) selects, all on the device.

        `n_step` is an int64 scalar of at most `max_n_step`. Keys, with S frames, K predictions,
        n = max_n_step and L = max(n, K + 1): "index" [B]; "priority" [B]; "image"
        [B, K+2, S, H, W, C] of t .. t+K and of the row to bootstrap from, which is t + n_step or
        the end of the episode; "action" [B, max(K, 1), A] from a_t on; "reward" [B, n],
        "is_last" and "is_terminal" [B, L] of the rows from t+1 on. Observations behind an end
        repeat it; frames from before an episode are zero. Images stay valid until the next draw
        of as many rows.
        """
        index = self.tree.find(self._spread(uniform))
        place = index % self.size
        rows = (index - place)[:, None] + (place[:, None] + self._around) % self.size
        ahead = rows[:, self.history :]
        columns = {
            key: self._gather(key, ahead[:, :length])
            for key, length in (
                ("action", max(self.predictions, 1)),
                ("reward", self.max_n_step),
                ("is_last", self.lookahead),
                ("is_terminal", self.lookahead),
            )
        }
        seen = self._observed(columns["is_last"], n_step)
        image = self._frames(self._stacks(rows, seen))
        priority = self.tree.get(index).float()
        return TensorDict(
            {"index": index, "priority": priority, "image": image, **columns},
            batch_size=index.shape,
        )

    def set_priority(self, index: Tensor, priority: Tensor) -> None:
        """Write `priority` [B] at `index` [B], where the row can still be drawn.

        What is not finite and positive changes nothing; of equal indices the last one counts.
        """
        stored = self.tree.get(index)
        priority = priority.detach().to(torch.float64)
        valid = (stored > 0) & (priority > 0) & priority.isfinite()
        value = torch.where(valid, priority, stored)
        self.tree.update(index, value)
        self.max_priority.copy_(torch.maximum(self.max_priority, value.amax()))

    def priority_tensors(self) -> list[Tensor]:
        """Everything that `set_priority` changes in place."""
        return [*self.tree.buffers, self.max_priority]

    def state_dict(self) -> dict[str, Any]:
        """State of the replay, all priorities and the largest one."""
        priority = {"leaves": self.tree.leaves, "max": self.max_priority}
        saved = {key: value.to("cpu", copy=True) for key, value in priority.items()}
        return {**super().state_dict(), "priority": saved}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """See `Replay.load_state_dict`; rows whose windows touch a lost segment lose priority."""
        if "priority" not in state:
            raise ReplayError(
                "the saved replay has no priorities, this one draws by them; resume with the "
                "agent that saved it or start a new run"
            )
        notes = super().load_state_dict(state)
        eligible = np.zeros(self.size, np.float64)
        for start, stop in self._eligible():
            eligible[np.arange(start, stop) % self.size] = 1
        leaves = state["priority"]["leaves"].view(self.num_envs, self.size)
        self.tree.load((leaves.cpu() * torch.from_numpy(eligible)).view(-1))
        self.max_priority.copy_(state["priority"]["max"])
        return notes

    def _check_sizes(self) -> None:
        if self.margin < self.lookahead:
            raise ReplayError(
                f"margin must cover the {self.lookahead} rows that a window looks ahead, "
                f"found {self.margin}; raise it"
            )
        least = self.margin + self.history + 1
        if self.size < least:
            raise ReplayError(
                f"expected at least {least} rows per slot, so that some can be drawn, found "
                f"{self.size}; raise replay.capacity to {least * self.num_envs}"
            )

    def _eligible(self) -> Iterator[tuple[int, int]]:
        """Half-open spans of absolute time whose windows touch only rows that are held."""
        for start, stop in self._runs:
            # what would precede time 0 is cut off by the first episode's beginning
            first = start + self.history - 1 if start > 0 else 0
            last = min(stop - self.lookahead, self.time - self.margin)
            if first < last:
                yield first, last

    def _spread(self, uniform: Tensor) -> Tensor:
        if not self.stratified:
            return uniform
        strata = torch.arange(len(uniform), dtype=torch.float64, device=uniform.device)
        return (strata + uniform) / len(uniform)

    def _observed(self, is_last: Tensor, n_step: Tensor) -> Tensor:
        """Steps [B, K+2] from t to the observations of a batch, none behind an end."""
        end = torch.where(is_last, self._ahead, self.lookahead).amin(1, keepdim=True)
        steps = torch.cat(
            (self._around[self.history - 1 :][: self.predictions + 1], n_step.view(1))
        )
        return torch.minimum(steps, end)

    def _stacks(self, rows: Tensor, seen: Tensor) -> Tensor:
        """Ring rows [B, K+2, S] of the frames of the observations `seen` steps behind t."""
        column = torch.arange(rows.shape[1], device=rows.device)
        begins = (self._gather("is_first", rows) * column).cummax(1).values
        newest = seen + (self.history - 1)
        frames = newest[..., None] + self._back
        older = frames < begins.gather(1, newest)[..., None]
        return rows.gather(1, frames.flatten(1)).view_as(frames).masked_fill_(older, self._blank)

    def _frames(self, rows: Tensor) -> Tensor:
        """Frames [*, H, W, C] of ring rows [*], in one buffer: fresh memory costs as much again."""
        flat = self._flat["image"]
        shape = (*rows.shape, *flat.shape[1:])
        if shape not in self._buffers:
            # kept for good: a captured graph goes on writing to the one it saw
            self._buffers[shape] = torch.empty(shape, dtype=flat.dtype, device=flat.device)
        image = self._buffers[shape]
        torch.index_select(flat, 0, rows.reshape(-1), out=image.view(-1, *flat.shape[1:]))
        return image

    def _gather(self, key: str, rows: Tensor) -> Tensor:
        flat = self._flat[key]
        return flat.index_select(0, rows.reshape(-1)).view(*rows.shape, *flat.shape[1:])


def _check_length(length: int) -> None:
    if length != 1:
        raise ReplayError(
            f"prioritised replay draws single rows with what follows them: expected length 1, "
            f"found {length}; set train.batch_length to 1"
        )
