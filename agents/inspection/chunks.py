"""Panels of ACT-JEPA: predicted chunks beside the expert's, and what predicted latents resemble."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reverie.agents.inspection.charts import BLACK, GREY, ORANGE, PURPLE, Chart, Charts, Line, draw
from reverie.agents.inspection.neighbours import FrameLibrary, Neighbours
from reverie.agents.inspection.panels import (
    DREAMT,
    REAL,
    Panel,
    Picture,
    beside,
    bordered,
    captioned,
    framed,
    scaled,
    stacked,
    written,
)
from reverie.agents.inspection.rollouts import undisturbed
from reverie.agents.inspection.scenes import Look

if TYPE_CHECKING:
    from tensordict import TensorDict

    from reverie.agents.act_jepa import ACTJEPA
    from reverie.agents.demos.windows import DemoWindows

Index = NDArray[np.int64]
MOST_STORED = 512
"""Windows searched for neighbours."""
ACTIONS, STATES = 4, 4
"""Entries of actions and of the robot's state that are drawn."""
WIDTH = 720


class Latents(NamedTuple):
    """Predicted latents, and what they resemble at the same step of other chunks."""

    near: Neighbours
    """[P, B]: windows of the library."""
    error: Tensor
    """[P, B]: 1 - cosine to the latent that was to be predicted."""
    other: Tensor
    """[P, B]: to that of another window."""
    shuffled: Tensor | None
    """[P, B]: error under another window's actions; None: the model reads none."""


class Chunks(NamedTuple):
    """Windows [B, P] of demonstrations, and what the agent makes of their first rows."""

    places: Index
    """[B]: frames that the windows begin at."""
    batch: TensorDict
    predicted: Tensor
    """[B, P, A], in the environment's units."""
    shown: int
    """Windows that are drawn, the first ones: their episodes are not in the library."""
    stored: Index
    """[R]: windows of the library."""
    library: TensorDict
    latents: Latents | None


def look_at_chunks(
    agent: ACTJEPA, windows: DemoWindows, look: Look, *, rng: np.random.Generator, seed: int
) -> Chunks:
    """Draw windows, predict their chunks and latents, and search for those of the shown ones.

    Other episodes are searched than those of the shown windows.
    """
    order = rng.permutation(len(windows))
    shown, rest = order[: look.windows], order[look.windows :]
    drawn = {windows.episode_of(int(i)) for i in shown[: look.shown]}
    others = [i for i in rest.tolist() if windows.episode_of(i) not in drawn]
    stored = np.array(others[:MOST_STORED] or order[:MOST_STORED].tolist())
    library = windows.gather(stored)
    whole = ~library["is_pad"][:, -1]
    if whole.any():
        stored, library = stored[whole.cpu().numpy()], library[whole]
    batch = windows.gather(shown)
    with undisturbed(agent.model, seed, agent.device):
        first = {k: batch[k][:, 0] for k in ("vector", "image") if k in batch.keys()}
        predicted = agent.predict_chunk(first, batch["task"])
        latents = _latents(agent, batch, library)
    count = min(look.shown, len(shown))
    return Chunks(shown, batch, predicted, count, stored, library, latents)


def _latents(agent: ACTJEPA, batch: TensorDict, library: TensorDict) -> Latents | None:
    model = agent.model
    if model.predictor is None:
        return None
    rows, others = agent.normalised(dict(batch.items())), agent.normalised(dict(library.items()))
    stored = FrameLibrary(model.target_latents(others).flatten(2).transpose(0, 1))
    target = model.target_latents(rows).flatten(2).transpose(0, 1)
    start = model.context(
        {k: rows[k][:, 0] for k in ("vector", "image") if k in rows}, rows["task"]
    )

    def guess(action: Tensor) -> Tensor:
        return model.predict(start, action).flatten(2).transpose(0, 1)

    ahead = guess(rows["action"])
    shuffled = None
    if model.action_conditioned:
        shuffled = stored.distance(guess(rows["action"].roll(1, 0)), target)
    return Latents(
        stored.nearest(ahead),
        stored.distance(ahead, target),
        stored.distance(ahead, target.roll(1, 1)),
        shuffled,
    )


def chunk_panels(
    chunks: Chunks, windows: DemoWindows, *, proprio: int, shown: int, title: str
) -> list[Panel]:
    """A panel per shown window, the error along the chunk, and the numbers."""
    count = min(shown, len(chunks.places))
    panels = [_chunk(chunks, windows, w, proprio=proprio, title=title) for w in range(count)]
    return [*panels, _error(chunks, title=title), Panel("numbers", scalars=numbers(chunks))]


def numbers(chunks: Chunks) -> dict[str, float]:
    """What is worth following over a run; rows behind an episode's end do not count.

    Neighbours are those of the shown windows: others may find their own episode in the library.
    """
    valid = ~chunks.batch["is_pad"]
    off = (chunks.predicted - chunks.batch["action"]).abs().mean(-1)
    found = {"chunk_error": float(off[valid].mean())}
    if chunks.latents is not None:
        seen, error = valid.t(), chunks.latents.error
        last = seen & (torch.arange(len(seen), device=seen.device) == len(seen) - 1)[:, None]
        found["error_first"] = float(error[0].mean())
        found["error_last"] = float(error[last].mean())
        found["error_other_last"] = float(chunks.latents.other[last].mean())
        near = chunks.latents.near.distance[:, : chunks.shown]
        found["neighbour_distance"] = float(near[seen[:, : chunks.shown]].mean())
        if chunks.latents.shuffled is not None:
            found["error_shuffled_last"] = float(chunks.latents.shuffled[last].mean())
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _error(chunks: Chunks, *, title: str) -> Panel:
    valid = ~chunks.batch["is_pad"]
    off = (chunks.predicted - chunks.batch["action"]).abs().mean(-1)
    count = len(chunks.places)
    charts = [
        Chart(
            f"actions: mean |predicted - expert| of {count} windows",
            [Line("", _masked_mean(off, valid), ORANGE)],
            label="step of the chunk",
            limits=(0.0, None),
        )
    ]
    if chunks.latents is not None:
        found, seen = chunks.latents, valid
        lines = [Line("own target", _masked_mean(found.error.t(), seen), ORANGE)]
        if found.shuffled is not None:
            shuffled = _masked_mean(found.shuffled.t(), seen)
            lines.append(Line("shuffled actions", shuffled, PURPLE, "--"))
        lines.append(
            Line("another window's target", _masked_mean(found.other.t(), seen), GREY, ":")
        )
        name = "latents: 1 - cosine of the prediction to"
        charts.append(Chart(name, lines, label="step of the chunk", limits=(0.0, None)))
    picture = draw(charts, width=560, columns=1, height=230).picture
    return Panel("error", bordered(stacked([written(title, 560), picture]))[None])


def _masked_mean(values: Tensor, valid: Tensor) -> NDArray[np.float64]:
    weight = valid.to(values.dtype)
    mean = (values * weight).sum(0) / weight.sum(0)
    found: NDArray[np.float64] = mean.cpu().double().numpy()
    return found


def _chunk(chunks: Chunks, windows: DemoWindows, window: int, *, proprio: int, title: str) -> Panel:
    """An animation along the chunk where there are images, a still of the curves otherwise."""
    charts = _charts(chunks, window, proprio)
    drawn = draw(charts, width=WIDTH, columns=3)
    name = f"chunk_{window}"
    if windows.images == "none" or chunks.latents is None:
        picture = stacked([written(title, WIDTH), drawn.picture])
        return Panel(name, bordered(picture)[None])
    steps = int((~chunks.batch["is_pad"][window]).sum())
    found = chunks.latents.near.frame[:steps, window].cpu().numpy()
    ahead = np.arange(steps)
    happened = windows.gather(chunks.places[window] + ahead)["image"][:, 0].cpu().numpy()
    resembled = windows.gather(chunks.stored[found] + ahead)["image"][:, 0].cpu().numpy()
    distance = chunks.latents.near.distance[:, window].tolist()
    frames = [
        _frame(happened[k], resembled[k], distance[k], drawn, k, title=title) for k in range(steps)
    ]
    return Panel(name, np.stack(frames))


def _frame(
    happened: Picture, resembled: Picture, distance: float, drawn: Charts, step: int, *, title: str
) -> Picture:
    head = stacked([written(title, WIDTH), written(f"step {step} of the chunk", WIDTH)], gap=0)
    below = f"nearest frame at {distance:.3f}"
    pictures = [
        captioned(framed(scaled(happened), REAL), "the expert"),
        captioned(framed(scaled(resembled), DREAMT), "predicted latent", below),
    ]
    return bordered(stacked([head, beside(pictures), drawn.with_cursor(step)]))


def _charts(chunks: Chunks, window: int, proprio: int) -> list[Chart]:
    valid = ~chunks.batch["is_pad"][window]

    def seen(values: Tensor) -> NDArray[np.float64]:
        hidden = values.detach().double().masked_fill(~valid, torch.nan)
        found: NDArray[np.float64] = hidden.cpu().numpy()
        return found

    expert, predicted = chunks.batch["action"][window], chunks.predicted[window]
    charts = [
        Chart(
            f"action {k}",
            [
                Line("expert", seen(expert[:, k]), BLACK),
                Line("agent", seen(predicted[:, k]), ORANGE),
            ],
        )
        for k in range(min(ACTIONS, expert.shape[-1]))
    ]
    if chunks.latents is not None:
        charts += _states(chunks, window, proprio, seen)
        distance = seen(chunks.latents.near.distance[:, window])
        lines = [Line("", distance, ORANGE)]
        charts.append(Chart("distance to the nearest frame", lines, limits=(0.0, None)))
    return [chart._replace(label="step of the chunk") for chart in charts]


def _states(chunks: Chunks, window: int, proprio: int, seen: object) -> list[Chart]:
    """The robot's own state in the frames that predicted latents resemble."""
    if "vector" not in chunks.batch.keys() or chunks.latents is None:
        return []
    assert callable(seen)
    steps = torch.arange(chunks.batch["vector"].shape[1], device=chunks.predicted.device)
    found = chunks.library["vector"][chunks.latents.near.frame[:, window], steps]
    real = chunks.batch["vector"][window]
    return [
        Chart(
            f"state {k}",
            [
                Line("expert", seen(real[:, k]), BLACK),
                Line("nearest frame", seen(found[:, k]), ORANGE, "o"),
            ],
        )
        for k in range(min(STATES, proprio or real.shape[-1], real.shape[-1]))
    ]
