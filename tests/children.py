"""Child processes for tests that kill, starve or disconnect a process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Variables with which a child finds the package, installed or not."""
    path = os.pathsep.join([str(ROOT / ".typing"), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start_child(code: str, *args: object) -> subprocess.Popen[str]:
    """Run `code` in a new Python; its standard output and error are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_child(code: str, *args: object) -> str:
    """Standard output of `code`, which must end well."""
    child = start_child(code, *args)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    return out


def wait_for_line(child: subprocess.Popen[str], line: str) -> None:
    """Block until the child says `line`."""
    assert child.stdout is not None and child.stderr is not None
    for said in child.stdout:
        if said.strip() == line:
            return
    raise AssertionError(f"the child ended without saying {line!r}: {child.stderr.read()}")
