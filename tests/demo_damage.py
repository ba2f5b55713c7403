"""A forger of shards: damaged files under checksums that hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.writer import header_digest
from reverie.envs.specs import Array


def rewrite(path: Path, name: str, change: Callable[[Array], Array]) -> None:
    """Replace a column by `change` of it."""
    column = change(np.load(path / f"{name}.npy"))
    np.save(path / f"{name}.npy", column, allow_pickle=column.dtype == object)
    forge(path)


def forge(path: Path) -> None:
    """Write sizes and checksums of the files as they are into the header."""
    header = json.loads((path / "header.json").read_text())
    for name, record in header["columns"].items():
        content = (path / f"{name}.npy").read_bytes()
        record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forge_header(path, columns=header["columns"])


def forge_header(path: Path, *, seal: bool = True, **changes: Any) -> None:
    """Change entries of the header; `seal` makes its own checksum hold."""
    header = json.loads((path / "header.json").read_text()) | changes
    if seal:
        header["sha256"] = header_digest(header)
    (path / "header.json").write_text(json.dumps(header))
