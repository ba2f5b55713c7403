"""Sum tree: what it finds, what it never finds, and that its sums never drift."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reverie.agents.replay.sum_tree import SumTree

SIZES = [1, 2, 63, 64, 65, 300, 4096, 4097, 5000]
BELOW_ONE = 1 - 2**-53


def tree_of(values: Any) -> SumTree:
    tree = SumTree(len(values))
    tree.load(torch.as_tensor(values, dtype=torch.float64))
    return tree


def assert_sums_are_those_of_the_leaves(tree: SumTree) -> None:
    fresh = SumTree(tree.capacity)
    fresh.load(tree.leaves)
    assert all(map(torch.equal, tree._levels, fresh._levels))
    for below, above in zip(tree._levels, tree._flat[1:], strict=False):
        assert torch.equal(below.sum(1), above[: len(below)]) and not above[len(below) :].any()
    assert float(tree.total) == pytest.approx(math.fsum(tree.leaves.tolist()), rel=1e-12, abs=0)


@pytest.mark.parametrize("capacity", SIZES)
def test_find_is_a_search_in_the_running_sum(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    # whole numbers have exact sums, so that both ways must agree on every draw
    values = rng.integers(0, 7, capacity) * (rng.random(capacity) < 0.6)
    values[rng.integers(capacity)] = 3
    uniform = np.concatenate([rng.random(5000), [0, BELOW_ONE]])
    want = np.searchsorted(np.cumsum(values), uniform * values.sum(), side="right")
    found = tree_of(values).find(torch.from_numpy(uniform))
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), want)


def test_indices_are_as_frequent_as_their_values() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(200) ** 3 * (rng.random(200) < 0.7)
    draws = 400_000
    found = tree_of(values).find(torch.from_numpy(rng.random(draws)))
    counts = np.bincount(found.numpy(), minlength=200)
    expected = values / values.sum() * draws
    assert not counts[values == 0].any()
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), capacity=st.sampled_from(SIZES), seed=st.integers(0, 999))
def test_updates_keep_the_sums_and_no_zero_is_found(
    data: st.DataObject, capacity: int, seed: int
) -> None:
    tree, want = SumTree(capacity), np.zeros(capacity)
    value = st.just(0.0) | st.floats(0, 1e6) | st.floats(0, 1e-300)
    write = st.tuples(st.integers(0, capacity - 1), value)
    for _ in range(data.draw(st.integers(1, 4))):
        batch = data.draw(st.lists(write, min_size=1, max_size=40))
        index, values = zip(*batch, strict=True)
        tree.update(torch.tensor(index), torch.tensor(values, dtype=torch.float64))
        for i, v in batch:
            want[i] = v
    assert np.array_equal(tree.leaves.numpy(), want)
    assert np.array_equal(tree.get(torch.arange(capacity)).numpy(), want)
    assert_sums_are_those_of_the_leaves(tree)
    uniform = np.random.default_rng(seed).random(500)
    near_one = [BELOW_ONE, 1 - 2**-24, 1 - 2**-40, 0.0, 5e-324]
    found = tree.find(torch.from_numpy(np.concatenate([uniform, near_one])))
    assert found.min() >= 0 and found.max() < capacity
    if want.any():
        assert (want[found.numpy()] > 0).all()
    else:
        assert not found.any()


def test_of_equal_indices_the_last_one_counts() -> None:
    tree = tree_of(np.ones(70))
    tree.update(torch.tensor([3, 69, 3, 69, 3]), torch.tensor([5.0, 7.0, 0.0, 2.0, 4.0]))
    assert tree.get(torch.tensor([3, 69, 0])).tolist() == [4, 2, 1]
    assert float(tree.total) == 68 + 4 + 2
    assert_sums_are_those_of_the_leaves(tree)


def test_the_order_in_which_a_device_writes_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write: Callable[..., Tensor] = Tensor.scatter_

    def backwards(self: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
        return write(self, dim, index.flip(0), source.flip(0))

    monkeypatch.setattr(Tensor, "scatter_", backwards)
    tree = tree_of(np.ones(70))
    tree.update(torch.tensor([3, 69, 3, 69]), torch.tensor([5.0, 7.0, 4.0, 2.0]))
    assert tree.get(torch.tensor([3, 69])).tolist() == [4, 2]
    assert_sums_are_those_of_the_leaves(tree)


def test_many_updates_do_not_drift() -> None:
    rng = np.random.default_rng(0)
    tree = tree_of(rng.random(3000))
    for _ in range(500):
        values = torch.from_numpy(10.0 ** rng.integers(-12, 6, 32))
        tree.update(torch.from_numpy(rng.integers(0, 3000, 32)), values)
    tree.update(torch.arange(3000), torch.full((3000,), 0.1))
    assert float(tree.total) == pytest.approx(3000 * float(torch.tensor(0.1)), rel=1e-14)
    assert_sums_are_those_of_the_leaves(tree)


@pytest.mark.parametrize("alone", [0, 77, 4999])
def test_a_single_value_is_always_found(alone: int) -> None:
    tree = SumTree(5000)
    tree.update(torch.tensor([alone]), torch.tensor([1e-30]))
    uniform = torch.cat([torch.rand(1000), torch.tensor([0, 1 - 2**-24])])
    assert (tree.find(uniform) == alone).all()


def test_a_sum_that_is_rounded_unevenly_finds_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices that add in parallel round each running sum on its own."""
    rng = np.random.default_rng(0)
    values = rng.random(5000) * (rng.random(5000) < 0.3)
    tree = tree_of(values)
    exact: Callable[..., Tensor] = Tensor.cumsum
    noise = torch.Generator().manual_seed(0)

    def uneven(self: Tensor, dim: int) -> Tensor:
        sums = exact(self, dim)
        return sums * (1 + 0.01 * torch.rand(sums.shape, generator=noise, dtype=sums.dtype))

    monkeypatch.setattr(Tensor, "cumsum", uneven)
    uniform = np.concatenate([rng.random(20_000), np.full(2000, BELOW_ONE), np.zeros(100)])
    found = tree.find(torch.from_numpy(uniform)).numpy()
    assert (values[found] > 0).all()


def test_buffers_stay_where_they_are() -> None:
    tree = tree_of(np.ones(5000))
    before = [level.data_ptr() for level in tree._levels]
    tree.update(torch.tensor([1, 2]), torch.tensor([4.0, 5.0]))
    tree.load(torch.rand(5000, dtype=torch.float64))
    assert [level.data_ptr() for level in tree._levels] == before


def test_nothing_depends_on_values() -> None:
    """The meta device has shapes but no values: whatever asks for one fails there."""
    tree = SumTree(5000, "meta")
    index = torch.zeros(32, dtype=torch.int64, device="meta")
    tree.update(index, torch.zeros(32, device="meta"))
    assert tree.find(torch.zeros(32, device="meta")).shape == (32,)
    assert tree.total.shape == ()


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity of at least 1, found 0"):
        SumTree(0)
    with pytest.raises(ValueError, match=r"expected 10 leaves, found \(9,\)"):
        SumTree(10).load(torch.zeros(9))
