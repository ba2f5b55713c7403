"""The training loop: exact ratio, rhythm, records, and what it does when things go wrong."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doubles import TinyAgent
from runs import Child, assert_same, config, final_state, overrides
from safetensors.torch import load_file

from reverie.agents import registry
from reverie.agents.metrics import MetricMeans
from reverie.agents.replay.buffer import Replay
from reverie.agents.runs.checkpoint import checkpoints
from reverie.agents.runs.logger import read_jsonl
from reverie.agents.runs.rundir import RunDir, RunDirError, read_status
from reverie.agents.stopping import (
    NonFiniteError,
    NonFiniteGuard,
    OutOfMemoryError,
    StopRequest,
    available_memory,
    check_memory,
)
from reverie.agents.trainer import Trainer, train


@pytest.fixture(autouse=True)
def tiny_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.AGENTS, "mudreamer", "doubles:build_tiny")


def trainer(run: Path, **changes: Any) -> Trainer:
    return Trainer(config(run, **changes), RunDir(run, config=""), StopRequest())


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    assert train(config(tmp_path)) == 0
    status = read_status(tmp_path)
    assert (status["state"], status["steps"]) == ("done", 240)
    assert 240 <= status["step"] < 242
    metrics = list(read_jsonl(tmp_path / "metrics.jsonl"))
    evaluations = [row for row in metrics if "eval/mean" in row]
    assert len(evaluations) == 3 and evaluations[-1]["step"] == status["step"]
    losses = [row for row in metrics if "loss/total" in row]
    assert losses
    assert [row["count/updates"] for row in losses] == list(range(10, 100, 10))[: len(losses)]
    episodes = read_jsonl(tmp_path / "episodes.jsonl")
    assert {episode["purpose"] for episode in episodes} == {"train", "eval"}
    assert (tmp_path / "config.toml").exists() and list(tmp_path.glob("events.*"))
    assert checkpoints(tmp_path)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    train(config(tmp_path))
    before = final_state(tmp_path)
    folders = checkpoints(tmp_path)
    assert train(config(tmp_path)) == 0
    assert_same(before, final_state(tmp_path))
    assert checkpoints(tmp_path) == folders
    with pytest.raises(RunDirError, match="holds a run"):
        train(config(tmp_path), fresh=True)


@pytest.mark.parametrize(
    "ratio", [1.0, 4.0, 16.0, 50.0, pytest.param(128.0, marks=pytest.mark.slow)]
)
def test_train_ratio_is_exact_at_every_moment(ratio: float, tmp_path: Path) -> None:
    loop = trainer(tmp_path, train={"train_ratio": ratio, "eval_episodes": 0})
    while loop.steps < 200:
        while loop.due_updates() > 0:
            loop._update()
        if loop.learn_from is not None:
            learned = (loop.steps - loop.learn_from) * ratio
            assert loop.updates == learned // (4 * 8)
        loop._collect()
    assert loop.learn_from in (40, 41)
    loop.close()


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_trap_16_updates_per_agent_step_whatever_the_action_repeat(
    repeat: int, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "task": "toy/dot",
        "env": {"action_repeat": repeat, "num_envs": 1, "image_size": 16},
        "train": {"steps": 140, "train_ratio": 16, "eval_episodes": 1},
    }
    assert train(config(tmp_path, **changes)) == 0
    status = read_status(tmp_path)
    assert status["step"] == 140 and status["updates"] == (140 - 40) * 16 // 32
    rows = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "count/frames" in r]
    assert rows and all(row["count/frames"] == row["step"] * repeat for row in rows)


def test_reset_rows_are_not_in_the_budget(tmp_path: Path) -> None:
    loop = trainer(tmp_path, env={"num_envs": 3})
    for _ in range(60):
        loop._collect()
    stored = loop.replay.read(0, 60)
    assert loop.steps == 3 * 60 - int(stored["is_first"].sum())
    loop.close()


def test_trap_15_replay_draws_depend_on_seed_and_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, keys = Replay.sample, []

    def spy(self: Replay, batch_size: int, length: int, rng: np.random.Generator) -> Any:
        keys.append(rng.bit_generator.state["state"]["key"].tolist())
        return plain(self, batch_size, length, rng)

    monkeypatch.setattr(Replay, "sample", spy)
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        keys.clear()
        train(config(tmp_path / name, seed=seed, train={"steps": 100, "eval_episodes": 0}))
        drawn.append(list(keys))
    assert drawn[0] == drawn[1]
    everything = [tuple(key) for key in drawn[0] + drawn[2]]
    assert len(set(everything)) == len(everything) > 40


def test_evaluation_does_not_change_training(tmp_path: Path) -> None:
    train(config(tmp_path / "often", train={"eval_every": 20}))
    train(config(tmp_path / "never", train={"eval_episodes": 0}))
    often, never = final_state(tmp_path / "often"), final_state(tmp_path / "never")
    for state in (often, never):
        state["agent"]["generators"].pop("eval")
        state.pop("evaluated")
    assert_same(often, never)


def test_fault_22_checkpoints_keep_both_rhythms_under_any_clock(tmp_path: Path) -> None:
    now = [0.0]
    cfg = config(tmp_path, train={"checkpoint_every": 1000, "checkpoint_minutes": 1.0})
    run = RunDir(tmp_path, config="")
    loop = Trainer(cfg, run, StopRequest(), clock=lambda: now[0])
    saves: list[int] = []
    loop._save = lambda **_: bool(saves.append(loop.steps)) or True  # type: ignore
    plain = loop._collect

    def slow() -> None:
        now[0] += {100: 3600.0, 101: 0.0}.get(loop.steps, 0.0)
        plain()

    loop._collect = slow  # type: ignore[method-assign]
    assert loop.run() == 0
    assert len([step for step in saves if 100 < step < 110]) == 1, saves
    assert loop.progress.rates.steps >= 0.0
    loop.close()


# --------------------------------------------------------------------------- non-finite updates


def poisoned(monkeypatch: pytest.MonkeyPatch, poison: set[int]) -> None:
    plain = TinyAgent.__init__

    def init(self: TinyAgent, *args: Any, **named: Any) -> None:
        plain(self, *args, **named)
        self.poison = poison

    monkeypatch.setattr(TinyAgent, "__init__", init)


def test_fault_16_a_bad_batch_is_skipped_counted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {7, 30, 31})
    assert train(config(tmp_path, train={"max_nonfinite": 3})) == 0
    status = read_status(tmp_path)
    assert status["nonfinite_updates"] == 3
    kept = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    assert kept == [f"batch-{n:09d}.safetensors" for n in (7, 30, 31)]
    batch = load_file(tmp_path / "nonfinite" / kept[0])
    assert batch["image"].shape == (4, 8, 8, 8, 3) and batch["image"].dtype == torch.uint8
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert next(r["nonfinite"] for r in rows if "nonfinite" in r) == pytest.approx(0.1)
    assert all(r["loss/total"] == r["loss/total"] for r in rows if "loss/total" in r)


def test_fault_16_too_many_in_a_row_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {7, 8, 20, 21, 22, 23})
    with pytest.raises(NonFiniteError, match="3 updates in a row"):
        train(config(tmp_path, train={"max_nonfinite": 3}))
    status = read_status(tmp_path)
    assert status["state"] == "failed" and "non-finite" in status["reason"]


@pytest.mark.parametrize("read_every", [1, 5])
def test_fault_16_the_guard_needs_the_host_only_now_and_then(
    read_every: int, tmp_path: Path
) -> None:
    from tensordict import TensorDict

    guard = NonFiniteGuard(tmp_path, limit=3, device=torch.device("cpu"))
    guard.read_every = read_every
    flags = [0, 1, 0, 1, 1, 0, 0, 0, 1, 0]
    for update, flag in enumerate(flags, start=1):
        batch = TensorDict({"x": torch.full((2, 3), float(update))}, (2, 3), device="cpu")
        guard.watch(batch, torch.tensor(float(flag)), update)
    guard.check()
    assert guard.total == 4
    newest = sorted(tmp_path.iterdir())[-1]
    assert newest.name == "batch-000000009.safetensors"
    assert (load_file(newest)["x"] == 9).all()
    twin = NonFiniteGuard(tmp_path, limit=3, device=torch.device("cpu"))
    twin.load_state_dict(guard.state_dict())
    assert twin.total == 4
    with pytest.raises(NonFiniteError):
        for update in range(11, 20):
            batch = TensorDict({"x": torch.zeros(2, 3)}, (2, 3), device="cpu")
            guard.watch(batch, torch.ones(()), update)


def test_metric_means_ignore_what_is_not_finite() -> None:
    means = MetricMeans()
    assert means.take() == {}
    for value, bad in ((1.0, 0.0), (float("nan"), 1.0), (3.0, 0.0)):
        means.add({"loss": torch.tensor(value), "nonfinite": torch.tensor(bad)})
    assert means.take() == {"loss": 2.0, "nonfinite": pytest.approx(1 / 3)}
    assert means.take() == {}
    with pytest.raises(AssertionError, match="metrics changed"):
        means.add({"loss": torch.zeros(())})
        means.add({"other": torch.zeros(())})


# --------------------------------------------------------------------------- memory and disk


def test_fault_19_watermark_stops_before_memory_is_gone(tmp_path: Path) -> None:
    check_memory()
    with pytest.raises(OutOfMemoryError, match="memmap"):
        check_memory(available_memory() + 2**40)


def test_fault_19_a_limited_process_sees_its_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    free = available_memory()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (2**40, before[1]))
        size = 2**40 - available_memory() if free > 2**40 else None
        resource.setrlimit(resource.RLIMIT_AS, (_virtual_size() + 2**28, before[1]))
        assert 2**27 < available_memory() <= 2**28
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert size is None or size > 0


@pytest.mark.slow
@pytest.mark.fault
def test_fault_19_a_run_that_outgrows_its_memory_is_saved_and_says_why(tmp_path: Path) -> None:
    tree = overrides(tmp_path, train={"steps": 100_000, "eval_episodes": 0})
    child = Child(tree, MEMORY_LEFT=str(2**27))
    assert child.finish() != 0
    assert "lower replay.capacity" in child.output, child.output
    assert read_status(tmp_path)["state"] == "failed"
    assert checkpoints(tmp_path)


def _virtual_size() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def test_fault_04_a_full_disk_for_replay_is_survived_then_stops_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reverie.agents.replay.segments import SegmentStore
    from reverie.agents.runs.checkpoint import CheckpointError

    written = SegmentStore.write
    calls = [0]

    def full(self: SegmentStore, *args: Any) -> Any:
        calls[0] += 1
        if 1 < calls[0] < 4:
            raise OSError(28, "No space left on device")
        return written(self, *args)

    monkeypatch.setattr(SegmentStore, "write", full)
    assert train(config(tmp_path / "some")) == 0
    assert_finishes_like_undisturbed(tmp_path, monkeypatch)

    def always(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SegmentStore, "write", always)
    with pytest.raises(CheckpointError, match="free disk space"):
        train(config(tmp_path / "all", train={"checkpoint_every": 10}))
    assert read_status(tmp_path / "all")["state"] == "failed"


def assert_finishes_like_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.undo()
        patch.setitem(registry.AGENTS, "mudreamer", "doubles:build_tiny")
        train(config(tmp_path / "none"))
    assert_same(final_state(tmp_path / "some"), final_state(tmp_path / "none"))


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    train(config(tmp_path, train={"steps": 60}))
    with pytest.raises(RunDirError, match=r"train\.batch_size"):
        train(config(tmp_path, train={"steps": 60, "batch_size": 5}))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"
