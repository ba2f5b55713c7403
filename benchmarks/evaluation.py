"""`reverie eval RUN`: full episodes of a trained agent, beside agents that see or do nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
from rich.console import Console
from rich.table import Table

from reverie.agents.clips_record import check_clips
from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.demos.evaluation import evaluate_tasks, task_spec
from reverie.agents.devices import memory_advice, resolve_device
from reverie.agents.evaluate import CONTROLS, Control, evaluate, final_episodes, slots_for
from reverie.agents.interface import Imitator
from reverie.agents.registry import build_agent, family
from reverie.agents.resolve import load as load_config
from reverie.agents.resolve import with_overrides
from reverie.agents.runs.checkpoint import CheckpointError, best, checkpoints, load, load_latest
from reverie.agents.runs.files import write_atomic
from reverie.agents.trainer import View, build_env, other_views
from reverie.benchmarks.scene import OWN, Scene, place

LABELS = {
    "none": "agent",
    "random": "uniform random actions",
    "zero": "zero action",
    "blank": "same agent, blanked images",
}
"""What the table calls each way to play."""

BLANK_STATE = "same agent, blanked observations"
"""The label of "blank" where more than a picture, or none, is blanked."""

VIEW_LABELS = {"train": "agent, clips of training", "clean": "agent, nothing distracts"}
"""The same for what a distracted task shows besides."""

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class TrainedRun:
    """Settings and weights of one checkpoint."""

    path: Path
    """Its directory."""
    cfg: RunConfig
    """Resolved settings of the run; what distracts may be another since."""
    step: int
    """Agent steps (ACT-JEPA family: updates) at the checkpoint."""
    state: dict[str, Any]
    """The agent's part of the checkpoint."""
    replay: dict[str, Any] | None
    """The replay's; none where the agent learns from demonstrations."""
    notes: list[str]
    """Checkpoints that had to be passed over."""
    trained_on: str = ""
    """What distracted in training, as terms of a protocol, where `cfg` has something else."""


def main(args: Sequence[str]) -> int:
    """Evaluate from command-line flags; returns the exit status."""
    return tyro.cli(show, args=list(args), prog="reverie eval")


def show(
    run: tyro.conf.Positional[Path],
    episodes: int | None = None,
    controls: tyro.conf.FlagCreatePairsOff[bool] = False,
    checkpoint: Annotated[Literal["latest", "best"], tyro.conf.arg(aliases=["--tag"])] = "latest",
    device: str = "auto",
    first_episode: int = 0,
    scene: tyro.conf.OmitArgPrefixes[Scene] = OWN,
) -> int:
    """Score a run's agent on full episodes and write the result into the run directory.

    Args:
        run: run directory, as training printed it.
        episodes: full episodes (ACT-JEPA family: of each task), shared equally by parallel
            slots; none: as many as at the end of the run, whose score this repeats on the same
            device.
        controls: also play uniformly at random, with the zero action, and on blanked observations.
        checkpoint: the newest one, or the one with the best evaluation during training.
        device: auto, cpu, cuda or cuda:N.
        first_episode: number of the first episode of every slot; others have other seeds.
        scene: what distracts.
    """
    console = Console()
    if (episodes is not None and episodes < 1) or first_episode < 0:
        found = f"found {episodes} and {first_episode}"
        raise ConfigError([f"expected --episodes >= 1 and --first-episode >= 0, {found}"])
    trained = load_run(run, checkpoint=checkpoint)
    cfg, trained_on = place(run, trained.cfg, scene)
    trained = dataclasses.replace(trained, cfg=cfg, trained_on=trained_on)
    episodes = episodes or final_episodes(trained.cfg) or 10
    for note in trained.notes:
        console.print(f"note: {note}")
    ways: tuple[Control, ...] = ("none", *CONTROLS) if controls else ("none",)
    results = score_run(
        trained, ways, episodes=episodes, device=device, first_episode=first_episode
    )
    path = save_results(run, trained, results)
    console.print(as_table(trained, results))
    console.print(f"written to {path}")
    return 0


def load_run(run: Path, *, checkpoint: Literal["latest", "best"] = "latest") -> TrainedRun:
    """Settings and agent weights of a run directory.

    Raises:
        ConfigError: this is no run directory, or it has no checkpoint.
        CheckpointError: no checkpoint can be read.
    """
    config = run / "config.toml"
    if not config.is_file():
        raise ConfigError([f"run: expected a run directory with config.toml, found none in {run}"])
    cfg = load_config(config)
    if not checkpoints(run):
        raise ConfigError([f"run: {run} has no checkpoint yet; train it first"])
    if checkpoint == "best":
        path = best(run)
        if path is None:
            raise ConfigError([f"run: {run} was never evaluated; use its latest checkpoint"])
        found = load(path)
        state = found.state
        return TrainedRun(run, cfg, found.step, state["agent"], state.get("replay"), [])
    latest = load_latest(run)
    if latest is None:
        raise CheckpointError(f"{run} lost its checkpoints while they were read; try again")
    step, state, notes = latest
    return TrainedRun(run, cfg, step, state["agent"], state.get("replay"), notes)


def score_run(
    trained: TrainedRun,
    ways: Sequence[Control],
    *,
    episodes: int,
    device: str = "auto",
    first_episode: int = 0,
) -> Results:
    """Result of each way to play, all on the same start states and in the same environments.

    ACT-JEPA family: that of `evaluate_tasks`, over all tasks of the run. Of a distracted task
    also that of the agent in front of the clips of training ("train"), if they are others, and
    without any ("clean"); not where it was trained on something else.

    Raises:
        RunDirError: the clips are no longer those that the run began with.
    """
    # both switches are about updates, and may need a device that this machine lacks
    plain = {"compile": "off", "precision": "fp32"}
    own = {"device": device, "eval_episodes": episodes, **plain}
    cfg = with_overrides(trained.cfg, {"train": own})
    torch.set_num_threads(cfg.train.threads)
    if family(cfg.agent) == "act_jepa":
        return _score_tasks(cfg, trained, ways, episodes=episodes, first_episode=first_episode)
    views: tuple[View, ...] = ("test",)
    if not trained.trained_on:
        check_clips(trained.path, cfg)
        views += other_views(cfg)
    with memory_advice(cfg):
        results: Results = {}
        for view in views:
            plays = ways if view == "test" else ("none",)
            found = _score_view(
                cfg, trained, view, plays, episodes=episodes, first_episode=first_episode
            )
            results |= found if view == "test" else {view: found["none"]}
    if trained.trained_on:
        for result in results.values():
            result["protocol"] = f"{result['protocol']},{trained.trained_on}"
    return results


def _score_view(
    cfg: RunConfig,
    trained: TrainedRun,
    view: View,
    ways: Sequence[Control],
    *,
    episodes: int,
    first_episode: int,
) -> Results:
    env = build_env(cfg, "eval", slots_for(episodes, cfg.task), view=view)
    try:
        agent = build_agent(env.spec, cfg)
        agent.load_state_dict(trained.state)
        return {
            way: evaluate(
                agent,
                env,
                episodes=episodes,
                seed=cfg.seed,
                device=resolve_device(cfg.train.device),
                control=way,
                first_episode=first_episode,
            )
            for way in ways
        }
    finally:
        env.close()


def _score_tasks(
    cfg: RunConfig,
    trained: TrainedRun,
    ways: Sequence[Control],
    *,
    episodes: int,
    first_episode: int,
) -> Results:
    """The same for an agent that learned from demonstrations, which need not be there."""
    with memory_advice(cfg):
        agent = cast(Imitator, build_agent(task_spec(cfg), cfg))
        agent.load_state_dict(trained.state)
        return {
            way: evaluate_tasks(
                agent, cfg, episodes=episodes, control=way, first_episode=first_episode
            )
            for way in ways
        }


def save_results(run: Path, trained: TrainedRun, results: Results) -> Path:
    """Write all results beside the run's other files; an earlier evaluation is never replaced.

    The name of a score in front of something else than in training ends with that.
    """
    name = f"evaluation-{trained.step:09d}"
    if trained.trained_on:
        name += f"+{trained.cfg.env.distractor}"
    path, count = run / f"{name}.json", 1
    while path.exists():
        count += 1
        path = run / f"{name}-{count}.json"
    record: dict[str, Any] = {"step": trained.step, "seed": trained.cfg.seed}
    if trained.trained_on:
        record |= {"distractor": trained.cfg.env.distractor, "trained_on": trained.trained_on}
    record["results"] = results
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


def as_table(trained: TrainedRun, results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Scores of all ways to play."""
    cfg = trained.cfg
    first = next(iter(results.values()))
    unit = "update" if family(cfg.agent) == "act_jepa" else "step"
    title = f"{cfg.agent}-{cfg.size} on {cfg.task}, seed {cfg.seed}, {unit} {trained.step:,}"
    if "tasks" in first:
        return _table_of_tasks(title, trained, results)
    table = Table("plays", "mean", "std", "min", "max", "episodes", title=title)
    table.caption = first["protocol"]
    for way, result in results.items():
        values = (as_score(result[name]) for name in ("mean", "std", "min", "max"))
        table.add_row(label(trained, way), *values, str(result["episodes"]))
    return table


def as_score(value: float) -> str:
    """A score in about three figures: one decimal at least, four at most, and 0.0 for nothing."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 5e-5:
        return "0.0"
    # as rounded: 9.996 has three figures as 10.0
    power = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{min(max(2 - power, 1), 4)}f}"


def label(trained: TrainedRun, way: str) -> str:
    """What the table calls a way to play; "blank" says what this agent is kept from seeing."""
    if way == "blank" and not _sees_pictures_alone(trained):
        return BLANK_STATE
    return LABELS.get(way) or VIEW_LABELS[way]


def _sees_pictures_alone(trained: TrainedRun) -> bool:
    """Told by settings and weights, as no environment has to be opened for them."""
    section = family(trained.cfg.agent)
    if section == "act_jepa":
        return set(trained.cfg.act_jepa.model.inputs) == {"image"}
    if section != "mudreamer":
        return section == "spr"
    encoders = [name for name in trained.state["model"] if name.startswith("encoder.")]
    return all(name.startswith("encoder.image.") for name in encoders)


def _table_of_tasks(
    title: str, trained: TrainedRun, results: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Success and score of all ways to play, task by task, and over all of them."""
    table = Table("task", "plays", "success", "95 %", "score", "steps", "episodes", title=title)
    table.caption = next(iter(results.values()))["protocol"]
    for way, result in results.items():
        for task, one in result["tasks"].items():
            name = task.partition("/")[2]
            table.add_row(name, label(trained, way), *_cells(one), str(one["episodes"]))
        if len(result["tasks"]) > 1:
            table.add_row("all", label(trained, way), *_cells(result), str(result["episodes"]))
        table.add_section()
    return table


def _cells(result: Mapping[str, Any]) -> list[str]:
    """Success and its interval, "-" where the task knows none; score; mean length."""
    success, interval = "-", "-"
    if "success" in result:
        low, high = result["interval"]
        success, interval = f"{result['success']:.0%}", f"{low:.0%} to {high:.0%}"
    return [success, interval, as_score(result["mean"]), f"{result['length']:.0f}"]
