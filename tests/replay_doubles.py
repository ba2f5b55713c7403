"""Hand-made episodes for prioritised replay, and an oracle written as loops over all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from reverie.agents.replay.buffer import Replay, replay_schema
from reverie.agents.replay.priority import PriorityReplay
from reverie.envs.specs import EnvSpec

ACTIONS, SHAPE = 3, (2, 2, 1)
SCHEMA = replay_schema(EnvSpec("double/pixels", ACTIONS, discrete=True, image_shape=SHAPE))
Row = dict[str, Any]
Episodes = Sequence[tuple[int, str]]
# (rows, how it ends): a lost life, a time limit, the end of the game
EPISODES: Episodes = [
    (9, "life"),
    (2, "life"),
    (5, "limit"),
    (31, "game"),
    (3, "life"),
    (14, "game"),
]
HORIZON: dict[str, int] = {"history": 4, "predictions": 3, "max_n_step": 5}


def world(slot: int, length: int, episodes: Episodes = EPISODES) -> list[Row]:
    """Rows of one slot; every picture shows its slot and a counter, every number is unique."""
    rows: list[Row] = []
    picture, turn = 0, slot
    while len(rows) < length:
        span, ending = episodes[turn % len(episodes)]
        after_life = turn > slot and episodes[(turn - 1) % len(episodes)][1] == "life"
        for step in range(span):
            # a life is lost without a reset: the next episode begins with the same picture
            picture += not (step == 0 and after_life)
            last, t = step == span - 1, len(rows)
            pixels = np.array([slot + 1, picture // 256, picture % 256, 255], np.uint8)
            rows.append(
                {
                    "image": pixels.reshape(SHAPE),
                    "action": np.eye(ACTIONS, dtype=np.float32)[t % ACTIONS] * (step > 0),
                    "reward": np.float32((t + 1000 * slot) * (step > 0)),
                    "is_first": np.bool_(step == 0),
                    "is_last": np.bool_(last),
                    "is_terminal": np.bool_(last and ending != "limit"),
                }
            )
        turn += 1
    return rows[:length]


def worlds(slots: int, length: int, episodes: Episodes = EPISODES) -> list[list[Row]]:
    return [world(slot, length, episodes) for slot in range(slots)]


def build(slots: int, size: int, **options: Any) -> PriorityReplay:
    options = {**HORIZON, **options}
    return PriorityReplay(SCHEMA, num_envs=slots, capacity=slots * size, **options)


def feed(replay: Replay, rows: list[list[Row]], start: int, stop: int) -> None:
    for t in range(start, stop):
        replay.add({key: np.stack([slot[t][key] for slot in rows]) for key in SCHEMA})


def filled(slots: int, size: int, steps: int, **options: Any) -> PriorityReplay:
    replay = build(slots, size, **options)
    feed(replay, worlds(slots, steps), 0, steps)
    return replay


# --------------------------------------------------------------------------- the oracle


def stack(rows: list[Row], t: int, history: int) -> np.ndarray[Any, Any]:
    frames = [rows[t]["image"]]
    while len(frames) < history:
        if rows[t]["is_first"]:
            frames.insert(0, np.zeros(SHAPE, np.uint8))
        else:
            t -= 1
            frames.insert(0, rows[t]["image"])
    return np.stack(frames)


def window(rows: list[Row], t: int, n_step: int, replay: PriorityReplay) -> dict[str, Any]:
    """What a draw of row t must hold."""
    history, steps, longest = replay.history, replay.predictions, replay.max_n_step
    images, at = [], t
    for k in range(steps + 1):
        if k and not (at > t and rows[at]["is_last"]):
            at += 1
        images.append(stack(rows, at, history))
    end = t + 1
    while end < t + n_step and not rows[end]["is_last"]:
        end += 1
    images.append(stack(rows, end, history))

    def ahead(key: str, length: int) -> Any:
        return np.stack([rows[t + 1 + k][key] for k in range(length)])

    width = max(longest, steps + 1)
    return {
        "image": np.stack(images),
        "action": ahead("action", max(steps, 1)),
        "reward": ahead("reward", longest),
        "is_last": ahead("is_last", width),
        "is_terminal": ahead("is_terminal", width),
    }


def eligible(
    rows: list[list[Row]], now: int, replay: PriorityReplay, lost: frozenset[int] = frozenset()
) -> dict[int, tuple[int, int]]:
    """Leaf -> (slot, time) of every row that may be drawn after `now` rows."""

    def held(t: int) -> bool:
        return now - replay.size <= t < now and t not in lost

    width = max(replay.max_n_step, replay.predictions + 1)
    found = {}
    for slot, mine in enumerate(rows):
        for t in range(now):
            past = range(max(0, t - replay.history + 1), t + 1)
            unbroken = all(map(held, past)) and all(map(held, range(t + 1, t + 1 + width)))
            if unbroken and t + replay.margin < now and not mine[t]["is_last"]:
                found[slot * replay.size + t % replay.size] = (slot, t)
    return found


def uniforms(replay: PriorityReplay) -> torch.Tensor:
    """One draw in the middle of every leaf that has a priority."""
    leaves = replay.tree.leaves
    middle = (leaves.cumsum(0) - leaves / 2) / leaves.sum()
    return middle[leaves > 0]


def check(
    replay: PriorityReplay,
    rows: list[list[Row]],
    n_step: int,
    lost: frozenset[int] = frozenset(),
) -> int:
    """Exactly the eligible rows have priority, and each is drawn as the oracle says."""
    want = eligible(rows, replay.time, replay, lost)
    assert torch.nonzero(replay.tree.leaves)[:, 0].tolist() == sorted(want)
    if not want:
        return 0
    batch = replay.draw(uniforms(replay), torch.tensor(n_step))
    assert batch["index"].tolist() == sorted(want)
    assert torch.equal(batch["priority"], replay.tree.get(batch["index"]).float())
    for b, leaf in enumerate(batch["index"].tolist()):
        slot, t = want[leaf]
        for key, value in window(rows[slot], t, n_step, replay).items():
            found = batch[key][b].numpy()
            assert found.dtype == value.dtype and np.array_equal(found, value), (key, slot, t)
    return len(want)
