"""Success of a policy on every task of a set, and what its features say about the future."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.devices import resolve_device
from reverie.agents.evaluate import Control, evaluate, slots_for
from reverie.agents.interface import Imitator
from reverie.agents.intervals import wilson_interval
from reverie.agents.registry import check_task
from reverie.agents.trainer import build_env
from reverie.envs.registry import members
from reverie.envs.specs import EnvError, EnvSpec
from reverie.world_models.probes import ridge_fit, ridge_predict

if TYPE_CHECKING:
    from reverie.agents.demos.windows import DemoWindows

MAX_WINDOWS = 4096
"""Windows that a probe is fitted on, and as many at most that it is scored on."""

PENALTY = 1e-3
"""Of the probe's ridge regression, on standardised features."""


def evaluate_tasks(
    agent: Imitator | None,
    cfg: RunConfig,
    *,
    episodes: int,
    control: Control = "none",
    first_episode: int = 0,
    stop: Callable[[], bool] = bool,
) -> dict[str, Any]:
    """Scores of `episodes` full episodes of every task of `cfg.task`, a task or a set.

    "tasks" holds the result of `evaluate` by task, with the Wilson interval of its success where
    the task knows success; all other numbers pool the episodes of all tasks. Environments are
    built one task after the other and closed.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in members(cfg.task):
        one = dataclasses.replace(cfg, task=task)
        env = build_env(one, "eval", slots_for(episodes, task))
        try:
            found[task] = evaluate(
                None if agent is None else agent.playing(task),
                env,
                episodes=episodes,
                seed=cfg.seed,
                device=resolve_device(cfg.train.device),
                control=control,
                first_episode=first_episode,
                stop=stop,
            )
        finally:
            env.close()
    for result in found.values():
        result |= {"length": float(np.mean(result["lengths"])), **_success([result])}
    results = list(found.values())
    returns = [score for result in results for score in result["returns"]]
    return {
        "task": cfg.task,
        "protocol": results[0]["protocol"],
        "episodes": len(returns),
        "length": float(np.mean([steps for result in results for steps in result["lengths"]])),
        "control": control,
        "interrupted": sum(result["interrupted"] for result in results),
        "frames": sum(result["frames"] for result in results),
        **{name: float(getattr(np, name)(returns)) for name in ("mean", "std", "min", "max")},
        **_success(results),
        "tasks": found,
    }


def _success(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of solved episodes and its interval over all `results`; {} if no one can say."""
    if not all("successes" in result for result in results):
        return {}
    solved = [bool(done) for result in results for done in result["successes"]]
    interval = list(wilson_interval(sum(solved), len(solved)))
    return {"success": float(np.mean(solved)), "interval": interval}


def task_spec(cfg: RunConfig) -> EnvSpec:
    """Sizes of the set's first task, as the environment tells them."""
    env = build_env(dataclasses.replace(cfg, task=members(cfg.task)[0]), "eval", 1)
    env.close()
    return env.spec


def check_simulator(cfg: RunConfig, recorded: EnvSpec) -> None:
    """Refuse a run whose evaluation could not be played, before it learns anything.

    Raises:
        EnvError: the environment cannot be built; --train.eval-episodes 0 trains without it.
        ConfigError: its sizes are not those of the demonstrations.
    """
    try:
        spec = task_spec(cfg)
    except EnvError as error:
        raise EnvError(
            f"{error} Only evaluation needs it: --train.eval-episodes 0 trains on the "
            "demonstrations alone."
        ) from error
    check_task(spec, cfg)
    names = ["action_size", "discrete", "vector_size", "proprio_size"]
    if "image" in cfg.act_jepa.model.inputs:
        names.append("image_shape")
    played, shown = ({n: getattr(s, n) for n in names} for s in (spec, recorded))
    problems = [
        f"demos.path: {name} of the demonstrations is {shown[name]}, that of {spec.task} is "
        f"{played[name]}; use the env settings that they were made with"
        for name in names
        if played[name] != shown[name]
    ]
    if problems:
        raise ConfigError(problems)


def probe(
    agent: Imitator,
    train: DemoWindows,
    held_out: DemoWindows,
    offsets: tuple[int, ...],
    *,
    proprio_size: int,
    batch_size: int = 256,
) -> dict[str, float]:
    """How well the context's features tell the robot's own state some steps ahead, linearly.

    A ridge regression on windows of `train`, scored on `held_out`, both evenly spaced and the same
    for every agent; only windows whose episode reaches that far. Units are standard deviations of
    the training windows, so that agents with and without normalisation compare.

    Returns:
        "probe/rmse_<i>", the root of the mean squared error over all scalars, and
        "probe/displacement_<i>", the mean Euclidean length of the error, for every offset i.
    """
    statistics = train.statistics()
    mean, std = (statistics[f"vector_{name}"][:proprio_size] for name in ("mean", "std"))
    scale = std.clamp_min(1e-6)
    fitted = _collect(agent, train, offsets, proprio_size, batch_size)
    scored = _collect(agent, held_out, offsets, proprio_size, batch_size)
    found = {}
    for place, offset in enumerate(offsets):
        x, y = _at(fitted, place, mean, scale)
        features, truth = _at(scored, place, mean, scale)
        if len(x) < 2 or not len(truth):
            continue  # no episode reaches that far
        weight, bias = ridge_fit(x, y, PENALTY)
        error = ridge_predict(features, weight, bias) - truth
        found[f"probe/rmse_{offset}"] = float(error.square().mean().sqrt())
        found[f"probe/displacement_{offset}"] = float(error.norm(dim=-1).mean())
    return found


def _collect(
    agent: Imitator, windows: DemoWindows, offsets: tuple[int, ...], size: int, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Features [N, F], future states [N, O, size], and whether they exist [N, O]."""
    features, states, exists = [], [], []
    count = min(MAX_WINDOWS, len(windows))
    index = torch.linspace(0, len(windows) - 1, count, dtype=torch.float64).round().long()
    ahead = list(offsets)
    for part in torch.split(index, batch_size):
        batch = windows.gather(part)
        features.append(agent.features(batch).float().cpu())
        states.append(batch["vector"][:, ahead, :size].cpu())
        exists.append(~batch["is_pad"][:, ahead].cpu())
    return torch.cat(features), torch.cat(states), torch.cat(exists)


def _at(
    collected: tuple[Tensor, Tensor, Tensor], place: int, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    features, states, exists = collected
    here = exists[:, place]
    return features[here], (states[here, place] - mean.cpu()) / scale.cpu()


def probed_offsets(chunk: int) -> tuple[int, ...]:
    """The middle and the last step of a chunk."""
    return tuple(sorted({chunk // 2, chunk - 1}))


def shown(result: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of `evaluate_tasks` under the names that the metrics give them."""
    names = ("success", "mean", "std", "min", "max")
    values = {f"eval/{name}": result[name] for name in names if name in result}
    if "interval" in result:
        values["eval/success_low"], values["eval/success_high"] = result["interval"]
    if len(result["tasks"]) > 1:
        for task, one in result["tasks"].items():
            name = task.rpartition("/")[2]
            values |= {f"eval_{key}/{name}": one[key] for key in ("success", "mean") if key in one}
    return values
