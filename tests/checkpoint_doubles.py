"""Two checkpoints to damage, a forger, and the check that the older one is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from reverie.agents.runs import checkpoint

FILES = ("tensors.safetensors", "state.json", "manifest.json")


def two_checkpoints(run_dir: Path) -> Path:
    """Folder of the newer of two valid checkpoints, steps 1 and 2."""
    checkpoint.save(run_dir, 1, state(1), keep=3, meta={})
    return checkpoint.save(run_dir, 2, state(2), keep=3, meta={})


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((5,), float(step))}


def falls_back(run_dir: Path, *words: str) -> None:
    """The older checkpoint is used, and the reason is told."""
    found = checkpoint.load_latest(run_dir)
    assert found is not None
    step, tree, notes = found
    assert step == 1 and torch.equal(tree["weights"], torch.ones(5))
    assert len(notes) == 1 and all(word in notes[0] for word in words), notes


def forge(folder: Path, contents: dict[str, bytes], **changes: Any) -> None:
    """Give a folder foreign files and a manifest whose checksums hold for them."""
    outer = json.loads((folder / "manifest.json").read_bytes())
    body = outer["manifest"]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        body["files"][name] = {"sha256": digest, "bytes": len(content)}
    body |= changes
    checksum = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"manifest": body, "sha256": checksum}))
