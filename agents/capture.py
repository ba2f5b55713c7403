"""One switch from eager to compiled and to captured updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from reverie.world_models.rssm import RSSM
from reverie.world_models.rssm_scan import backward_step, forward_step

Tensors = dict[str, Tensor]

WARM_UP = 3
"""Runs before a capture, so that every lazy allocation has happened."""


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
    """A whole update captured into one CUDA graph, replayed on static buffers.

    `run` maps the static inputs to output tensors and may change only what `state` lists, in
    place, `generators`, and torch's default generator. Warm-up leaves no trace in any.
    """

    def __init__(
        self,
        run: Callable[[Tensors], Tensors],
        *,
        state: Callable[[], Iterable[Tensor]],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        require_cuda(device)
        self._run, self._state = run, state
        self._generators = list(generators)
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = {}
        self._outputs: Tensors = {}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Outputs of one update, valid until the next; the first call warms up and captures."""
        if self._graph is None:
            self._inputs = {k: v.to(self._device).clone() for k, v in inputs.items()}
            self._capture()
        assert self._graph is not None
        for key, value in inputs.items():
            self._inputs[key].copy_(value, non_blocking=True)
        self._graph.replay()
        return dict(self._outputs)

    def _capture(self) -> None:
        index = self._device.index
        # dropout draws from it; torch registers it with every graph, and rewinds it for none
        default = torch.cuda.default_generators[
            torch.cuda.current_device() if index is None else index
        ]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            warm_up(lambda: self._run(self._inputs), self._state, [*self._generators, default])
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            self._outputs = self._run(self._inputs)
        self._graph = graph


def require_cuda(device: torch.device) -> None:
    """Raise ValueError where nothing can be captured."""
    if device.type != "cuda":
        raise ValueError(
            f"compile=graph needs a CUDA device, found '{device}': "
            "use compile=inductor or compile=off"
        )


def warm_up(
    run: Callable[[], object],
    state: Callable[[], Iterable[Tensor]],
    generators: Sequence[torch.Generator],
) -> None:
    """Call `run` a few times and put `state` and `generators` back, no tensor replaced.

    Tensors that the first run brought into being, an optimiser's moments, are zeroed.
    """
    before = {id(tensor): (tensor, tensor.detach().clone()) for tensor in state()}
    draws = [generator.get_state() for generator in generators]
    for _ in range(WARM_UP):
        run()
    with torch.no_grad():
        for tensor in state():
            if id(tensor) in before:
                tensor.copy_(before[id(tensor)][1])
            else:
                tensor.zero_()
    for generator, drawn in zip(generators, draws, strict=True):
        generator.set_state(drawn)
