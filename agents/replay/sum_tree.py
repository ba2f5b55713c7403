"""Sum tree on any device: leaves drawn in proportion to their values, in a handful of kernels.

TorchRL has one as a compiled extension for the host, which does not load with torch 2.13
("SumSegmentTreeFp32 is not available"); drawing on the device needs another in any case.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

FAN_OUT = 64
SHIFT = 6


class SumTree:
    """Tree of float64 sums over `capacity` values >= 0, each node the sum of 64 children.

    No method copies to the host or depends on values for its shapes, and the buffers stay where
    they are: all of it can be captured in a CUDA graph. Three levels hold 262,144 leaves.
    """

    def __init__(self, capacity: int, device: torch.device | str = "cpu") -> None:
        """Allocate; every value is 0."""
        if capacity < 1:
            raise ValueError(f"a sum tree needs a capacity of at least 1, found {capacity}")
        self.capacity = capacity
        groups = [-(-capacity // FAN_OUT)]
        while groups[-1] > 1:
            groups.append(-(-groups[-1] // FAN_OUT))
        # levels[0] holds the leaves; node i of a level is the sum of row i of the level below
        self._levels = [
            torch.zeros((rows, FAN_OUT), dtype=torch.float64, device=device) for rows in groups
        ]
        self._flat = [level.view(-1) for level in self._levels]
        self._zero = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def total(self) -> Tensor:
        """Sum of all values, float64 []."""
        return self._levels[-1].sum()

    @property
    def leaves(self) -> Tensor:
        """View of the values [capacity]; to write them use `update` or `load`."""
        return self._flat[0][: self.capacity]

    @property
    def buffers(self) -> list[Tensor]:
        """All levels, leaves first: what a captured graph writes."""
        return list(self._levels)

    def get(self, index: Tensor) -> Tensor:
        """Values, float64 [B], at `index` [B]."""
        return self._flat[0].index_select(0, index)

    def update(self, index: Tensor, value: Tensor) -> None:
        """Write `value` [B] at `index` int64 [B]; of equal indices the last one counts.

        Every sum above a written leaf is taken anew from its children: nothing drifts. Compares
        all pairs of a batch; `load` is for everything at once.
        """
        order = torch.arange(len(index), device=index.device)
        # which of two writes to one place survives is otherwise left to chance on a GPU
        last = torch.where(index[:, None] == index, order, -1).amax(1)
        self.write(index, value.to(torch.float64).index_select(0, last))

    def write(self, index: Tensor, value: Tensor) -> None:
        """`update` for float64 values that are equal wherever their indices are."""
        self._flat[0].scatter_(0, index, value)
        for below, above in pairwise(range(len(self._levels))):
            index = index >> SHIFT
            sums = self._levels[below].index_select(0, index).sum(1)
            self._flat[above].scatter_(0, index, sums)

    def load(self, leaves: Tensor) -> None:
        """Replace all values by `leaves` [capacity] and rebuild the sums."""
        if leaves.shape != (self.capacity,):
            raise ValueError(f"expected {self.capacity} leaves, found {tuple(leaves.shape)}")
        self.leaves.copy_(leaves)
        for below, above in pairwise(range(len(self._levels))):
            self._flat[above][: len(self._levels[below])] = self._levels[below].sum(1)

    def find(self, uniform: Tensor) -> Tensor:
        """Indices, int64 [B], drawn in proportion to value by `uniform` [B] in [0, 1).

        A value of 0 is never found while the total is positive; with a total of 0 the index is 0.
        """
        target = (uniform.to(torch.float64) * self.total)[:, None]
        node = torch.zeros_like(target, dtype=torch.int64)
        for level in reversed(self._levels):
            child, target = self._descend(level.index_select(0, node.view(-1)), target)
            node = (node << SHIFT) + child
        return node.view(-1)

    def _descend(self, children: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """First child whose running sum exceeds `target`, and what of the target lies inside it.

        Running sums need not grow from child to child where a device adds in parallel, and the
        target was scaled by a sum that was rounded elsewhere. So a child of value 0 never counts
        as an end, and the target is held between 0 and the last end.
        """
        sums = children.cumsum(1)
        ends = sums * children.sign()
        below_last = torch.nextafter(ends.amax(1, keepdim=True), self._zero)
        target = target.clamp(self._zero, below_last)
        child = (ends > target).view(torch.uint8).argmax(1, keepdim=True)
        return child, target - (sums - children).gather(1, child)
