"""Comparison of a saved state with the one an agent expects."""

from __future__ import annotations

from typing import Any


def same_keys(what: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise ValueError that lists what a saved part lacks or has too much."""
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"{what}: missing {missing}, unknown {unknown}; the checkpoint is of another agent "
            "or configuration"
        )
