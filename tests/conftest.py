"""What every test stands on: one thread, off-screen drawing, and the tools that break things."""

from __future__ import annotations

import os

# before torch, MuJoCo and torchrl are imported, here and in child processes
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("RL_WARNINGS", "0")
os.environ.setdefault("LP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# the machine is shared: only wrong answers fail, slow ones do not
settings.register_profile("reverie", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("reverie")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal results on every machine need an equal number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def flip_byte() -> Callable[[Path, int], None]:
    """Damage one byte of a file; negative positions count from the end."""

    def flip(path: Path, where: int) -> None:
        data = bytearray(path.read_bytes())
        data[where] ^= 0xFF
        path.write_bytes(bytes(data))

    return flip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by name and place, so that no test forgets it; GPU tests skip only for want of one."""
    for item in items:
        if "_fault_" in item.name:
            item.add_marker(pytest.mark.fault)
        if item.get_closest_marker("dmc") and os.environ.get("REVERIE_NO_GL") == "1":
            item.add_marker(pytest.mark.skip(reason="REVERIE_NO_GL=1: nothing is drawn"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
