"""Stand-ins that make the data contract visible: a counting world and two small agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from reverie.agents.interface import Carry
from reverie.agents.windows import LearnsFromWindows
from reverie.envs.specs import Array, EnvSpec, Step

SPEC = EnvSpec("double/counting", action_size=3, discrete=True, vector_size=3)


class CountingVec:
    """Slot i's episode e lasts `lengths[i][e % len]` steps; the vector is (slot, episode, t).

    The reward of step t is t. Even episodes end by termination, odd ones by a time limit.
    """

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        *,
        interrupt: Sequence[tuple[int, int, int]] = (),
        spec: EnvSpec = SPEC,
    ) -> None:
        """`interrupt`: (slot, episode, t) at which a fault cuts the episode."""
        self.spec = spec
        self.num_envs = len(lengths)
        self.lengths = [list(slot) for slot in lengths]
        self.interrupt = set(interrupt)
        self.episodes: Array = np.zeros(self.num_envs, np.int64)
        self.time = np.zeros(self.num_envs, np.int64)
        self.seen: list[Array] = []
        self.resets = 0
        self.closed = False
        self.retired: list[int] = []
        self._ended = np.zeros(self.num_envs, bool)

    def reset(self) -> Step:
        self.resets += 1
        self.episodes = np.zeros(self.num_envs, np.int64)
        self.time[:] = 0
        return self._row(np.ones(self.num_envs, bool))

    def step(self, action: Array) -> Step:
        assert action.dtype == np.float32 and action.shape == (self.num_envs, 3)
        self.seen.append(action.copy())
        first = self._ended.copy()
        self.episodes = self.episodes + first
        self.time = np.where(first, 0, self.time + 1)
        return self._row(first)

    def restore(self, episodes: Sequence[int], actions: Sequence[Array]) -> Step:
        self.episodes = np.array(episodes, np.int64)
        self.time = np.array([len(log) for log in actions], np.int64)
        return self._row(self.time == 0)

    def retire(self, slot: int) -> None:
        self.retired.append(slot)

    def close(self) -> None:
        self.closed = True

    def _row(self, first: Array) -> Step:
        limit = np.array(
            [slot[e % len(slot)] for slot, e in zip(self.lengths, self.episodes, strict=True)]
        )
        moments = zip(range(self.num_envs), self.episodes.tolist(), self.time.tolist(), strict=True)
        cut = np.array([moment in self.interrupt for moment in moments])
        done = (self.time >= limit) & ~cut
        self._ended = done | cut
        where = np.stack([np.arange(self.num_envs), self.episodes, self.time], 1)
        return Step(
            obs={"vector": where.astype(np.float32)},
            reward=np.where(first, 0, self.time).astype(np.float32),
            is_first=first,
            is_last=self._ended.copy(),
            is_terminal=done & (self.episodes % 2 == 0),
            info={"interrupted": cut},
        )


class CountingAgent(LearnsFromWindows):
    """Chooses action (rows since is_first) % A and counts every call."""

    def __init__(self, actions: int = 3) -> None:
        self.actions = actions
        self.acts = {"train": 0, "eval": 0}
        self.updates = 0
        self.batches: list[TensorDict] = []

    def initial_carry(self, num_envs: int) -> Carry:
        return {"count": torch.full((num_envs,), -7, dtype=torch.int64)}

    def act(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, *, mode: str = "train"
    ) -> tuple[Carry, Tensor]:
        self.acts[mode] += 1
        count = torch.where(is_first, 0, carry["count"] + 1)
        action = nn.functional.one_hot(count % self.actions, self.actions).float()
        return {"count": count}, action

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        self.updates += 1
        self.batches.append(batch.clone())
        return {"loss/count": torch.tensor(float(self.updates)), "nonfinite": torch.zeros(())}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])


class TinyAgent(LearnsFromWindows):
    """Everything that is hard to resume, small: BN, EMA, Adam, a generator, a recurrent carry."""

    def __init__(self, spec: EnvSpec, *, seed: int, delay: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = _obs_size(spec)
        self.spec = spec
        self.delay = delay
        self.net = nn.Sequential(nn.Linear(size, 8), nn.BatchNorm1d(8), nn.SiLU())
        self.cell = nn.GRUCell(8 + spec.action_size, 8)
        self.head = nn.Linear(8, spec.action_size)
        self.modules = nn.ModuleList([self.net, self.cell, self.head])
        with torch.no_grad():
            for p in self.modules.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        self.ema = [p.detach().clone() for p in self.modules.parameters()]
        self.adam = torch.optim.Adam(self.modules.parameters(), 1e-3)
        self.generators = {
            name: torch.Generator().manual_seed(seed + i)
            for i, name in enumerate(("train", "eval", "update"))
        }
        self.poison: set[int] = set()
        self.updates = 0

    def initial_carry(self, num_envs: int) -> Carry:
        return {
            "hidden": torch.zeros(num_envs, 8),
            "action": torch.zeros(num_envs, self.spec.action_size),
        }

    @torch.no_grad()
    def act(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, *, mode: str = "train"
    ) -> tuple[Carry, Tensor]:
        keep = (~is_first).float()[:, None]
        self.modules.eval()
        feat = self.net(_flat(obs, 1))
        hidden = self.cell(torch.cat([feat, carry["action"] * keep], -1), carry["hidden"] * keep)
        logits = self.head(hidden)
        generator = self.generators[mode]
        if self.spec.discrete:
            index = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            action = nn.functional.one_hot(index, self.spec.action_size).float()
        else:
            action = torch.tanh(logits + torch.randn(logits.shape, generator=generator))
        return {"hidden": hidden, "action": action}, action

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        self.modules.train()
        self.updates += 1
        batch_size, length = batch.batch_size
        obs = {k: batch[k] for k in ("image", "vector") if k in batch.keys()}
        feat = self.net(_flat(obs, 2)).unflatten(0, (batch_size, length))
        noise = torch.randn(feat.shape, generator=self.generators["update"])
        hidden = torch.zeros(batch_size, 8)
        loss = torch.zeros(())
        for t in range(length):
            keep = (~batch["is_first"][:, t]).float()[:, None]
            step = torch.cat([feat[:, t] + 0.1 * noise[:, t], batch["action"][:, t]], -1)
            hidden = self.cell(step, hidden * keep)
            loss = loss + (hidden.sum(-1) - batch["reward"][:, t]).square().mean()
        if self.updates in self.poison:
            loss = loss * torch.nan
        bad = ~loss.isfinite()
        if not bad:
            self.adam.zero_grad()
            (loss / length + self.head(hidden).square().mean()).backward()
            self.adam.step()
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, list(self.modules.parameters()), 0.05)
        return {"loss/total": loss.detach(), "nonfinite": bad.float()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": dict(self.modules.state_dict()),
            "ema": list(self.ema),
            "adam": _adam_state(self.adam),
            "generators": {k: g.get_state() for k, g in self.generators.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.modules.load_state_dict(state["modules"])
        self.ema = [t.clone() for t in state["ema"]]
        adam = self.adam.state_dict()
        adam["state"] = {int(k): dict(v) for k, v in state["adam"].items()}
        self.adam.load_state_dict(adam)
        for key, generator in self.generators.items():
            generator.set_state(state["generators"][key])
        self.updates = int(state["updates"])


def build_tiny(spec: EnvSpec, cfg: Any) -> TinyAgent:
    """Factory for the agent registry."""
    return TinyAgent(spec, seed=cfg.seed)


def build_counting(spec: EnvSpec, cfg: Any) -> CountingAgent:
    """Factory for the agent registry."""
    return CountingAgent(spec.action_size)


def _adam_state(adam: torch.optim.Adam) -> dict[str, Any]:
    return {str(k): dict(v) for k, v in adam.state_dict()["state"].items()}


def _obs_size(spec: EnvSpec) -> int:
    pixels = int(np.prod(spec.image_shape)) if spec.image_shape else 0
    return pixels + spec.vector_size


def _flat(obs: dict[str, Tensor], batch_dims: int) -> Tensor:
    """Features [prod(batch), size] of every observation key, images scaled to [0, 1]."""
    parts = []
    for key in sorted(obs):
        value = obs[key]
        scaled = value.float() / 255 if value.dtype == torch.uint8 else value / 8
        parts.append(scaled.flatten(batch_dims).flatten(0, batch_dims - 1))
    return torch.cat(parts, -1)
