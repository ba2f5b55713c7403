"""What a run was made with, and which differences end the promise of bit-identical resume."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("reverie", "torch", "numpy", "tensordict"),
    *("gymnasium", "ale-py", "dm_control", "mujoco"),
)
GUARDED = (
    *("threads", "deterministic", "matmul_precision", "tf32", "cpu", "gpu", "machine"),
    *("versions.python", *(f"versions.{name}" for name in PACKAGES if name != "reverie")),
)
"""Entries that must be equal for two runs to agree in every bit."""


def fingerprint() -> dict[str, Any]:
    """Code, versions, hardware and numeric switches of this process, as JSON values.

    Call it after threads and numeric switches have been set.
    """
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "argv": sys.argv,
        "git": _git(Path(__file__).resolve()),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per guarded entry that differs; empty: the bitwise promise holds."""
    pairs = ((name, _entry(before, name), _entry(now, name)) for name in GUARDED)
    return [f"{name} was {old!r}, is now {new!r}" for name, old, new in pairs if old != new]


def _entry(values: Mapping[str, Any], name: str) -> Any:
    head, _, tail = name.partition(".")
    found = values.get(head)
    if not tail:
        return found
    return found.get(tail) if isinstance(found, Mapping) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _git(source: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds `source`; None for an installed wheel or without git."""
    if _git_output(source, "ls-files", "--error-unmatch", source.name) is None:
        return None  # an enclosing repository that does not track this file says nothing about it
    commit = _git_output(source, "rev-parse", "HEAD")
    changed = _git_output(source, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def _git_output(source: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=source.parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
