"""N dot worlds as one batch of tensors, stepped on any device without ever leaving it.

The rules are those of `dot`, bit for bit; the episode keys are derived on the device, so that a
rollout needs no word from the host.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reverie.envs.dot import BACKGROUND, DOT_STEPS, GOLDEN, MASK, SUBPIXEL, Layout, dot_spec
from reverie.envs.settings import EnvSettings
from reverie.envs.single import PURPOSE_IDS, Purpose
from reverie.envs.specs import Array, EnvError, Step


@dataclass
class TensorStep:
    """One row for N slots, as `specs.Step`, on the device; overwritten by no later step."""

    obs: dict[str, Tensor]
    """"image": uint8 [N, height, width, 3]."""
    reward: Tensor
    """float32 [N]."""
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    """bool [N]."""

    def to_host(self) -> Step:
        """Copy to NumPy, which waits for the device."""
        return Step(
            obs={k: v.cpu().numpy().copy() for k, v in self.obs.items()},
            reward=self.reward.cpu().numpy().copy(),
            is_first=self.is_first.cpu().numpy().copy(),
            is_last=self.is_last.cpu().numpy().copy(),
            is_terminal=self.is_terminal.cpu().numpy().copy(),
            info={"interrupted": np.zeros(len(self.reward), np.bool_)},
        )


def mix(key: Tensor) -> Tensor:
    """Hash int64 tensors of 32-bit keys as `dot.mix` does."""
    key = key & MASK
    key = ((key ^ (key >> 15)) * 0x2C1B3C6D) & MASK
    key = ((key ^ (key >> 12)) * 0x297A2D39) & MASK
    return key ^ (key >> 15)


class TorchDots:
    """The batched dot world: `reset_tensors` and `step_tensors` on the device, `VecEnv` on top."""

    def __init__(
        self,
        num_envs: int,
        *,
        seed: int,
        purpose: Purpose = "train",
        image_size: int = 64,
        device: str | torch.device = "cpu",
        time_limit: int = DOT_STEPS,
    ) -> None:
        assert num_envs > 0 and time_limit > 0
        self.spec = dot_spec(image_size, "torch/dots")
        self.settings = EnvSettings(self.spec.task, image_size=image_size, time_limit=time_limit)
        self.num_envs = num_envs
        self.episodes: Array = np.zeros(num_envs, np.int64)
        """int64 [N], as of the last row given to the host."""
        self._layout = Layout(image_size)
        self._limit = time_limit
        purpose_id = PURPOSE_IDS[purpose]
        base = [
            int(np.random.SeedSequence([seed, purpose_id, slot]).generate_state(1)[0])
            for slot in range(num_envs)
        ]
        self._base = torch.tensor(base, dtype=torch.int64, device=device)
        self._episode = torch.zeros_like(self._base)
        self._time = torch.zeros_like(self._base)
        self._ended = torch.ones(num_envs, dtype=torch.bool, device=device)
        # positions of dot, target and distractor, then the distractor's drift: [N, 4, 2]
        self._state = torch.zeros(num_envs, 4, 2, dtype=torch.int64, device=device)
        self._index = torch.arange(8, device=device)
        drift, span = self._layout.drift, self._layout.span
        bound = [[span + 1, span + 1]] * 3 + [[2 * drift + 1] * 2]
        self._bound = torch.tensor(bound, device=device)
        self._offset = torch.tensor([[0, 0]] * 3 + [[drift] * 2], device=device)
        self._pixel = torch.arange(image_size, device=device)
        self._begun = False

    def episode_keys(self, episode: Tensor) -> Tensor:
        """Return the 32-bit key of episode [N] of every slot: the seed `dot.Dot.reset` takes."""
        return mix(self._base + mix(episode))

    def reset_tensors(self, episode: Tensor | None = None) -> TensorStep:
        """Begin `episode` [N] (0 if not given) in every slot."""
        self._episode.copy_(torch.zeros_like(self._base) if episode is None else episode)
        self._time.zero_()
        self._state.copy_(self._drawn())
        self._ended.zero_()
        self._begun = True
        return self._arrive(torch.ones_like(self._ended))

    def step_tensors(self, action: Tensor) -> TensorStep:
        """Advance by float32 actions [N, 2] on the device; ended slots reset instead."""
        assert self._begun, "expected a reset before the first step"
        assert action.shape == (self.num_envs, 2), f"expected [{self.num_envs}, 2] actions"
        first = self._ended.clone()
        # state is updated in place so that a captured graph reads and writes fixed addresses
        self._episode.add_(first)
        self._state.copy_(torch.where(first[:, None, None], self._drawn(), self._moved(action)))
        self._time.copy_(torch.where(first, 0, self._time + 1))
        return self._arrive(first)

    def reset(self) -> Step:
        """Begin episode 0 in every slot."""
        return self._to_host(self.reset_tensors())

    def step(self, action: Array) -> Step:
        """Advance by float32 actions [N, 2] of the host."""
        if not self._begun or action.shape != (self.num_envs, 2):
            raise EnvError(
                f"torch/dots: expected actions ({self.num_envs}, 2) after a reset, found "
                f"{action.shape}."
            )
        return self._to_host(self.step_tensors(torch.as_tensor(action, device=self._base.device)))

    def restore(self, episodes: Sequence[int], actions: Sequence[Array]) -> Step:
        """Begin `episodes[i]` in slot i, replay `actions[i]` [L_i, 2], return the row reached."""
        device = self._base.device
        episode = torch.as_tensor(np.asarray(episodes, np.int64), device=device)
        row = self.reset_tensors(episode)
        longest = max(len(a) for a in actions)
        for t in range(longest):
            # a slot with a shorter log waits at its start, so that all arrive together
            live = [t >= longest - len(a) for a in actions]
            now = [
                a[t - longest + len(a)] if go else np.zeros(2)
                for a, go in zip(actions, live, strict=True)
            ]
            row = self.step_tensors(torch.as_tensor(np.asarray(now, np.float32), device=device))
            waiting = ~torch.tensor(live, device=device)
            self._time.masked_fill_(waiting, 0)
            self._state.copy_(torch.where(waiting[:, None, None], self._drawn(), self._state))
            self._ended.copy_(self._time >= self._limit)
        if longest:
            first = torch.tensor([len(a) == 0 for a in actions], device=device)
            row = self._arrive(first)
        return self._to_host(row)

    def retire(self, slot: int) -> None:
        """Nothing to save: all worlds are one batch."""

    def close(self) -> None:
        """Nothing to free but tensors."""

    def _to_host(self, row: TensorStep) -> Step:
        self.episodes = self._episode.cpu().numpy().copy()
        return row.to_host()

    def _drawn(self) -> Tensor:
        keys = self.episode_keys(self._episode)
        numbers = mix(keys[:, None] + self._index * GOLDEN).view(-1, 4, 2)
        return numbers % self._bound - self._offset

    def _moved(self, action: Tensor) -> Tensor:
        dot, target, blob, drift = self._state.unbind(1)
        span = self._layout.span
        push = torch.round(action.float().clamp(-1, 1) * float(self._layout.speed)).long()
        dot = (dot + push).clamp(0, span)
        blob = (blob + drift) % (span + 1)
        return torch.stack([dot, target, blob, drift], 1)

    def _arrive(self, first: Tensor) -> TensorStep:
        span = self._layout.span
        distance = (self._state[:, 0] - self._state[:, 1]).abs().amax(-1)
        near = (span - 2 * distance).clamp(min=0)
        # divided by a tensor: CUDA turns division by a Python number into a product with 1/span
        reward = near.float() / torch.full_like(near, span).float()
        self._ended.copy_(self._time >= self._limit)
        return TensorStep(
            obs={"image": self._picture()},
            reward=reward.masked_fill(first, 0.0),
            is_first=first,
            is_last=self._ended.clone(),
            is_terminal=torch.zeros_like(first),
        )

    def _picture(self) -> Tensor:
        corner = self._state[:, :3] // SUBPIXEL
        dot = self._layout.dot
        # within[n, thing, axis, pixel]: the pixel lies inside the thing's extent on that axis
        offset = self._pixel - corner[..., None]
        within = (offset >= 0) & (offset < dot)
        columns, rows = within[:, :, 0, None, :], within[:, :, 1, :, None]
        # a square of the board is lit where the parities of its column and row differ
        odd = (self._pixel + corner[:, 2, :, None]) // dot % 2 == 1
        board = (odd[:, 0, None, :] ^ odd[:, 1, :, None]).to(torch.uint8) * BACKGROUND
        size = self._layout.size
        image = torch.empty(self.num_envs, size, size, 3, dtype=torch.uint8, device=board.device)
        image[..., 0] = (columns[:, 1] & rows[:, 1]).to(torch.uint8) * 255
        image[..., 1] = (columns[:, 0] & rows[:, 0]).to(torch.uint8) * 255
        image[..., 2] = torch.where(columns[:, 2] & rows[:, 2], 255, board)
        return image


def measure(num_envs: int, *, device: str = "cpu", image_size: int = 64, steps: int = 50) -> float:
    """Return world steps per second of `num_envs` dot worlds under random actions."""
    env = TorchDots(num_envs, seed=0, device=device, image_size=image_size)
    action = torch.rand(num_envs, 2, device=device) * 2 - 1
    env.reset_tensors()
    for _ in range(3):
        env.step_tensors(action)
    _wait(device)
    begin = time.perf_counter()
    for _ in range(steps):
        env.step_tensors(action)
    _wait(device)
    return num_envs * steps / (time.perf_counter() - begin)


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
