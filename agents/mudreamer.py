"""MuDreamer and DreamerV3: act from a filtered latent, learn model and behaviour in one update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from reverie.agents.actor_critic import ActorCritic, BehaviorNoise, FrozenModel
from reverie.agents.capture import GraphedUpdate, compile_steps
from reverie.agents.checks import restore_generator, same_keys
from reverie.agents.interface import Carry, Mode
from reverie.agents.mudreamer_config import MuDreamerConfig
from reverie.agents.optim import ClippedAdam
from reverie.agents.windows import LearnsFromWindows
from reverie.envs.specs import EnvSpec
from reverie.world_models.collapse import code_information, cosine_to_mean
from reverie.world_models.monitor import ema_distance, spread, thinned, variance_spread
from reverie.world_models.mudreamer import MuDreamerModel, Window
from reverie.world_models.ops import categorical_entropy, categorical_kl, feature_std, unimix
from reverie.world_models.rssm import Latents

Compile = Literal["off", "inductor", "graph"]


class UpdateNoise(NamedTuple):
    """Every random number of one update, drawn before it starts."""

    posterior: Tensor
    """Exp(1) [B, T, S, C]."""
    behavior: BehaviorNoise
    rollout: Tensor | None = None
    """Exp(1) [B*(T-K), K, S, C] of the open-loop steps of the objective `spr`."""


class MuDreamer(LearnsFromWindows):
    """Agent of both papers; `MuDreamerConfig` says which."""

    def __init__(
        self,
        spec: EnvSpec,
        cfg: MuDreamerConfig,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        compile: Compile = "off",
        precision: Literal["fp32", "bf16"] = "fp32",
        batch_shape: tuple[int, int] = (16, 64),
    ) -> None:
        self.spec, self.cfg, self.seed = spec, cfg, seed
        self.device = torch.device(device)
        self.batch_shape, self.precision = batch_shape, precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = MuDreamerModel(
                cfg.model,
                action_size=spec.action_size,
                discrete=spec.discrete,
                image_shape=spec.image_shape,
                vector_size=spec.vector_size,
            ).to(self.device)
            self.behavior = ActorCritic(
                cfg.behavior,
                cfg.model,
                feature_size=self.model.rssm.feature_size,
                action_size=spec.action_size,
                discrete=spec.discrete,
            ).to(self.device)
        self.model.critic_value = self.behavior.slow_value
        self.frozen = FrozenModel(self.model, self.behavior.critic)
        self._optimisers = self._build_optimisers()
        self._generators = {
            name: torch.Generator(self.device) for name in ("update", "train", "eval")
        }
        for index, name in enumerate(("update", "train")):
            self._generators[name].manual_seed(seed * 2 + index)
        if compile != "off":
            compile_steps(self.model.rssm, self.frozen.rssm)
        self._graph = self._graphed() if compile == "graph" else None

    def _build_optimisers(self) -> dict[str, ClippedAdam]:
        optim, cuda = self.cfg.optim, self.device.type == "cuda"
        behavior: dict[str, Any] = {
            "lr": optim.behavior_lr,
            "eps": optim.behavior_eps,
            "clip": optim.behavior_clip,
            "capturable": cuda,
        }
        return {
            "model": ClippedAdam(
                self.model.parameters(),
                lr=optim.model_lr,
                eps=optim.model_eps,
                clip=optim.model_clip,
                capturable=cuda,
            ),
            "actor": ClippedAdam(self.behavior.actor.parameters(), **behavior),
            "critic": ClippedAdam(self.behavior.critic.parameters(), **behavior),
        }

    def _graphed(self) -> GraphedUpdate:
        return GraphedUpdate(
            lambda rows: self.learn(rows, self.draw_noise()),
            state=self._live_tensors,
            generators=[self._generators["update"]],
            device=self.device,
        )

    def _live_tensors(self) -> Iterator[Tensor]:
        """Everything that an update changes in place."""
        for module in (self.model, self.behavior):
            yield from module.parameters()
            yield from module.buffers()
        for optimiser in self._optimisers.values():
            yield from optimiser.moments()

    # acting

    def initial_carry(self, num_envs: int) -> Carry:
        """State before the first row; also begins the evaluation noise anew.

        Training noise is untouched, so that evaluating never changes a training run, and two
        evaluations of the same weights draw the same noise.
        """
        self._generators["eval"].manual_seed(self.seed)
        cfg = self.cfg.model
        sizes = {"h": cfg.deter, "z": cfg.stoch * cfg.classes, "action": self.spec.action_size}
        return {k: torch.zeros(num_envs, n, device=self.device) for k, n in sizes.items()}

    @torch.no_grad()
    def act(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, *, mode: Mode = "train"
    ) -> tuple[Carry, Tensor]:
        """Filter `obs` [N, ...] and sample an action [N, A], in evaluation too (the protocol).

        Mode "greedy" takes the most probable latent and action instead. The encoder runs in eval
        mode. Continuous actions are clipped to [-1, 1].
        """
        embed = self.model.encode(obs)
        latent_noise, action_noise = self._acting_noise(is_first.shape[0], mode)
        state = self.model.rssm.filter(
            (carry["h"], carry["z"]), embed, carry["action"], is_first, latent_noise
        )
        action, _ = self.behavior.policy(self.model.features(state), action_noise)
        if not self.spec.discrete:
            action = action.clamp(-1.0, 1.0)
        return {"h": state.h, "z": state.z, "action": action}, action

    def _acting_noise(self, rows: int, mode: Mode) -> tuple[Tensor, Tensor]:
        """Noise of latent and action; greedy: that which makes every sample the mode."""
        if mode == "greedy":
            cfg, size = self.cfg.model, self.spec.action_size
            even = torch.ones(rows, cfg.stoch, cfg.classes, device=self.device)
            fill = 1.0 if self.spec.discrete else 0.0
            return even, torch.full((rows, size), fill, device=self.device)
        generator = self._generators[mode]
        latent = self.model.draw_noise(rows, generator=generator)
        return latent, self._action_noise(generator, rows)

    def _action_noise(self, generator: torch.Generator, *lead: int) -> Tensor:
        noise = torch.empty(*lead, self.spec.action_size, device=self.device)
        if self.spec.discrete:
            return noise.exponential_(generator=generator).clamp_min_(1e-20)
        return noise.normal_(generator=generator)

    # learning

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """One step of model, actor and critic on windows [B, T]; see `Agent.update`."""
        rows = {key: batch[key] for key in batch.keys()}
        shape = tuple(rows["reward"].shape)
        if shape != self.batch_shape:
            raise ValueError(
                f"batch of windows: expected {self.batch_shape}, found {shape}; batch norm and "
                "captured graphs need one fixed shape"
            )
        if self._graph is not None:
            return {key: value.clone() for key, value in self._graph(rows).items()}
        return self.learn(rows, self.draw_noise())

    def draw_noise(self) -> UpdateNoise:
        """The noise of the next update, from the update generator."""
        generator, (batch, length) = self._generators["update"], self.batch_shape
        horizon, starts = self.cfg.behavior.horizon, batch * length
        return UpdateNoise(
            self.model.draw_noise(batch, length, generator=generator),
            BehaviorNoise(
                self.model.draw_noise(horizon, starts, generator=generator),
                self._action_noise(generator, horizon, starts),
            ),
            self.model.draw_rollout_noise(batch, length, generator=generator),
        )

    def learn(self, batch: dict[str, Tensor], noise: UpdateNoise) -> dict[str, Tensor]:
        """The update as one function of batch and noise: static shapes, no host synchronisation.

        Model, actor and critic share one backward pass: their losses meet in no weight. Where loss
        or any gradient norm is not finite, weights, moments, running statistics and EMA copies
        stay as they were.
        """
        model, behavior = self.model, self.behavior
        kept = [(b, b.clone()) for b in self._running_buffers()]
        for optimiser in self._optimisers.values():
            optimiser.zero_grad()
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            window = model.window(batch, noise.posterior, train=True, rollout_noise=noise.rollout)
            losses = model.losses(batch, window)
            start = Latents(*(t.detach().flatten(0, 1) for t in window.latents))
            first = 1.0 - batch["is_terminal"].flatten().float()
            learned = behavior.losses(self.frozen, start, first, noise.behavior)
            parts = {
                "model": model.total_loss(losses),
                "actor": learned.actor.mean(),
                "critic": learned.critic.mean(),
            }
            total = parts["model"] + parts["actor"] + parts["critic"]
        total.backward()  # type: ignore[no-untyped-call]

        # step, or leave everything as it was
        norms = {name: optimiser.gradient_norm() for name, optimiser in self._optimisers.items()}
        finite = torch.isfinite(total.detach() + sum(norms.values()))
        skip = (~finite).float()
        for name, optimiser in self._optimisers.items():
            optimiser.step(norms[name], skip)
        behavior.return_low.copy_(learned.percentiles[0])
        behavior.return_high.copy_(learned.percentiles[1])
        for buffer, old in kept:
            buffer.copy_(torch.where(finite, buffer, old))
        model.update_targets((1.0 - skip) * self.cfg.model.value_ema_rate)
        behavior.update_targets((1.0 - skip) * self.cfg.behavior.slow_rate)
        metrics = {f"loss/{k}": v.detach().mean() for k, v in losses.items()}
        metrics |= {f"loss/{k}_total": v.detach() for k, v in parts.items()}
        metrics |= {f"norm/{k}": v for k, v in norms.items()}
        return metrics | learned.metrics | self._health(window) | {"nonfinite": skip}

    def _running_buffers(self) -> list[Tensor]:
        """State that a forward pass moves: batch-norm statistics and return percentiles."""
        own = [self.behavior.return_low, self.behavior.return_high]
        return [*self.model.running_buffers(), *own]

    @torch.no_grad()
    def _health(self, window: Window) -> dict[str, Tensor]:
        """Collapse diagnostics of the batch, on the device."""
        posterior = unimix(window.latents.logits, self.cfg.model.unimix)
        return {
            "health/embed_std": feature_std(window.embed),
            "health/feature_std": feature_std(window.feature),
            "health/kl": categorical_kl(posterior, window.prior_prob).mean(),
            "health/posterior_entropy": categorical_entropy(posterior).mean(),
            "health/prior_entropy": categorical_entropy(window.prior_prob).mean(),
        }

    @torch.no_grad()
    def report(self, batch: TensorDict) -> dict[str, Tensor]:
        """Diagnostics too dear for every update: collapse, and prediction under shuffled actions.

        A model that uses its actions predicts worse when they are permuted over the batch; a
        ratio near 1 betrays misaligned actions, which losses alone do not show.
        """
        rows = {key: batch[key] for key in batch.keys()}
        state = self._generators["eval"].get_state()
        noise = self.model.draw_noise(*rows["reward"].shape, generator=self._generators["eval"])
        self._generators["eval"].set_state(state)
        window = self.model.window(rows, noise)
        action = rows["action"][:, 1:]
        real = self._one_step_kl(window, action)
        found = {"health/action_shuffle_ratio": self._one_step_kl(window, action.roll(1, 0)) / real}
        return found | self._collapse(window)

    def _collapse(self, window: Window) -> dict[str, Tensor]:
        """Spread of the posteriors that the prior predicts, and of the embeddings they read."""
        posterior = unimix(window.latents.logits, self.cfg.model.unimix).flatten(0, 1)
        information = code_information(posterior)
        kl = categorical_kl(posterior, window.prior_prob.flatten(0, 1)).mean()
        found = spread(thinned(posterior.flatten(1)))
        found |= {"information": information, "loss_ratio": kl / information.clamp_min(1e-8)}
        found["embed_cosine"] = cosine_to_mean(thinned(window.embed.flatten(0, 1)))
        bn = variance_spread(self.model.encoder)
        if bn is not None:
            found["variance_spread"] = bn
        slow, value = self.model.slow_value, self.model.value
        if slow is not None and value is not None:
            found["ema_distance"] = ema_distance(slow, value)
        return {f"health/{name}": value for name, value in found.items()}

    def _one_step_kl(self, window: Window, action: Tensor) -> Tensor:
        """Mean KL [] of the posteriors from the prior that `action` [B, T-1, A] leads to."""
        latents, live = window.latents, ~window.reset[:, 1:].flatten()
        h, z = (t[:, :-1].flatten(0, 1) for t in (latents.h, latents.z))
        noise = window.exponential[:, 1:].flatten(0, 1)
        prior = self.model.rssm.imagine_step(h, z, action.flatten(0, 1), noise).logits
        share = self.cfg.model.unimix
        posterior = unimix(latents.logits[:, 1:].flatten(0, 1), share)
        return (categorical_kl(posterior, unimix(prior, share)) * live).sum() / live.sum()

    # state

    def state_dict(self) -> dict[str, Any]:
        """Weights, EMA copies, running statistics, optimisers and generators."""
        return {
            "model": dict(self.model.state_dict()),
            "behavior": dict(self.behavior.state_dict()),
            "optimisers": {k: o.state_dict() for k, o in self._optimisers.items()},
            "generators": {k: g.get_state() for k, g in self._generators.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Strict inverse of `state_dict`."""
        own = self.state_dict()
        same_keys("agent state", own, state)
        # load_state_dict alone forgives a missing batch counter
        for part in ("model", "behavior", "generators", "optimisers"):
            same_keys(part, own[part], state[part])
        self.model.load_state_dict(state["model"])
        self.behavior.load_state_dict(state["behavior"])
        for name, optimiser in self._optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        for name, generator in self._generators.items():
            restore_generator(generator, state["generators"][name])
        if self._graph is not None:  # moments were replaced: a graph would write the old ones
            self._graph = self._graphed()
