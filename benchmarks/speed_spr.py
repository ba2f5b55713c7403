"""Speed of the SPR family: what the layers of an update need, and prioritised replay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from reverie.agents.configs import RunConfig
from reverie.agents.registry import build_replay
from reverie.agents.replay_priority import PriorityReplay
from reverie.benchmarks.speed_parts import elapsed, spread
from reverie.envs.specs import EnvSpec
from reverie.world_models.q_network import NoisyLinear
from reverie.world_models.spr import SPRModel

FRAMES = 100_000
"""Rows of the replay that is measured: a whole Atari 100k run."""

EPISODE = 500
"""Rows of its episodes."""


def random_transitions(
    cfg: RunConfig, spec: EnvSpec, *, device: torch.device, frames: int = FRAMES
) -> PriorityReplay:
    """A full replay of noise, `frames` rows in one slot."""
    sized = replace(cfg, replay=replace(cfg.replay, capacity=frames))
    made = build_replay(spec, sized, directory=None, device=device)
    assert isinstance(made, PriorityReplay)
    rng = np.random.default_rng(0)
    assert spec.image_shape is not None
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
    drawing, writing, adding = [], [], []
    for turn in range(draws + 5):
        found: list[Any] = []
        drawn = elapsed(lambda found=found: found.append(replay.sample(batch, 1, rng)))  # type: ignore[misc]
        index = found[0]["index"]
        value = torch.rand(batch, device=index.device)
        written = elapsed(lambda i=index, v=value: replay.set_priority(i, v))  # type: ignore[misc]
        added = elapsed(lambda: replay.add(row))
        if turn >= 5:
            drawing.append(drawn)
            writing.append(written)
            adding.append(added)
    times = spread(drawing)
    return {
        "rows": len(replay),
        "storage": "device",
        "sample": times,
        "set_priority": spread(writing),
        "add": spread(adding),
        "windows_per_s": batch / times["wall_s"]["median"],
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
    layers = (head.value_hidden, head.advantage_hidden, head.value, head.advantage)
    q_flop = sum(_linear_flop(layer) for layer in layers if layer is not None)
    # online with gradient (3), bootstrap online, bootstrap target
    found["Q head"] = 5 * batch * q_flop
    if model.transition is not None and model.predictor is not None:
        step = sum(_conv_flop(model.transition, latent, torch.zeros(1, spec.action_size)))
        found["transition"] = 3 * batch * ahead * step
        hidden = (head.value_hidden, head.advantage_hidden)
        sizes = [_mean_flop(layer) for layer in hidden if layer is not None]
        # predictions are differentiated, targets are not
        found["projection"] = 4 * batch * ahead * sum(sizes)
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


def _mean_flop(layer: nn.Module) -> float:
    weight = layer.mu.weight if isinstance(layer, NoisyLinear) else layer.weight
    assert isinstance(weight, torch.Tensor)
    return 2.0 * weight.numel()


def _linear_flop(layer: nn.Module) -> float:
    return _mean_flop(layer) * (2 if isinstance(layer, NoisyLinear) else 1)
