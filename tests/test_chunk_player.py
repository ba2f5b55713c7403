"""Playing chunks against one slot at a time with lists: whole, in part, averaged."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reverie.agents.chunk_player import empty_plan, ensembled_action, next_action

N, P, A, STEPS = 4, 5, 2, 40


class Oracle:
    """Chunks that say when, for whom and how far ahead they were predicted; remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, obs: dict[str, Tensor], task: Tensor) -> Tensor:
        self.calls.append([int(slot) for slot in obs["slot"]])
        assert torch.equal(task, obs["slot"] + 7), "rows of task and observation belong together"
        return torch.stack([self.chunk(float(t)) for t in obs["vector"][:, 0]])

    def chunk(self, moment: float) -> Tensor:
        ahead = torch.arange(P) + 1.0
        return torch.stack([torch.sin(moment * ahead), moment + 0.1 * ahead], -1)


class Silent(Oracle):
    """Now and then predicts nothing but zeros, and means it."""

    def chunk(self, moment: float) -> Tensor:
        return super().chunk(moment) * float(int(moment * 10) % 3 > 0)


def beginnings(*, seed: int = 0) -> Tensor:
    """is_first [STEPS, N]: all slots begin at once, and again when it suits them."""
    first = torch.rand(STEPS, N, generator=torch.Generator().manual_seed(seed)) < 0.1
    first[0] = True
    assert (first.sum(0) > 1).all() and len({tuple(c.tolist()) for c in first.T}) == N
    return first


def moments(step: int) -> Tensor:
    return torch.arange(N) * 3.7 + step * 0.3


def play(player: Any, predict: Oracle, first: Tensor, **kwargs: Any) -> Tensor:
    """Actions [STEPS, N, A]."""
    carry, played = empty_plan(N, P, A, torch.device("cpu")), []
    slots = torch.arange(N)
    for step in range(STEPS):
        obs = {"vector": moments(step).unsqueeze(1), "slot": slots}
        before = {key: value.clone() for key, value in carry.items()}
        after, action = player(carry, obs, first[step], task=slots + 7, predict=predict, **kwargs)
        assert all(torch.equal(carry[key], before[key]) for key in before), "a carry is not changed"
        carry = after
        played.append(action)
    return torch.stack(played)


@pytest.mark.parametrize("execute", [1, 2, P])
def test_plans_are_played_and_replaced_slot_by_slot(execute: int) -> None:
    first, oracle = beginnings(), Oracle()
    played = play(next_action, oracle, first, execute=execute)
    due: list[list[int]] = [[] for _ in range(STEPS)]
    for slot in range(N):
        queue: list[Tensor] = []
        for step in range(STEPS):
            if first[step, slot] or not queue:
                due[step].append(slot)
                queue = list(oracle.chunk(float(moments(step)[slot]))[:execute])
            assert torch.equal(played[step, slot], queue.pop(0)), (slot, step)
    assert oracle.calls == [slots for slots in due if slots], "only who needs a plan predicts"
    assert any(0 < len(slots) < N for slots in due) == (execute > 1), "slots out of step"


@pytest.mark.parametrize("decay", [0.01, 0.5, 0.0, -0.1])
@pytest.mark.parametrize("oracle", [Oracle, Silent])
def test_ensembling_is_the_weighted_mean_of_every_prediction_of_a_step(
    oracle: type[Oracle], decay: float
) -> None:
    first, predict = beginnings(), oracle()
    played = play(ensembled_action, predict, first, decay=decay)
    assert predict.calls == [list(range(N))] * STEPS, "predictions are made at every step"
    for slot in range(N):
        made: list[tuple[int, Tensor]] = []
        for step in range(STEPS):
            if first[step, slot]:
                made = []
            made.append((step, predict.chunk(float(moments(step)[slot]))))
            own = [chunk[step - then] for then, chunk in made if step - then < P]  # oldest first
            weight = [math.exp(-decay * i) for i in range(len(own))]
            want = sum(w * a for w, a in zip(weight, own, strict=True)) / sum(weight)
            torch.testing.assert_close(played[step, slot], want, rtol=1e-5, atol=1e-5)


def test_a_prediction_of_zeros_counts_as_one() -> None:
    chunks = iter([torch.zeros(1, P, A), torch.ones(1, P, A)])
    carry, task = empty_plan(1, P, A, torch.device("cpu")), torch.zeros(1, dtype=torch.int64)
    for first in (torch.tensor([True]), torch.tensor([False])):
        carry, action = ensembled_action(
            carry, {}, first, task=task, predict=lambda obs, task: next(chunks), decay=0.01
        )
    young = math.exp(-0.01)
    torch.testing.assert_close(action, torch.full((1, A), young / (1 + young)))
    assert carry["count"].tolist() == [[2.0] * (P - 1) + [1.0]]
