"""One episode of a trained agent, with what it believed at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from reverie.agents.collector import to_device
from reverie.agents.inspection.lenses import MuDreamerLens, SPRLens
from reverie.agents.registry import family
from reverie.world_models.ops import lambda_return
from reverie.world_models.rssm import Latents
from reverie.world_models.spr import SpatialLatents, to_planes

if TYPE_CHECKING:
    from reverie.agents.configs import RunConfig
    from reverie.agents.interface import Carry, Mode, Player
    from reverie.agents.mudreamer import MuDreamer
    from reverie.agents.spr import SPR
    from reverie.envs.specs import Step, VecEnv


class Played(NamedTuple):
    """T rows of one episode; row 0 is its beginning."""

    task: str
    obs: dict[str, Tensor]
    """[T, ...]: what the agent reads."""
    images: Tensor | None
    """uint8 [T, H, W, C]: what the task shows, read by the agent or not."""
    action: Tensor
    """[T, A]: taken in its row; zeros in the last."""
    reward: Tensor
    """[T]: on arriving at its row."""
    terminal: bool
    """Whether nothing is worth anything behind the last row."""
    solved: bool
    """Whether a row was; False where the task knows no success."""
    cut: str
    """Why the last row is not the end of the episode; "" where it is."""
    number: int | None
    """Of the task, among those of an agent that learned several."""
    latents: Any
    """[T] of a model that imagines in the way of `Lens`; None: of another one."""
    said: dict[str, Tensor]
    """[T, ...]: readings of the agent's own state, "value" among them where it estimates one."""

    @property
    def steps(self) -> int:
        """Actions taken."""
        return len(self.reward) - 1

    @property
    def score(self) -> float:
        """Sum of rewards."""
        return float(self.reward.double().sum())


class Belief(NamedTuple):
    """What one step of an agent says."""

    latents: Any
    said: dict[str, Tensor]


@torch.no_grad()
def play_episode(
    agent: Any,
    player: Player,
    env: VecEnv,
    cfg: RunConfig,
    *,
    episode: int,
    steps: int,
    mode: Mode,
) -> Played:
    """Episode `episode` of the only slot of `env`, up to `steps` actions.

    It is the one that `evaluate` plays there. `player` is the agent, or the agent on a task.
    """
    empty = np.zeros((0, env.spec.action_size), np.float32)
    row, carry = env.restore([episode], [empty]), player.initial_carry(1)
    read = [key for key, there in _reads(agent).items() if there]
    rows: list[Step] = []
    beliefs: list[Belief] = []
    actions: list[Tensor] = []
    while True:
        obs = to_device({key: row.obs[key] for key in read}, agent.device)
        is_first = torch.as_tensor(row.is_first).to(agent.device)
        carry, action = player.act(carry, obs, is_first, mode=mode)
        rows.append(row)
        beliefs.append(_belief(agent, cfg, carry, obs))
        if row.is_last[0] or len(rows) > steps:
            break
        actions.append(action)
        row = env.step(action.to("cpu", torch.float32).numpy().copy())
    return _joined(env.spec.task, rows, actions, beliefs, carry, read, agent.device)


def _reads(agent: Any) -> dict[str, bool]:
    """Which observations the agent was built for."""
    return {"image": agent.spec.image_shape is not None, "vector": agent.spec.vector_size > 0}


def _belief(agent: Any, cfg: RunConfig, carry: Carry, obs: dict[str, Tensor]) -> Belief:
    kind = family(cfg.agent)
    if kind == "mudreamer":
        latents = filtered(agent, carry, obs)
        return Belief(latents, MuDreamerLens(agent).said(latents))
    if kind == "spr":
        return Belief(*_stacked(agent, carry))
    return Belief(None, {})


def filtered(agent: MuDreamer, carry: Carry, obs: dict[str, Tensor]) -> Latents:
    """The latent [N] that a carry holds, with the logits that its sample was drawn from."""
    core = agent.model.rssm
    joined = torch.cat([carry["h"], agent.model.encode(obs)], -1)
    logits = core.post_out(core.post_hidden(joined)).float()
    return Latents(carry["h"], carry["z"], logits.view(-1, core.sizes.stoch, core.sizes.classes))


def _stacked(agent: SPR, carry: Carry) -> tuple[SpatialLatents, dict[str, Tensor]]:
    """The online latent, which is rolled out, and the values of the network that acts."""
    model = agent.model
    planes = to_planes(carry["frames"]).float() / 255.0
    network = model.online if agent.cfg.act_with == "online" else model.q_target
    q = model.value(network.head(network.latent(planes).flatten(1)))
    return SpatialLatents(model.online.latent(planes)), {"value": q.amax(-1), "q": q}


def _joined(
    task: str,
    rows: list[Step],
    actions: list[Tensor],
    beliefs: list[Belief],
    carry: Carry,
    read: list[str],
    device: torch.device,
) -> Played:
    def column(values: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack([value[0] for value in values])).to(device)

    last = rows[-1]
    cut = "" if last.is_last[0] else "more steps were not asked for"
    if np.any(last.info.get("interrupted", False)):
        cut = "a fault of the environment ended it"
    latents = None
    if beliefs[0].latents is not None:
        parts = zip(*(belief.latents for belief in beliefs), strict=True)
        latents = type(beliefs[0].latents)(*(torch.cat(part) for part in parts))
    names = beliefs[0].said
    idle = torch.zeros_like(carry["action"]) if not actions else torch.zeros_like(actions[0])
    return Played(
        task,
        {key: column([row.obs[key] for row in rows]) for key in read},
        column([row.obs["image"] for row in rows]) if "image" in last.obs else None,
        torch.cat([*actions, idle]),
        column([row.reward for row in rows]),
        bool(last.is_terminal[0]),
        any(bool(np.any(row.info.get("success", False))) for row in rows),
        cut,
        int(carry["task"][0]) if "task" in carry else None,
        latents,
        {name: torch.cat([belief.said[name] for belief in beliefs]) for name in names},
    )


def lens_of(agent: Any, cfg: RunConfig) -> MuDreamerLens | SPRLens | None:
    """How the agent's model is rolled out; None: it is not of that kind."""
    kind = family(cfg.agent)
    if kind == "mudreamer":
        return MuDreamerLens(cast("MuDreamer", agent))
    return SPRLens(cast("SPR", agent)) if kind == "spr" else None


def returns(played: Played, lens: MuDreamerLens | SPRLens) -> Tensor:
    """Discounted rewards [T] that came after each row, as the values know rewards.

    Behind a last row that is not terminal, the agent's own estimate stands for the rest.
    """
    value = played.said["value"].float()
    rest = torch.zeros_like(value[-1:]) if played.terminal else value[-1:]
    if len(value) == 1:
        return rest
    reward = lens.learned_reward(played.reward.float())[None, 1:]
    ahead = torch.cat([value[1:-1], rest])[None]
    come = lambda_return(reward, torch.full_like(reward, lens.gamma), ahead, lambda_=1.0)
    return torch.cat([come[0], rest])
