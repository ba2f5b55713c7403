"""Faults 2, 4, 6, 7 and 9: what a checkpoint survives, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_doubles import FILES, falls_back, forge, state, two_checkpoints
from children import run_child
from safetensors import SafetensorError

from reverie.agents.runs import checkpoint, checkpoint_format
from reverie.agents.runs.checkpoint import CheckpointError, CheckpointWriter

KILL_AT_EACH_BOUNDARY = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
from reverie.agents.runs import checkpoint
from reverie.agents.runs import checkpoint_format
from reverie.agents.runs.rundir import RunDir

run_dir = Path(sys.argv[1])
died_at = None

def boundary(name):
    global died_at
    died_at -= 1
    if died_at == 0:
        os.write(told, name.encode())
        os.kill(os.getpid(), signal.SIGKILL)

def torn(path, content, whole=checkpoint_format.write_synced):
    path.write_bytes(content[: len(content) // 2])
    boundary("inside " + path.name)
    whole(path, content)
    boundary("after " + path.name)

def watched(module, name):
    original = getattr(module, name)
    def wrapped(*args):
        result = original(*args)
        boundary("after " + name)
        return result
    setattr(module, name, wrapped)

def write_with_kills(at):
    global died_at
    died_at = at
    checkpoint_format.write_synced = torn
    watched(checkpoint_format, "fsync")
    watched(checkpoint, "fsync")
    watched(checkpoint, "verify")
    rename = Path.rename
    def moved(self, target):
        rename(self, target)
        boundary("after rename")
    Path.rename = moved
    checkpoint.save(run_dir, 2, {"w": torch.full((1000,), 2.0)}, keep=1, meta={})

for at in range(1, 100):
    shutil.rmtree(run_dir, ignore_errors=True)
    checkpoint.save(run_dir, 1, {"w": torch.full((1000,), 1.0)}, keep=1, meta={})
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        write_with_kills(at)
        os._exit(0)
    os.close(told)
    where = os.read(heard, 100).decode()
    os.close(heard)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    step, state, notes = checkpoint.load_latest(run_dir)
    temporary = [p.name for p in (run_dir / "checkpoints").glob("*.tmp-*")]
    (run_dir / "config.toml").write_text("x = 1")
    RunDir(run_dir, config="x = 1").close()
    left = sorted(p.name for p in (run_dir / "checkpoints").iterdir())
    checkpoint.save(run_dir, 2, {"w": torch.full((1000,), 2.0)}, keep=1, meta={})
    print(json.dumps([killed, where, step, state["w"].unique().tolist(), notes, temporary, left]))
    if not killed:
        break
"""


def test_fault_02_kill_inside_a_checkpoint_write(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in run_child(KILL_AT_EACH_BOUNDARY, tmp_path).splitlines()]
    places = [where for _, where, *_ in rows]
    for name in FILES:
        assert {f"inside {name}", f"after {name}"} <= set(places)
    published = places.index("after rename")
    for index, (killed, _, step, values, notes, temporary, left) in enumerate(rows):
        assert killed == (index < len(rows) - 1)
        assert step == (1 if index < published else 2)
        assert values == [float(step)] and notes == []
        assert bool(temporary) or index >= published
        assert all(name.isdigit() for name in left), "the next start removes what was left over"


FULL_DISK = """
import logging, resource, signal, sys
from pathlib import Path
import torch
from reverie.agents.runs.checkpoint import CheckpointError, CheckpointWriter, load_latest

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.basicConfig(stream=sys.stdout, format="%(message)s")
run_dir = Path(sys.argv[1])
writer = CheckpointWriter(run_dir, keep=2, max_failures=3)
big = {"w": torch.zeros(100_000)}
assert writer.save(1, big, meta={})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
assert writer.save(2, big, meta={}) is None and writer.failures == 1
assert writer.save(3, big, meta={}) is None and writer.failures == 2
try:
    writer.save(4, big, meta={})
except CheckpointError as error:
    print("stopped:", error)
assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["0000000001"]
assert load_latest(run_dir)[0] == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert writer.save(5, big, meta={}) and writer.failures == 0
"""


def test_fault_04_disk_full_during_a_checkpoint(tmp_path: Path) -> None:
    said = run_child(FULL_DISK, tmp_path)
    assert "save failed (1 of 3)" in said and "save failed (2 of 3)" in said
    assert "stopped: cannot write checkpoint" in said and "earlier checkpoints are intact" in said


@pytest.mark.parametrize("error", [RuntimeError, SafetensorError, OSError, MemoryError])
@pytest.mark.parametrize("failing", FILES)
def test_fault_04_whatever_a_writer_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], failing: str
) -> None:
    two_checkpoints(tmp_path)
    write = checkpoint_format.write_synced

    def fail(path: Path, content: bytes) -> None:
        write(path, content[: len(content) // 2])
        if path.name == failing:
            raise error("no space left on device")

    monkeypatch.setattr(checkpoint_format, "write_synced", fail)
    with pytest.raises(CheckpointError, match="no space left"):
        checkpoint.save(tmp_path, 3, state(3), keep=1, meta={})
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found[0] == 2 and found[2] == []


def test_fault_04_a_damaged_checkpoint_is_told_once_and_by_whoever_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = two_checkpoints(tmp_path)
    (newest / "tensors.safetensors").write_bytes(b"")
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found[0] == 1
    (note,) = found[2]
    assert note.startswith("checkpoint passed over: ") and str(newest) in note
    assert caplog.records == []


def test_fault_04_older_checkpoints_go_only_after_the_new_one_was_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, state(1), keep=1, meta={})
    write = checkpoint_format.write_synced
    monkeypatch.setattr(
        checkpoint_format, "write_synced", lambda path, content: write(path, content[:-1] + b"?")
    )
    with pytest.raises(CheckpointError, match="did not read back"):
        checkpoint.save(tmp_path, 2, state(2), keep=1, meta={})
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found[0] == 1 and found[2] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0, 20, -30, -1])
def test_fault_06_bit_rot_falls_back_and_says_so(
    tmp_path: Path, flip_byte: Callable[[Path, int], None], name: str, where: int
) -> None:
    newest = two_checkpoints(tmp_path)
    flip_byte(newest / name, where)
    falls_back(tmp_path, name)


def test_fault_06_every_single_bit_of_a_checkpoint_counts(tmp_path: Path) -> None:
    newest = two_checkpoints(tmp_path)
    for file in newest.iterdir():
        content = file.read_bytes()
        for index in range(len(content)):
            damaged = bytearray(content)
            damaged[index] ^= 1 << (index % 8)
            file.write_bytes(bytes(damaged))
            with pytest.raises(CheckpointError):
                checkpoint.load(newest)
        file.write_bytes(content)
    assert checkpoint.load(newest).step == 2


def test_fault_06_a_damaged_checkpoint_is_set_aside_once_training_has_passed(
    tmp_path: Path, flip_byte: Callable[[Path, int], None]
) -> None:
    for step in (1, 5, 9):
        newest = checkpoint.save(tmp_path, step, state(step), keep=3, meta={"score": step})
    flip_byte(newest / FILES[0], -1)
    found = checkpoint.load_latest(tmp_path)
    assert found is not None and found[0] == 5
    checkpoint.save(tmp_path, 7, state(7), keep=2, meta={"score": 1})
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["0000000007", "0000000005"]
    assert (tmp_path / "checkpoints" / "0000000009.rejected").is_dir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", ["nothing", "one byte", "half", "all but one", "no file"])
def test_fault_07_truncated_empty_or_missing_file(tmp_path: Path, name: str, keep: str) -> None:
    file = two_checkpoints(tmp_path) / name
    size = file.stat().st_size
    if keep == "no file":
        file.unlink()
    else:
        length = {"nothing": 0, "one byte": 1, "half": size // 2, "all but one": size - 1}[keep]
        os.truncate(file, length)
    falls_back(tmp_path, name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_fault_07_something_else_where_a_file_should_be(
    tmp_path: Path, name: str, kind: str
) -> None:
    file = two_checkpoints(tmp_path) / name
    moved = tmp_path / "moved"
    file.rename(moved)
    {"folder": file.mkdir, "pipe": lambda: os.mkfifo(file), "link": lambda: file.symlink_to(moved)}[
        kind
    ]()
    falls_back(tmp_path, name)


def test_fault_07_unreadable_manifests(tmp_path: Path) -> None:
    newest = two_checkpoints(tmp_path)
    for content in (b"\xff\xfe", b"[]", b"3", b'{"manifest": {}}', b"{", b"[" * 100_000):
        (newest / "manifest.json").write_bytes(content)
        falls_back(tmp_path, "manifest.json")
    for file in newest.iterdir():
        file.unlink()
    falls_back(tmp_path, "manifest.json")


def test_fault_07_nothing_readable_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    for path in checkpoint.checkpoints(tmp_path):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be read") as caught:
        checkpoint.load_latest(tmp_path)
    assert "0000000001" in str(caught.value) and "0000000002" in str(caught.value)


class Agent(torch.nn.Module):
    def __init__(self, width: int, *, extra: bool = False) -> None:
        super().__init__()
        self.core = torch.nn.Linear(3, width)
        self.norm = torch.nn.BatchNorm1d(width)
        if extra:
            self.head = torch.nn.Linear(width, 1)


def test_fault_09_another_size_gives_a_diff_and_loads_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"agent": Agent(4).state_dict()}, keep=1, meta={})
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    stored = found[1]["agent"]
    checkpoint.check_compatible(Agent(4).state_dict(), stored, what="size nano")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_compatible(Agent(8, extra=True).state_dict(), stored, what="size S")
    said = str(caught.value)
    assert "does not fit size S" in said
    assert "differs: core.weight: expected float32[8, 3], found float32[4, 3]" in said
    assert "missing: head.bias (float32[1])" in said
    with pytest.raises(CheckpointError, match=r"unknown: head\.weight \(float32\[1, 4\]\)"):
        checkpoint.check_compatible(
            stored, dict(Agent(4, extra=True).state_dict()), what="the older agent"
        )


@pytest.mark.parametrize("entry", [name for name, _ in Agent(4).state_dict().items()])
def test_fault_09_every_entry_of_a_state_is_missed(entry: str) -> None:
    whole = dict(Agent(4).state_dict())
    part = {name: value for name, value in whole.items() if name != entry}
    assert checkpoint.diff(whole, part)[0].startswith(f"missing: {entry} ")
    assert checkpoint.diff(part, whole)[0].startswith(f"unknown: {entry} ")
    assert checkpoint.diff(whole, whole) == []


def test_fault_09_another_schema_is_refused_and_never_passed_over(tmp_path: Path) -> None:
    newest = two_checkpoints(tmp_path)
    forge(newest, {}, schema=2)
    with pytest.raises(CheckpointError, match="schema version 2, expected 1"):
        checkpoint.load_latest(tmp_path)
    writer = CheckpointWriter(tmp_path, keep=1, max_failures=1)
    with pytest.raises(CheckpointError, match="schema version 2"):
        writer.save(1, state(1), meta={})
    assert newest.is_dir()
