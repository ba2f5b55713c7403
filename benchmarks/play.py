"""`reverie play RUN`: an episode of a trained agent as a film."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.devices import memory_advice
from reverie.agents.inspection.episodes import Played, lens_of, play_episode, returns
from reverie.agents.inspection.films import Film, check_suffix, write_film
from reverie.agents.inspection.foresight import foresee
from reverie.agents.registry import build_agent, family
from reverie.agents.resolve import with_overrides
from reverie.agents.trainer import View, build_env, other_views
from reverie.benchmarks.evaluation import TrainedRun, as_score, load_run
from reverie.envs.registry import members
from reverie.envs.settings import OBSERVED
from reverie.envs.specs import EnvSpec, VecEnv

FOLDER = "play"
"""In the run directory."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be filmed, as `show` describes it."""

    episode: int = 0
    steps: int = 500
    horizon: int = 15
    greedy: bool = False
    view: View = "test"
    pictures: bool = True


def main(args: Sequence[str]) -> int:
    """Play from command-line flags; returns the exit status."""
    return tyro.cli(show, args=list(args), prog="reverie play")


def show(
    run: tyro.conf.Positional[Path],
    checkpoint: Annotated[Literal["latest", "best"], tyro.conf.arg(aliases=["--tag"])] = "latest",
    task: str | None = None,
    seed: int | None = None,
    episode: int = 0,
    steps: int = 500,
    fps: float = 15.0,
    horizon: int = 15,
    out: Path | None = None,
    greedy: tyro.conf.FlagCreatePairsOff[bool] = False,
    view: View = "test",
    pictures: bool = True,
    device: str = "auto",
) -> int:
    """Film an episode, with what the agent expects of it and what it imagined before it came.

    Args:
        run: run directory, as training printed it.
        checkpoint: the newest one, or the one with the best evaluation during training.
        task: one of the tasks of a set; none: each of them, in a file of its own.
        seed: of the environment; none: the run's, whose first episode every evaluation plays.
        episode: number of the episode.
        steps: actions that are filmed, at most.
        fps: frames a second.
        horizon: steps imagined from each real frame; fewer where the model's reach ends before.
        out: file to write, .gif or .mp4 (extra `video`). None:
            <run>/play/<step>-<checkpoint>-<seed>-<episode>.gif, with other flags in the name.
        greedy: take the most probable actions instead of those that are scored.
        view: of a distracted task: as it is tested, clips of training, or undistracted (clean).
        pictures: also draw a task whose state alone the agent reads.
        device: auto, cpu, cuda or cuda:N.
    """
    console = Console()
    wish = Wish(episode, steps, horizon, greedy, view, pictures)
    _check_numbers(wish, fps)
    trained = load_run(run, checkpoint=checkpoint)
    own = {"compile": "off", "precision": "fp32", "device": device}
    start = trained.cfg.seed if seed is None else seed
    cfg = with_overrides(trained.cfg, {"seed": start, "train": own})
    _check_view(cfg, view)
    name = f"{trained.step:010d}-{checkpoint}-{start}-{episode}{_marks(wish)}"
    path = out or run / FOLDER / f"{name}.gif"
    check_suffix(path)
    for note in trained.notes:
        console.print(f"note: {note}")
    torch.set_num_threads(cfg.train.threads)
    chosen = _tasks(cfg, task)
    with memory_advice(cfg):
        for one in chosen:
            file = path
            if len(chosen) > 1 or (out is None and one != cfg.task):
                file = path.with_stem(f"{path.stem}-{one.rpartition('/')[2]}")
            played, film = filmed(trained, cfg, one, wish)
            write_film(file, film, fps=fps)
            console.print(told(played))
            console.print(f"written: {file}", soft_wrap=True)
    return 0


def _check_numbers(wish: Wish, fps: float) -> None:
    if min(wish.steps, wish.horizon) < 1 or wish.episode < 0 or not fps > 0:
        found = f"found {wish.steps}, {wish.horizon}, {wish.episode} and {fps}"
        raise ConfigError(
            [f"expected --steps and --horizon >= 1, --episode >= 0 and --fps > 0, {found}"]
        )


def _check_view(cfg: RunConfig, view: View) -> None:
    """Refuse a view that shows nothing but what the test shows."""
    views = ("test", *other_views(cfg))
    if view not in views:
        distractor = cfg.env.distractor
        why = f"tests of {distractor} show what training shows"
        if distractor == "none":
            why = f"nothing distracts from {cfg.task}"
        raise ConfigError([f"view: expected {' or '.join(views)}, found {view!r}; {why}"])


def _marks(wish: Wish) -> str:
    """What a name says of settings that are not the default, so that films lie side by side."""
    usual = Wish()
    marks = {
        wish.view: wish.view != usual.view,
        "greedy": wish.greedy != usual.greedy,
        "undrawn": wish.pictures != usual.pictures,
        f"horizon{wish.horizon}": wish.horizon != usual.horizon,
        f"steps{wish.steps}": wish.steps != usual.steps,
    }
    return "".join(f"-{mark}" for mark, differs in marks.items() if differs)


def _tasks(cfg: RunConfig, task: str | None) -> tuple[str, ...]:
    every = members(cfg.task)
    if task is None:
        return every
    if task not in every:
        raise ConfigError([f"task: expected one of {', '.join(every)}, found {task!r}"])
    return (task,)


def filmed(trained: TrainedRun, cfg: RunConfig, task: str, wish: Wish) -> tuple[Played, Film]:
    """Play an episode of one task, and set the film of it up."""
    env, spec = _opened(dataclasses.replace(cfg, task=task), wish)
    try:
        agent: Any = build_agent(spec, cfg)
        agent.load_state_dict(trained.state)
        player = agent.playing(task) if family(cfg.agent) == "act_jepa" else agent
        mode: Literal["eval", "greedy"] = "greedy" if wish.greedy else "eval"
        played = play_episode(
            agent, player, env, cfg, episode=wish.episode, steps=wish.steps, mode=mode
        )
    finally:
        env.close()
    lens = lens_of(agent, cfg)
    foresight = foresee(agent, cfg, played, horizon=wish.horizon, seed=cfg.seed)
    unit = "update" if family(cfg.agent) == "act_jepa" else "step"
    title = f"{cfg.agent}-{cfg.size} on {task}, {unit} {trained.step:,}, "
    title += f"seed {cfg.seed}, episode {wish.episode}"
    come = None if lens is None else returns(played, lens)
    return played, Film(played, come, foresight, title=title)


def _opened(cfg: RunConfig, wish: Wish) -> tuple[VecEnv, EnvSpec]:
    """The environment, and its sizes as the agent knows them."""
    suite = cfg.task.partition("/")[0]
    observe = OBSERVED.get(suite) if cfg.env.observe == "auto" else cfg.env.observe
    if not (wish.pictures and suite in OBSERVED and observe == "state"):
        env = build_env(cfg, "eval", 1, view=wish.view)
        return env, env.spec
    env = build_env(with_overrides(cfg, {"env": {"observe": "both"}}), "eval", 1, view=wish.view)
    return env, dataclasses.replace(env.spec, image_shape=None)


def told(played: Played) -> str:
    """An episode in a line."""
    line = f"{played.task}: score {as_score(played.score)} in {played.steps} steps"
    line += ", solved" if played.solved else ""
    return f"{line} ({played.cut})" if played.cut else line
