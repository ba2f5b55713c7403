"""Checkpoints: exact round trips, rotation, and what may not be stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from reverie.agents.runs import checkpoint
from reverie.agents.runs.checkpoint import CheckpointError
from reverie.agents.runs.checkpoint_format import load_tensors, save_tensors
from reverie.agents.runs.checkpoint_tree import DTYPES, flatten, unflatten


def same(a: Any, b: Any) -> bool:
    """Equality of type, order, dtype, shape and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        a, b = a.contiguous(), b.contiguous()
        return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return repr(a) == repr(b)  # tells -0.0 from 0.0 and finds nan equal to nan


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def through_bytes(state: Any) -> Any:
    structure, tensors = flatten(state)
    return unflatten(structure, load_tensors(save_tensors(tensors)))


STATE: dict[str, Any] = {
    "tensors": {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES},
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "strided": torch.arange(10)[::3],
    "expanded": torch.ones(1).expand(5),
    "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "arrays": [np.arange(6).reshape(2, 3)[:, ::-1], np.array(True), np.zeros((0, 2), np.uint16)],
    "numpy scalar": np.float32(0.1),
    "read only": np.broadcast_to(np.arange(3), (2, 3)),
    "optimiser": {"state": {0: {"step": torch.tensor(7.0)}, 1: {}}, "betas": (0.9, 0.999)},
    "philox": {"counter": 2**255 - 1, "inf": float("inf"), "nan": float("nan"), "zero": -0.0},
    "$odd": {"$tensor": "text", "a/b": {"c": 1}, "a": {"b/c": 2}, "": None, None: 0, True: "é\n"},
    "a/b": torch.ones(1),
    "a": {"b": torch.zeros(2)},
}


def test_every_kind_of_value_round_trips_through_the_disk(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 12, STATE, keep=1, meta={"score": 1.5, "bad": float("nan")})
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    step, state, notes = found
    assert step == 12 and notes == []
    assert same(state, STATE)
    assert checkpoint.load(checkpoint.checkpoints(tmp_path)[0]).meta["bad"] != 0


keys = st.text(max_size=4) | st.integers(0, 3) | st.sampled_from(["$tensor", "$items", "a/b"])
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
numbers = (
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="=")
    | npst.floating_dtypes(endianness="=", sizes=(16, 32, 64))
)
arrays = npst.arrays(numbers, npst.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3))
tensors = arrays.map(lambda array: torch.from_numpy(array.copy()))
trees = st.recursive(
    plain | arrays | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
def test_arbitrary_trees_round_trip(tree: Any) -> None:
    assert same(through_bytes(tree), tree)


def test_tied_tensors_are_stored_once_and_come_back_tied() -> None:
    weight = torch.randn(4, 4)
    view = weight[:2]
    _, tensors = flatten({"a": weight, "b": weight, "view": view})
    assert len(tensors) == 2  # the view is content of its own
    found = through_bytes({"a": weight, "b": weight, "view": view})
    assert found["a"] is found["b"]
    found["a"].zero_()
    assert torch.equal(found["view"], view)


def test_tie_is_never_guessed_from_a_reused_address() -> None:
    state = {str(i): np.float64(i) for i in range(100)}  # every encoding makes a new 0-dim array
    assert same(through_bytes(state), state)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        b"bytes",
        object(),
        np.array(["text"]),
        np.array([None]),
        torch.zeros(2, dtype=torch.complex128),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
        {(1, 2): 3},
    ],
    ids=lambda value: type(value).__name__,  # a repr may hold an address, another in each worker
)
def test_what_cannot_be_stored_is_named_before_anything_is_written(
    tmp_path: Path, value: Any
) -> None:
    with pytest.raises(CheckpointError, match="/agent/odd"):
        checkpoint.save(tmp_path, 1, {"agent": {"odd": value}}, keep=1, meta={})
    assert list(tmp_path.iterdir()) == []


def test_meta_takes_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="meta"):
        checkpoint.save(tmp_path, 1, {}, keep=1, meta={"x": torch.zeros(1)})


def names(run_dir: Path) -> list[int]:
    return [int(path.name.split("-")[0]) for path in checkpoints_of(run_dir)]


def checkpoints_of(run_dir: Path) -> list[Path]:
    return checkpoint.checkpoints(run_dir)


def test_the_last_k_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = [1.0, 9.0, float("nan"), 2.0, None, 3.0]
    for step, score in enumerate(scores):
        meta = {} if score is None else {"score": score}
        checkpoint.save(tmp_path, step, {"step": step}, keep=2, meta=meta)
    assert names(tmp_path) == [5, 4, 1]
    best = checkpoint.best(tmp_path)
    assert best is not None and checkpoint.load(best).state == {"step": 1}


def test_no_checkpoint_no_state(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None
    assert checkpoint.best(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert checkpoint.load_latest(tmp_path) is None


def test_a_step_saved_again_replaces_the_first_only_once_it_is_safe(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, {"try": 1}, keep=2, meta={})
    checkpoint.save(tmp_path, 4, {"try": 1}, keep=2, meta={})
    second = checkpoint.save(tmp_path, 4, {"try": 2}, keep=2, meta={})
    assert checkpoint.load(second).step == 4
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found[:2] == (4, {"try": 2})
    assert names(tmp_path) == [4, 3]


def test_a_valid_newer_checkpoint_is_never_left_behind_or_lost(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 9, {}, keep=2, meta={})
    with pytest.raises(CheckpointError, match="valid and newer"):
        checkpoint.save(tmp_path, 5, {}, keep=2, meta={})
    assert names(tmp_path) == [9]


def test_odd_paths_and_the_umask_are_respected(tmp_path: Path) -> None:
    run_dir = tmp_path / "with spaces and ünïcode"
    before = os.umask(0o077)
    try:
        private = checkpoint.save(run_dir, 1, STATE, keep=2, meta={})
        os.umask(0o022)
        shared = checkpoint.save(run_dir, 2, STATE, keep=2, meta={})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in private.iterdir()} == {0o600}
    assert {file.stat().st_mode & 0o777 for file in shared.iterdir()} == {0o644}
    assert checkpoint.load_latest(run_dir) is not None


def test_loaded_tensors_can_be_trained_on(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"t": torch.zeros(3), "a": np.zeros(3)}, keep=1, meta={})
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    found[1]["t"].add_(1)
    found[1]["a"] += 1
    assert found[1]["t"].sum() == found[1]["a"].sum() == 3


def test_manifest_tells_threads_and_versions(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {}, keep=1, meta={"segments": ["a"]})
    manifest = checkpoint.read_manifest(path)
    assert manifest["threads"] == torch.get_num_threads()
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["meta"] == {"segments": ["a"]}
