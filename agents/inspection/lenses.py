"""How inspection looks into each family that can be rolled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.world_models.ops import two_hot_mean, unimix
from reverie.world_models.rssm import Latents
from reverie.world_models.spr import SpatialLatents

if TYPE_CHECKING:
    from reverie.agents.mudreamer import MuDreamer
    from reverie.agents.spr import SPR


class MuDreamerLens:
    """MuDreamer and DreamerV3: full rollouts, with everything their heads say."""

    reach: int | None = None

    def __init__(self, agent: MuDreamer) -> None:
        self._agent, self.model = agent, agent.model
        self.gamma = agent.cfg.model.gamma

    def learned_reward(self, reward: Tensor) -> Tensor:
        """As it is."""
        return reward

    def code(self, latents: Latents) -> Tensor:
        """Features with probabilities in place of samples, whose noise would be most distance."""
        prob = unimix(latents.logits, self.model.cfg.unimix).flatten(-2)
        return self.model.features(latents._replace(z=prob))

    def said(self, latents: Latents) -> dict[str, Tensor]:
        """Means of all heads; "policy" is the mean action, or the probability of each."""
        feature, behavior = self.model.features(latents), self._agent.behavior
        size = behavior.action_size
        still = torch.ones(*feature.shape[:-1], size, device=feature.device)
        return {
            "reward": two_hot_mean(self.model.reward(feature), self.model.bins),
            "value": two_hot_mean(behavior.critic(feature), behavior.bins),
            "continue": torch.sigmoid(self.model.cont(feature).float()).squeeze(-1),
            "policy": behavior.policy(feature, still)[1][..., :size],
        }

    def act(self, latents: Latents) -> Tensor:
        """A sample of the policy, as in the rollouts that it learns from."""
        feature, behavior = self.model.features(latents), self._agent.behavior
        noise = torch.empty(len(feature), behavior.action_size, device=feature.device)
        noise = noise.exponential_().clamp_min_(1e-20) if behavior.discrete else noise.normal_()
        return behavior.policy(feature, noise)[0]

    def decoded(self, latents: Latents) -> Tensor | None:
        """The decoder's pictures, where the settings have one."""
        if self.model.decoder is None:
            return None
        pictures: Tensor = self.model.decoder(self.model.features(latents)).float()
        return pictures


class SPRLens:
    """SPR and its relatives: as many steps as are predicted in training, and Q along them."""

    def __init__(self, agent: SPR) -> None:
        self._agent, self.model = agent, agent.model
        self.reach: int | None = agent.cfg.model.predictions
        self.gamma = agent.cfg.returns.gamma

    def learned_reward(self, reward: Tensor) -> Tensor:
        """Its sign, where the settings say so."""
        return reward.sign() if self._agent.cfg.returns.reward == "sign" else reward

    def code(self, latents: SpatialLatents) -> Tensor:
        """The flattened latent."""
        return self.model.features(latents)

    def said(self, latents: SpatialLatents) -> dict[str, Tensor]:
        """Values of all actions under mean weights, and the largest of them."""
        q = self._values(latents)
        return {"value": q.amax(-1), "q": q}

    def act(self, latents: SpatialLatents) -> Tensor:
        """The greedy action."""
        best = self._values(latents).argmax(-1)
        return F.one_hot(best, self._agent.spec.action_size).float()

    def decoded(self, latents: SpatialLatents) -> Tensor | None:
        """This family has no decoder."""
        return None

    def _values(self, latents: SpatialLatents) -> Tensor:
        flat = self.model.features(latents)
        online = self._agent.cfg.act_with == "online"
        head = (self.model.online if online else self.model.q_target).head
        logits = head(flat.flatten(0, -2))
        return self.model.value(logits).view(*flat.shape[:-1], -1)
