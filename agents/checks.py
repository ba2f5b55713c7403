"""Saved states against what an agent expects, and random streams that change their device."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continue a saved stream; one of another kind of device begins anew, seeded by its state.

    CPU and CUDA generators are different algorithms: a run that changes its device continues
    statistically, which the fingerprint reports.
    """
    saved = state.cpu()
    if saved.shape == generator.get_state().shape:
        generator.set_state(saved)
        return
    digest = hashlib.sha256(saved.numpy().tobytes()).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def same_keys(what: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise ValueError that lists what a saved part lacks or has too much."""
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{what}: missing {missing}, unknown {unknown}; the checkpoint is of another agent "
            "or configuration"
        )
