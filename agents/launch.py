"""One call that trains: settings, a look at whether they fit this machine, training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.registry import family
from reverie.agents.resolve import resolve, run_directory
from reverie.envs.registry import make_vec, require_known
from reverie.envs.settings import EnvSettings
from reverie.envs.specs import EnvSpec
from reverie.envs.worker import require_main_guard

UNIFORM = ("dmc", "torch")
"""Suites whose tasks all have continuous actions, and images unless `env.observe` says otherwise:
they need no look at the task."""


def run(
    agent: str = "mudreamer",
    *,
    task: str,
    configs: Sequence[str] = (),
    fresh: bool = False,
    **settings: Any,
) -> int:
    """Train, or continue the same call; returns the exit code, 0 when the budget is spent.

    A Gymnasium environment of your own::

        from reverie.agents import run
        from reverie.envs import register

        register("mine/reach", Reach)  # a class, or a function that returns an environment
        if __name__ == "__main__":
            run("mudreamer", task="mine/reach", size="nano", train={"steps": 20_000})

    Args:
        agent: a name that `reverie tasks` lists.
        task: suite/task; "gym/<EnvId>" takes any installed Gymnasium environment.
        configs: presets or TOML files, as `--config`.
        fresh: refuse a run directory that holds a run already.
        settings: fields of `RunConfig`; a section is a dictionary.

    Raises:
        ConfigError: lists every setting that cannot work.
        EnvError: the environment cannot be built, or broke its contract.
    """
    overrides = {"agent": agent, "task": task, **settings}
    return launch(resolve(overrides, configs=configs), fresh=fresh)


def launch(cfg: RunConfig, *, fresh: bool = False) -> int:
    """Train resolved settings, unless this machine cannot hold the run; returns the exit code."""
    require_main_guard()
    # late, because every worker imports a script that imports `run`, and needs no torch
    from reverie.agents.budget import check_replay_fits
    from reverie.agents.devices import resolve_device
    from reverie.agents.registry import check_task
    from reverie.agents.trainer import train

    device = resolve_device(cfg.train.device)
    if cfg.train.compile == "graph" and device.type != "cuda":
        raise ConfigError(
            [f"train.compile: graph needs CUDA, train.device {cfg.train.device} is {device} here"]
        )
    spec = _spec(cfg)
    if spec is not None:
        check_task(spec, cfg)
    if family(cfg.agent) != "act_jepa":
        check_replay_fits(cfg, run_directory(cfg), spec)
    return train(cfg, fresh=fresh)


def _check_distraction(cfg: RunConfig) -> None:
    """Open what distracts from a task that is not built: bad clips leave no run directory."""
    env = cfg.env
    if env.distractor == "none":
        return
    from reverie.envs.distractors.build import check

    settings = EnvSettings(
        cfg.task,
        env.image_size,
        distractor=env.distractor,
        distractor_source=env.distractor_source,
        distractor_mask=env.distractor_mask,
    )
    check(settings)


def _spec(cfg: RunConfig) -> EnvSpec | None:
    """Sizes of the task; building it once also finds what it lacks before a run directory exists.

    None where any task of the suite suits the agent, or where demonstrations have them.
    """
    kind = family(cfg.agent)
    if kind == "act_jepa":
        return None  # its demonstrations tell, and are compared with the simulator
    uniform = cfg.task.partition("/")[0] in UNIFORM and cfg.env.observe == "auto"
    if uniform and kind != "spr":
        require_known(cfg.task)
        _check_distraction(cfg)
        return None
    env = make_vec(
        cfg.task,
        1,
        seed=cfg.seed,
        image_size=cfg.env.image_size,
        action_repeat=cfg.env.action_repeat,
        workers="inline",
        gray=cfg.env.gray,
        life_loss=cfg.env.life_loss,
        sticky=cfg.env.sticky,
        observe=cfg.env.observe,
        distractor=cfg.env.distractor,
        distractor_source=cfg.env.distractor_source,
        distractor_mask=cfg.env.distractor_mask,
    )
    env.close()
    return env.spec
