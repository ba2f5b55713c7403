"""`reverie demos`: an expert, or a trained agent, plays tasks and its episodes are kept."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TextIO

import tyro
from rich.console import Console
from rich.table import Column, Table

from reverie.agents.configs import ConfigError
from reverie.agents.demos.demonstrations import default_folder, make_command
from reverie.agents.demos.make import Job, RecordingStopped, Tally, build, observed
from reverie.agents.demos.store import DemoSpec
from reverie.agents.demos.workers import record_all
from reverie.agents.progress import Progress
from reverie.agents.resolve import resolve
from reverie.agents.stopping import StopRequest
from reverie.benchmarks.demo_player import run_player, run_settings
from reverie.benchmarks.demo_table import show
from reverie.envs.experts import make_expert
from reverie.envs.registry import REPEATS, members, require_known
from reverie.envs.settings import OBSERVED, EnvSettings, Observe

IMAGE_SIZE = 84
"""Pixels of recorded images unless a run says otherwise."""

USUAL_EPISODES = 50
"""Episodes of a task that training asks for: 40 to learn from, 10 held out."""

RECIPES = ("six", "three", "fifteen")
"""Presets that learn from demonstrations of their own."""


@dataclass(frozen=True)
class Request:
    """Record demonstrations; the same command continues, and does nothing where all are there."""

    task: str
    """A task or a set of tasks, as `reverie tasks` lists them."""
    episodes: int = 50
    """Episodes of each task that are kept."""
    seed: int = 0
    """Root of the start states, which no training and no evaluation shares."""
    out: Path | None = None
    """Folder of the shards; none: demos/<suite>/<name>[-<image size>px]/<seed>."""
    observe: Observe = "auto"
    """What is recorded: auto is the state where the suite has one, with images where `run` needs
    them."""
    image_size: int | None = None
    """Height and width of images; none: 84, or those of `run`."""
    render: Literal["quick", "reference"] | None = None
    """The fast picture without shadows, or MuJoCo's; none: quick, or that of `run`."""
    time_limit: int | None = None
    """Agent steps after which an episode is cut; none: as the suite has it, or as in `run`."""
    run: Path | None = None
    """Run directory of the agent that plays; none: the expert of the task."""
    keep_failures: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep unsolved episodes too."""
    shard_episodes: int = 50
    """Most episodes of one shard; a kill costs at most those of the unfinished one."""
    workers: int = 1
    """Tasks played at the same time, each in a process of its own."""


def main(args: Sequence[str]) -> int:
    """Make or show demonstrations: the first of `args` says which; returns the exit status."""
    verb, *rest = args
    if verb == "show":
        return tyro.cli(show, args=rest, prog="reverie demos show")
    assert verb == "make", verb
    return make(parse(rest))


def parse(args: Sequence[str]) -> Request:
    """Read the flags of `reverie demos make`."""
    return tyro.cli(Request, args=list(args), prog="reverie demos make")


def make(request: Request) -> int:
    """Record every task of the request; 130 or 143 after a signal, as in training."""
    console = Console(highlight=False)
    jobs = jobs_of(request)
    progress = EpisodeProgress(sum(job.episodes for job in jobs))
    try:
        with StopRequest() as stop:
            tallies = record_all(
                jobs, workers=request.workers, report=progress.take, stop=lambda: bool(stop)
            )
    except RecordingStopped:
        progress.close()
        console.print("stopped; finished shards are kept, the same command continues")
        return stop.code or 1
    finally:
        progress.close()
    console.print(as_table(tallies, title=f"{request.task} in {jobs[0].folder}"))
    command = train_command(request, jobs[0], tallies[0].spec)
    console.print(f"next: {command}", soft_wrap=True)
    return 0


def jobs_of(request: Request) -> list[Job]:
    """One job for each task.

    Raises:
        ConfigError: a number makes no sense, or the run does not suit.
        EnvError: there is no such task.
    """
    numbers = ("episodes", "shard_episodes", "workers")
    problems = [
        f"--{name.replace('_', '-')}: expected at least 1, found {getattr(request, name)}"
        for name in numbers
        if getattr(request, name) < 1
    ]
    if request.seed < 0:
        problems.append(f"--seed: expected at least 0, found {request.seed}")
    if problems:
        raise ConfigError(problems)
    found = [_settings(task, request) for task in members(request.task)]
    pixels = found[0].image_size if draws(found[0]) else None
    default = default_folder(request.task, image_size=pixels) / str(request.seed)
    player = make_expert if request.run is None else functools.partial(run_player, request.run)
    return [
        Job(
            settings,
            request.out or default,
            episodes=request.episodes,
            seed=request.seed,
            player=player,
            keep_failures=request.keep_failures,
            shard_episodes=request.shard_episodes,
        )
        for settings in found
    ]


def _settings(task: str, request: Request) -> EnvSettings:
    require_known(task)
    repeat = REPEATS.get(task.split("/")[0], 1)
    settings = EnvSettings(task, IMAGE_SIZE, repeat, render="quick", observe=request.observe)
    if request.run is not None:
        settings = run_settings(request.run, settings)
    given = {name: getattr(request, name) for name in ("image_size", "render", "time_limit")}
    return observed(replace(settings, **{k: v for k, v in given.items() if v is not None}))


def draws(settings: EnvSettings) -> bool:
    """Whether there are images in what is recorded."""
    if settings.task.split("/")[0] in OBSERVED:
        return settings.observe != "state"
    env = build(settings, seed=0)
    env.close()
    return env.spec.image_shape is not None


class EpisodeProgress(Progress):
    """The progress line of a recording: episodes kept of those still to be made."""

    def __init__(self, total: int, *, stream: TextIO | None = None, every: float = 10.0) -> None:
        """`total` episodes of all tasks, those included that are there already."""
        super().__init__(total, stream=stream, every=every)
        self._tallies: dict[str, Tally] = {}

    def take(self, tally: Tally) -> None:
        """Take in how a task stands; episodes found at its start are none of ours."""
        if tally.task not in self._tallies and tally.found:
            self.total -= tally.found
            self.note(f"{tally.task}: {tally.found} episodes are there already")
        self._tallies[tally.task] = replace(tally)
        tallies = self._tallies.values()
        made = sum(one.episodes - one.found for one in tallies)
        self.update(made, sum(one.frames - one.found_frames for one in tallies))

    def line(self) -> str:
        """The line: episodes, tasks begun, speed, time left."""
        last = next(reversed(self._tallies), "")
        parts = [f"episode {self._step:,}/{self.total:,}", last]
        return " | ".join([*parts, f"{self.rates.updates:.0f} frames/s", f"ETA {self._eta()}"])


def as_table(tallies: Sequence[Tally], *, title: str) -> Table:
    """What there is now, task by task."""
    names = ("episodes", "frames", "mean", "solved", "seconds")
    table = Table(Column("task", overflow="fold"), *names, title=title)
    table.caption = "mean: length; solved: of all attempts"
    for tally in tallies:
        solved = "-" if tally.solved is None else f"{tally.solved / tally.played:.0%}"
        solved += "" if tally.solved is None else f" of {tally.played}"
        mean = f"{tally.frames / tally.episodes:.0f}"
        cells = (str(tally.episodes), f"{tally.frames:,}", mean, solved, f"{tally.seconds:.0f}")
        table.add_row(tally.task, *cells)
    return table


def train_command(request: Request, job: Job, spec: DemoSpec) -> str:
    """Command line that learns from what was recorded."""
    settings = job.settings
    recipe = _recipe(request.task, settings)
    words = ["reverie train act-jepa", *(recipe or _plain(request, job, spec))]
    if request.episodes < USUAL_EPISODES:
        held_out = request.episodes // 5
        words.append(f"--demos.train-episodes {request.episodes - held_out}")
        words.append(f"--demos.held-out-episodes {held_out}")
        if not held_out:
            words.append("--train.monitor off")  # they look at held-out episodes
    if request.out is not None:
        words.append(f"--demos.path {shlex.quote(str(request.out))}")
    return " ".join(words)


def _recipe(task: str, settings: EnvSettings) -> list[str]:
    """The preset made for these very demonstrations, if there is one."""
    for name in RECIPES:
        cfg = resolve({}, configs=[name])
        own = parse(shlex.split(make_command(cfg))[3:])
        if own.task == task and jobs_of(own)[0].settings == settings:
            return ["--config", name]
    return []


def _plain(request: Request, job: Job, spec: DemoSpec) -> list[str]:
    settings, suite = job.settings, request.task.split("/")[0]
    words = [f"--task {request.task}", "--size nano"]
    if settings.observe != OBSERVED.get(suite, "auto"):
        words.append(f"--env.observe {settings.observe}")
    if settings.action_repeat != REPEATS.get(suite, 1):
        words.append(f"--env.action-repeat {settings.action_repeat}")
    if spec.image_shape is not None:
        words += [f"--env.image-size {settings.image_size}", f"--env.render {settings.render}"]
        inputs = "proprio image" if spec.vector_size else "image"
        words.append(f"--act-jepa.model.inputs {inputs}")
    if not spec.vector_size:
        words.append("--act-jepa.model.targets image")
    if settings.time_limit is not None:
        words.append(f"--env.time-limit {settings.time_limit}")
    return words
