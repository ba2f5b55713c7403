"""Settings of the SPR family that cannot work together."""

from __future__ import annotations

from reverie.agents.configs import RunConfig

NATURE_PIXELS = 36
"""Smallest image that three convolutions without padding leave a pixel of."""


def spr_window_rows(cfg: RunConfig) -> int:
    """Rows of one slot that surely hold transitions: their stacks, and the margin behind them."""
    model = cfg.spr.model
    return cfg.spr.max_n_step + model.predictions + model.history + 3


def spr_problems(cfg: RunConfig) -> list[str]:
    """Every problem of an SPR run, each with what to do about it."""
    model, returns = cfg.spr.model, cfg.spr.returns
    problems = []
    if model.encoder == "nature" and cfg.env.image_size < NATURE_PIXELS:
        problems.append(
            f"env.image_size: spr.model.encoder nature needs {NATURE_PIXELS} pixels or more, "
            f"found {cfg.env.image_size}; use nature_same or larger images"
        )
    if cfg.train.batch_length != 1:
        problems.append(
            f"train.batch_length: {cfg.agent} draws single transitions, expected 1, found "
            f"{cfg.train.batch_length}; raise train.batch_size instead"
        )
    if cfg.replay.storage != "device":
        problems.append(
            f"replay.storage: {cfg.agent} stacks frames where it learns, expected device, found "
            f"{cfg.replay.storage}"
        )
    if model.dropout and cfg.train.compile == "inductor":
        problems.append(
            "train.compile: inductor cannot compile dropout, whose masks are drawn as the layers "
            "run; use off or graph"
        )
    if len(model.channels) != 3:
        problems.append(f"spr.model.channels: expected three numbers, found {model.channels}")
    if returns.n_step_start == 0:
        problems.append("spr.returns.n_step_start: expected at least 1 or none, found 0")
    if returns.gamma_start is not None and max(returns.gamma, returns.gamma_start) >= 1:
        problems.append("spr.returns.gamma: annealing moves log(1 - gamma), which needs gamma < 1")
    return problems
