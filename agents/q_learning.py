"""The loss of the SPR family: distributional Q-learning and self-prediction of one batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.agents.spr_config import SPRConfig
from reverie.world_models.augment import ViewNoise, augment
from reverie.world_models.losses import (
    categorical_nll,
    distribution_kl,
    importance_weight,
    spr_loss,
)
from reverie.world_models.ops import (
    categorical_projection,
    feature_std,
    n_step_return,
    sequence_mask,
)
from reverie.world_models.spr import SPRModel, to_planes


class UpdateNoise(NamedTuple):
    """Every random number of one update but the dropout masks, drawn before it starts."""

    head: Tensor
    """Standard normal [noise_size] of the online head."""
    views: ViewNoise
    """For [K + 3, B] views, flattened; see `view_order`."""


class Schedule(NamedTuple):
    """What changes over a run, as scalars on the device that a captured graph reads."""

    n_step: Tensor
    """int64: rewards before bootstrapping."""
    gamma: Tensor
    """Discount per agent step."""
    beta: Tensor
    """Exponent of the importance weights."""


class Learned(NamedTuple):
    """What one batch says."""

    loss: Tensor
    """Mean over the batch of weight * (Q loss + scale * prediction loss)."""
    priority: Tensor
    """[B]: what the replay should draw these transitions by."""
    metrics: dict[str, Tensor]
    """Scalars."""


def view_order(predictions: int) -> list[int]:
    """Which of a row's K + 2 observations each of its K + 3 views shows.

    Online o_t; bootstrap observation for the online network; targets o_{t+1}..o_{t+K}; bootstrap
    observation for the Q target, another view of the same.
    """
    last = predictions + 1
    return [0, last, *range(1, last), last]


class QLearner:
    """`losses` of a model under one configuration; holds no state of its own."""

    def __init__(self, model: SPRModel, cfg: SPRConfig) -> None:
        self.model, self.cfg = model, cfg

    def losses(
        self,
        batch: dict[str, Tensor],
        noise: UpdateNoise,
        previous_head: Tensor,
        schedule: Schedule,
        generator: torch.Generator | None = None,
    ) -> Learned:
        """Losses of a batch of `PriorityReplay.draw`; static shapes, no host synchronisation.

        `previous_head` is the head noise of the update before, which the Q target uses, as its
        copy in the paper's code does. `generator` draws dropout masks, if there are any.
        gradient: to the online network, transition and predictor.
        """
        model, cfg = self.model, self.cfg
        views = self._views(batch["image"], noise.views)
        latent = model.online.latent(views[0], generator)
        logits = model.head(latent.flatten(1), noise.head)
        taken = (logits * batch["action"][:, 0, :, None]).sum(1)
        with torch.no_grad():
            target = self._target(batch, views, (noise.head, previous_head), schedule, generator)
        q_loss = categorical_nll(taken, target)
        total, metrics = cfg.q_scale * q_loss, {"loss/q": q_loss}
        if cfg.model.predictions:
            found = self._prediction(batch, latent, views[2:-1], generator)
            total = total + model.loss_scales["spr"] * found["loss/spr"]
            metrics |= found
        weight = importance_weight(batch["priority"], schedule.beta)
        with torch.no_grad():
            metrics |= {"q/taken": model.value(taken), "replay/weight": weight}
            metrics |= {"health/latent_std": feature_std(latent.flatten(1))}
            kl = cfg.priority.measure == "kl"
            measure = distribution_kl(q_loss, target) if kl else q_loss
            priority = measure.clamp(1e-6, 1e6) ** cfg.priority.exponent
        scalars = {key: tensor.detach().mean() for key, tensor in metrics.items()}
        return Learned((weight * total).mean(), priority.detach(), scalars)

    def _views(self, image: Tensor, noise: ViewNoise) -> Tensor:
        """Augmented float views [K + 3, B, S*C, H, W] of stacks [B, K + 2, S, H, W, C]."""
        planes = to_planes(image).transpose(0, 1)
        shown = torch.stack([planes[i] for i in view_order(self.cfg.model.predictions)])
        cfg = self.cfg.augment
        views = augment(shown.flatten(0, 1), noise, shift=cfg.shift, intensity=cfg.intensity)
        return views.view(shown.shape)

    def _target(
        self,
        batch: dict[str, Tensor],
        views: Tensor,
        heads: tuple[Tensor, Tensor],
        schedule: Schedule,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Projected distribution [B, K] of the n-step return, double-Q (C51; Rainbow)."""
        model = self.model
        reward = batch["reward"]
        if self.cfg.returns.reward == "sign":
            # the sign of NaN is 0: the second term keeps what is not finite visible
            reward = reward.sign() + (reward - reward)
        total, discount = n_step_return(
            reward,
            batch["is_last"],
            batch["is_terminal"],
            gamma=schedule.gamma,
            steps=schedule.n_step,
        )
        online, target = model.online, model.q_target
        ahead = online.head(online.latent(views[1], generator).flatten(1), heads[0])
        best = model.value(ahead).argmax(1)
        bootstrap = target.head(target.latent(views[-1], generator).flatten(1), heads[1])
        prob = F.softmax(bootstrap, -1)
        chosen = prob.gather(1, best[:, None, None].expand(-1, 1, prob.shape[-1])).squeeze(1)
        return categorical_projection(chosen, total, discount, model.atom_values)

    def _prediction(
        self,
        batch: dict[str, Tensor],
        latent: Tensor,
        future: Tensor,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """SPR's loss [B] and what it looks like, from latents at t and views [K, B] of t+1..t+K."""
        count = self.cfg.model.predictions
        predicted = self.model.predict(latent, batch["action"], train=True)
        target = self.model.target_projection(future.flatten(0, 1), generator)
        target = target.view(count, -1, target.shape[-1]).transpose(0, 1)
        mask = sequence_mask(batch["is_last"][:, : count + 1])
        loss = spr_loss(predicted, target, mask)
        if self.cfg.model.target == "online":  # the other half of the gradient, of value 0
            mirrored = spr_loss(target, predicted, mask)
            loss = loss + mirrored - mirrored.detach()
        found = {"loss/spr": loss}
        with torch.no_grad():
            for name, k in (("first", 0), ("last", count - 1)):
                at = slice(k, k + 1)
                distance = spr_loss(predicted[:, at], target[:, at], mask[:, at])
                # of those whose target belongs to their episode
                found[f"spr/distance_{name}"] = distance / mask[:, k].mean().clamp_min(1e-6)
            unit = F.normalize(target.float(), dim=-1)
            found["health/projection_std"] = feature_std(unit)
            # the best constant prediction is the direction of the mean target
            constant = 2.0 - 2.0 * unit.mean((0, 1)).norm()
            valid = (found["loss/spr"] / mask.mean().clamp_min(1e-6)).mean()
            found["health/prediction_ratio"] = valid / constant.clamp_min(1e-8)
        return found
