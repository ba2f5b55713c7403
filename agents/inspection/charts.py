"""Small line charts as pixels, drawn once and with a cursor that moves along an animation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverie.agents.inspection.panels import Picture

BLACK, ORANGE, BLUE, GREY, PURPLE = "#202020", "#c45c12", "#2f6db5", "#8a8a8a", "#8a4fa3"
"""What happened, what was predicted, what the policy dreamt of, and two controls."""

SHADES = ("#2c7b46", "#b5892f", "#3d9aa8", "#a3345c")
"""Lines that stand for entries of a vector."""

DPI = 100
LEFT, RIGHT, TOP, BOTTOM, LEGEND = 38, 10, 22, 32, 22
"""Pixels around the axes of a chart, and of the legend below all of them."""

CURSOR = np.array((214, 39, 40), np.uint8)


class Line(NamedTuple):
    """One curve over the rows of a window; NaN where it says nothing."""

    label: str
    values: Any
    """[T]."""
    colour: str
    style: str = "-"
    """A style of matplotlib: "-", "--", ":", or "o" for points alone."""


class Chart(NamedTuple):
    """Curves over one axis of time."""

    title: str
    lines: Sequence[Line]
    label: str = ""
    """Of the x-axis."""
    first: int = 0
    """x of the first value."""
    limits: tuple[float, float | None] | None = None
    """Of the y-axis; none, or none above: what the values need."""
    own_legend: bool = False
    """Its labels are its own; those of all others stand once below the charts."""


class Charts(NamedTuple):
    """Drawn charts, and where the cursor goes."""

    picture: Picture
    columns: NDArray[np.int64]
    """[charts, T]: pixel column of every row of the longest line."""
    boxes: NDArray[np.int64]
    """[charts, 2]: first pixel row and the one behind the last."""

    def with_cursor(self, row: int) -> Picture:
        """The charts with a vertical line at `row` of time."""
        picture = self.picture.copy()
        for column, (top, bottom) in zip(self.columns[:, row], self.boxes, strict=True):
            picture[top:bottom, column] = CURSOR
        return picture


def draw(
    charts: Sequence[Chart],
    *,
    width: int,
    columns: int,
    height: int = 160,
    start: int | None = None,
) -> Charts:
    """Draw charts in rows of `columns`, `height` pixels each, `width` pixels together.

    From `start` on, an x, the background is tinted: there is prediction.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(charts) // columns)
    shared = [chart for chart in charts if not chart.own_legend]
    total = rows * height + (LEGEND if any(line.label for c in shared for line in c.lines) else 0)
    figure = Figure(figsize=(width / DPI, total / DPI), dpi=DPI)
    canvas: Any = FigureCanvasAgg(figure)
    axes, places, boxes = [], [], []
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        left, top = column * width / columns + LEFT, row * height + TOP
        size = (width / columns - LEFT - RIGHT, height - TOP - BOTTOM)
        low = total - top - size[1]
        # placed by hand: a layout engine takes longer than all the rest
        axis: Any = figure.add_axes((left / width, low / total, size[0] / width, size[1] / total))
        _plot(axis, chart, start)
        axes.append(axis)
        length = max(len(line.values) for line in chart.lines)
        share = (np.arange(length) + 0.5) / length
        places.append((left + share * size[0]).astype(np.int64))
        boxes.append([top, round(top + size[1])])
    _legend(
        figure, [axis for axis, chart in zip(axes, charts, strict=True) if not chart.own_legend]
    )
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    longest = max(map(len, places))
    even = [np.pad(place, (0, longest - len(place)), mode="edge") for place in places]
    return Charts(picture, np.stack(even), np.array(boxes))


def _plot(axis: Any, chart: Chart, start: int | None) -> None:
    for line in chart.lines:
        values = np.asarray(line.values, np.float64)
        x = np.arange(chart.first, chart.first + len(values))
        points = line.style == "o"
        look = {"linestyle": "none", "marker": "o", "markersize": 3} if points else {}
        style = look or {"linestyle": line.style, "linewidth": 1.4}
        axis.plot(x, values, color=line.colour, label=line.label, **style)
    longest = max(len(line.values) for line in chart.lines)
    axis.set_xlim(chart.first - 0.5, chart.first + longest - 0.5)
    if chart.limits is not None:
        axis.set_ylim(*chart.limits)
    if start is not None:
        axis.axvspan(start - 0.5, chart.first + longest - 0.5, color="#fbeee2", zorder=0, lw=0)
    axis.set_title(chart.title, fontsize=9, loc="left", pad=3)
    axis.tick_params(labelsize=7, length=2, pad=2)
    axis.locator_params(axis="y", nbins=4)
    axis.locator_params(axis="x", nbins=5, integer=True)
    axis.set_xlabel(chart.label, fontsize=7, labelpad=1)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if chart.own_legend:
        axis.legend(fontsize=7, framealpha=0.7, edgecolor="none", loc="upper right", ncols=2)


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """Every label once, below all charts."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(),
            handles,
            loc="lower left",
            ncols=len(handles),
            fontsize=7.5,
            frameon=False,
            columnspacing=1.2,
            handlelength=1.8,
            borderaxespad=0.2,
        )
