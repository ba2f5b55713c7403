"""Append-only files of one JSON object per line, which outlive kills and full disks."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reverie.agents.runs.files import write_atomic

Record = dict[str, Any]


class JsonLines:
    """Appends records; every `append` is one write, so that a kill tears one line at most."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`; raises OSError."""
        self.path = path
        self._descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        self._torn = _ends_torn(path)

    def append(self, record: Record) -> None:
        """Write one line; OSError if it did not get there whole. Non-finite floats become text."""
        line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
        whole = b"\n" + line if self._torn else line
        written = os.write(self._descriptor, whole)
        self._torn = written != len(whole)
        if self._torn:
            raise OSError(f"{self.path}: {written} of {len(whole)} bytes written; disk full?")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_jsonl(path: Path) -> Iterator[Record]:
    """Records of a file in order; torn or foreign lines are passed over.

    Floats written as "nan", "inf" or "-inf" come back as floats.
    """
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield {
                    key: _FLOATS.get(value, value) if isinstance(value, str) else value
                    for key, value in record.items()
                }


def keep_records(path: Path, keep: Callable[[Record], bool]) -> int:
    """Drop torn lines and the records that `keep` rejects; how many records were dropped."""
    if not path.exists() or not _regular(path):
        return 0
    records = list(read_jsonl(path))
    kept = [record for record in records if keep(record)]
    if len(kept) < len(records) or _ends_torn(path):
        lines = [json.dumps(_plain(record), allow_nan=False) + "\n" for record in kept]
        write_atomic(path, "".join(lines).encode())
    return len(records) - len(kept)


_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _plain(value: Any) -> Any:
    """`value` as strict JSON, which has no NaN; NumPy numbers become Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _regular(path: Path) -> bool:
    return stat.S_ISREG(path.stat().st_mode)


def _ends_torn(path: Path) -> bool:
    if not _regular(path):
        return False
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
