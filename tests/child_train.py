"""A training run in a process of its own, told by JSON; prints "ready" before every update."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import point_world  # noqa: F401 (its tasks)

from reverie.agents import registry
from reverie.agents.imitation import ImitationTrainer
from reverie.agents.resolve import resolve
from reverie.agents.run_loop import RunLoop
from reverie.agents.trainer import Trainer, train


def limit_memory(left: int) -> None:
    """Let this process grow by `left` bytes and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + left
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> int:
    settings = json.loads(sys.argv[1])
    if settings["agent"] == "tiny":
        registry.AGENTS["mudreamer"] = "doubles:build_tiny"
    delay = float(os.environ.get("UPDATE_SECONDS", "0"))
    memory = os.environ.get("MEMORY_LEFT")
    loops: list[type[RunLoop]] = [Trainer, ImitationTrainer]
    for loop in loops:
        update = loop._update  # type: ignore[attr-defined]

        def slow(self: RunLoop, update=update) -> None:  # type: ignore[no-untyped-def]
            print(f"ready {self.updates}", flush=True)
            time.sleep(delay)
            if memory is not None and self.updates == 0:
                limit_memory(int(memory))
            update(self)

        loop._update = slow  # type: ignore[attr-defined]
    return train(resolve(settings["tree"], configs=settings["configs"]))


if __name__ == "__main__":
    sys.exit(main())
