"""Is the latent prediction alive? Diagnostics on held-out windows, at fixed steps of the chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from reverie.agents.demos.windows import DemoWindows
from reverie.world_models.act_jepa import ACTJEPAModel
from reverie.world_models.collapse import (
    cosine_to_mean,
    loss_over_mean_prediction,
    sigreg,
    unit_directions,
)
from reverie.world_models.losses import masked_l1
from reverie.world_models.monitor import ema_distance, spread
from reverie.world_models.ops import feature_std

MOST, BATCHES = 1024, 8
"""Windows looked at, at most, and in batches of an update: fewer make ranks and covariances noisy,
more would be over a hundredth of the work of 500 updates."""

Normalise = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@torch.no_grad()
def latent_health(
    model: ACTJEPAModel, normalise: Normalise, windows: DemoWindows, *, batch_size: int
) -> dict[str, Tensor]:
    """Held-out losses, and for models with a latent prediction what tells a collapse.

    Latents are compared at one step of the chunk at a time, in the middle unless the name says
    first or last: over all steps their place alone would make them vary. `health/task_std` looks
    at the most frequent task only, whose token is then constant as well.
    gradient: none.
    """
    count = min(MOST, BATCHES * batch_size, len(windows))
    index = torch.linspace(0, len(windows) - 1, count).round().long()
    sums: dict[str, Tensor] = {}
    kept: list[tuple[Tensor, ...]] = []
    for part in torch.split(index, batch_size):
        batch = normalise(windows.gather(part))
        share = len(part) / len(index)
        if model.predictor is None:
            losses = model.losses(batch)
        else:  # the same losses, in one pass with what they are made of
            first = {key: batch[key][:, 0] for key in ("vector", "image") if key in batch}
            latents, valid = model.context(first, batch["task"]), ~batch["is_pad"]
            predicted, target = model.predict(latents, batch["action"]), model.target_latents(batch)
            losses = {"action": masked_l1(model.chunk(latents), batch["action"], valid)}
            losses["latent"] = masked_l1(predicted.flatten(2), target.flatten(2), valid)
            kept.append((predicted, target, batch["is_pad"], batch["task"]))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + share * loss.mean()
    found = {f"held_out/{name}": value for name, value in sums.items()}
    if kept:
        found |= _collapse(model, *(torch.cat(parts) for parts in zip(*kept, strict=True)))
    return found


def _collapse(
    model: ACTJEPAModel, predicted: Tensor, target: Tensor, is_pad: Tensor, task: Tensor
) -> dict[str, Tensor]:
    steps = model.cfg.chunk
    found = {}
    for name, step in (("_first", 0), ("", steps // 2), ("_last", steps - 1)):
        here = ~is_pad[:, step]
        if here.sum() < 2:
            continue
        z, guess = target[here, step].flatten(1), predicted[here, step].flatten(1)
        found[f"health/loss_ratio{name}"] = loss_over_mean_prediction(guess, z)
        if name:
            found[f"health/target_std{name}"] = feature_std(z)
            found[f"health/target_cosine{name}"] = cosine_to_mean(z)
            continue
        found |= {f"health/{measure}": value for measure, value in spread(z).items()}
        same = task[here] == task[here].mode().values
        found["health/task_std"] = feature_std(z[same])
        if model.target is not None:
            source = model.encoder.part(model.cfg.targets)
            found["health/ema_distance"] = ema_distance(model.target, source)
        if model.projector is not None:
            projected = model.projector(z.view(-1, model.cfg.width))
            found["health/projected_std"] = feature_std(projected)
            normal = torch.randn(
                projected.shape[1],
                model.cfg.sigreg_slices,
                generator=torch.Generator().manual_seed(0),
            ).to(projected.device)
            found["health/sigreg"] = sigreg(projected, unit_directions(normal))
    return found
