"""Evaluation: full episodes in parallel, a fixed number per slot, and the three blind controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reverie.agents.collector import random_action, to_device
from reverie.agents.configs import RunConfig
from reverie.agents.interface import Player
from reverie.agents.seeding import stream
from reverie.envs.specs import EnvSpec, Step, VecEnv

Array = NDArray[Any]
Control = Literal["none", "random", "zero", "blank"]
CONTROLS: tuple[Control, ...] = ("random", "zero", "blank")
Chooser = Callable[[Step], Array]


MAX_SLOTS = 16
"""Episodes played at once; each slot plays equally many."""

MAX_GAMES = 100
"""The same for Atari: the final hundred games, one per slot."""


class EvaluationStopped(RuntimeError):
    """`stop` said so before the last episode ended; no score exists."""


def evaluate(
    agent: Player | None,
    env: VecEnv,
    *,
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
    control: Control = "none",
    first_episode: int = 0,
    stop: Callable[[], bool] = bool,
) -> dict[str, Any]:
    """Scores of `episodes` full episodes: slot i plays its episodes first_episode, +1, ...

    Every slot contributes the same number, so that short episodes are not favoured. Controls:
    "random" and "zero" ignore the agent (None allowed), "blank" shows it black images and zero
    vectors. `seed` keys the random control. An episode that a fault interrupted is counted
    under "interrupted" and replaced by the slot's next one. `stop` is asked at every step. Where
    the task knows success, an episode with one solved step is one: "successes", in the order of
    "returns", and their mean "success".
    """
    slots = env.num_envs
    if episodes < 1 or episodes % slots:
        raise ValueError(f"{episodes} episodes cannot be shared equally by {slots} slots")
    quota = episodes // slots
    choose = _chooser(agent, env, control, seed=seed, device=torch.device(device))
    scores: list[list[float]] = [[] for _ in range(slots)]
    lengths: list[list[int]] = [[] for _ in range(slots)]
    successes: list[list[bool]] = [[] for _ in range(slots)]
    score, length = np.zeros(slots), np.zeros(slots, np.int64)
    solved = np.zeros(slots, np.bool_)
    row, interrupted = _start(env, first_episode), 0
    while any(len(done) < quota for done in scores):
        if stop():
            raise EvaluationStopped("evaluation was interrupted by a request to stop")
        row = env.step(choose(row))
        score = np.where(row.is_first, 0.0, score + row.reward)
        length = np.where(row.is_first, 0, length + 1)
        solved = (solved & ~row.is_first) | row.info.get("success", False)
        lost = np.broadcast_to(row.info.get("interrupted", False), slots)
        for slot in np.flatnonzero(row.is_last).tolist():
            if len(scores[slot]) == quota:
                continue
            if lost[slot]:
                interrupted += 1
            else:
                scores[slot].append(float(score[slot]))
                lengths[slot].append(int(length[slot]))
                successes[slot].append(bool(solved[slot]))
                if len(scores[slot]) == quota:
                    env.retire(slot)
    return {
        **_summary(scores, lengths, env.spec),
        **(_solved(successes) if env.spec.has_success else {}),
        "control": control,
        "interrupted": interrupted,
    }


def slots_for(episodes: int, task: str) -> int:
    """Most parallel slots, up to `MAX_SLOTS` or `MAX_GAMES`, that share `episodes` equally.

    Scores depend on it, because a slot has start states of its own: training and `reverie eval`
    both ask here, so that the one repeats the other.
    """
    most = MAX_GAMES if task.startswith("atari/") else MAX_SLOTS
    return next(n for n in range(min(most, episodes), 0, -1) if episodes % n == 0)


def final_episodes(cfg: RunConfig) -> int:
    """Episodes of a run's last evaluation, whose score is the run's."""
    return cfg.train.final_episodes or cfg.train.eval_episodes


def _chooser(
    agent: Player | None, env: VecEnv, control: Control, *, seed: int, device: torch.device
) -> Chooser:
    spec, slots = env.spec, env.num_envs
    if control == "random":
        rng = stream(seed, "eval_random")
        return lambda row: random_action(spec, slots, rng)
    if control == "zero":
        return lambda row: zero_action(spec, slots)
    if agent is None:
        raise ValueError(f"control '{control}' needs an agent; pass one")
    player = agent
    carry = player.initial_carry(slots)

    def choose(row: Step) -> Array:
        nonlocal carry
        obs = to_device(row.obs, device)
        if control == "blank":
            obs = {key: torch.zeros_like(value) for key, value in obs.items()}
        is_first: Tensor = torch.as_tensor(row.is_first).to(device)
        carry, action = player.act(carry, obs, is_first, mode="eval")
        return np.array(action.detach().to("cpu", torch.float32).numpy())

    return choose


def zero_action(spec: EnvSpec, num_envs: int) -> Array:
    """Actions [N, A] of a policy that does nothing: zeros, or always the first discrete action."""
    action = np.zeros((num_envs, spec.action_size), np.float32)
    if spec.discrete:
        action[:, 0] = 1.0
    return action


def _start(env: VecEnv, first_episode: int) -> Step:
    if first_episode == 0:
        return env.reset()
    empty = np.zeros((0, env.spec.action_size), np.float32)
    return env.restore([first_episode] * env.num_envs, [empty] * env.num_envs)


def _summary(scores: list[list[float]], lengths: list[list[int]], spec: EnvSpec) -> dict[str, Any]:
    returns = [value for slot in scores for value in slot]
    steps = [value for slot in lengths for value in slot]
    return {
        "task": spec.task,
        "protocol": spec.protocol,
        "episodes": len(returns),
        "returns": returns,
        "lengths": steps,
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "median": float(np.median(returns)),
        "min": float(np.min(returns)),
        "max": float(np.max(returns)),
        "frames": int(np.sum(steps)) * spec.action_repeat,
    }


def _solved(successes: list[list[bool]]) -> dict[str, Any]:
    every = [value for slot in successes for value in slot]
    return {"successes": every, "success": float(np.mean(every))}
