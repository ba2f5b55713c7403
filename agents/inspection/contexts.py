"""Windows of real experience to start from, and frames to compare with, read beside training.

Rows are read by `Replay.read`, which draws nothing, moves no priority and fills none of the
buffers that batches live in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reverie.agents.replay.buffer import Replay

Array = NDArray[np.int64]
TRIES = 8
"""Windows looked at for every one that is wanted: those that cross episodes are passed over."""


class Windows(NamedTuple):
    """Rows of single slots, as updates see them."""

    rows: dict[str, Tensor]
    """[B, T, ...] on the device."""
    slots: Array
    """[B]."""
    starts: Array
    """[B]: absolute time of the first rows."""

    def pick(self, index: Array) -> Windows:
        """Some of the windows, in the order of `index`."""
        where = torch.as_tensor(index)
        rows = {key: value[where.to(value.device)] for key, value in self.rows.items()}
        return Windows(rows, self.slots[index], self.starts[index])


def draw_windows(
    replay: Replay, rng: np.random.Generator, *, count: int, length: int, device: torch.device
) -> Windows | None:
    """Up to `count` different windows of `length` rows, uniform; None: no such window exists."""
    spans = [np.arange(start, stop - length + 1) for start, stop in replay.runs]
    starts = np.concatenate([span for span in spans if len(span)] or [np.zeros(0, np.int64)])
    total = len(starts) * replay.num_envs
    if total == 0:
        return None
    # a permutation of everything would be large, and doubles are rare
    drawn = np.unique(rng.integers(0, total, 2 * count)) if total > 4 * count else np.arange(total)
    drawn = rng.permutation(drawn)[:count]
    slots, begin = drawn % replay.num_envs, starts[drawn // replay.num_envs]
    found: dict[str, list[Tensor]] = {}
    for slot, start in zip(slots.tolist(), begin.tolist(), strict=True):
        for key, column in replay.read(start, start + length).items():
            found.setdefault(key, []).append(torch.from_numpy(column[:, slot].copy()))
    rows = {key: torch.stack(values).to(device) for key, values in found.items()}
    return Windows(rows, slots, begin)


def draw_contexts(
    replay: Replay,
    rng: np.random.Generator,
    *,
    count: int,
    context: int,
    horizon: int,
    device: torch.device,
) -> Windows | None:
    """Windows of `context` rows and as many as `horizon` more, all within one episode.

    Short episodes shorten the horizon until four windows fit; None: not even one step fits.
    """
    longest = max((stop - start for start, stop in replay.runs), default=0)
    length = min(context + horizon, longest)
    if length <= context:
        return None
    windows = draw_windows(replay, rng, count=TRIES * count, length=length, device=device)
    assert windows is not None, "a run of this length exists"
    whole = unbroken(windows.rows["is_first"]).cpu().numpy()
    order = np.argsort(-whole, kind="stable")
    fits = min(length, int(whole[order[min(3, len(order) - 1)]]))
    if fits <= context:
        fits = int(whole[order[0]])
    if fits <= context:
        return None
    chosen = order[whole[order] >= fits][:count]
    rows = {key: value[:, :fits] for key, value in windows.rows.items()}
    return Windows(rows, windows.slots, windows.starts).pick(chosen)


def unbroken(is_first: Tensor) -> Tensor:
    """Rows [B] of windows [B, T] before another episode begins; at least 1."""
    later = is_first.clone()
    later[:, 0] = False
    return (later.long().cumsum(1) == 0).long().sum(1)


def outside(windows: Windows, shown: Windows) -> Tensor:
    """Bool [B, T]: rows of `windows` that none of the windows in `shown` contains."""
    length, reach = windows.rows["is_first"].shape[1], shown.rows["is_first"].shape[1]
    times = windows.starts[:, None] + np.arange(length)
    same = windows.slots[:, None, None] == shown.slots
    after = times[..., None] - shown.starts
    inside = same & (after >= 0) & (after < reach)
    return torch.from_numpy(~inside.any(-1)).to(windows.rows["is_first"].device)
