"""`reverie distractors cost`: what a preset adds to the time of a step."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from reverie.agents.configs import ConfigError
from reverie.envs.distractors.distraction import Mask
from reverie.envs.distractors.presets import names
from reverie.envs.registry import make_env
from reverie.envs.single import Env

Render = Literal["quick", "reference"]

WARM_UP = 5
"""Pairs of steps that do not count."""


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds per agent step of a task, and what a preset adds to them."""

    plain: float
    """Median of the plain task."""
    added: float
    """Median of the differences within pairs of steps."""
    low: float
    high: float
    """Their quartiles."""


def main(args: Sequence[str]) -> int:
    """Measure from command-line flags; returns the exit status."""
    return tyro.cli(show, args=list(args), prog="reverie distractors cost")


def show(
    presets: tyro.conf.Positional[tuple[str, ...]] = ("dreamerpro", "dbc"),
    tasks: tuple[str, ...] = ("dmc/walker_walk",),
    renders: tuple[Render, ...] = ("quick", "reference"),
    mask: Mask = "preset",
    source: str = "procedural",
    pairs: int = 200,
    image_size: int = 64,
) -> int:
    """Time steps with and without each preset in turn, at the suite's action repeat.

    Both play the same random actions from the same start; resets are not timed. CPU time of the
    whole process, so that other jobs on the machine weigh little.

    Args:
        presets: what distracts.
        tasks: suite/task, one or several.
        renders: profiles of the simulator's pictures.
        mask: how the scene is cut out of the picture.
        source: procedural, procedural-shift, static, noise or a folder of clips.
        pairs: timed pairs of steps of each row.
        image_size: height and width of the pictures.
    """
    unknown = [name for name in presets if name not in names()]
    problems = []
    if unknown:
        problems.append(f"expected names of `reverie distractors list`, found {unknown}")
    if pairs < 1:
        problems.append(f"--pairs: expected 1 or more, found {pairs}")
    if problems:
        raise ConfigError(problems)
    title = f"CPU milliseconds per agent step, {image_size} pixels, {pairs} pairs of steps"
    table = Table("task", "render", "preset", "plain", "added", "quartiles", "%", title=title)
    table.columns[0].no_wrap = True
    for task, render, name in itertools.product(tasks, renders, presets):
        make = functools.partial(make_env, task, image_size=image_size, render=render)
        film = make(distractor=name, distractor_source=source, distractor_mask=mask)
        with contextlib.closing(film) as distracted, contextlib.closing(make()) as plain:
            table.add_row(task, render, name, *cells(measure(plain, distracted, pairs)))
    Console().print(table)
    return 0


def measure(plain: Env, distracted: Env, pairs: int) -> Cost:
    """Step both in turn; which of a pair is first alternates."""
    rng = np.random.default_rng(0)
    envs, times = (plain, distracted), np.zeros((pairs + WARM_UP, 2))
    over, episode = True, 0
    for pair in range(len(times)):
        if over:
            for env in envs:
                env.reset(episode)
            episode += 1
        action = rng.uniform(-1.0, 1.0, plain.spec.action_size).astype(np.float32)
        over = False
        for which in (0, 1) if pair % 2 else (1, 0):
            began = time.process_time()
            over |= envs[which].step(action).is_last
            times[pair, which] = 1000 * (time.process_time() - began)
    added = np.diff(times[WARM_UP:])
    low, middle, high = (float(value) for value in np.quantile(added, (0.25, 0.5, 0.75)))
    return Cost(float(np.median(times[WARM_UP:, 0])), middle, low, high)


def cells(cost: Cost) -> list[str]:
    """Text of a row of the table, behind what was measured."""
    share = f"{100 * cost.added / cost.plain:.0f}"
    return [f"{cost.plain:.2f}", f"{cost.added:.2f}", f"{cost.low:.2f}, {cost.high:.2f}", share]
