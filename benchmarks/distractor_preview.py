"""`reverie distractors preview` and `list`: what distracted tasks look like, and which exist."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from reverie.agents.configs import ConfigError
from reverie.agents.runs.files import write_atomic
from reverie.envs.distractors.distraction import Mask
from reverie.envs.distractors.presets import PRESETS, names, preset, require_defined
from reverie.envs.distractors.sources import Split
from reverie.envs.dmc import split_task
from reverie.envs.registry import make_env, tasks
from reverie.envs.specs import Array, EnvError

TASKS = ("dmc/cartpole_swingup", "dmc/cheetah_run", "dmc/walker_walk", "dmc/reacher_easy")
PLAIN = "none"
GAP, LABEL_HEIGHT = 4, 18
GIF_MS = 50
"""Milliseconds per picture of an animation."""

Cell = Callable[[str, str], Array | None]
"""(preset, task) -> uint8 [size, size, 3]; None where the preset is undefined for the task."""


@dataclass(frozen=True)
class View:
    """How the pictures of a preview are made."""

    source: str = "procedural"
    """Clips: procedural, procedural-shift, static, noise or a folder."""
    mask: Mask = "preset"
    """What is cut out for a film, for presets that cut something out."""
    split: Split = "train"
    """Clips to train in front of, or to test with."""
    seed: int = 0
    """Seed of the episode."""
    image_size: int = 64
    """Height and width of a picture."""
    render: Literal["reference", "quick"] = "quick"
    """The simulator's own picture, or one without shadows."""


def main(args: Sequence[str]) -> int:
    """Preview or list: the first of `args` says which; returns the exit status."""
    verb, *rest = args
    if verb == "preview":
        return tyro.cli(preview, args=rest, prog="reverie distractors preview")
    assert verb == "list", verb
    return tyro.cli(show, args=rest, prog="reverie distractors list")


def show(match: tyro.conf.Positional[str] = "") -> int:
    """List the presets of --distractor, what each does and where it is defined.

    Args:
        match: only presets whose name contains this text.
    """
    table = Table("preset", "what it does", "defined for")
    for name in names():
        if match in name:
            table.add_row(name, preset(name).summary, where(name))
    Console().print(table)
    return 0


def where(name: str) -> str:
    """Return the domains of dm_control in which a preset is defined, or the few where it is not."""
    domains: dict[str, list[bool]] = {}
    for info in tasks():
        if info.suite == "dmc":
            domain, _ = split_task(info.task.partition("/")[2])
            domains.setdefault(domain, []).append(_is_defined(name, info.task))
    whole = [domain for domain, found in domains.items() if all(found)]
    part = [f"{domain} (some)" for domain, found in domains.items() if any(found) > all(found)]
    if not part and len(whole) > len(domains) / 2:
        lacking = [domain for domain in domains if domain not in whole]
        return f"all but {', '.join(lacking)}" if lacking else "all"
    return ", ".join(sorted(whole + part))


def _is_defined(name: str, task: str) -> bool:
    try:
        require_defined(name, task)
    except EnvError:
        return False
    return True


def preview(
    presets: tyro.conf.Positional[tuple[str, ...]] = (),
    view: tyro.conf.OmitArgPrefixes[View] = View(),
    tasks: tuple[str, ...] = TASKS,
    animate: bool = False,
    frames: int = 60,
    out: Path | None = None,
) -> int:
    """Draw the first picture of an episode under each preset, or an animation of one preset.

    Args:
        presets: rows of the sheet; none: the plain task and all presets.
        view: how the pictures are made.
        tasks: columns.
        animate: write a GIF of the only preset, with random actions, instead of a sheet.
        frames: pictures of the animation.
        out: file to write; None: distractors.png, or the preset's name with .gif.
    """
    rows = presets or (PLAIN, *PRESETS)
    unknown = [name for name in rows if name not in (PLAIN, *names())]
    problems = []
    if unknown:
        problems.append(f"expected names of `reverie distractors list`, found {unknown}")
    if animate and len(presets) != 1:
        problems.append(f"--animate: expected one preset, found {len(presets)}; name one")
    if frames < 2:
        problems.append(f"--frames: expected 2 or more, found {frames}")
    if problems:
        raise ConfigError(problems)
    if animate:
        path = out or Path(f"{rows[0]}.gif")
        write(path, animation(film(rows[0], tasks, view, frames), tasks, rows[0]))
    else:
        path = out or Path("distractors.png")
        sheet = contact_sheet(rows, tasks, lambda row, task: first(row, task, view))
        write(path, png(sheet))
    Console(highlight=False).print(f"written: {path}", soft_wrap=True)
    return 0


def first(name: str, task: str, view: View) -> Array | None:
    """Return the first picture of the episode; None where the preset is undefined."""
    if name != PLAIN and not _is_defined(name, task):
        return None
    return next(episode(name, task, view))


def episode(name: str, task: str, view: View) -> Generator[Array, None, None]:
    """Yield the pictures of an episode of random actions; the environment ends with the reader."""
    env = make_env(
        task,
        image_size=view.image_size,
        render=view.render,
        distractor=name,
        distractor_source=view.source,
        distractor_mask=view.mask if has_masks(name) else "preset",
        split=view.split,
    )
    rng = np.random.default_rng(view.seed)
    try:
        yield env.reset(view.seed)["image"]
        while True:
            action = rng.uniform(-1.0, 1.0, env.spec.action_size).astype(np.float32)
            yield env.step(action).obs["image"]
    finally:
        env.close()


def has_masks(name: str) -> bool:
    """Whether a preset cuts something out of the picture, so that there is a mask to choose."""
    return name != PLAIN and (preset(name).family == "natural" or name.startswith("dmcgb-video"))


def film(
    name: str, columns: Sequence[str], view: View, frames: int
) -> Iterator[Mapping[str, Array | None]]:
    """Yield the pictures of all tasks at each step."""
    defined = [task for task in columns if name == PLAIN or _is_defined(name, task)]
    if not defined:
        raise EnvError(f"Expected a task in which {name} is defined, found {', '.join(columns)}.")
    episodes = {task: episode(name, task, view) for task in defined}
    try:
        for _ in range(frames):
            yield {task: next(episodes[task]) if task in episodes else None for task in columns}
    finally:
        for running in episodes.values():
            running.close()


def contact_sheet(rows: Sequence[str], columns: Sequence[str], cell: Cell) -> Image.Image:
    """Draw presets as rows and tasks as columns, each with its name."""
    font = ImageFont.load_default(size=11)
    pictures = {(row, column): cell(row, column) for row in rows for column in columns}
    sizes = [len(picture) for picture in pictures.values() if picture is not None]
    pitch = max([*sizes, *(round(font.getlength(name)) for name in columns)]) + 2 * GAP
    side = max(sizes, default=pitch - 2 * GAP)
    left = round(max(font.getlength(name) for name in rows)) + 2 * GAP
    size = (left + pitch * len(columns), LABEL_HEIGHT + (side + GAP) * len(rows))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, column in enumerate(columns):
        pen.text((left + pitch * index, GAP), column, "black", font)
    for line, row in enumerate(rows):
        top = LABEL_HEIGHT + (side + GAP) * line
        pen.text((GAP, top + side // 2 - 6), row, "black", font)
        for index, column in enumerate(columns):
            corner = (left + pitch * index, top)
            picture = pictures[row, column]
            if picture is None:
                box = (*corner, corner[0] + side - 1, corner[1] + side - 1)
                pen.rectangle(box, "#eeeeee", "#bbbbbb")
                pen.text((corner[0] + GAP, top + side // 2 - 6), "undefined", "#777777", font)
            else:
                sheet.paste(Image.fromarray(picture), corner)
    return sheet


def animation(
    steps: Iterator[Mapping[str, Array | None]], columns: Sequence[str], name: str
) -> bytes:
    """Return a GIF with one labelled row, a picture per agent step."""
    drawn = [_one_row(name, columns, pictures) for pictures in steps]
    file = io.BytesIO()
    drawn[0].save(
        file, "GIF", save_all=True, append_images=drawn[1:], duration=GIF_MS, loop=0, disposal=1
    )
    return file.getvalue()


def _one_row(
    name: str, columns: Sequence[str], pictures: Mapping[str, Array | None]
) -> Image.Image:
    return contact_sheet((name,), columns, lambda _, task: pictures[task])


def png(sheet: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
