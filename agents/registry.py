"""Agents by name; their modules are imported only when one is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from reverie.agents.configs import ConfigError

if TYPE_CHECKING:
    from reverie.agents.configs import RunConfig
    from reverie.agents.interface import Agent
    from reverie.envs.specs import EnvSpec

Factory = Callable[["EnvSpec", "RunConfig"], "Agent"]

AGENTS: dict[str, str] = {
    "mudreamer": "reverie.agents.registry:build_mudreamer",
    "dreamerv3": "reverie.agents.registry:build_mudreamer",
}
"""Agent name -> "module:factory"; one line makes a new agent known everywhere."""


def build_agent(spec: EnvSpec, cfg: RunConfig) -> Agent:
    """The agent that `cfg.agent` names, with fresh weights, on the resolved device.

    Raises:
        ConfigError: the agent is unknown, or the device is not there.
    """
    if cfg.agent not in AGENTS:
        raise ConfigError([f"agent: expected one of {', '.join(AGENTS)}, found {cfg.agent!r}"])
    module, _, name = AGENTS[cfg.agent].partition(":")
    factory = cast(Factory, getattr(importlib.import_module(module), name))
    return factory(spec, cfg)


def build_mudreamer(spec: EnvSpec, cfg: RunConfig) -> Agent:
    """MuDreamer, or DreamerV3: the same class, told apart by the switches of their presets."""
    from reverie.agents.devices import resolve_device
    from reverie.agents.mudreamer import MuDreamer

    if spec.image_shape is None and cfg.mudreamer.model.decoder != "none":
        raise ConfigError(
            [
                f"mudreamer.model.decoder: {cfg.mudreamer.model.decoder} reconstructs images, and "
                f"{spec.task} has none; use agent mudreamer, or decoder none"
            ]
        )
    return MuDreamer(
        spec,
        cfg.mudreamer,
        seed=cfg.seed,
        device=str(resolve_device(cfg.train.device)),
        compile=cfg.train.compile,
        precision=cfg.train.precision,
        batch_shape=(cfg.train.batch_size, cfg.train.batch_length),
    )
