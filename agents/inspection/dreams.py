"""Panels of imagined rollouts: animations with curves, and the error against the horizon."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reverie.agents.inspection.charts import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    SHADES,
    Chart,
    Charts,
    Line,
    draw,
)
from reverie.agents.inspection.panels import (
    DREAMT,
    REAL,
    Panel,
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
from reverie.agents.inspection.scenes import Scene

Values = NDArray[np.float64]
STEPS = "steps from the last real frame"
MOST_ACTIONS = 4
"""Entries of an action that are drawn."""
FROM_ZERO = (0.0, None)


def dream_panels(scene: Scene, *, shown: int, title: str) -> list[Panel]:
    """An animation per shown window, the error curve of all windows, and the numbers."""
    count = min(shown, len(scene.rows["reward"]))
    panels = [rollout_panel(scene, window, title=title) for window in range(count)]
    return [*panels, error_panel(scene, title=title), Panel("numbers", scalars=numbers(scene))]


def numbers(scene: Scene) -> dict[str, float]:
    """What is worth following over a run."""
    errors, context = scene.errors, scene.context
    found = {
        "error_first": errors.recorded[:, 0],
        "error_last": errors.recorded[:, -1],
        "error_held_last": errors.held[:, -1],
        "neighbour_distance": scene.near["recorded"].distance[:, 1:],
        "neighbour_distance_real": scene.near["real"].distance[:, context:],
    }
    if errors.shuffled is not None:
        found["error_shuffled_last"] = errors.shuffled[:, -1]
    if "reward" in scene.recorded.said:
        told = scene.recorded.said["reward"][:, 1:]
        found["reward_error"] = (told - scene.rows["reward"][:, context:]).abs()
    plain = {name: float(value.mean()) for name, value in found.items()}
    if scene.probe_error is not None:
        plain["probe_error"] = scene.probe_error
    return plain


def error_panel(scene: Scene, *, title: str) -> Panel:
    """Mean error over all windows against the imagined step."""
    errors = scene.errors
    lines = [Line("recorded actions", _mean(errors.recorded), ORANGE)]
    if errors.shuffled is not None:
        lines.append(Line("shuffled actions", _mean(errors.shuffled), PURPLE, "--"))
    lines.append(Line("start held", _mean(errors.held), GREY, "-."))
    name = f"open loop: 1 - cosine to what happened, mean of {len(errors.held)} windows"
    picture = draw(
        [Chart(name, lines, label="imagined steps", first=1, limits=FROM_ZERO)],
        width=560,
        columns=1,
        height=300,
    ).picture
    return Panel("error", bordered(stacked([written(title, 560), picture]))[None])


def rollout_panel(scene: Scene, window: int, *, title: str) -> Panel:
    """One window as an animation of context and horizon; a still where there are no images."""
    charts = scene_charts(scene, window)
    columns = 3 if len(charts) > 4 else 2
    drawn = draw(charts, width=720, columns=columns, start=1)
    name = f"rollout_{window}"
    if scene.frames is None:
        picture = stacked([written(title, 720), drawn.picture])
        return Panel(name, bordered(picture)[None])
    length = scene.rows["reward"].shape[1]
    frames = [_frame(scene, window, time, drawn, title) for time in range(length)]
    return Panel(name, np.stack(frames))


def _frame(scene: Scene, window: int, time: int, drawn: Charts, title: str) -> Picture:
    step = time - scene.context + 1
    where = f"imagined step {step} of {scene.horizon}" if step > 0 else f"context {time + 1}"
    head = stacked(
        [written(title, 720), written(where, 720, colour=DREAMT if step > 0 else REAL)], gap=0
    )
    pictures = [_happened(scene, window, time)]
    pictures += [_resembled(scene, window, time, name) for name in ("recorded", "policy")]
    if scene.pictures is not None:
        pictures.append(_decoded(scene, window, time))
    return bordered(stacked([head, beside(pictures), drawn.with_cursor(time)]))


def _happened(scene: Scene, window: int, time: int) -> Picture:
    image = scene.rows["image"][window, time].cpu().numpy()
    return captioned(framed(scaled(image), REAL), "what happened")


def _resembled(scene: Scene, window: int, time: int, name: str) -> Picture:
    """The stored frame nearest to a dream; in the context, nearest to what was filtered."""
    step = time - scene.context + 1
    near, row = (scene.near[name], step) if step > 0 else (scene.near["real"], time)
    assert scene.frames is not None
    image = scene.frames[near.frame[window, row]].cpu().numpy()
    above = {"recorded": "recorded actions", "policy": "own policy"}[name]
    below = f"nearest frame at {float(near.distance[window, row]):.3f}"
    return captioned(framed(scaled(image), DREAMT if step > 0 else REAL), above, below)


def _decoded(scene: Scene, window: int, time: int) -> Picture:
    assert scene.pictures is not None
    step = max(0, time - scene.context + 1)
    image = scene.pictures[window, step].cpu().numpy()
    below = "of recorded actions" if step else "of the last real frame"
    size = scaled(scene.rows["image"][window, time].cpu().numpy()).shape
    return captioned(framed(fitted(image, size[:2]), DREAMT), scene.decoder, below)


def scene_charts(scene: Scene, window: int) -> list[Chart]:
    """Curves of one window: reward, value, continuation, policy, distances, errors."""
    said, first = scene.real.said, 1 - scene.context
    charts = []
    if "reward" in said:
        happened = Line("happened", _row(scene.rows["reward"], window), BLACK)
        charts.append(Chart("reward", [happened, *_told(scene, window, "reward")]))
    if "value" in said:
        lines = [
            Line("happened", _row(scene.returns, window), BLACK),
            Line("real frames", _row(said["value"], window), GREY, ":"),
        ]
        charts.append(Chart("value; black: return", [*lines, *_told(scene, window, "value")]))
    if "continue" in said:
        alive = 1.0 - _row(scene.rows["is_terminal"], window)
        lines = [Line("happened", alive, BLACK), *_told(scene, window, "continue")]
        charts.append(Chart("continuation", lines, limits=(-0.05, 1.1)))
    charts += _choices(scene, window)
    charts.append(
        Chart("distance to the nearest frame", _distances(scene, window), limits=FROM_ZERO)
    )
    charts.append(Chart("1 - cosine to what happened", _strays(scene, window), limits=FROM_ZERO))
    return [chart._replace(first=first, label=STEPS) for chart in charts]


def _told(scene: Scene, window: int, name: str) -> list[Line]:
    """What the model says: of real frames in the context, then of both dreams."""
    context = scene.context
    known = _row(scene.real.said[name], window)[:context]
    dreamt = _row(scene.recorded.said[name], window)
    wandered = _row(scene.policy.said[name], window)
    return [
        Line("recorded actions", np.concatenate([known, dreamt[1:]]), ORANGE),
        Line("own policy", _late(wandered, context - 1), BLUE),
    ]


def _choices(scene: Scene, window: int) -> list[Chart]:
    """The policy, or the values of actions, in the dream; dots are the actions taken."""
    name = next((key for key in ("policy", "q") if key in scene.real.said), None)
    if name is None:
        return []
    context = scene.context
    known = _row(scene.real.said[name], window)[:context]
    values = np.concatenate([known, _row(scene.recorded.said[name], window)[1:]])
    most = np.sort(np.argsort(-np.abs(values).mean(0), kind="stable")[:MOST_ACTIONS])
    taken = _row(scene.rows["action"], window)[1:]
    lines = [
        Line(f"a{k}", values[:, k], SHADES[place % len(SHADES)]) for place, k in enumerate(most)
    ]
    if name == "q":
        return [Chart("Q of actions in the dream", lines, own_legend=True)]
    one_hot = bool(((taken == 0) | (taken == 1)).all())
    for place, k in enumerate(most):
        dots = np.where(taken[:, k] == 1, 1.0, np.nan) if one_hot else taken[:, k]
        lines.append(Line("", np.append(dots, np.nan), SHADES[place % len(SHADES)], "o"))
    limits = (-0.05, 1.5) if one_hot else (-1.1, 1.8)  # room for the legend
    return [Chart("policy in the dream; dots: taken", lines, limits=limits, own_legend=True)]


def _distances(scene: Scene, window: int) -> list[Line]:
    near, context = scene.near, scene.context
    return [
        Line("real frames", _row(near["real"].distance, window), GREY, ":"),
        Line(
            "recorded actions", _late(_row(near["recorded"].distance, window), context - 1), ORANGE
        ),
        Line("own policy", _late(_row(near["policy"].distance, window), context - 1), BLUE),
    ]


def _strays(scene: Scene, window: int) -> list[Line]:
    errors, context = scene.errors, scene.context
    lines = [Line("recorded actions", _late(_row(errors.recorded, window), context), ORANGE)]
    if errors.shuffled is not None:
        shuffled = _late(_row(errors.shuffled, window), context)
        lines.append(Line("shuffled actions", shuffled, PURPLE, "--"))
    return [*lines, Line("start held", _late(_row(errors.held, window), context), GREY, "-.")]


def _row(values: Tensor, window: int) -> Values:
    found: Values = values[window].detach().cpu().double().numpy()
    return found


def _mean(values: Tensor) -> Values:
    found: Values = values.mean(0).cpu().double().numpy()
    return found


def _late(values: Values, rows: int) -> Any:
    """Values behind `rows` rows of which nothing is said."""
    return np.concatenate([np.full(rows, np.nan), values])
