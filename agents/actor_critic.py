"""Actor and critic trained in imagination (DreamerV3 v1, unchanged by MuDreamer)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reverie.agents.mudreamer_config import BehaviorConfig
from reverie.world_models.config import WorldModelConfig
from reverie.world_models.imagine import Imagined, imagine
from reverie.world_models.losses import actor_loss
from reverie.world_models.mudreamer import MuDreamerModel
from reverie.world_models.nets import MLP, normal_parameters
from reverie.world_models.ops import (
    categorical_entropy,
    categorical_sample,
    lambda_return,
    normal_entropy,
    normal_log_prob,
    percentile_scale,
    straight_through,
    symmetric_bins,
    trajectory_weight,
    two_hot_mean,
    two_hot_nll,
    unimix,
)
from reverie.world_models.rssm import Latents
from reverie.world_models.targets import ema_copy, ema_update, frozen_alias


class BehaviorNoise(NamedTuple):
    """All random numbers of one behaviour update."""

    latent: Tensor
    """Exp(1) [H, M, S, C]."""
    action: Tensor
    """Normal (continuous) or Exp(1) (discrete) [H, M, A]."""


class BehaviorLosses(NamedTuple):
    """What one imagined rollout teaches."""

    actor: Tensor
    """[M, H]."""
    critic: Tensor
    """[M, H]."""
    percentiles: tuple[Tensor, Tensor]
    """New EMA of the 5th and 95th percentile of the returns."""
    metrics: dict[str, Tensor]


class ActorCritic(nn.Module):
    """Policy, critic and slow critic on model features.

    The actor's gradient goes through the frozen dynamics (continuous actions) or is REINFORCE
    (discrete); neither loss reaches a weight of the world model.
    """

    def __init__(
        self,
        cfg: BehaviorConfig,
        model: WorldModelConfig,
        *,
        feature_size: int,
        action_size: int,
        discrete: bool,
    ) -> None:
        super().__init__()
        self.cfg, self.discrete, self.action_size = cfg, discrete, action_size
        self.gamma, self.lambda_ = model.gamma, model.lambda_
        self.through_dynamics = cfg.actor_grad == "dynamics" or (
            cfg.actor_grad == "auto" and not discrete
        )
        outputs = action_size if discrete else 2 * action_size
        self.actor = MLP(feature_size, outputs, units=model.units, layers=model.layers)
        self.critic = MLP(
            feature_size, model.bins, units=model.units, layers=model.layers, zero_output=True
        )
        self.slow_critic = ema_copy(self.critic)
        self.register_buffer("bins", symmetric_bins(model.bins, model.bin_range), persistent=False)
        self.register_buffer("return_low", torch.zeros(()))
        self.register_buffer("return_high", torch.zeros(()))
        self.bins: Tensor
        self.return_low: Tensor
        self.return_high: Tensor

    def policy(self, feature: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled action and distribution parameters from features [..., F], noise [..., A].

        Continuous: action [..., A] and [mean, std] [..., 2A]. Discrete: straight-through one-hot
        and mixed probabilities [..., A].
        gradient: to feature and weights.
        """
        raw = self.actor(feature)
        if self.discrete:
            prob = unimix(raw, self.cfg.unimix)
            return straight_through(categorical_sample(prob, noise), prob), prob
        mean, std = normal_parameters(raw, self.cfg.min_std, self.cfg.max_std)
        return mean + std * noise, torch.cat([mean, std], -1)

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy [...] of the distribution that `policy` returned as parameters."""
        if self.discrete:
            return categorical_entropy(params.unsqueeze(-2))
        return normal_entropy(params[..., self.action_size :])

    def slow_value(self, feature: Tensor) -> Tensor:
        """Value [...] of the slow critic."""
        return two_hot_mean(self.slow_critic(feature), self.bins)

    def losses(
        self, model: FrozenModel, start: Latents, first_continue: Tensor, noise: BehaviorNoise
    ) -> BehaviorLosses:
        """Imagine from `start` [M] and compare with lambda-returns.

        `first_continue` [M] is the true continuation of the start rows, from replay.
        gradient: actor loss to the actor alone, critic loss to the critic alone.
        """
        params: list[Tensor] = []

        def act(feature: Tensor, t: int) -> Tensor:
            action, distribution = self.policy(feature, noise.action[t])
            params.append(distribution)
            return action

        with torch.set_grad_enabled(self.through_dynamics):
            rollout = imagine(model.rssm, start.detach(), act, noise.latent)
            reward = two_hot_mean(model.reward(rollout.feature[1:]), self.bins)
            logit = model.cont(rollout.feature[1:].detach()).squeeze(-1)
        reward, logit = reward.t(), logit.t()
        discount = self.gamma * (logit > 0).float()
        critic_logits = self.critic(rollout.feature.detach())
        value = self._baseline(model, rollout, critic_logits)
        returns = lambda_return(reward, discount, value[:, 1:], lambda_=self.lambda_)
        first = self.gamma * first_continue.float().unsqueeze(1)
        weight = trajectory_weight(torch.cat([first, discount[:, :-1]], 1), self.gamma)
        low, high, scale = percentile_scale(
            returns, self.return_low, self.return_high, decay=self.cfg.return_decay
        )
        advantage = (returns - value[:, :-1]) / scale
        actor, entropy = self._actor(rollout, params, advantage, weight)
        critic = weight * self._critic(critic_logits[:-1], returns.detach().t(), rollout)
        metrics = self._metrics(returns, value, entropy, reward, scale, advantage, weight)
        return BehaviorLosses(actor, critic, (low, high), metrics)

    def _baseline(self, model: FrozenModel, rollout: Imagined, logits: Tensor) -> Tensor:
        """Values [M, H+1] of the current critic; REINFORCE reuses the critic's own forward pass."""
        if not self.through_dynamics:
            return two_hot_mean(logits.detach(), self.bins).t()
        return two_hot_mean(model.critic(rollout.feature), self.bins).t()

    def _actor(
        self, rollout: Imagined, params: list[Tensor], advantage: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.through_dynamics:
            entropy = self.entropy(torch.stack(params)).t()
            return actor_loss(advantage, entropy, weight, self.cfg.entropy), entropy
        # one batched pass on detached features gives the log-probabilities their gradient
        raw = self.actor(rollout.feature.detach()[:-1])
        if self.discrete:
            distribution = unimix(raw, self.cfg.unimix)
            log_prob = torch.log((distribution * rollout.action).sum(-1))
        else:
            mean, std = normal_parameters(raw, self.cfg.min_std, self.cfg.max_std)
            distribution = torch.cat([mean, std], -1)
            log_prob = normal_log_prob(rollout.action, mean, std)
        entropy = self.entropy(distribution).t()
        loss = actor_loss(advantage.detach() * log_prob.t(), entropy, weight, self.cfg.entropy)
        return loss, entropy

    def _critic(self, logits: Tensor, returns: Tensor, rollout: Imagined) -> Tensor:
        loss = two_hot_nll(logits, returns, self.bins)
        if self.cfg.slow_reg:
            with torch.no_grad():
                slow = self.slow_value(rollout.feature.detach()[:-1])
            loss = loss + self.cfg.slow_reg * two_hot_nll(logits, slow, self.bins)
        return loss.t()

    def _metrics(
        self,
        returns: Tensor,
        value: Tensor,
        entropy: Tensor,
        reward: Tensor,
        scale: Tensor,
        advantage: Tensor,
        weight: Tensor,
    ) -> dict[str, Tensor]:
        pairs = {
            "imagined/return": returns,
            "imagined/value": value,
            "imagined/reward": reward,
            "imagined/weight": weight,
            "actor/entropy": entropy,
            "actor/advantage_abs": advantage.abs(),
            "actor/return_scale": scale,
        }
        return {key: tensor.detach().mean() for key, tensor in pairs.items()}

    def update_targets(self, rate: float | Tensor) -> None:
        """Move the slow critic."""
        ema_update(self.slow_critic, self.critic, rate)


class FrozenModel:
    """The parts of model and critic that imagination differentiates by their inputs only."""

    def __init__(self, model: MuDreamerModel, critic: nn.Module) -> None:
        self.rssm = frozen_alias(model.rssm)
        self.reward = frozen_alias(model.reward)
        self.cont = frozen_alias(model.cont)
        self.critic = frozen_alias(critic)
