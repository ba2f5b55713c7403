"""When a run is saved, what that does to replay files, and what happens when the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from reverie.agents.runs.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    checkpoints,
    load_latest,
    read_manifest,
)

Moment = tuple[int, int]
"""Agent steps and updates; between two moments something was learned or collected."""


class Segments(Protocol):
    """Files beside the checkpoints that these name: those of a replay."""

    def segment_names(self) -> set[str]:
        """Files that the newest state names."""
        ...

    def collect_garbage(self, live: set[str]) -> int:
        """Delete the files that neither the newest state nor `live` names; returns how many."""
        ...


class SavePoints:
    """Checkpoints of one run together with the replay segments that they name."""

    def __init__(
        self, run_dir: Path, segments: Segments | None, *, keep: int, warn: Callable[[str], None]
    ) -> None:
        """`segments`: none where all state is in the checkpoints. `warn` hears of failed saves."""
        self.at: Moment | None = None
        self._run_dir = run_dir
        self._segments = segments
        self._writer = CheckpointWriter(run_dir, keep=keep)
        self._warn = warn

    def save(
        self, now: Moment, state: Callable[[], dict[str, Any]], *, score: float | None = None
    ) -> bool:
        """Save the moment `now`; False after a failure, CheckpointError after too many in a row.

        A moment that is already saved is saved again only with a score.
        """
        if self.at == now and score is None:
            return True
        try:
            content = state()
        except OSError as error:
            self._failed(error)
            return False
        meta: dict[str, Any] = {"updates": now[1]}
        if self._segments is not None:
            meta["segments"] = sorted(self._segments.segment_names())
        if score is not None:
            meta["score"] = score
        if self._writer.save(now[0], content, meta=meta) is None:
            return False
        self.at = now
        if self._segments is not None:
            self._segments.collect_garbage(named_segments(self._run_dir))
        return True

    def load(self) -> tuple[dict[str, Any], list[str]] | None:
        """State and notes of the newest valid checkpoint, or None if the run has none."""
        found = load_latest(self._run_dir)
        return None if found is None else (found[1], found[2])

    def _failed(self, error: OSError) -> None:
        # the replay's own files count like those of a checkpoint: both need the same disk
        self._writer.failures += 1
        message = f"replay could not be saved, earlier checkpoints are intact: {error}"
        if self._writer.failures >= self._writer.max_failures:
            raise CheckpointError(f"{message}; free disk space") from error
        self._warn(message)


def named_segments(run_dir: Path) -> set[str]:
    """Replay files that any kept checkpoint names."""
    names: set[str] = set()
    for path in checkpoints(run_dir):
        try:
            names |= set(read_manifest(path)["meta"].get("segments", ()))
        except CheckpointError:
            continue  # a checkpoint that cannot be read is never resumed
    return names
