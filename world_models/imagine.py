"""Roll a policy out in latent space."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reverie.world_models.rssm import RSSM, Latents

Policy = Callable[[Tensor, int], Tensor]
"""(feature [M, F], t) -> action [M, A]."""


class Imagined(NamedTuple):
    """A rollout of H steps from M starts; row 0 is the start itself.

    Time first, so that `[:-1]` and `[1:]` stay contiguous for the heads.
    """

    feature: Tensor
    """[H+1, M, F]."""
    action: Tensor
    """[H, M, A]: action t leads from feature t to feature t+1."""


def imagine(rssm: RSSM, start: Latents, policy: Policy, exponential: Tensor) -> Imagined:
    """Alternate policy and prior for the H steps of `exponential` [H, M, S, C].

    The policy reads detached features (DreamerV3 v1).
    gradient: through the dynamics to the actions, if the policy's actions carry one.
    """
    h, z = start.h, start.z
    features, actions = [torch.cat([h, z], -1)], []
    for t in range(len(exponential)):
        action = policy(features[-1].detach(), t)
        state = rssm.imagine_step(h, z, action, exponential[t])
        h, z = state.h, state.z
        actions.append(action)
        features.append(torch.cat([h, z], -1))
    return Imagined(torch.stack(features), torch.stack(actions))
