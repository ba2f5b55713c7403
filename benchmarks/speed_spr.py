"""Speed of the SPR family: what the layers of an update need, and prioritised replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from reverie.agents.configs import RunConfig
from reverie.agents.registry import build_replay
from reverie.agents.replay.priority import PriorityReplay
from reverie.agents.spr import SPR
from reverie.benchmarks.speed_parts import elapsed, spread
from reverie.envs.specs import EnvSpec
from reverie.world_models.q_network import NoisyLinear, PlainLinear
from reverie.world_models.spr import SPRModel

EPISODE = 500
"""Rows of an episode of the replay that is measured."""


class FromReplay:
    """An agent whose update includes drawing the batch and writing priorities, as in training."""

    def __init__(self, agent: SPR, *, replay: PriorityReplay, rows: int) -> None:
        self.agent, self.replay, self.rows = agent, replay, rows
        self._rng = np.random.default_rng(0)

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """Ignore `batch`: draw another of as many rows."""
        return self.agent.learn_from(self.replay, self._rng, (self.rows, 1))[1]


def random_transitions(
    cfg: RunConfig, spec: EnvSpec, *, device: torch.device, frames: int
) -> PriorityReplay:
    """A full replay of noise, `frames` rows in one slot."""
    sized = replace(cfg, replay=replace(cfg.replay, capacity=frames))
    made = build_replay(spec, sized, directory=None, device=device)
    assert isinstance(made, PriorityReplay) and spec.image_shape is not None
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (64, 1, *spec.image_shape)).astype(np.uint8)
    actions = np.eye(spec.action_size, dtype=np.float32)[:, None]
    for t in range(frames):
        first, last = t % EPISODE == 0, t % EPISODE == EPISODE - 1
        made.add(
            {
                "image": pictures[t % len(pictures)],
                "action": actions[t % spec.action_size] * np.float32(not first),
                "reward": np.full(1, t % 11 == 0, np.float32),
                "is_first": np.array([first]),
                "is_last": np.array([last]),
                "is_terminal": np.array([last]),
            }
        )
    return made


def time_transitions(replay: PriorityReplay, batch: int, *, draws: int = 100) -> dict[str, Any]:
    """Time to draw one batch by priority, to write priorities back, and to add a row."""
    rng = np.random.default_rng(0)
    row = {key: value[0] for key, value in replay.read(replay.time - 1, replay.time).items()}
    drawn = replay.sample(batch, 1, rng)
    priority = torch.rand(batch, device=drawn["index"].device)

    def sample() -> None:
        nonlocal drawn
        drawn = replay.sample(batch, 1, rng)

    parts: dict[str, Callable[[], None]] = {
        "sample": sample,
        "set_priority": lambda: replay.set_priority(drawn["index"], priority),
        "add": lambda: replay.add(row),
    }
    turns = [{name: elapsed(part) for name, part in parts.items()} for _ in range(5 + draws)]
    # the first ones find cold caches
    times = {name: spread([turn[name] for turn in turns[5:]]) for name in parts}
    return {
        "rows": len(replay),
        "storage": "device",
        **times,
        "windows_per_s": batch / times["sample"]["wall_s"]["median"],
    }


def needed_gflop(cfg: RunConfig, spec: EnvSpec) -> dict[str, float]:
    """Multiply-adds times two that the layers of one update need, in 1e9, by part.

    A backward pass counts a product for the weights and, but for the first layer, one for the
    inputs. The encoder sees K + 3 batches and is differentiated in one of them.
    """
    assert spec.image_shape is not None
    with torch.random.fork_rng(devices=[]):
        model = SPRModel(cfg.spr.model, action_size=spec.action_size, image_shape=spec.image_shape)
    batch, ahead = cfg.train.batch_size, cfg.spr.model.predictions
    height, width, channels = spec.image_shape
    image = torch.zeros(1, cfg.spr.model.history * channels, height, width)
    latent = torch.zeros(1, *model.latent_shape)
    convs = _conv_flop(model.encoder, image)
    found = {"encoder": batch * ((ahead + 5) * sum(convs) - convs[0])}
    head = model.head
    hidden = [layer for layer in (head.value_hidden, head.advantage_hidden) if layer is not None]
    # online with gradient (3), bootstrap online, bootstrap target
    found["Q head"] = 5 * batch * sum(map(_linear_flop, (*hidden, head.value, head.advantage)))
    if model.transition is not None and model.predictor is not None:
        step = sum(_conv_flop(model.transition, latent, torch.zeros(1, spec.action_size)))
        found["transition"] = 3 * batch * ahead * step
        # predictions are differentiated, targets are not; neither has noise
        found["projection"] = 4 * batch * ahead * sum(map(_mean_flop, hidden))
        found["predictor"] = 3 * batch * ahead * 2 * model.predictor.weight.numel()
    return {name: flop / 1e9 for name, flop in found.items()}


def _conv_flop(module: nn.Module, *inputs: torch.Tensor) -> list[float]:
    """Operations of every convolution of `module` for one sample, in order."""
    found: list[float] = []

    def count(conv: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        found.append(2.0 * conv.weight.numel() * output.shape[-1] * output.shape[-2])

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def _mean_flop(layer: NoisyLinear | PlainLinear) -> float:
    """Operations of a layer without noise for one row."""
    plain = layer.mu if isinstance(layer, NoisyLinear) else layer
    return 2.0 * plain.weight.numel()


def _linear_flop(layer: NoisyLinear | PlainLinear) -> float:
    """Operations for one row with the layer's noise, if it has any: a second product."""
    return _mean_flop(layer) * (2 if isinstance(layer, NoisyLinear) else 1)
