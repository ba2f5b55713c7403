"""The agent of a trained run as one that makes demonstrations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from reverie.agents.collector import to_device
from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.demos.evaluation import task_spec
from reverie.agents.interface import Carry, Imitator, Player
from reverie.agents.registry import build_agent, family
from reverie.agents.resolve import with_overrides
from reverie.benchmarks.evaluation import load_run
from reverie.envs.registry import REPEATS, members
from reverie.envs.settings import OBSERVED, EnvSettings
from reverie.envs.single import Obs
from reverie.envs.specs import Array, EnvSpec, VecEnv


def run_settings(run: Path, settings: EnvSettings) -> EnvSettings:
    """`settings` with the environment that the run's agent was trained in, in full games.

    Where auto is asked for, states are recorded beside the images that the agent needs.

    Raises:
        ConfigError: this is no run directory, or its agent never played that task.
    """
    cfg = load_run(run).cfg
    _require_task(run, cfg, settings.task)
    env, suite = cfg.env, settings.task.split("/")[0]
    observe = settings.observe
    if observe == "auto" and suite in OBSERVED:
        seen = OBSERVED[suite] if env.observe == "auto" else env.observe
        observe = "both" if seen == "image" else seen
    return replace(
        settings,
        image_size=env.image_size,
        action_repeat=REPEATS.get(suite, 1) if env.action_repeat is None else env.action_repeat,
        render=env.render,
        time_limit=env.time_limit,
        gray=env.gray,
        sticky=env.sticky,
        observe=observe,
    )


def run_player(run: Path, task: str, env: VecEnv) -> TrainedPlayer:
    """Return the agent of the run's newest checkpoint, for one of its tasks.

    Raises:
        ConfigError: it never played that task, or `env` lacks what it looks at.
    """
    trained = load_run(run)
    plain = {"compile": "off", "precision": "fp32", "device": "cpu"}
    cfg = with_overrides(trained.cfg, {"train": plain})
    _require_task(run, cfg, task)
    torch.set_num_threads(cfg.train.threads)
    spec = task_spec(cfg)
    for name in ("image_shape", "vector_size"):
        needed, shown = getattr(spec, name), getattr(env.spec, name)
        if needed and needed != shown:
            raise ConfigError(
                [
                    f"run: the agent of {run} needs {name} {needed}, {task} shows {shown}; leave "
                    "--observe and --image-size as they are"
                ]
            )
    agent = build_agent(spec, cfg)
    agent.load_state_dict(trained.state)
    player = cast(Imitator, agent).playing(task) if family(cfg.agent) == "act_jepa" else agent
    name = f"reverie run {cfg.agent}-{cfg.size} seed {cfg.seed}, step {trained.step}"
    return TrainedPlayer(player, spec, name=name)


class TrainedPlayer:
    """An agent as an expert: one world, and every episode begins with the same carry and noise."""

    def __init__(self, player: Player, spec: EnvSpec, *, name: str) -> None:
        """`spec` says what the agent looks at; anything else is kept from it."""
        self.name = name
        self._player = player
        self._keys = [
            key
            for key, shown in (("image", spec.image_shape), ("vector", spec.vector_size))
            if shown
        ]
        self._carry: Carry = {}
        self._first = True

    def reset(self) -> None:
        """Forget the last episode."""
        self._carry = self._player.initial_carry(1)
        self._first = True

    def act(self, obs: Obs) -> Array:
        """Return what the agent does when it is evaluated."""
        seen = to_device({key: obs[key][None].copy() for key in self._keys}, torch.device("cpu"))
        is_first = torch.tensor([self._first])
        self._carry, action = self._player.act(self._carry, seen, is_first, mode="eval")
        self._first = False
        chosen: Array = action[0].detach().to(torch.float32).numpy().copy()
        return chosen


def _require_task(run: Path, cfg: RunConfig, task: str) -> None:
    if task not in members(cfg.task):
        raise ConfigError(
            [
                f"run: the agent of {run} plays {cfg.task}, found --task {task}; choose one of its "
                "tasks"
            ]
        )
