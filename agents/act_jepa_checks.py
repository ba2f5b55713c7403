"""Settings of the ACT-JEPA family that cannot work together."""

from __future__ import annotations

from reverie.agents.configs import RunConfig
from reverie.world_models.act_jepa_config import ACTJEPAModelConfig

STRIDES = {"resnet18": 32, "conv": 16}
"""Pixels that an image stem makes one token of."""


def act_jepa_problems(cfg: RunConfig) -> list[str]:
    """Every problem of an imitation run, each with what to do about it."""
    return [*_windows(cfg), *_playing(cfg), *_modalities(cfg), *_networks(cfg.act_jepa.model)]


def _windows(cfg: RunConfig) -> list[str]:
    problems = []
    model, demos = cfg.act_jepa.model, cfg.demos
    if cfg.train.batch_length != 1:
        problems.append(
            f"train.batch_length: windows of {cfg.agent} are act_jepa.model.chunk long, expected "
            f"1, found {cfg.train.batch_length}; set act_jepa.model.chunk instead"
        )
    if model.chunk == 1:
        problems.append("act_jepa.model.chunk: one action is no chunk; use 2 or more")
    monitor = cfg.train.monitor
    if monitor != "off" and model.w_jepa > 0 and not demos.held_out_episodes:
        problems.append(
            f"demos.held_out_episodes: the monitor looks at held-out episodes, expected at least 1 "
            f"with train.monitor {monitor}, found 0; hold some out or use --train.monitor off"
        )
    return problems


def _playing(cfg: RunConfig) -> list[str]:
    problems = []
    own, chunk = cfg.act_jepa, cfg.act_jepa.model.chunk
    if own.execute is not None and own.execute > chunk:
        problems.append(
            f"act_jepa.execute: a chunk has act_jepa.model.chunk {chunk} actions, found "
            f"{own.execute}; use at most {chunk}"
        )
    if own.ensemble is not None and own.execute != 1:
        problems.append(
            "act_jepa.ensemble: averages the predictions of every step, expected act_jepa.execute "
            f"1, found {'none' if own.execute is None else own.execute}"
        )
    return problems


def _modalities(cfg: RunConfig) -> list[str]:
    problems = []
    model = cfg.act_jepa.model
    used = {"inputs": model.inputs} | ({"targets": model.targets} if model.w_jepa > 0 else {})
    for name, found in used.items():
        if len(set(found)) != len(found):
            problems.append(f"act_jepa.model.{name}: each one once, found {', '.join(found)}")
        if not found:
            problems.append(f"act_jepa.model.{name}: expected at least one, found none")
    unknown = [name for name in model.targets if name not in model.inputs]
    if model.w_jepa > 0 and unknown:
        problems.append(
            f"act_jepa.model.targets: {', '.join(unknown)} is encoded as an input is, and is none "
            f"of act_jepa.model.inputs {', '.join(model.inputs)}; add it there or drop it"
        )
    stride = STRIDES[model.stem]
    if "image" in model.inputs and cfg.env.image_size < stride:
        problems.append(
            f"env.image_size: act_jepa.model.stem {model.stem} makes a token of {stride} pixels, "
            f"found {cfg.env.image_size}; use larger images"
        )
    return problems


def _networks(model: ACTJEPAModelConfig) -> list[str]:
    problems = []
    for name in ("width", "predictor_width"):
        width = getattr(model, name)
        if width % model.heads:
            problems.append(
                f"act_jepa.model.heads: {model.heads} heads do not divide act_jepa.model.{name} "
                f"{width}"
            )
    if model.ema_start > model.ema_end:
        problems.append(
            f"act_jepa.model.ema_start: {model.ema_start} is above act_jepa.model.ema_end: "
            f"{model.ema_end}"
        )
    if model.policy == "mlp" and model.w_jepa > 0:
        problems.append(
            "act_jepa.model.policy: mlp has no context encoder to predict latents from; use "
            "--act-jepa.model.w-jepa 0 or policy transformer"
        )
    if model.vae and (model.w_jepa > 0 or model.policy == "mlp"):
        problems.append(
            "act_jepa.model.vae: the style variable belongs to ACT; use it with "
            "--act-jepa.model.w-jepa 0 and policy transformer"
        )
    return problems
