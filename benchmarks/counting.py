"""What one update costs, phase by phase: arithmetic and kernels, which need no clock, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from reverie.agents import actor_critic
from reverie.agents.interface import Agent
from reverie.agents.mudreamer import MuDreamer
from reverie.world_models.rssm_scan import PosteriorScan

Reading = NDArray[np.float64]
"""Values of a few counters that only grow."""

PHASES = (
    *("noise", "encoder", "posterior scan", "model heads and losses"),
    *("imagination", "behaviour heads and losses"),
    *("backward: heads", "backward: scan", "backward: encoder"),
    *("optimiser", "diagnostics"),
)
"""Parts of a MuDreamer update, in the order in which they first run."""


class KernelCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts dispatched ATen operations, and those that are no views: about the launches."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops = 0
        self.kernels = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.ops += 1
        self.kernels += not func.is_view
        return func(*args, **(kwargs or {}))


class PhaseMeter:
    """Shares the growth of counters out among named phases; an inner phase pauses the outer."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read
        self._names: list[str] = []
        self._last = read()
        self.totals: dict[str, Reading] = {}

    def _settle(self) -> None:
        now = self._read()
        if self._names:
            name = self._names[-1]
            self.totals[name] = self.totals.get(name, np.zeros_like(now)) + now - self._last
        self._last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute to `name` what happens inside."""
        self._settle()
        self._names.append(name)
        try:
            yield
        finally:
            self._settle()
            self._names.pop()

    def switch(self, name: str) -> None:
        """From here on the current phase goes by another name."""
        self._settle()
        self._names[-1] = name

    def wrap(self, owner: Any, attribute: str, name: str) -> Callable[..., Any]:
        """Return the function `owner.attribute` as a phase of its own."""
        inner = getattr(owner, attribute)

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return inner(*args, **kwargs)

        return measured


@contextmanager
def metered(agent: MuDreamer, meter: PhaseMeter) -> Iterator[None]:
    """Attribute every part of the agent's updates to one of `PHASES`."""
    encode = meter.wrap(agent.model, "encode", "encoder")
    backward = meter.wrap(torch.autograd, "backward", "backward: heads")
    scan_backward = meter.wrap(PosteriorScan, "backward", "backward: scan")

    def encode_and_mark(*args: Any) -> torch.Tensor:
        embed: torch.Tensor = encode(*args)
        # once the embedding has its gradient, only the encoder is left to go through
        embed.register_hook(lambda _: meter.switch("backward: encoder"))  # type: ignore[no-untyped-call]
        return embed

    def backward_then_step(*args: Any, **kwargs: Any) -> None:
        backward(*args, **kwargs)
        meter.switch("optimiser")

    def phase(owner: Any, attribute: str, name: str) -> Any:
        return patch.object(owner, attribute, meter.wrap(owner, attribute, name))

    with ExitStack() as stack:
        for change in (
            phase(agent, "draw_noise", "noise"),
            phase(agent.model.rssm, "observe", "posterior scan"),
            phase(agent.behavior, "losses", "behaviour heads and losses"),
            phase(actor_critic, "imagine", "imagination"),
            phase(agent, "_health", "diagnostics"),
            patch.object(agent.model, "encode", encode_and_mark),
            patch.object(torch.autograd, "backward", backward_then_step),
            patch.object(PosteriorScan, "backward", staticmethod(scan_backward)),
            meter.phase("model heads and losses"),
        ):
            stack.enter_context(change)
        yield


Counts = dict[str, dict[str, float]]
"""Phase, or "total" -> {"gflop", "ops", "kernels"}."""


def count_update(agent: Agent, batch: TensorDict) -> Counts:
    """Arithmetic and kernels of one eager update; the same on every machine.

    GFLOP are those of matrix products and convolutions, 2 per multiply-add. An update runs first,
    because the very first one also creates the optimisers' state.
    """
    agent.update(batch)
    flops, kernels = FlopCounterMode(display=False), KernelCount()

    def read() -> Reading:
        return np.array([flops.get_total_flops() / 1e9, kernels.ops, kernels.kernels], float)

    with flops, kernels:
        totals = _phases(agent, batch, read)
    return {
        name: dict(zip(("gflop", "ops", "kernels"), map(float, row), strict=True))
        for name, row in totals.items()
    }


def time_update(agent: Agent, batch: TensorDict) -> dict[str, dict[str, float]]:
    """Phase, or "total" -> {"cpu_s", "wall_s"} of one update."""

    def read() -> Reading:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return np.array([time.process_time(), time.perf_counter()])

    return {
        name: {"cpu_s": float(row[0]), "wall_s": float(row[1])}
        for name, row in _phases(agent, batch, read).items()
    }


def _phases(agent: Agent, batch: TensorDict, read: Callable[[], Reading]) -> dict[str, Reading]:
    begin = read()
    if not isinstance(agent, MuDreamer):
        agent.update(batch)
        return {"total": read() - begin}
    meter = PhaseMeter(read)
    with metered(agent, meter):
        agent.update(batch)
    found = {"total": read() - begin, **meter.totals}
    return {name: found[name] for name in ("total", *PHASES) if name in found}
