"""Lock-step interaction: one row per slot and call, with everything a resume needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reverie.agents.interface import Agent, Carry
from reverie.agents.seeding import stream
from reverie.envs.specs import EnvSpec, Step, VecEnv

Array = NDArray[Any]
Rows = dict[str, Array]


@dataclass(frozen=True)
class Episode:
    """One finished episode of one slot."""

    slot: int
    """Which of the N environments."""
    index: int
    """Episode number of that slot; with slot and seed it names the start state."""
    score: float
    """Sum of rewards; of the whole game, whatever lives were lost in it."""
    length: int
    """Agent steps; of the whole game as well."""
    interrupted: bool
    """True when the episode was cut by a fault and its score means nothing."""


def to_device(arrays: dict[str, Array], device: torch.device) -> dict[str, Tensor]:
    """Tensors of NumPy arrays on `device`, in their own dtype."""
    return {key: torch.as_tensor(array).to(device) for key, array in arrays.items()}


def random_action(spec: EnvSpec, num_envs: int, rng: np.random.Generator) -> Array:
    """Uniform float32 actions [N, A] in the agent's format."""
    if spec.discrete:
        return one_hot(rng.integers(0, spec.action_size, num_envs), spec.action_size)
    return rng.uniform(-1.0, 1.0, (num_envs, spec.action_size)).astype(np.float32)


def one_hot(index: Array, size: int) -> Array:
    """Float32 rows [N, size] with a one at `index` [N]."""
    return np.eye(size, dtype=np.float32)[index]


class Collector:
    """Drives N slots with an agent and turns what arrives into replay rows.

    A row carries the action that led to it (zeros at `is_first`). Reset rows are no agent steps.
    """

    def __init__(self, env: VecEnv, agent: Agent, *, seed: int, device: torch.device | str) -> None:
        """`seed` is the run's seed; it keys the actions of the random phase."""
        self.env = env
        self.agent = agent
        self.seed = seed
        self.device = torch.device(device)
        self.calls = 0
        self.steps = 0
        self.finished: list[Episode] = []
        self._row: Step | None = None
        self._carry: Carry = {}
        self._scores = np.zeros(env.num_envs, np.float64)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._episodes = np.zeros(env.num_envs, np.int64)
        self._actions: list[list[Array]] = [[] for _ in range(env.num_envs)]

    @property
    def restorable(self) -> bool:
        """Whether `state_dict` may be taken: no slot stands on a row that a fault produced."""
        return self._row is not None and not _interrupted(self._row).any()

    def advance(self, *, random: bool) -> Rows:
        """Rows [N, ...] of the next moment; the first call resets every slot."""
        if self._row is None:
            return self._begin()
        action = self._choose(self._row, random=random)
        before = self._row.is_last
        row = self.env.step(action)
        assert (row.is_first >= before).all(), "a slot went on behind is_last without is_first"
        self.calls += 1
        self.steps += int((~row.is_first).sum())
        self._account(row, self._log_actions(action))
        self._row = row
        return _rows(row, np.where(row.is_first[:, None], np.float32(0), action))

    def pop_finished(self) -> list[Episode]:
        """Episodes that ended since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def state_dict(self) -> dict[str, Any]:
        """Counters, carry, and the actions since each episode's start."""
        assert self._row is not None and self.restorable, "no moment that can be rebuilt"
        size = self.env.spec.action_size
        return {
            "calls": self.calls,
            "steps": self.steps,
            "scores": self._scores.copy(),
            "lengths": self._lengths.copy(),
            "episodes": self._episodes.copy(),
            "actions": [
                np.stack(log) if log else np.zeros((0, size), np.float32) for log in self._actions
            ],
            "carry": {key: value.clone() for key, value in self._carry.items()},
            "digest": digest(self._row),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Rebuild the moment; returns notes, one if the environment did not repeat itself."""
        self.calls = int(state["calls"])
        self.steps = int(state["steps"])
        self._scores = np.array(state["scores"], np.float64)
        self._lengths = np.array(state["lengths"], np.int64)
        self._episodes = np.array(state["episodes"], np.int64)
        actions = [np.asarray(log, np.float32) for log in state["actions"]]
        self._actions = [list(log) for log in actions]
        self._carry = {key: value.to(self.device) for key, value in state["carry"].items()}
        self._row = self.env.restore(self._episodes.tolist(), actions)
        if digest(self._row) == state["digest"]:
            return []
        return [
            f"{self.env.spec.task} did not repeat itself when its episodes were replayed: "
            "training continues statistically, not bit by bit"
        ]

    def _begin(self) -> Rows:
        row = self.env.reset()
        assert row.is_first.all(), "reset must return is_first rows"
        self._carry = self.agent.initial_carry(self.env.num_envs)
        self._episodes = np.array(self.env.episodes, np.int64)
        self._account(row, row.is_first)
        self._row = row
        return _rows(row, np.zeros((self.env.num_envs, self.env.spec.action_size), np.float32))

    def _choose(self, row: Step, *, random: bool) -> Array:
        if random:
            rng = stream(self.seed, "prefill", self.calls)
            return random_action(self.env.spec, self.env.num_envs, rng)
        obs = to_device(row.obs, self.device)
        is_first = torch.as_tensor(row.is_first).to(self.device)
        self._carry, action = self.agent.act(self._carry, obs, is_first, mode="train")
        chosen: Array = action.detach().to("cpu", torch.float32).numpy().copy()
        assert chosen.shape == (self.env.num_envs, self.env.spec.action_size), chosen.shape
        return chosen

    def _log_actions(self, action: Array) -> Array:
        """Keep what led here from each episode's start; returns the slots [N] that are at one."""
        # by episode index, not by is_first: a lost life begins a row, not an episode
        now = np.array(self.env.episodes, np.int64)
        begun: Array = now != self._episodes
        for slot in range(self.env.num_envs):
            if begun[slot]:
                self._actions[slot].clear()
            else:
                self._actions[slot].append(action[slot].copy())
        self._episodes = now
        return begun

    def _account(self, row: Step, begun: Array) -> None:
        self._scores[begun] = 0.0
        self._lengths[begun] = 0
        self._scores += np.where(row.is_first, 0.0, row.reward)
        self._lengths += ~row.is_first
        interrupted, life_lost = _interrupted(row), row.info.get("life_lost", False)
        for slot in np.flatnonzero(row.is_last & ~np.asarray(life_lost, bool)).tolist():
            self.finished.append(
                Episode(
                    slot=slot,
                    index=int(self.env.episodes[slot]),
                    score=float(self._scores[slot]),
                    length=int(self._lengths[slot]),
                    interrupted=bool(interrupted[slot]),
                )
            )


def digest(row: Step) -> str:
    """Hex digest of everything in a row that learning can see."""
    sha = hashlib.sha256()
    columns = {**row.obs, "reward": row.reward, "is_first": row.is_first}
    columns |= {"is_last": row.is_last, "is_terminal": row.is_terminal}
    for key in sorted(columns):
        sha.update(key.encode())
        sha.update(np.ascontiguousarray(columns[key]).tobytes())
    return sha.hexdigest()


def _interrupted(row: Step) -> Array:
    return np.asarray(row.info.get("interrupted", np.zeros(len(row.is_last))), bool)


def _rows(row: Step, action: Array) -> Rows:
    return {
        **row.obs,
        "action": action,
        "reward": row.reward,
        "is_first": row.is_first,
        "is_last": row.is_last,
        "is_terminal": row.is_terminal,
    }
