"""An episode as a film: what happened, what had been imagined of it, and curves below."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from reverie.agents.configs import ConfigError
from reverie.agents.inspection.charts import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    SHADES,
    Chart,
    Line,
    draw,
)
from reverie.agents.inspection.episodes import Played
from reverie.agents.inspection.foresight import Foresight
from reverie.agents.inspection.panels import (
    DREAMT,
    REAL,
    Picture,
    beside,
    bordered,
    captioned,
    fitted,
    framed,
    scaled,
    stacked,
    written,
)
from reverie.agents.runs.files import fsync

WIDTH = 560
MOST_ACTIONS = 4
"""Entries of an action that are drawn."""
PALETTE_FRAMES = 16
"""Frames that a GIF's colours are chosen from."""
SUFFIXES = (".gif", ".mp4")


class Film:
    """Pictures of an episode, drawn one at a time: all of them may not fit into memory."""

    def __init__(
        self,
        played: Played,
        returns: Tensor | None,
        foresight: Foresight | None,
        *,
        title: str,
    ) -> None:
        """`returns` [T] are what the values foretell."""
        self._played, self._foresight, self._title = played, foresight, title
        self._scores = np.cumsum(played.reward.cpu().double().numpy())
        charts = film_charts(played, returns, foresight)
        self._charts = draw(charts, width=WIDTH, columns=2, height=140)

    def __len__(self) -> int:
        """T."""
        return len(self._scores)

    def __getitem__(self, time: int) -> Picture:
        """The picture of row `time`."""
        if not 0 <= time < len(self):
            raise IndexError(time)
        where = f"step {time} of {self._played.steps}, score {self._scores[time]:.4g}"
        parts = [written(self._title, WIDTH), written(where, WIDTH)]
        pictures = self._pictures(time)
        body = [beside(pictures)] if pictures else []
        return bordered(stacked([stacked(parts, gap=0), *body, self._charts.with_cursor(time)]))

    def _pictures(self, time: int) -> list[Picture]:
        images, foresight = self._played.images, self._foresight
        pictures = []
        size = None
        if images is not None:
            real = scaled(images[time].cpu().numpy())
            size = real.shape[:2]
            pictures.append(captioned(framed(real, REAL), "what happens"))
        if foresight is None or size is None:
            return pictures
        ahead = int(foresight.ahead[time])
        above = f"imagined {ahead} steps ago" if ahead else "nothing imagined yet"
        if not ahead:
            blank = np.full((*size, 3), 235, np.uint8)
            return [*pictures, captioned(framed(blank, DREAMT), above)]
        frame = int(foresight.frame[time])
        assert images is not None
        like = scaled(images[frame].cpu().numpy())
        below = f"like step {frame}, at {foresight.distance[time]:.3f}"
        pictures.append(captioned(framed(like, DREAMT), above, below))
        if foresight.pictures is not None:
            decoded = fitted(foresight.pictures[time], size)
            pictures.append(captioned(framed(decoded, DREAMT), "the decoder's picture"))
        return pictures


def film_charts(played: Played, returns: Tensor | None, foresight: Foresight | None) -> list[Chart]:
    """Value, reward, actions, and how far off the imagined is."""
    said = played.said
    charts = []
    if "value" in said and returns is not None:
        lines = [Line("came", _row(returns), BLACK), Line("estimate", _row(said["value"]), ORANGE)]
        charts.append(Chart("value, and the return that came", lines))
    rewards = [Line("came", _row(played.reward), BLACK)]
    if "reward" in said:
        rewards.append(Line("estimate", _row(said["reward"]), ORANGE))
    charts += [Chart("reward", rewards), _actions(played)]
    if foresight is not None:
        lines = [
            Line("imagined, to what came", foresight.error, BLUE),
            Line("to the nearest frame", foresight.distance, GREY, ":"),
        ]
        name = f"1 - cosine, at most {foresight.horizon} steps ahead"
        charts.append(Chart(name, lines, limits=(0.0, None)))
    return [chart._replace(label="step") for chart in charts]


def _actions(played: Played) -> Chart:
    """Choices as points; of other actions the entries that are used most."""
    taken = played.action.cpu().double().numpy()
    taken[-1] = np.nan
    one_hot = bool(np.isin(taken[:-1], (0.0, 1.0)).all() and (taken[:-1].sum(-1) == 1.0).all())
    if one_hot and taken.shape[-1] > 1:
        chosen = np.append(taken[:-1].argmax(-1).astype(float), np.nan)
        return Chart("action", [Line("", chosen, SHADES[0], "o")])
    most = np.sort(np.argsort(-np.abs(taken[:-1]).sum(0), kind="stable")[:MOST_ACTIONS])
    lines = [Line(f"a{k}", taken[:, k], shade) for k, shade in zip(most, SHADES, strict=False)]
    return Chart("actions", lines, limits=(-1.1, 1.8), own_legend=True)


def _row(values: Tensor) -> Any:
    return values.detach().cpu().double().numpy()


# files


def write_film(path: Path, film: Sequence[Picture] | Film, *, fps: float) -> None:
    """Write a GIF or an MP4, as the suffix says; a file of that name is replaced when all is there.

    Raises:
        ConfigError: another suffix, or no OpenCV for an MP4.
    """
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    try:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, film, fps)
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def check_suffix(path: Path) -> None:
    """Refuse what cannot be written, before an episode is played for it."""
    if path.suffix not in SUFFIXES:
        raise ConfigError([f"out: expected a name that ends in .gif or .mp4, found {path.name}"])
    if path.suffix == ".mp4":
        _opencv()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            [
                "out: an mp4 is written with OpenCV, which is missing: `pip install "
                "'reverie[video]'`, or let the name end in .gif"
            ]
        ) from error
    return cv2


def _write_gif(path: Path, film: Sequence[Picture] | Film, fps: float) -> None:
    places = np.unique(np.linspace(0, len(film) - 1, PALETTE_FRAMES).astype(int))
    sample = np.concatenate([film[int(place)][::2, ::2] for place in places])
    # one palette for all frames: colours do not flicker; an entry stays free for transparency
    palette = Image.fromarray(sample).quantize(255, dither=Image.Dither.NONE)

    def small() -> Iterator[Image.Image]:
        for time in range(len(film)):
            picture = Image.fromarray(film[time])
            yield picture.quantize(palette=palette, dither=Image.Dither.NONE)

    frames = small()
    next(frames).save(
        path,
        "GIF",
        save_all=True,
        append_images=frames,
        duration=round(1000 / fps),
        loop=0,
        optimize=True,
        disposal=1,
    )


def _write_mp4(path: Path, film: Sequence[Picture] | Film, fps: float) -> None:
    cv2 = _opencv()
    height, width = (size + size % 2 for size in film[0].shape[:2])  # codecs want even sizes
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    try:
        if not writer.isOpened():
            raise ConfigError(["out: OpenCV cannot write an mp4 here; let the name end in .gif"])
        for time in range(len(film)):
            picture = film[time]
            missing = (height - picture.shape[0], width - picture.shape[1])
            even = np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            writer.write(np.ascontiguousarray(even[..., ::-1]))
    finally:
        writer.release()
