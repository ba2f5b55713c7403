"""`reverie doctor`: what this machine lacks, and the command that brings it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reverie.agents.stopping import available_memory

MESA = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libgl1"

DRAW = """
from dm_control import suite
env = suite.load("cartpole", "swingup")
env.reset()
assert env.physics.render(16, 16, camera_id=0).any()
env.physics.free()
"""
"""Run in a child, because a broken GL driver may take its process down."""


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    name: str
    """What was looked at."""
    state: Literal["ok", "warn", "fail"]
    """warn: works, but not as well as it could."""
    found: str
    """What there is."""
    fix: str = ""
    """What to do about it."""


def main(args: Sequence[str]) -> int:
    """Print the findings; the status is 1 if anything fails."""
    return tyro.cli(show, args=list(args), prog="reverie doctor")


def show() -> int:
    """Check rendering, ROMs, device, memory and versions, and print the fix for what is missing."""
    findings = [finding for check in CHECKS for finding in check()]
    table = Table("check", "", "found", "what to do")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for item in findings:
        state = f"[{colours[item.state]}]{item.state}[/]"
        table.add_row(item.name, state, escape(item.found), escape(item.fix))
    Console().print(table)
    return int(any(item.state == "fail" for item in findings))


def check_python() -> list[Finding]:
    """Interpreter."""
    found = f"{sys.version.split()[0]} at {sys.executable}"
    good = sys.version_info >= (3, 11)
    return [Finding("python", "ok" if good else "fail", found, "" if good else "install 3.11+")]


def check_versions() -> list[Finding]:
    """Every requirement of the package, held against what is installed."""
    from packaging.requirements import Requirement

    findings = []
    for line in requires("reverie") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{needed.name}{needed.specifier}'"
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            findings.append(Finding(needed.name, "fail", "not installed", fix))
            continue
        met = needed.specifier.contains(found.partition("+")[0], prereleases=True)
        findings.append(Finding(needed.name, "ok" if met else "fail", found, "" if met else fix))
    return findings


def check_device() -> list[Finding]:
    """CUDA device and CPU cores."""
    cores = len(os.sched_getaffinity(0))
    findings = [Finding("cpu", "ok", f"{cores} cores, torch uses {torch.get_num_threads()}")]
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
        found = f"{name}, {free:.0f} of {total:.0f} GiB free"
        return [*findings, Finding("cuda", "ok", found, "--train.compile graph is fastest")]
    if shutil.which("nvidia-smi"):
        fix = "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl"
        return [*findings, Finding("cuda", "fail", f"driver, but torch {torch.__version__}", fix)]
    fix = "sizes above nano take days on a CPU"
    return [*findings, Finding("cuda", "warn", "no NVIDIA driver; training on the CPU", fix)]


def check_memory() -> list[Finding]:
    """Main memory and disk, against the replay of the paper's DMC runs."""
    free, disk = available_memory() / 2**30, shutil.disk_usage(Path.cwd()).free / 2**30
    enough = free > 8
    fix = "" if enough else "a full DMC replay takes 6 GiB: --replay.storage memmap"
    return [
        Finding("memory", "ok" if enough else "warn", f"{free:.1f} GiB available", fix),
        Finding("disk", "ok" if disk > 10 else "warn", f"{disk:.0f} GiB free in {Path.cwd()}"),
    ]


def check_rendering() -> list[Finding]:
    """Draws one dm_control frame without a display."""
    backend = os.environ.get("MUJOCO_GL", "egl")
    name = f"rendering ({backend})"
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        done = subprocess.run(
            [sys.executable, "-c", DRAW],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Finding(name, "fail", "no frame within 120 s", "MUJOCO_GL=osmesa reverie doctor")]
    if done.returncode == 0:
        return [Finding(name, "ok", "drew a dm_control frame off-screen")]
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    if "flex_vertedge" in done.stderr:
        return [Finding(name, "fail", "mujoco 4 with dm_control", "pip install 'mujoco<4'")]
    if importlib.util.find_spec("dm_control") is None:
        return [Finding(name, "fail", "dm_control is not installed", "pip install dm_control")]
    prefix = "" if os.geteuid() == 0 else "sudo "
    return [Finding(name, "fail", lines[-1], f"{prefix}{MESA}")]


def check_roms() -> list[Finding]:
    """Counts the Atari ROMs that come with ale-py."""
    if importlib.util.find_spec("ale_py") is None:
        return [Finding("atari ROMs", "fail", "ale-py is not installed", "pip install ale-py")]
    from ale_py import roms

    names = roms.get_all_rom_ids()
    fix = "pip install --force-reinstall 'ale-py!=0.12.0'"
    if not names:
        return [Finding("atari ROMs", "fail", "ale-py without ROM files", fix)]
    return [Finding("atari ROMs", "ok", f"{len(names)} games")]


def check_metaworld() -> list[Finding]:
    """Meta-World is optional, and usually lives in an environment of its own."""
    if importlib.util.find_spec("metaworld") is None:
        fix = (
            "for metaworld/* tasks: pip install 'reverie[metaworld]' into an environment of its own"
        )
        return [Finding("Meta-World", "ok", "not installed; optional", fix)]
    return [Finding("Meta-World", "ok", f"{version('metaworld')}, mujoco {version('mujoco')}")]


def check_tensorboard() -> list[Finding]:
    """TensorBoard can be imported; without it metrics are JSON lines only."""
    command = [sys.executable, "-c", "import torch.utils.tensorboard"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 0:
        return [Finding("tensorboard", "ok", "imports")]
    reason = re.sub(r"\s+", " ", done.stderr.strip().rpartition("\n")[2])
    return [Finding("tensorboard logging", "warn", reason, "pip install tensorboard")]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_versions,
    check_device,
    check_memory,
    check_rendering,
    check_roms,
    check_metaworld,
    check_tensorboard,
)
"""In the order in which they are printed."""
