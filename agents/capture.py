"""One switch from eager to compiled and to captured updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reverie.world_models.rssm import RSSM
from reverie.world_models.rssm_scan import backward_step, forward_step

if TYPE_CHECKING:
    from reverie.agents.mudreamer import MuDreamer


def compile_steps(*cores: RSSM) -> None:
    """Compile what repeats: the recurrent step, its backward, and the imagination step.

    Never the unrolled scan: peers that do pay ten minutes before the first update.
    """
    steps = tuple(
        torch.compile(f, fullgraph=True, dynamic=False) for f in (forward_step, backward_step)
    )
    for core in cores:
        core.steps = steps  # type: ignore[assignment]
        core.imagine_step = torch.compile(  # type: ignore[method-assign]
            core.imagine_step, fullgraph=True, dynamic=False
        )


class GraphedUpdate:
    """`MuDreamer.learn` captured into one CUDA graph, replayed on static buffers.

    Warm-up runs on a copy of the state that is put back afterwards: weights, moments, batch-norm
    statistics, return percentiles and generators are as if it had not happened.
    """

    def __init__(self, agent: MuDreamer) -> None:
        if agent.device.type != "cuda":
            raise ValueError(
                f"compile=graph needs a CUDA device, found '{agent.device}': "
                "use compile=inductor or compile=off"
            )
        self.agent = agent
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rows: dict[str, Tensor] = {}
        self._metrics: dict[str, Tensor] = {}

    def __call__(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """One update; the first call warms up and captures."""
        if self._graph is None:
            self._capture(rows)
        assert self._graph is not None
        for key, value in rows.items():
            self._rows[key].copy_(value, non_blocking=True)
        self._graph.replay()
        return {key: value.clone() for key, value in self._metrics.items()}

    def _run(self) -> dict[str, Tensor]:
        return self.agent.learn(self._rows, self.agent.draw_noise())

    def _capture(self, rows: dict[str, Tensor]) -> None:
        agent = self.agent
        self._rows = {k: v.to(agent.device).clone() for k, v in rows.items()}
        saved = clone_tree(agent.state_dict())
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        _restore_in_place(agent, saved)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(agent._generators["update"])
        with torch.cuda.graph(graph):
            self._metrics = self._run()
        self._graph = graph


def clone_tree(value: Any) -> Any:
    """Deep copy of nested dicts and lists of tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: clone_tree(v) for k, v in value.items()}
    return value


def _restore_in_place(agent: MuDreamer, saved: dict[str, Any]) -> None:
    """Put warm-up's changes back without replacing a tensor that the graph will write to."""
    if not saved["optimisers"]["model"]:
        # before the first step there are no moments: zero the ones warm-up made
        for optimiser in agent._optimisers.values():
            for entry in optimiser.adam.state.values():
                for tensor in entry.values():
                    tensor.zero_()
        saved = saved | {"optimisers": None}
    agent.model.load_state_dict(saved["model"])
    agent.behavior.load_state_dict(saved["behavior"])
    if saved["optimisers"] is not None:
        current = agent.state_dict()["optimisers"]
        _copy_tree(current, saved["optimisers"])
    for name, generator in agent._generators.items():
        generator.set_state(saved["generators"][name].cpu())


def _copy_tree(target: Any, source: Any) -> None:
    for key, value in source.items():
        if isinstance(value, Tensor):
            target[key].copy_(value)
        else:
            _copy_tree(target[key], value)
