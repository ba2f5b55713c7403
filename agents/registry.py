"""Agents by name; their modules are imported only when one is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from reverie.agents.configs import ConfigError

if TYPE_CHECKING:
    import torch

    from reverie.agents.configs import RunConfig
    from reverie.agents.interface import Agent, Imitator
    from reverie.agents.replay.buffer import Replay
    from reverie.envs.specs import EnvSpec

Factory = Callable[..., "Agent"]

FAMILIES = {
    "mudreamer": ("mudreamer", "dreamerv3"),
    "spr": ("spr", "spr-noaug", "rainbow", "sr-spr", "bbf"),
    "act_jepa": ("act-jepa", "act", "bc"),
}
"""Section of the settings -> agents that it configures, each with a preset agent-<name>.toml."""

AGENTS: dict[str, str] = {
    agent: f"reverie.agents.registry:build_{section}"
    for section, members in FAMILIES.items()
    for agent in members
}
"""Agent name -> "module:factory"."""


def family(agent: str) -> str:
    """Section of `RunConfig` that configures an agent; an unknown one is its own."""
    return next((name for name, members in FAMILIES.items() if agent in members), agent)


def build_agent(spec: EnvSpec, cfg: RunConfig) -> Agent:
    """The agent that `cfg.agent` names, with fresh weights, on the resolved device.

    Raises:
        ConfigError: the agent is unknown, or the device is not there.
    """
    return _factory(cfg)(spec, cfg)


def build_imitator(
    spec: EnvSpec, cfg: RunConfig, *, tasks: tuple[str, ...], statistics: Mapping[str, torch.Tensor]
) -> Imitator:
    """The agent that `cfg.agent` names, to learn from demonstrations of `tasks`.

    `statistics` are those of `DemoWindows.statistics`; they are part of the agent's state, so that
    `build_agent` suffices for one whose state is loaded.

    Raises:
        ConfigError: the agent is unknown, the device is not there, or the sizes do not suit it.
    """
    return cast("Imitator", _factory(cfg)(spec, cfg, tasks=tasks, statistics=statistics))


def _factory(cfg: RunConfig) -> Factory:
    if cfg.agent not in AGENTS:
        raise ConfigError([f"agent: expected one of {', '.join(AGENTS)}, found {cfg.agent!r}"])
    module, _, name = AGENTS[cfg.agent].partition(":")
    return cast(Factory, getattr(importlib.import_module(module), name))


def build_mudreamer(spec: EnvSpec, cfg: RunConfig) -> Agent:
    """MuDreamer, or DreamerV3: the same class, told apart by the switches of their presets."""
    from reverie.agents.devices import resolve_device
    from reverie.agents.mudreamer import MuDreamer

    check_task(spec, cfg)
    return MuDreamer(
        spec,
        cfg.mudreamer,
        seed=cfg.seed,
        device=str(resolve_device(cfg.train.device)),
        compile=cfg.train.compile,
        precision=cfg.train.precision,
        batch_shape=(cfg.train.batch_size, cfg.train.batch_length),
    )


def build_spr(spec: EnvSpec, cfg: RunConfig) -> Agent:
    """SPR, Rainbow, SR-SPR or BBF: the same class, told apart by the switches of their presets."""
    from reverie.agents.devices import resolve_device
    from reverie.agents.spr import SPR

    check_task(spec, cfg)
    train = cfg.train
    replayed = max(0, train.steps - train.prefill) * train.train_ratio
    return SPR(
        spec,
        cfg.spr,
        seed=cfg.seed,
        updates=int(replayed // (train.batch_size * train.batch_length)),
        batch_size=train.batch_size,
        device=str(resolve_device(train.device)),
        compile=train.compile,
        precision=train.precision,
    )


def build_act_jepa(
    spec: EnvSpec,
    cfg: RunConfig,
    *,
    tasks: tuple[str, ...] | None = None,
    statistics: Mapping[str, torch.Tensor] | None = None,
) -> Agent:
    """ACT-JEPA, ACT or BC: the same class, told apart by the switches of their presets."""
    from reverie.agents.act_jepa import ACTJEPA
    from reverie.agents.devices import resolve_device
    from reverie.envs.registry import members

    check_task(spec, cfg)
    return ACTJEPA(
        spec,
        cfg.act_jepa,
        tasks=members(cfg.task) if tasks is None else tasks,
        statistics=statistics,
        seed=cfg.seed,
        updates=cfg.train.steps,
        device=str(resolve_device(cfg.train.device)),
        compile=cfg.train.compile,
        precision=cfg.train.precision,
    )


def check_task(spec: EnvSpec, cfg: RunConfig) -> None:
    """Refuse a task that the agent cannot learn.

    Raises:
        ConfigError: names what the agent needs and the task lacks.
    """
    if family(cfg.agent) == "act_jepa":
        check_modalities(spec, cfg)
        return
    problems = []
    spr, decoder = family(cfg.agent) == "spr", cfg.mudreamer.model.decoder
    if spr and spec.image_shape is None:
        problems.append(
            f"agent: {cfg.agent} learns from images, and {spec.task} has none; use mudreamer"
        )
    if not spr and spec.image_shape is None and decoder != "none":
        problems.append(
            f"mudreamer.model.decoder: {decoder} reconstructs images, and {spec.task} has none; "
            "use agent mudreamer, or decoder none"
        )
    if spr and not spec.discrete:
        problems.append(
            f"agent: {cfg.agent} chooses among discrete actions, those of {spec.task} are "
            "continuous; use mudreamer or dreamerv3"
        )
    if problems:
        raise ConfigError(problems)


def check_modalities(spec: EnvSpec, cfg: RunConfig) -> None:
    """Refuse observations that lack what the imitation agent takes in.

    Raises:
        ConfigError: names the input and what provides it.
    """
    problems, inputs = [], cfg.act_jepa.model.inputs
    if "image" in inputs and spec.image_shape is None:
        problems.append(
            f"act_jepa.model.inputs: image is asked for, and {spec.task} shows none; use "
            "--env.observe both where the suite has it, or --act-jepa.model.inputs proprio state"
        )
    vectors = [name for name in inputs if name != "image"]
    if vectors and not spec.vector_size:
        problems.append(
            f"act_jepa.model.inputs: {' and '.join(vectors)} asked for, and {spec.task} as it is "
            f"set up has no vector; use --env.observe {'both' if 'image' in inputs else 'state'} "
            "where the suite has it, or --act-jepa.model.inputs image --act-jepa.model.targets "
            "image"
        )
    if problems:
        raise ConfigError(problems)


def build_replay(
    spec: EnvSpec, cfg: RunConfig, *, directory: Path | None, device: str | torch.device
) -> Replay:
    """The replay that the agent's family draws from."""
    from reverie.agents.replay.buffer import Replay, replay_schema

    schema = replay_schema(spec)
    slots, capacity = cfg.env.num_envs, cfg.replay.capacity
    if family(cfg.agent) != "spr":
        return Replay(
            schema,
            num_envs=slots,
            capacity=capacity,
            storage=cfg.replay.storage,
            directory=directory,
            device=device,
        )
    from reverie.agents.replay.priority import PriorityReplay

    check_task(spec, cfg)
    return PriorityReplay(
        schema,
        num_envs=slots,
        capacity=capacity,
        directory=directory,
        device=device,
        history=cfg.spr.model.history,
        predictions=cfg.spr.model.predictions,
        max_n_step=cfg.spr.max_n_step,
        stratified=cfg.spr.priority.stratified,
        new_priority=cfg.spr.priority.new,
    )
