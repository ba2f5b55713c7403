"""Replay: what goes in comes out, windows keep to their rules, segments survive or are dropped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.agents.replay.buffer import Replay, ReplayError, Storage, replay_schema
from reverie.envs.specs import EnvSpec

SPEC = EnvSpec("double/replay", action_size=4, discrete=True, vector_size=3)
SCHEMA = replay_schema(SPEC)
PIXELS = EnvSpec("double/pixels", action_size=6, discrete=True, image_shape=(64, 64, 3))


def rows(t: int, envs: int, *, episode: int = 10, actions: int = 4) -> dict[str, Any]:
    """Row t of a world whose slot i restarts every `episode + i` rows."""
    span = episode + np.arange(envs)
    step = t % span
    first = step == 0
    action = np.eye(actions, dtype=np.float32)[(t - 1 + np.arange(envs)) % actions]
    return {
        "vector": np.stack([np.arange(envs), t // span, step], 1).astype(np.float32),
        "action": np.where(first[:, None], np.float32(0), action),
        "reward": np.where(first, 0, t).astype(np.float32),
        "is_first": first,
        "is_last": step == span - 1,
        "is_terminal": (step == span - 1) & (t // span % 2 == 0),
    }


def filled(steps: int, *, envs: int = 3, capacity: int = 300, **options: Any) -> Replay:
    replay = Replay(SCHEMA, num_envs=envs, capacity=capacity, **options)
    for t in range(steps):
        replay.add(rows(t, envs))
    return replay


def assert_windows(batch: Any, newest: int, oldest: int) -> None:
    """Every row of every window is exactly the row that was added, in order."""
    slot = batch["vector"][..., 0].long()
    span = 10 + slot
    t = batch["vector"][..., 1].long() * span + batch["vector"][..., 2].long()
    assert (t.diff(dim=1) == 1).all() and (slot.diff(dim=1) == 0).all()
    assert t.min() >= oldest and t.max() < newest
    for b in range(batch.batch_size[0]):
        for k in range(batch.batch_size[1]):
            want = rows(int(t[b, k]), 3)
            for key, value in want.items():
                assert np.array_equal(batch[key][b, k].numpy(), value[slot[b, k]]), key


@pytest.mark.parametrize("storage", ["ram", "memmap", "device"])
@pytest.mark.parametrize("steps", [40, 100, 173])
@pytest.mark.parametrize("big_row", [0, 512], ids=["slices", "gathered"])
def test_windows_are_the_rows_that_were_added(
    storage: Storage, steps: int, big_row: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reverie.agents.replay.storage.BIG_ROW", big_row)
    replay = filled(steps, storage=storage, directory=tmp_path)
    assert len(replay) == 3 * min(steps, 100)
    batch = replay.sample(50, 8, np.random.default_rng(0))
    assert batch.batch_size == (50, 8)
    assert batch["is_first"].dtype == torch.bool and batch["vector"].dtype == torch.float32
    assert_windows(batch, steps, max(0, steps - 100))


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 60),
    size=st.integers(1, 20),
    length=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_any_size_and_length(steps: int, size: int, length: int, seed: int) -> None:
    replay = filled(steps, capacity=3 * size)
    held = min(steps, size)
    if held < length:
        assert not replay.can_sample(length)
        with pytest.raises(ReplayError, match="no window"):
            replay.sample(4, length, np.random.default_rng(seed))
        return
    assert_windows(replay.sample(4, length, np.random.default_rng(seed)), steps, steps - held)


def test_every_window_is_equally_likely() -> None:
    replay = filled(25, capacity=60)
    batch = replay.sample(17 * 3 * 400, 4, np.random.default_rng(1))
    slot, episode, step = batch["vector"][:, 0].long().unbind(-1)
    start = episode * (10 + slot) + step
    counts = np.bincount((slot * 100 + start).numpy())
    counts = counts[counts > 0]
    assert len(counts) == 17 * 3
    assert abs(counts - 400).max() < 5 * np.sqrt(400)


def test_same_stream_same_windows() -> None:
    replay = filled(90)
    kept = replay.sample(8, 16, np.random.default_rng(3)).clone()
    assert not (replay.sample(8, 16, np.random.default_rng(4)) == kept).all()
    assert (replay.sample(8, 16, np.random.default_rng(3)) == kept).all()


def test_wrong_rows_are_refused() -> None:
    replay = filled(1)
    good = rows(1, 3)
    with pytest.raises(ReplayError, match="expected the keys"):
        replay.add({k: v for k, v in good.items() if k != "reward"})
    with pytest.raises(ReplayError, match="'action' must be"):
        replay.add({**good, "action": good["action"][:, :2]})
    with pytest.raises(ReplayError, match="capacity"):
        Replay(SCHEMA, num_envs=8, capacity=4)


# --------------------------------------------------------------------------- traps


@pytest.mark.parametrize("actions", [4, 6, 18])
def test_trap_01_the_action_of_a_row_is_the_one_that_led_there(actions: int) -> None:
    schema = replay_schema(EnvSpec("double/actions", actions, discrete=True, vector_size=3))
    replay = Replay(schema, num_envs=2, capacity=200)
    for t in range(150):
        replay.add(rows(t, 2, actions=actions))
    for draw in range(20):
        batch = replay.sample(16, 32, np.random.default_rng(draw))
        slot, episode, step = batch["vector"].long().unbind(-1)
        t = episode * (10 + slot) + step
        led_here = torch.nn.functional.one_hot((t - 1 + slot) % actions, actions).float()
        led_here[batch["is_first"]] = 0
        assert torch.equal(batch["action"], led_here)


def test_trap_07_a_reset_row_carries_no_action_and_no_reward() -> None:
    batch = filled(90).sample(64, 20, np.random.default_rng(0))
    assert batch["is_first"].any()
    assert (batch["action"][batch["is_first"]] == 0).all()
    assert (batch["reward"][batch["is_first"]] == 0).all()
    assert (batch["action"][~batch["is_first"]].sum(-1) == 1).all()


def test_trap_09_windows_cross_episodes_and_say_where() -> None:
    batch = filled(90).sample(64, 30, np.random.default_rng(0))
    begins = batch["vector"][..., 2] == 0
    assert begins[:, 1:].any(), "no window crosses a boundary: the test shows nothing"
    assert torch.equal(batch["is_first"], begins)
    assert torch.equal(batch["is_last"][:, :-1] & True, batch["is_first"][:, 1:])


def test_trap_17_is_first_comes_out_as_stored_never_at_a_window_start() -> None:
    batch = filled(90).sample(400, 5, np.random.default_rng(0))
    start_mid_episode = batch["vector"][:, 0, 2] > 0
    assert start_mid_episode.any()
    assert not batch["is_first"][start_mid_episode, 0].any()


# --------------------------------------------------------------------------- persistence


def restored(source: Replay, state: dict[str, Any], directory: Path) -> tuple[Replay, list[str]]:
    twin = Replay(SCHEMA, num_envs=3, capacity=300, directory=directory, segment_rows=30)
    return twin, twin.load_state_dict(state)


@pytest.mark.parametrize("steps", [1, 9, 10, 57, 100, 133, 250])
def test_state_restores_every_row(steps: int, tmp_path: Path) -> None:
    replay = filled(steps, directory=tmp_path, segment_rows=30)
    twin, notes = restored(replay, replay.state_dict(), tmp_path)
    assert notes == []
    assert (twin.time, twin.runs, len(twin)) == (replay.time, replay.runs, len(replay))
    for t in range(steps, steps + 40):
        replay.add(rows(t, 3))
        twin.add(rows(t, 3))
    for seed in range(5):
        draw = np.random.default_rng
        assert (replay.sample(9, 7, draw(seed)) == twin.sample(9, 7, draw(seed))).all()


def test_rows_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    replay = filled(57, directory=tmp_path, segment_rows=30)
    state = replay.state_dict()
    for t in range(57, 95):
        replay.add(rows(t + 1000, 3))
    replay.flush()
    twin, notes = restored(replay, state, tmp_path)
    assert notes == [] and twin.time == 57
    assert twin.collect_garbage(set()) == 4
    assert_windows(twin.sample(60, 8, np.random.default_rng(0)), 57, 0)


def test_segments_live_while_a_checkpoint_names_them(tmp_path: Path) -> None:
    replay = filled(100, directory=tmp_path, segment_rows=30)
    old = replay.state_dict()
    for t in range(100, 220):
        replay.add(rows(t, 3))
    live = {segment["name"] for segment in old["segments"]}
    assert replay.collect_garbage(live) == 2, "only what neither state needs may go"
    assert restored(replay, old, tmp_path)[1] == []
    assert replay.collect_garbage(set()) > 0
    assert restored(replay, replay.state_dict(), tmp_path)[1] == []
    assert len(restored(replay, old, tmp_path)[1]) == 10


def test_a_killed_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    replay = filled(57, directory=tmp_path, segment_rows=30)
    state = replay.state_dict()
    (tmp_path / "segments" / "000000000057-000000000067-abc.safetensors.tmp-123").write_bytes(
        b"half"
    )
    twin, notes = restored(replay, state, tmp_path)
    assert notes == [] and twin.time == 57
    assert not list((tmp_path / "segments").glob("*.tmp-*"))


def test_a_full_disk_costs_no_row_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = filled(20, directory=tmp_path, segment_rows=30)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("reverie.agents.runs.files.os.fsync", full)
        for t in range(20, 45):
            replay.add(rows(t, 3))
        assert replay.failed_writes == 2
        with pytest.raises(OSError, match="No space"):
            replay.state_dict()
        assert not list((tmp_path / "segments").glob("*.tmp-*"))
    twin, notes = restored(replay, replay.state_dict(), tmp_path)
    assert notes == [] and twin.runs == ((0, 45),)


DAMAGE = {
    "flip": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "truncate": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "header": lambda data: bytes([data[0] ^ 255]) + data[1:],
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
@pytest.mark.parametrize("victim", [0, 2, 5])
def test_fault_18_corrupted_segment_is_dropped(damage: str, victim: int, tmp_path: Path) -> None:
    replay = filled(57, directory=tmp_path, segment_rows=30)
    state = replay.state_dict()
    segment = state["segments"][victim]
    path = tmp_path / "segments" / segment["name"]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    twin, notes = restored(replay, state, tmp_path)
    assert len(notes) == 1 and segment["name"] in notes[0]
    lost = range(segment["start"], segment["stop"])
    assert len(twin) == 3 * (57 - len(lost))
    assert twin.time == 57
    batch = twin.sample(300, 6, np.random.default_rng(0))
    assert_windows(batch, 57, 0)
    slot, episode, step = batch["vector"].long().unbind(-1)
    touched = set((episode * (10 + slot) + step).flatten().tolist())
    assert not touched & set(lost)
    twin.add(rows(57, 3))
    assert_windows(twin.sample(100, 6, np.random.default_rng(1)), 58, 0)
    again, notes = restored(twin, twin.state_dict(), tmp_path)
    assert notes == [] and again.runs == twin.runs


@settings(max_examples=20, deadline=None)
@given(lost=st.sets(st.integers(0, 5), max_size=5), length=st.integers(1, 12))
def test_no_window_touches_a_lost_segment(
    tmp_path_factory: pytest.TempPathFactory, lost: set[int], length: int
) -> None:
    directory = tmp_path_factory.mktemp("replay")
    replay = filled(57, directory=directory, segment_rows=30)
    state = replay.state_dict()
    gone = set()
    for victim in lost:
        segment = state["segments"][victim]
        (directory / "segments" / segment["name"]).unlink()
        gone |= set(range(segment["start"], segment["stop"]))
    twin, notes = restored(replay, state, directory)
    assert len(notes) == len(lost) and len(twin) == 3 * (57 - len(gone))
    held = [t not in gone for t in range(57)]
    possible = any(all(held[t : t + length]) for t in range(57 - length + 1))
    assert twin.can_sample(length) == possible
    if possible:
        batch = twin.sample(100, length, np.random.default_rng(0))
        assert_windows(batch, 57, 0)


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    state = filled(20, directory=tmp_path).state_dict()
    other = Replay(SCHEMA, num_envs=3, capacity=600, directory=tmp_path)
    with pytest.raises(ReplayError, match=r"expected .* found"):
        other.load_state_dict(state)


# --------------------------------------------------------------------------- speed and TorchRL


def test_sampling_costs_one_copy_of_the_batch() -> None:
    """16 x 64 images in at most 1 ms, or twice this machine's own memcpy of as much."""
    replay = Replay(replay_schema(PIXELS), num_envs=4, capacity=8000)
    flags = np.zeros(4, bool)
    for t in range(2000):
        replay.add(
            {
                "image": np.full((4, 64, 64, 3), t % 256, np.uint8),
                "action": np.zeros((4, 6), np.float32),
                "reward": np.zeros(4, np.float32),
                "is_first": flags,
                "is_last": flags,
                "is_terminal": flags,
            }
        )
    rng = np.random.default_rng(0)
    source = np.ones((24, 16 * 64 * 64 * 64 * 3), np.uint8)
    target = np.ones_like(source[0])
    drawing, copying = [], []
    for turn in range(60):
        begin = time.process_time()
        replay.sample(16, 64, rng)
        middle = time.process_time()
        np.copyto(target, source[turn % 24])
        copying.append(time.process_time() - middle)
        drawing.append(middle - begin)
    # the fastest tenth of each: a busy neighbour slows the memory down for a while
    drawn, copied = np.quantile(drawing, 0.1), np.quantile(copying, 0.1)
    assert drawn <= max(1e-3, 2.0 * copied), (drawn, copied)


def test_torchrl_export_and_import_round_trip() -> None:
    pytest.importorskip("torchrl")
    from reverie.agents.replay.torchrl_buffers import from_torchrl, to_torchrl

    replay = filled(57)
    buffer = to_torchrl(replay, batch_size=24, length=6)
    assert len(buffer) == 3 * 57
    batch = buffer.sample().reshape(-1, 6)
    assert_windows(batch, 57, 0)
    twin = Replay(SCHEMA, num_envs=3, capacity=300)
    from_torchrl(buffer, twin)
    assert twin.runs == ((0, 57),)
    want, got = replay.read(0, 57), twin.read(0, 57)
    assert all(np.array_equal(want[key], got[key]) for key in SCHEMA)
