"""SPR's own question: how much its K predictions resemble the projections of what came."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.agents.inspection.charts import GREY, ORANGE, PURPLE, Chart, Line, draw
from reverie.agents.inspection.panels import Panel, bordered, stacked, written
from reverie.world_models.spr import SPRModel, stack_frames, to_planes

WIDTH = 560


@torch.no_grad()
def similarities(model: SPRModel, rows: dict[str, Tensor], context: int) -> dict[str, Tensor]:
    """Cosines [B, K'] of predictions and targets, from row `context - 1` of windows [B, T].

    "recorded" and "shuffled" (another window's) actions, and "held": the start's own projection.
    As in training, without augmentation and noise.
    """
    count = min(model.cfg.predictions, rows["reward"].shape[1] - context)
    stacks = stack_frames(rows["image"], rows["is_first"], model.cfg.history)
    planes = to_planes(stacks[:, context - 1 : context + count]).float() / 255.0
    target = model.target_projection(planes.flatten(0, 1)).view(*planes.shape[:2], -1)
    start = model.online.latent(planes[:, 0])
    actions = rows["action"][:, context : context + count].float()
    guesses = {
        "recorded": model.predict(start, actions),
        "shuffled": model.predict(start, actions.roll(1, 0)),
        "held": target[:, :1].expand(-1, count, -1),
    }
    return {name: F.cosine_similarity(y, target[:, 1:], dim=-1) for name, y in guesses.items()}


def similarity_panel(found: dict[str, Tensor], *, title: str) -> Panel:
    """The mean of all windows for every k."""
    means = {name: cosine.mean(0).cpu().double().numpy() for name, cosine in found.items()}
    lines = [
        Line("recorded actions", means["recorded"], ORANGE),
        Line("shuffled actions", means["shuffled"], PURPLE, "--"),
        Line("projection of the start", means["held"], GREY, ":"),
    ]
    name = f"prediction: cosine to the target, mean of {len(found['recorded'])} windows"
    chart = Chart(name, lines, label="k, steps ahead", first=1)
    picture = draw([chart], width=WIDTH, columns=1, height=300).picture
    scalars = {f"similarity_{k}": float(v) for k, v in enumerate(means["recorded"], 1)}
    scalars["similarity_shuffled_last"] = float(means["shuffled"][-1])
    frames = bordered(stacked([written(title, WIDTH), picture]))[None]
    return Panel("similarity", frames, scalars=scalars)
