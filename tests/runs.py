"""Small runs for tests of the loop: configurations, children that may be killed, comparisons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverie.agents.configs import RunConfig
from reverie.agents.resolve import resolve
from reverie.agents.runs.checkpoint import load_latest

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, Any] = {
    "task": "toy/counter",
    "size": "nano",
    "train": {
        "steps": 240,
        "train_ratio": 16,
        "batch_size": 4,
        "batch_length": 8,
        "prefill": 40,
        "eval_every": 100,
        "eval_episodes": 2,
        "checkpoint_every": 50,
        "log_every": 10,
    },
    "env": {"num_envs": 2, "image_size": 8},
    "replay": {"capacity": 200},
}


def overrides(run: Path, **changes: dict[str, Any] | str | int) -> dict[str, Any]:
    """TINY with sections merged into it."""
    tree = {key: dict(v) if isinstance(v, dict) else v for key, v in TINY.items()}
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return {**tree, "run": str(run)}


def config(run: Path, **changes: Any) -> RunConfig:
    return resolve(overrides(run, **changes))


class Child:
    """A training process; `wait_for` reads its lines, `kill` ends it as hard as asked."""

    def __init__(
        self,
        tree: dict[str, Any],
        *,
        agent: str = "tiny",
        configs: tuple[str, ...] = (),
        **env: str,
    ) -> None:
        settings = {"tree": tree, "agent": agent, "configs": configs}
        variables = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / '.typing'}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            **env,
        }
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "child_train.py"), json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables,
            cwd=ROOT,
        )
        self.lines: list[str] = []

    def reaches(self, word: str) -> bool:
        """Read up to the first line that begins with `word`; False: there was none."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(word):
                return True
        return False

    def wait_for(self, word: str) -> str:
        """First line that begins with `word`; fails if the child ends before."""
        if not self.reaches(word):
            self.process.communicate()
            raise AssertionError(f"no line {word!r} in:\n{self.output}")
        return self.lines[-1]

    def kill_after(self, seconds: float, signal: int) -> None:
        threading.Timer(seconds, lambda: self.process.send_signal(signal)).start()

    def finish(self, timeout: float = 120) -> int:
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        self.lines.append(output)
        return self.process.returncode

    @property
    def output(self) -> str:
        return "".join(self.lines)


def final_state(run: Path) -> dict[str, Any]:
    """What the last checkpoint says about learning and acting, without file names."""
    found = load_latest(run)
    assert found is not None and found[2] == [], found
    state = dict(found[1])
    state["replay"] = {k: v for k, v in state["replay"].items() if k != "segments"}
    return state


def assert_same(left: Any, right: Any, path: str = "state") -> None:
    """Equality of nested states, bit for bit."""
    assert type(left) is type(right), (path, type(left), type(right))
    if isinstance(left, dict):
        assert left.keys() == right.keys(), (path, left.keys() ^ right.keys())
        for key in left:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), (path, len(left), len(right))
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and left.shape == right.shape, path
        assert torch.equal(left, right), path
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype and np.array_equal(left, right), path
    else:
        assert left == right, (path, left, right)


def clone_tree(value: Any) -> Any:
    """Deep copy of nested dicts and lists of tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: clone_tree(v) for k, v in value.items()}
    return value
