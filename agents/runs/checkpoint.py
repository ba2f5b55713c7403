"""Checkpoints: safetensors and JSON under a checksummed manifest, published by one rename.

Layout: `<run>/checkpoints/<step>/{tensors.safetensors, state.json, manifest.json}`. There is no
pointer file: the newest folder whose checksums hold is the one that counts, so that a process
may be killed at any moment. Nothing is ever unpickled.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from reverie.agents.runs.checkpoint_format import (
    WRITE_ERRORS,
    Checkpoint,
    CorruptCheckpointError,
    load,
    read_manifest,
    serialise,
    verify,
    write,
)
from reverie.agents.runs.checkpoint_tree import CheckpointError, check_compatible, diff
from reverie.agents.runs.files import fsync

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWriter",
    "CorruptCheckpointError",
    "best",
    "check_compatible",
    "checkpoints",
    "clean_temporary",
    "diff",
    "load",
    "load_latest",
    "read_manifest",
    "save",
]

FOLDER = "checkpoints"
_NAME = re.compile(r"(\d+)(?:-r(\d+))?")
_TEMPORARY = re.compile(r".*\.tmp-\d+")
_log = logging.getLogger(__name__)


def save(
    run_dir: Path, step: int, state: dict[str, Any], *, keep: int, meta: dict[str, Any]
) -> Path:
    """Write, publish and verify a checkpoint, then delete all but the last `keep` and the best.

    `meta` holds JSON values that can be read without loading the state; `meta["score"]`, if
    present, decides which checkpoint is the best. On failure raises CheckpointError, with every
    earlier checkpoint intact and no temporary folder left.
    """
    assert step >= 0 and keep >= 1, f"expected step >= 0 and keep >= 1, got {step} and {keep}"
    serialised = serialise(step, state, meta)
    root = run_dir / FOLDER
    damaged = _damaged_beyond(run_dir, step)
    final = root / _free_name(run_dir, step)
    temporary = root / f"{final.name}.tmp-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary, serialised)
        temporary.rename(final)
        fsync(root)
        verify(final)
    except CorruptCheckpointError as error:
        shutil.rmtree(final, ignore_errors=True)
        raise CheckpointError(f"a new checkpoint did not read back as written: {error}") from error
    except WRITE_ERRORS as error:
        raise CheckpointError(
            f"cannot write checkpoint {final}: {error}; earlier checkpoints are intact; free disk "
            "space or check permissions"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in damaged:
        _move(path, path.with_name(f"{path.name}.rejected"))
    _prune(run_dir, keep)
    return final


def load_latest(run_dir: Path) -> tuple[int, dict[str, Any], list[str]] | None:
    """Step, state and notes of the newest valid checkpoint; None if there never was one.

    Each damaged checkpoint that had to be passed over gives one note, for the caller to show. If
    none is valid, or the newest was written by another schema version, raises CheckpointError.
    """
    notes: list[str] = []
    for path in checkpoints(run_dir):
        try:
            found = load(path)
        except CorruptCheckpointError as error:
            notes.append(f"checkpoint passed over: {error}")
            continue
        return found.step, found.state, notes
    if notes:
        raise CheckpointError(
            "no checkpoint of this run can be read:\n  "
            + "\n  ".join(notes)
            + f"\nrestore {run_dir / FOLDER} from a copy, or start a new run directory"
        )
    return None


def checkpoints(run_dir: Path) -> list[Path]:
    """Published checkpoint folders, newest first; their content is not verified."""
    root = run_dir / FOLDER
    found = [p for p in root.iterdir() if _NAME.fullmatch(p.name)] if root.is_dir() else []
    return sorted(found, key=_order, reverse=True)


def best(run_dir: Path) -> Path | None:
    """Folder with the highest `meta["score"]`, the newest of equals; None if no score is known."""
    scored = [(score, path) for path in checkpoints(run_dir) if (score := _score(path)) is not None]
    return max(scored, key=lambda pair: (pair[0], _order(pair[1])))[1] if scored else None


def clean_temporary(run_dir: Path) -> list[Path]:
    """Remove what an interrupted `save` left; call only while holding the run's lock."""
    root = run_dir / FOLDER
    found = [p for p in root.iterdir() if _TEMPORARY.fullmatch(p.name)] if root.is_dir() else []
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return found


class CheckpointWriter:
    """`save` for the trainer: a full disk is survived, until it has failed too often in a row."""

    def __init__(self, run_dir: Path, *, keep: int, max_failures: int = 5) -> None:
        self.run_dir, self.keep, self.max_failures = run_dir, keep, max_failures
        self.failures = 0

    def save(self, step: int, state: dict[str, Any], *, meta: dict[str, Any]) -> Path | None:
        """Path of the checkpoint; None after a failure, which was logged and may be retried.

        Raises the CheckpointError of the `max_failures`-th failure in a row.
        """
        try:
            path = save(self.run_dir, step, state, keep=self.keep, meta=meta)
        except CheckpointError as error:
            self.failures += 1
            _log.warning("save failed (%d of %d): %s", self.failures, self.max_failures, error)
            if self.failures >= self.max_failures:
                raise
            return None
        self.failures = 0
        return path


def _damaged_beyond(run_dir: Path, step: int) -> list[Path]:
    """Damaged checkpoints newer than `step`, which a fallback left; a valid one is refused."""
    newer = [path for path in checkpoints(run_dir) if _order(path)[0] > step]
    for path in newer:
        try:
            verify(path)
        except CorruptCheckpointError:
            continue
        raise CheckpointError(
            f"cannot save step {step}: {path} is valid and newer; resume from it, or remove it"
        )
    return newer


def _prune(run_dir: Path, keep: int) -> None:
    everything = checkpoints(run_dir)
    newest_of_step = {_order(path)[0]: path for path in reversed(everything)}
    kept = {*sorted(newest_of_step.values(), key=_order)[-keep:], best(run_dir)}
    for path in everything:
        if path not in kept:
            # leaves the scan by one rename, so that half a deletion is never half a checkpoint
            doomed = path.with_name(f"{path.name}.tmp-{os.getpid()}")
            if _move(path, doomed):
                shutil.rmtree(doomed, ignore_errors=True)


def _move(path: Path, target: Path) -> bool:
    shutil.rmtree(target, ignore_errors=True)
    try:
        path.rename(target)
    except OSError as error:
        _log.warning("cannot move %s to %s: %s", path, target, error)
        return False
    return True


def _free_name(run_dir: Path, step: int) -> str:
    """Folder name of a step; a step saved again gets a revision instead of being overwritten."""
    taken = [_order(path)[1] for path in checkpoints(run_dir) if _order(path)[0] == step]
    return f"{step:010d}-r{max(taken) + 1}" if taken else f"{step:010d}"


def _order(path: Path) -> tuple[int, int]:
    """(step, revision) of a checkpoint folder."""
    match = _NAME.fullmatch(path.name)
    assert match, f"not a checkpoint folder: {path}"
    return int(match[1]), int(match[2] or 0)


def _score(path: Path) -> float | None:
    try:
        score = read_manifest(path)["meta"].get("score")
    except CheckpointError:
        return None
    return float(score) if isinstance(score, int | float) else None
