"""Kill it anywhere: the same call continues and ends with the same bits."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from doubles import TinyAgent
from runs import Child, assert_same, config, final_state, overrides

from reverie.agents import registry
from reverie.agents.runs.rundir import read_status
from reverie.agents.trainer import Trainer, train


@pytest.fixture
def tiny_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.AGENTS, "mudreamer", "doubles:build_tiny")


def raise_at(
    monkeypatch: pytest.MonkeyPatch, moments: dict[str, int], number: int = signal.SIGTERM
) -> None:
    """Send this process a signal at the n-th call of a method of the loop, once each."""
    for name, moment in moments.items():
        plain, calls = getattr(Trainer, name), [0]

        def counted(
            self: Trainer, *args: Any, plain: Any = plain, calls: Any = calls, at: int = moment
        ) -> Any:
            calls[0] += 1
            if calls[0] == at:
                signal.raise_signal(number)
            return plain(self, *args)

        monkeypatch.setattr(Trainer, name, counted)


STOPS: list[tuple[str, dict[str, int]]] = [
    ("toy/counter", {"_update": 2, "_collect": 50}),
    ("toy/counter", {"_collect": 1}),
    ("toy/counter", {"_collect": 13}),
    ("toy/counter", {"_update": 1}),
    ("toy/counter", {"_update": 37, "_evaluate_if_due": 60}),
    ("toy/identity", {"_update": 2, "_evaluate_if_due": 55}),
    ("torch/dots", {"_update": 4, "_collect": 50}),
]
"""Task, and what is interrupted at which call; all but the first are left to `make test`."""


@pytest.mark.parametrize(
    ("task", "stops"),
    [STOPS[0], *(pytest.param(*stop, marks=pytest.mark.slow) for stop in STOPS[1:])],
    ids=str,
)
def test_stopped_run_ends_with_the_same_bits(
    task: str,
    stops: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_agent: None,
) -> None:
    size = 16 if task == "torch/dots" else 8
    # 64: more than one update per step, so that a stop can fall between two of them
    changes: dict[str, Any] = {
        "task": task,
        "env": {"image_size": size},
        "train": {"steps": 120, "train_ratio": 64, "eval_every": 50},
    }
    assert train(config(tmp_path / "whole", **changes)) == 0
    codes = []
    with monkeypatch.context() as patch:
        raise_at(patch, stops)
        while not codes or codes[-1] != 0:
            codes.append(train(config(tmp_path / "parts", **changes)))
            assert len(codes) < 5
    assert codes == [143] * len(stops) + [0]
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_a_run_says_where_it_is_and_how_it_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_agent: None,
) -> None:
    def told() -> list[str]:
        return [line for line in capsys.readouterr().out.splitlines() if " | " not in line]

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        raise_at(patch, {"_collect": 90})
        assert train(config(run)) == 143
    status = read_status(run)
    assert status is not None
    first = told()
    assert first[0] == f"run {run}"
    assert first[-1] == f"saved at step {status['step']:,}; the same command continues"
    assert train(config(run)) == 0
    told()
    assert train(config(run)) == 0  # nothing is left to do
    status = read_status(run)
    assert status is not None
    score = status["evaluation"]["mean"]
    assert told()[-1] == f"done, final score {score:.4g}; all files are in {run}"


@pytest.mark.parametrize("storage", ["memmap", "device"])
def test_every_storage_resumes(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_agent: None
) -> None:
    train(config(tmp_path / "whole"))
    changes = {"replay": {"storage": storage}}
    with monkeypatch.context() as patch:
        raise_at(patch, {"_update": 50})
        assert train(config(tmp_path / "parts", **changes)) == 143
        assert train(config(tmp_path / "parts", **changes)) == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", ["toy/identity", pytest.param("atari/pong", marks=pytest.mark.atari)]
)
def test_the_real_agent_ends_with_the_same_bits(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reverie.agents.resolve import resolve

    def settings(name: str) -> Any:
        train_part = {"steps": 120, "eval_episodes": 0}
        tree = {"task": task, "size": "nano", "run": str(tmp_path / name), "train": train_part}
        return resolve(tree, configs=["debug"])

    assert train(settings("whole")) == 0
    with monkeypatch.context() as patch:
        raise_at(patch, {"_update": 5, "_collect": 45})
        assert train(settings("parts")) == 143
        assert train(settings("parts")) == 143
        assert train(settings("parts")) == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.parametrize(
    "entry", ["agent.adam", "agent.ema", "agent.generators", "collector.carry", "updates"]
)
def test_every_part_of_the_state_matters(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_agent: None
) -> None:
    """Without any one of these entries the run must not end with the same bits."""
    changes: dict[str, Any] = {"task": "toy/identity", "train": {"eval_episodes": 0}}
    train(config(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        raise_at(patch, {"_update": 97})  # so late that no new episode hides a wrong carry
        train(config(tmp_path / "parts", **changes))
        plain = Trainer.load_state_dict

        def forgetful(self: Trainer, state: dict[str, Any]) -> list[str]:
            fresh = TinyAgent(self.env.spec, seed=self.cfg.seed)
            spoiled = {
                "agent.adam": lambda: _zero(state["agent"]["adam"]),
                "agent.ema": lambda: state["agent"].update(ema=fresh.ema),
                "agent.generators": lambda: state["agent"].update(
                    generators={k: g.get_state() for k, g in fresh.generators.items()}
                ),
                "collector.carry": lambda: _zero(state["collector"]["carry"]),
                "updates": lambda: state.update(updates=state["updates"] + 1),
            }
            spoiled[entry]()
            return plain(self, state)

        patch.setattr(Trainer, "load_state_dict", forgetful)
        train(config(tmp_path / "parts", **changes))
    with pytest.raises(AssertionError):
        assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def _zero(tree: Any) -> None:
    for value in tree.values():
        _zero(value) if isinstance(value, dict) else value.zero_()


def test_lost_replay_rows_do_not_stop_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_agent: None
) -> None:
    with monkeypatch.context() as patch:
        raise_at(patch, {"_update": 50})
        assert train(config(tmp_path)) == 143
    for path in (tmp_path / "replay" / "segments").iterdir():
        path.write_bytes(b"")
    assert train(config(tmp_path)) == 0
    assert read_status(tmp_path)["updates"] in (99, 100)


def test_old_segments_go_and_named_ones_stay(tmp_path: Path, tiny_agent: None) -> None:
    from reverie.agents.runs.savepoints import named_segments

    # no evaluation, so no best checkpoint that would keep its segments for ever
    assert train(config(tmp_path, train={"eval_episodes": 0, "steps": 400})) == 0
    on_disk = {path.name for path in (tmp_path / "replay" / "segments").iterdir()}
    assert on_disk == named_segments(tmp_path), "neither more nor fewer than checkpoints name"
    oldest = min(int(name.split("-")[0]) for name in on_disk)
    assert oldest > 0, "the ring has turned over, its first segments must be gone"


# --------------------------------------------------------------------------- real processes


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(300)
def test_fault_01_sigkill_at_random_moments(tmp_path: Path, tiny_agent: None) -> None:
    changes = {"train": {"steps": 400, "checkpoint_every": 20}}
    train(config(tmp_path / "whole", **changes))
    tree = overrides(tmp_path / "parts", **changes)
    rng = np.random.default_rng(time.time_ns())
    for _ in range(10):
        child = Child(tree, UPDATE_SECONDS="0.005")
        if not child.reaches("ready"):  # a late kill may have left nothing to do
            assert child.finish() == 0, child.output
            break
        child.kill_after(float(rng.uniform(0.0, 0.4)), signal.SIGKILL)
        if child.finish() == 0:
            break
    child = Child(tree)
    assert child.finish() == 0, child.output
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)],
    ids=["term", "int", "usr1"],
)
def test_fault_03_a_signal_saves_and_exits(
    number: int, code: int, tmp_path: Path, tiny_agent: None
) -> None:
    tree = overrides(tmp_path / "parts")
    child = Child(tree, UPDATE_SECONDS="0.01")
    child.wait_for("ready 20")
    begin = time.monotonic()
    child.process.send_signal(number)
    assert child.finish() == code
    assert time.monotonic() - begin < 5
    status = read_status(tmp_path / "parts")
    assert status["state"] == "preempted" and status["updates"] >= 21
    train(config(tmp_path / "whole"))
    assert train(config(tmp_path / "parts")) == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.fault
def test_fault_03_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    child = Child(overrides(tmp_path), UPDATE_SECONDS="30")
    child.wait_for("ready 0")
    child.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert child.process.poll() is None, "the first signal waits for the update"
    begin = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    assert child.finish() == 143
    assert time.monotonic() - begin < 2


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_fault_25_no_worker_outlives_its_run(number: int, tmp_path: Path) -> None:
    tree = overrides(tmp_path, env={"workers": "process"}, train={"eval_every": 45})
    child = Child(tree, UPDATE_SECONDS="0.02")
    child.wait_for("ready 10")
    workers = psutil.Process(child.process.pid).children(recursive=True)
    assert len(workers) >= 2
    child.process.send_signal(number)
    child.finish()
    _, alive = psutil.wait_procs(workers, timeout=2)
    assert not alive, [process.cmdline() for process in alive]


@pytest.mark.slow
@pytest.mark.fault
def test_fault_25_another_thread_count_is_noted_and_ends_the_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_agent: None
) -> None:
    with monkeypatch.context() as patch:
        raise_at(patch, {"_update": 50})
        assert train(config(tmp_path)) == 143
    assert read_status(tmp_path)["promise"] == "bitwise"
    # as on a machine that grants the process more threads than the settings ask for
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    threads = torch.get_num_threads()
    try:
        torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32
        assert train(config(tmp_path)) == 0
    finally:
        torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32
    assert torch.get_num_threads() == threads
    assert read_status(tmp_path)["promise"] == "statistical"


def test_a_damaged_newest_checkpoint_costs_time_not_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_agent: None
) -> None:
    from reverie.agents.runs.checkpoint import checkpoints

    train(config(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        raise_at(patch, {"_update": 90})
        assert train(config(tmp_path / "parts")) == 143
    victim = checkpoints(tmp_path / "parts")[0] / "tensors.safetensors"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(bytes(data))
    assert train(config(tmp_path / "parts")) == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
