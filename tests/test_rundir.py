"""Run directories: one owner, one configuration, honest status; faults 10 and 25."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from children import start_child, wait_for_line

from reverie.agents.runs import checkpoint, fingerprint, rundir, runlock
from reverie.agents.runs.rundir import RunDir, RunDirError, read_status

CONFIG = 'seed = 0\ntask = "toy/chain"\n[train]\nlr = 3e-4\n'


def test_a_new_run_holds_what_is_promised(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "chain" / "with spaces, ünïcode"
    with RunDir(path, config=CONFIG) as run:
        assert not run.resumed and run.notes == [] and run.promise == "bitwise"
        assert (path / "config.toml").read_text() == CONFIG
        assert read_status(path)["state"] == "running"
        run.status("done", reason="budget reached", step=7)
    stamp = json.loads((path / "fingerprint.json").read_text())
    assert stamp["threads"] == torch.get_num_threads()
    assert {"argv", "git", "versions", "cpu", "gpu", "promise"} <= set(stamp)
    status = read_status(path)
    assert (status["state"], status["reason"], status["step"]) == ("done", "budget reached", 7)


def test_the_same_configuration_resumes(tmp_path: Path) -> None:
    RunDir(tmp_path, config=CONFIG).close()
    with RunDir(tmp_path, config=CONFIG.replace("3e-4", "0.0003") + "# comment") as run:
        assert run.resumed and run.notes == [] and run.promise == "bitwise"
    assert (tmp_path / "config.toml").read_text() == CONFIG


def test_another_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    RunDir(tmp_path, config=CONFIG).close()
    other = 'seed = 1\ntask = "toy/chain"\n[train]\nlr = 3e-4\nsteps = 5\n'
    with pytest.raises(RunDirError) as caught:
        RunDir(tmp_path, config=other)
    said = str(caught.value)
    assert "seed: the run has 0, asked for 1" in said
    assert "train.steps: the run has '(unset)', asked for 5" in said and "lr" not in said
    RunDir(tmp_path, config=other, may_differ=("seed", "train.steps")).close()


def test_fresh_refuses_a_directory_in_use(tmp_path: Path) -> None:
    RunDir(tmp_path, config=CONFIG, fresh=True).close()
    with pytest.raises(RunDirError, match="holds a run already"):
        RunDir(tmp_path, config=CONFIG, fresh=True)


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_checkpoints_without_a_readable_configuration_are_refused(
    tmp_path: Path, damage: str
) -> None:
    RunDir(tmp_path, config=CONFIG).close()
    checkpoint.save(tmp_path, 1, {}, keep=1, meta={})
    if damage == "missing":
        (tmp_path / "config.toml").unlink()
    else:
        (tmp_path / "config.toml").write_text('seed = "')
    with pytest.raises(RunDirError, match=r"config\.toml cannot be read"):
        RunDir(tmp_path, config=CONFIG)


def test_a_refused_start_leaves_the_directory_free_and_as_it_was(tmp_path: Path) -> None:
    RunDir(tmp_path, config=CONFIG).close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunDirError):
        RunDir(tmp_path, config="seed = 9")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    RunDir(tmp_path, config=CONFIG).close()


@pytest.mark.parametrize("place", ["/proc/reverie/run", "/sys/kernel"])
def test_a_read_only_place_is_an_error_that_names_the_way_out(place: str) -> None:
    with pytest.raises(RunDirError, match="choose another --run"):
        RunDir(Path(place), config=CONFIG)


def test_a_full_disk_costs_the_status_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with RunDir(tmp_path, config=CONFIG) as run:
        monkeypatch.setattr(rundir, "write_atomic", full)
        run.status("failed")
        run.status("failed")
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert read_status(tmp_path)["state"] == "running"


def test_atomic_write_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "status.json"
    rundir.write_atomic(file, b"old")

    def fail(*_: Any) -> None:
        raise OSError("lost the share")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="lost the share"):
        rundir.write_atomic(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


HOLD = """
import sys
from pathlib import Path
from reverie.agents.runs.rundir import RunDir, RunDirError
try:
    run = RunDir(Path(sys.argv[1]), config=sys.argv[2])
except RunDirError as error:
    print(error, flush=True)
    sys.exit(3)
print("ready", flush=True)
sys.stdin.read()
run.status("done")
run.close()
"""


@pytest.mark.slow
def test_fault_10_two_processes_on_one_run_directory(tmp_path: Path) -> None:
    first = start_child(HOLD, tmp_path, CONFIG)
    wait_for_line(first, "ready")
    second = start_child(HOLD, tmp_path, CONFIG)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 3 and f"in use by process {first.pid} on host" in said
    (tmp_path / "checkpoints" / "0000000001.tmp-1").mkdir(parents=True)

    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    third = start_child(HOLD, tmp_path, CONFIG)
    wait_for_line(third, "ready")
    assert not list((tmp_path / "checkpoints").iterdir())
    third.communicate("", timeout=60)
    assert third.returncode == 0 and read_status(tmp_path)["state"] == "done"
    with RunDir(tmp_path, config=CONFIG) as run:
        assert run.resumed and run.notes == [], "a lock that was given back needs no note"


def test_fault_10_the_lock_holds_within_one_process_too(tmp_path: Path) -> None:
    with RunDir(tmp_path, config=CONFIG), pytest.raises(RunDirError, match=str(os.getpid())):
        RunDir(tmp_path, config=CONFIG)
    RunDir(tmp_path, config=CONFIG).close()


def elsewhere(tmp_path: Path, *, seconds_ago: float) -> None:
    """A lock file as a process on another machine left it."""
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"pid": 1, "host": "node7", "boot": "other", "started": "5"}))
    touched = lock.stat().st_mtime - seconds_ago
    os.utime(lock, (touched, touched))


def test_fault_10_a_holder_on_another_host_counts_while_its_heart_beats(tmp_path: Path) -> None:
    elsewhere(tmp_path, seconds_ago=runlock.STALE_S / 2)
    with pytest.raises(RunDirError, match="process 1 on host node7"):
        RunDir(tmp_path, config=CONFIG)
    elsewhere(tmp_path, seconds_ago=runlock.STALE_S + 5)
    with RunDir(tmp_path, config=CONFIG) as run:
        assert run.notes == ["took over from process 1 on node7, which died"]


def test_fault_10_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "HEARTBEAT_S", 0.02)
    with RunDir(tmp_path, config=CONFIG) as run:
        lock = tmp_path / "lock"
        os.utime(lock, (1, 1))
        while lock.stat().st_mtime < 2:
            assert run._lock._heart.is_alive()


def test_fault_10_without_kernel_locks_the_process_itself_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(runlock.fcntl, "flock", unsupported)
    holder = start_child(HOLD, tmp_path, CONFIG)
    wait_for_line(holder, "ready")
    with pytest.raises(RunDirError, match=f"process {holder.pid}"):
        RunDir(tmp_path, config=CONFIG)
    holder.kill()
    holder.communicate(timeout=60)
    with RunDir(tmp_path, config=CONFIG) as run:
        assert run.notes == [
            f"took over from process {holder.pid} on {os.uname().nodename}, which died"
        ]


def test_fault_25_other_threads_at_resume_are_recorded_and_end_the_promise(tmp_path: Path) -> None:
    RunDir(tmp_path, config=CONFIG).close()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    with RunDir(tmp_path, config=CONFIG) as run:
        assert run.promise == "statistical"
        assert f"threads was {threads}, is now {threads + 1}" in run.notes[0]
    torch.set_num_threads(threads + 1)
    with RunDir(tmp_path, config=CONFIG) as run:
        assert run.promise == "statistical" and run.notes == [], "once broken, it stays broken"
    stamp = json.loads((tmp_path / "fingerprint.json").read_text())
    assert [start["threads"] for start in stamp["earlier"]] == [threads, threads + 1]
    assert read_status(tmp_path)["promise"] == "statistical"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deterministic", True),
        ("matmul_precision", "medium"),
        ("tf32", None),
        ("cpu", "another"),
        ("gpu", "another"),
        ("versions.torch", "2.99"),
        ("versions.numpy", None),
    ],
)
def test_fault_25_every_guarded_entry_is_compared(name: str, value: Any) -> None:
    before, now = fingerprint.fingerprint(), fingerprint.fingerprint()
    assert fingerprint.changes(before, now) == []
    head, _, tail = name.partition(".")
    if tail:
        now[head][tail] = value
    else:
        now[head] = value
    assert len(fingerprint.changes(before, now)) == 1


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}"])
def test_fault_25_an_unreadable_fingerprint_downgrades_the_promise(
    tmp_path: Path, content: bytes | None
) -> None:
    RunDir(tmp_path, config=CONFIG).close()
    file = tmp_path / "fingerprint.json"
    file.unlink() if content is None else file.write_bytes(content)
    with RunDir(tmp_path, config=CONFIG) as run:
        assert run.promise == "statistical" and "fingerprint.json is unreadable" in run.notes[0]
