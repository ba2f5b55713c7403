"""Ranges and combinations of settings that cannot work, found before anything is allocated."""

from __future__ import annotations

import re

from reverie.agents.act_jepa_checks import act_jepa_problems
from reverie.agents.configs import RunConfig
from reverie.agents.overlays import as_tree, flatten
from reverie.agents.registry import FAMILIES, family
from reverie.agents.spr_checks import spr_problems, spr_window_rows

ZERO_ALLOWED = {
    "seed",
    "train.prefill",
    "train.eval_every",
    "train.eval_episodes",
    "train.checkpoint_minutes",
    "train.inspect_every",
    "train.inspect_probe",
    "env.sticky",
    "demos.held_out_episodes",
    "train.monitor_every",
    "train.monitor_from",
}
"""Settings outside the agents that may be 0; every other number there must be positive."""

POSITIVE = (
    *("horizon", "deter", "stoch", "classes", "units", "cnn_depth", "bins", "bin_range"),
    *("history", "hidden", "atoms", "value_range", "n_step", "anneal_updates", "lr", "eps"),
    *("spr_steps", "projector_width"),
    *("chunk", "execute", "width", "ffn", "heads", "predictor_width", "stem_depth", "task_slots"),
    *("encoder_layers", "decoder_layers", "predictor_layers", "mlp_layers", "vae_layers"),
    *("vae_size", "guard_width", "guard_offsets", "sigreg_slices"),
)
"""Last names of agent settings that must be positive; others there must not be negative."""

SHARES = (
    *("unimix", "gamma", "lambda_", "slow_rate", "value_ema_rate", "bn_momentum", "return_decay"),
    *("gamma_start", "dropout", "target_rate", "q_target_rate", "keep", "epsilon_eval"),
    *("ema_start", "ema_end", "warmup"),
)
"""Last names of settings that lie between 0 and 1."""

CLIP_SETTINGS = ("distractor_source", "distractor_mask")
"""Settings of the environment that only what distracts reads."""


def find_problems(cfg: RunConfig) -> list[str]:
    """Every setting or combination that cannot work, each with what to do about it."""
    kind = family(cfg.agent)
    if kind == "act_jepa":
        own = act_jepa_problems(cfg)  # no replay, no prefill
    else:
        own = [*(spr_problems(cfg) if kind == "spr" else _windows(cfg)), *_schedule(cfg)]
    return [*_ranges(cfg), *_sizes(cfg), *own, *_distraction(cfg), *_machine(cfg)]


def _windows(cfg: RunConfig) -> list[str]:
    problems = []
    size = cfg.env.image_size
    if size < 8 or size & (size - 1):
        problems.append(f"env.image_size: expected 8, 16, 32, 64 or 128 ..., found {size}")
    if cfg.train.batch_length == 1:
        problems.append("train.batch_length: a window of 1 row holds no transition; use 2 or more")
    model = cfg.mudreamer.model
    if len(set(model.objectives)) != len(model.objectives):
        found = ", ".join(model.objectives)
        problems.append(f"mudreamer.model.objectives: each objective once, found {found}")
    if "spr" in model.objectives and model.spr_steps >= cfg.train.batch_length:
        problems.append(
            f"mudreamer.model.spr_steps: {model.spr_steps} steps ahead do not fit a window of "
            f"train.batch_length {cfg.train.batch_length}; use less than that"
        )
    return problems


def _ranges(cfg: RunConfig) -> list[str]:
    problems = []
    for name, value in flatten(as_tree(cfg)).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        last = name.rpartition(".")[2]
        inside_agent = name.partition(".")[0] in FAMILIES
        positive = last in POSITIVE or last.endswith(("_lr", "_eps", "_clip", "_std"))
        if not inside_agent:
            positive = name not in ZERO_ALLOWED
        if value < 0 or (positive and value == 0):
            bound = "more than 0" if positive else "at least 0"
            problems.append(f"{name}: expected {bound}, found {value}")
        elif last in SHARES and value > 1:
            problems.append(f"{name}: expected a share between 0 and 1, found {value}")
    return problems


def _sizes(cfg: RunConfig) -> list[str]:
    problems = []
    if not re.fullmatch(r"[\w-]+(/[\w.:-]+)+", cfg.task):
        problems.append(f"task: expected suite/task such as dmc/walker_walk, found {cfg.task!r}")
    model, behavior = cfg.mudreamer.model, cfg.mudreamer.behavior
    if model.bins > 0 and model.bins % 2 == 0:
        problems.append(
            f"mudreamer.model.bins: expected an odd number, so that one bin is exactly 0, "
            f"found {model.bins}; use {model.bins + 1}"
        )
    if behavior.min_std > behavior.max_std:
        problems.append(
            f"mudreamer.behavior.min_std: {behavior.min_std} is above "
            f"mudreamer.behavior.max_std: {behavior.max_std}"
        )
    if len(set(model.heads)) != len(model.heads):
        problems.append(f"mudreamer.model.heads: each head once, found {', '.join(model.heads)}")
    if "value" not in model.heads and model.value_target == "slow_critic":
        problems.append(
            "mudreamer.model.value_target: slow_critic needs the value head; "
            "add value to mudreamer.model.heads or leave value_target at ema_value"
        )
    return problems


def _schedule(cfg: RunConfig) -> list[str]:
    problems = []
    train, slots = cfg.train, max(1, cfg.env.num_envs)
    spr = family(cfg.agent) == "spr"
    length = spr_window_rows(cfg) if spr else train.batch_length
    window = f"window of {length} rows" if spr else f"window of train.batch_length {length}"
    window_rows = slots * length
    if cfg.replay.capacity < window_rows:
        problems.append(
            f"replay.capacity: {cfg.replay.capacity} rows over {slots} environments hold no "
            f"{window}; use at least {window_rows}"
        )
    if train.prefill < window_rows:
        problems.append(
            f"train.prefill: {train.prefill} steps over {slots} environments fill no "
            f"{window}; use at least {window_rows}"
        )
    if train.prefill >= train.steps:
        problems.append(
            f"train.prefill: {train.prefill} random steps use up train.steps {train.steps}; "
            "nothing would be learned"
        )
    return problems


def _distraction(cfg: RunConfig) -> list[str]:
    name = cfg.env.distractor
    if name == "none":
        return _without_use(
            cfg, CLIP_SETTINGS, "nothing distracts: name a preset with --distractor"
        )
    if family(cfg.agent) == "act_jepa":
        return [
            f"env.distractor: {cfg.agent} learns from demonstrations, made without any; "
            "leave it out, or train an agent that collects for itself, such as mudreamer"
        ]
    # late: settings are read where no environment is
    from reverie.envs.distractors.presets import require_defined, uses_clips
    from reverie.envs.specs import EnvError

    try:
        require_defined(name, cfg.task)
    except EnvError as error:
        return [f"env.distractor: {error}"]
    if uses_clips(name):
        return []
    return _without_use(cfg, CLIP_SETTINGS[:1], f"{name} shows no clips: take a preset that does")


def _without_use(cfg: RunConfig, names: tuple[str, ...], why: str) -> list[str]:
    """Settings that are not at their defaults although nothing would read them."""
    default = RunConfig().env
    return [
        f"env.{name}: found {getattr(cfg.env, name)!r}, but {why}, or leave it out"
        for name in names
        if getattr(cfg.env, name) != getattr(default, name)
    ]


def _machine(cfg: RunConfig) -> list[str]:
    problems = []
    device = cfg.train.device
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        problems.append(f"train.device: expected auto, cpu, cuda or cuda:N, found {device!r}")
    if device == "cpu" and cfg.train.compile == "graph":
        problems.append("train.compile: graph needs CUDA, train.device is cpu; use inductor or off")
    if device == "cpu" and cfg.train.precision == "bf16":
        problems.append("train.precision: bf16 needs CUDA, train.device is cpu; use fp32")
    if cfg.env.num_envs > 1 and cfg.env.workers == "inline" and cfg.task.startswith("dmc/"):
        problems.append(
            "env.workers: inline holds one dm_control renderer, env.num_envs is "
            f"{cfg.env.num_envs}; use process or auto"
        )
    return problems
