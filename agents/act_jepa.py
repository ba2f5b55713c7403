"""ACT-JEPA, ACT and chunked behaviour cloning: one imitation agent, told apart by its settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from reverie.agents.act_jepa_config import ACTJEPAConfig
from reverie.agents.capture import GraphedUpdate, require_cuda
from reverie.agents.checks import same_keys
from reverie.agents.chunk_player import empty_plan, ensembled_action, next_action
from reverie.agents.demos.windows import DemoWindows
from reverie.agents.interface import Carry, Mode
from reverie.agents.latent_health import latent_health
from reverie.agents.optim import ClippedAdam
from reverie.agents.seeding import torch_seed
from reverie.envs.specs import EnvSpec
from reverie.world_models.act_jepa import ACTJEPAModel
from reverie.world_models.targets import linear_momentum

Compile = Literal["off", "inductor", "graph"]

MIN_SCALE = 1e-2
"""Floor of the standard deviations that vectors and actions are divided by (ACT)."""

STATISTICS = ("vector_mean", "vector_std", "action_mean", "action_std")

_log = logging.getLogger(__name__)


class Playing:
    """The agent on one task of its set; acts, and learns nothing."""

    def __init__(self, agent: ACTJEPA, task: int) -> None:
        self._agent, self._task = agent, task

    def initial_carry(self, num_envs: int) -> Carry:
        """No plan yet, and the number of the task."""
        carry = self._agent.initial_carry(num_envs)
        return carry | {"task": torch.full_like(carry["task"], self._task)}

    def act(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, *, mode: Mode = "train"
    ) -> tuple[Carry, Tensor]:
        """As the agent acts."""
        return self._agent.act(carry, obs, is_first, mode=mode)


class ACTJEPA:
    """Learns from windows of demonstrations, acts by playing predicted action chunks."""

    def __init__(
        self,
        spec: EnvSpec,
        cfg: ACTJEPAConfig,
        *,
        tasks: tuple[str, ...],
        statistics: Mapping[str, Tensor] | None = None,
        seed: int,
        updates: int,
        device: str | torch.device = "cpu",
        compile: Compile = "off",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """`updates` is the length of the run, `statistics` those of `DemoWindows.statistics`.

        Without statistics nothing is normalised until a saved state brings them.
        """
        self.spec, self.cfg, self.tasks, self.seed = spec, cfg, tasks, seed
        self.device, self.precision = torch.device(device), precision
        self.total_updates, self.updates = updates, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "weights"))
            self.model = ACTJEPAModel(
                cfg.model,
                action_size=spec.action_size,
                vector_size=spec.vector_size,
                proprio_size=spec.proprio_size,
                image_shape=spec.image_shape,
            )
        self.model.to(self.device)
        self._statistics = self._scales(statistics)
        self._optimiser = ClippedAdam(
            self.model.parameters(),
            lr=cfg.optim.lr,
            eps=cfg.optim.eps,
            clip=cfg.optim.clip,
            weight_decay=cfg.optim.weight_decay,
            capturable=self.device.type == "cuda",
            scheduled=True,
        )
        self._target_rate = torch.zeros((), device=self.device)
        self._losses = self.model.losses
        if compile == "inductor":
            self._losses = torch.compile(self._losses, dynamic=False)
        self._graph: GraphedUpdate | None = None
        if compile == "graph":
            require_cuda(self.device)
            self._graph = self._graphed()
        self.execute = cfg.execute or cfg.model.chunk
        if self.execute < cfg.model.chunk and cfg.ensemble is None:
            _log.warning(
                "%d of %d actions of a chunk are played: policies are known to stall where they "
                "replan more often than they were trained to; measure whole chunks too",
                self.execute,
                cfg.model.chunk,
            )

    def _scales(self, statistics: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        sizes = {"vector": self.spec.vector_size, "action": self.spec.action_size}
        plain = {f"{name}_mean": torch.zeros(size) for name, size in sizes.items()}
        plain |= {f"{name}_std": torch.ones(size) for name, size in sizes.items()}
        if statistics is not None and self.cfg.normalise:
            same_keys("statistics", plain, dict(statistics))
            plain = {key: statistics[key].float().cpu() for key in plain}
            if self.spec.discrete:  # one-hot rows stay what they are
                plain["action_mean"].zero_()
                plain["action_std"].fill_(1.0)
        floors = {k: v.clamp_min(MIN_SCALE) if k.endswith("_std") else v for k, v in plain.items()}
        return {key: value.clone().to(self.device) for key, value in floors.items()}

    def normalised(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows with "vector" and "action", where they occur, in the units the model learns in."""
        found = dict(rows.items())
        for name in ("vector", "action"):
            if name in found:
                mean, std = self._statistics[f"{name}_mean"], self._statistics[f"{name}_std"]
                found[name] = (found[name].float() - mean) / std
        return found

    # acting

    def initial_carry(self, num_envs: int) -> Carry:
        """No plan yet; the first task."""
        chunk = self.cfg.model.chunk
        carry = empty_plan(num_envs, chunk, self.spec.action_size, self.device)
        return carry | {"task": torch.zeros(num_envs, dtype=torch.int64, device=self.device)}

    def playing(self, task: str) -> Playing:
        """The agent on `task`, one of those it was built for."""
        if task not in self.tasks:
            raise ValueError(f"expected one of {', '.join(self.tasks)}, found {task!r}")
        return Playing(self, self.tasks.index(task))

    @torch.no_grad()
    def act(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, *, mode: Mode = "train"
    ) -> tuple[Carry, Tensor]:
        """Actions [N, A], the same in both modes."""
        task, predict = carry["task"], self.predict_chunk
        decay = self.cfg.ensemble
        if decay is None:
            carry, raw = next_action(
                carry, obs, is_first, task=task, predict=predict, execute=self.execute
            )
        else:
            carry, raw = ensembled_action(
                carry, obs, is_first, task=task, predict=predict, decay=decay
            )
        if self.spec.discrete:
            return carry, F.one_hot(raw.argmax(-1), self.spec.action_size).float()
        return carry, raw.clamp(-1.0, 1.0)

    @torch.no_grad()
    def predict_chunk(self, obs: dict[str, Tensor], task: Tensor) -> Tensor:
        """Actions [N, P, A] in the environment's units, unclipped, from observations [N, ...]."""
        chunk = self.model.chunk(self.model.context(self.normalised(obs), task))
        return chunk * self._statistics["action_std"] + self._statistics["action_mean"]

    # learning

    def learn_from(
        self, windows: DemoWindows, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[TensorDict, dict[str, Tensor]]:
        """Draw `shape[0]` windows of demonstrations and update."""
        batch = windows.sample(shape[0], rng)
        return batch, self.update(batch)

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """One gradient step on windows as `DemoWindows` gives them."""
        inputs = {key: batch[key] for key in batch.keys()}
        self._begin_update()
        with self._keyed_draws():
            if self._graph is None:
                return self.learn(inputs)
            return {key: value.clone() for key, value in self._graph(inputs).items()}

    def learn(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The update as one function of a batch: static shapes, no host synchronisation.

        Where the loss or the gradient norm is not finite, weights, moments, running statistics
        and the EMA target stay as they were.
        """
        kept = [(b, b.clone()) for b in self._running_buffers()]
        self._optimiser.zero_grad()
        rows = self.normalised(batch)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            losses = self._losses(rows, train=True)
        means = {name: loss.float().mean() for name, loss in losses.items()}
        total = sum((self.model.loss_scales[k] * v for k, v in means.items()), torch.zeros(()))
        total.backward()  # type: ignore[no-untyped-call]

        # step, or leave everything as it was
        norm = self._optimiser.gradient_norm()
        finite = torch.isfinite(total.detach() + norm)
        skip = (~finite).float()
        self._optimiser.step(norm, skip)
        for buffer, old in kept:
            buffer.copy_(torch.where(finite, buffer, old))
        self.model.update_target((1.0 - skip) * self._target_rate)
        metrics = {f"loss/{name}": mean.detach() for name, mean in means.items()}
        return metrics | {"loss/total": total.detach(), "norm/model": norm, "nonfinite": skip}

    def _begin_update(self) -> None:
        """Tell the device how far the run is."""
        model, optim = self.cfg.model, self.cfg.optim
        self._optimiser.set_lr(
            optim.lr * warmup_cosine(self.updates, self.total_updates, optim.warmup)
        )
        momentum = linear_momentum(self.updates, self.total_updates, model.ema_start, model.ema_end)
        self._target_rate.fill_(1.0 - float(momentum))
        self.updates += 1

    @contextmanager
    def _keyed_draws(self) -> Iterator[None]:
        """Torch's own random numbers inside the block are a function of seed and update.

        Dropout knows no generator; a resumed run must draw what it would have drawn.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(torch_seed(self.seed, "imitation", self.updates))
            yield

    def _running_buffers(self) -> list[Tensor]:
        """Batch norm's, of stem and projector; the target's copy moves by EMA."""
        parts = (self.model.encoder, self.model.projector)
        return [b for part in parts if part is not None for b in _persistent(part)]

    def _graphed(self) -> GraphedUpdate:
        return GraphedUpdate(
            self.learn,
            state=lambda: [
                *self.model.parameters(),
                *self.model.buffers(),
                *self._optimiser.moments(),
            ],
            generators=(),
            device=self.device,
        )

    # looking inside

    @torch.no_grad()
    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Features [B, F] of the context, the first row of every window.

        gradient: none.
        """
        rows = self.normalised(batch)
        first = {key: rows[key][:, 0] for key in ("vector", "image") if key in rows}
        return self.model.features(self.model.context(first, rows["task"]))

    def examine(
        self, windows: DemoWindows, rng: np.random.Generator, shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Losses and collapse diagnostics on 8 batches (at most 1,024 windows), evenly spaced."""
        return latent_health(self.model, self.normalised, windows, batch_size=shape[0])

    # state

    def state_dict(self) -> dict[str, Any]:
        """Weights, EMA target, running statistics, normalisation, optimiser, counter."""
        return {
            "model": dict(self.model.state_dict()),
            "statistics": {key: value.clone() for key, value in self._statistics.items()},
            "optimiser": self._optimiser.state_dict(),
            "tasks": list(self.tasks),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Strict inverse of `state_dict`."""
        own = self.state_dict()
        same_keys("agent state", own, state)
        same_keys("model", own["model"], state["model"])
        same_keys("statistics", own["statistics"], state["statistics"])
        if list(state["tasks"]) != list(self.tasks):
            raise ValueError(
                f"tasks: expected {list(self.tasks)}, found {list(state['tasks'])}; their numbers "
                "are part of what was learned"
            )
        self.model.load_state_dict(state["model"])
        for key, value in self._statistics.items():
            if value.shape != state["statistics"][key].shape:
                raise ValueError(
                    f"statistics.{key}: expected {tuple(value.shape)}, found "
                    f"{tuple(state['statistics'][key].shape)}"
                )
            value.copy_(state["statistics"][key])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._graph is not None:  # moments were replaced: the captured graph writes the old ones
            self._graph = self._graphed()
        self.updates = int(state["updates"])


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """Share of the highest learning rate at 0-based `step`: linear rise, then a cosine to 0."""
    rise = int(warmup * total)
    if step < rise:
        return step / max(1, rise)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))


def _persistent(module: torch.nn.Module) -> list[Tensor]:
    """Buffers that a state dict holds: the others are constants."""
    names = module.state_dict().keys()
    return [value for name, value in module.named_buffers() if name in names]
