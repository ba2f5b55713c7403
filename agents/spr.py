"""SPR and its relatives: a distributional Q agent that predicts its own latents.

SPR (arXiv 2007.05929), Rainbow with the same budget (predictions 0), SR-SPR (D'Oro et al. 2023)
and BBF (arXiv 2305.19452) are one class; `SPRConfig` says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from reverie.agents.capture import GraphedUpdate, require_cuda
from reverie.agents.checks import restore_generator, same_keys
from reverie.agents.interface import Carry, Mode
from reverie.agents.optim import ClippedAdam
from reverie.agents.q_learning import Learned, QLearner, Schedule, UpdateNoise
from reverie.agents.replay.priority import PriorityReplay
from reverie.agents.seeding import torch_generator, torch_seed
from reverie.agents.spr_config import SPRConfig
from reverie.agents.spr_schedule import horizon, importance_exponent, reset_due, shrink_and_perturb
from reverie.envs.specs import EnvSpec
from reverie.world_models.augment import draw_views
from reverie.world_models.collapse import cosine_to_mean
from reverie.world_models.losses import spr_loss
from reverie.world_models.monitor import ema_distance, spread, thinned, variance_spread
from reverie.world_models.ops import effective_rank, sequence_mask
from reverie.world_models.spr import SPRModel, to_planes

Compile = Literal["off", "inductor", "graph"]

LOOKED_AT = 128
"""Least number of transitions in a report."""


class SPR:
    """Acts greedily from a stack of frames, learns from prioritised transitions.

    A vector beside the image is not read.
    """

    def __init__(
        self,
        spec: EnvSpec,
        cfg: SPRConfig,
        *,
        seed: int,
        updates: int,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        compile: Compile = "off",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """`updates` is the length of the run, which schedules of weights and resets refer to."""
        assert spec.image_shape is not None and spec.discrete, spec
        self.spec, self.cfg, self.seed = spec, cfg, seed
        self.device, self.precision = torch.device(device), precision
        self.batch_size, self.total_updates, self.updates = batch_size, updates, 0
        self.model = self._fresh_model(torch_seed(seed, "weights")).to(self.device)
        self._learner = QLearner(self.model, cfg)
        self._losses = self._learner.losses
        if compile == "inductor":
            self._losses = torch.compile(self._losses, fullgraph=True, dynamic=False)
        self._optimisers = self._build_optimisers()
        self._generators = {
            name: torch_generator(seed, f"spr_{name}", device=self.device)
            for name in ("update", "eval")
        }
        # the noise that acts, and that the next update's Q target uses
        self.head_noise = self._normal(self.model.head.noise_size)
        self._schedule = Schedule(
            *(
                torch.zeros((), dtype=dtype, device=self.device)
                for dtype in (torch.int64, torch.float32, torch.float32)
            )
        )
        self._graphs = compile == "graph"
        if self._graphs:
            require_cuda(self.device)
        self._graph: GraphedUpdate | None = None
        self._graph_replay: PriorityReplay | None = None
        self._graph_batch: TensorDict | None = None

    def _fresh_model(self, seed: int) -> SPRModel:
        assert self.spec.image_shape is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SPRModel(
                self.cfg.model,
                action_size=self.spec.action_size,
                image_shape=self.spec.image_shape,
            )

    def _build_optimisers(self) -> dict[str, ClippedAdam]:
        model, optim = self.model, self.cfg.optim
        groups = {"network": [*model.encoder.parameters(), *model.head.parameters()]}
        clips = {"network": optim.clip or math.inf, "transition": optim.clip or math.inf}
        if model.transition is not None and model.predictor is not None:
            groups["transition"] = list(model.transition.parameters())
            groups["predictor"] = list(model.predictor.parameters())
        return {
            name: ClippedAdam(
                params,
                lr=optim.lr,
                eps=optim.eps,
                clip=clips.get(name, math.inf),
                weight_decay=optim.weight_decay,
                capturable=self.device.type == "cuda",
            )
            for name, params in groups.items()
        }

    # acting

    def initial_carry(self, num_envs: int) -> Carry:
        """Empty stacks; also begins the evaluation's random numbers anew."""
        self._generators["eval"].manual_seed(torch_seed(self.seed, "spr_eval"))
        assert self.spec.image_shape is not None
        shape = (num_envs, self.cfg.model.history, *self.spec.image_shape)
        return {"frames": torch.zeros(shape, dtype=torch.uint8, device=self.device)}

    @torch.no_grad()
    def act(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, *, mode: Mode = "train"
    ) -> tuple[Carry, Tensor]:
        """Greedy actions [N, A] for frames [N, H, W, C]; noisy weights in training.

        Evaluation uses mean weights and a random action with probability `epsilon_eval`; mode
        "greedy" leaves that one out.
        """
        older = carry["frames"][:, 1:].masked_fill(is_first[:, None, None, None, None], 0)
        frames = torch.cat([older, obs["image"][:, None]], 1)
        network = self.model.online if self.cfg.act_with == "online" else self.model.q_target
        latent = network.latent(to_planes(frames).float() / 255.0).flatten(1)
        logits = network.head(latent, self.head_noise if mode == "train" else None)
        index = self.model.value(logits).argmax(1)
        if mode == "eval":
            index = self._sometimes_random(index)
        action = F.one_hot(index, self.spec.action_size).float()
        return {"frames": frames}, action

    def _sometimes_random(self, index: Tensor) -> Tensor:
        rng, count = self._generators["eval"], self.spec.action_size
        other = torch.randint(0, count, index.shape, generator=rng, device=self.device)
        chance = torch.rand(index.shape, generator=rng, device=self.device)
        return torch.where(chance < self.cfg.epsilon_eval, other, index)

    # learning

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """One gradient step on transitions as `PriorityReplay.draw` gives them."""
        self._begin_update()
        learned = self.learn({k: batch[k] for k in batch.keys()}, self.draw_noise())
        learned.pop("priority")
        return learned

    def learn_from(
        self, replay: PriorityReplay, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[TensorDict, dict[str, Tensor]]:
        """Draw transitions by priority, update, and write their new priorities: all on the device.

        With compile=graph the three are one captured graph.
        """
        uniform = torch.from_numpy(rng.random(shape[0])).to(self.device, non_blocking=True)
        self._begin_update()
        if not self._graphs:
            metrics = self._draw_and_learn(replay, uniform)
        else:
            if self._graph is None or self._graph_replay is not replay:
                self._graph, self._graph_replay = self._graphed(replay), replay
            found = self._graph({"uniform": uniform})
            metrics = {key: value.clone() for key, value in found.items()}
        assert self._graph_batch is not None
        return self._graph_batch, metrics

    def _draw_and_learn(self, replay: PriorityReplay, uniform: Tensor) -> dict[str, Tensor]:
        batch = replay.draw(uniform, self._schedule.n_step)
        metrics = self.learn({k: batch[k] for k in batch.keys()}, self.draw_noise())
        replay.set_priority(batch["index"], metrics.pop("priority"))
        self._graph_batch = batch
        return metrics

    def _graphed(self, replay: PriorityReplay) -> GraphedUpdate:
        return GraphedUpdate(
            lambda inputs: self._draw_and_learn(replay, inputs["uniform"]),
            state=lambda: [*self._live_tensors(), *replay.priority_tensors()],
            generators=[self._generators["update"]],
            device=self.device,
        )

    def _begin_update(self) -> None:
        """Reset if it is time, and tell the device how far the run is."""
        cfg = self.cfg
        if reset_due(cfg.reset, self.updates, self.total_updates):
            self._reset(self.updates // cfg.reset.every)
        n_step, gamma = horizon(cfg.returns, cfg.reset, self.updates, self.total_updates)
        self._schedule.n_step.fill_(n_step)
        self._schedule.gamma.fill_(gamma)
        self._schedule.beta.fill_(
            importance_exponent(cfg.priority, self.updates, self.total_updates)
        )
        self.updates += 1

    def _reset(self, number: int) -> None:
        fresh = [self._fresh_model(torch_seed(self.seed, "reset", number, i)) for i in range(2)]
        shrink_and_perturb(self.model, *fresh, keep=self.cfg.reset.keep)
        for optimiser in self._optimisers.values():
            optimiser.restart()

    def draw_noise(self) -> UpdateNoise:
        """The noise of the next update, from the update generator."""
        views = self.batch_size * (self.cfg.model.predictions + 3)
        return UpdateNoise(
            self._normal(self.model.head.noise_size),
            draw_views(
                views,
                self.cfg.augment.shift,
                generator=self._generators["update"],
                device=self.device,
            ),
        )

    def _normal(self, size: int) -> Tensor:
        noise = torch.empty(size, device=self.device)
        return noise.normal_(generator=self._generators["update"])

    def learn(self, batch: dict[str, Tensor], noise: UpdateNoise) -> dict[str, Tensor]:
        """The update as one function of batch and noise: static shapes, no host synchronisation.

        Adds "priority" [B] to the metrics. Where loss or a gradient norm is not finite, weights,
        moments, running statistics, priorities and the Q target stay as they were; the prediction
        target's own copy moves to the weights, which are finite.
        """
        kept = [(b, b.clone()) for b in self._running_buffers()]
        for optimiser in self._optimisers.values():
            optimiser.zero_grad()
        dropout = self._generators["update"] if self.cfg.model.dropout else None
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            found: Learned = self._losses(batch, noise, self.head_noise, self._schedule, dropout)
        found.loss.backward()  # type: ignore[no-untyped-call]

        # step, or leave everything as it was
        norms = {name: optimiser.gradient_norm() for name, optimiser in self._optimisers.items()}
        finite = torch.isfinite(found.loss.detach() + sum(norms.values()))
        skip = (~finite).float()
        self.model.update_prediction_target()
        for name, optimiser in self._optimisers.items():
            optimiser.step(norms[name], skip)
        for buffer, old in kept:
            buffer.copy_(torch.where(finite, buffer, old))
        self.model.update_q_target((1.0 - skip) * self.cfg.model.q_target_rate)
        self.head_noise.copy_(noise.head)
        metrics = found.metrics | {"loss/total": found.loss.detach()}
        metrics |= {f"norm/{name}": norm for name, norm in norms.items()}
        metrics["priority"] = torch.where(finite, found.priority, batch["priority"])
        return metrics | {"nonfinite": skip}

    def _running_buffers(self) -> list[Tensor]:
        transition = self.model.transition
        return [] if transition is None else list(transition.buffers())

    def _live_tensors(self) -> Iterator[Tensor]:
        """Everything that an update changes in place."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        yield self.head_noise
        for optimiser in self._optimisers.values():
            yield from optimiser.moments()

    # looking inside

    def examine(
        self, replay: PriorityReplay, rng: np.random.Generator, shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Report on more transitions than an update draws, by a stream of its own."""
        return self.report(replay.sample(max(shape[0], LOOKED_AT), 1, rng))

    @torch.no_grad()
    def report(self, batch: TensorDict) -> dict[str, Tensor]:
        """Diagnostics too dear for every update, on unaugmented observations.

        Spread of the latents and of the targets, the prediction's loss over that of the best
        constant, and how much worse it is under actions that were permuted over the batch; near 1,
        the model ignores its actions.
        """
        model, count = self.model, self.cfg.model.predictions
        planes = to_planes(batch["image"]).float() / 255.0
        latent = model.online.latent(planes[:, 0])
        flat = thinned(latent.flatten(1))
        found = {"latent_rank": effective_rank(flat), "latent_cosine": cosine_to_mean(flat)}
        if count and model.transition is not None:
            target = F.normalize(model.target_projection(planes[:, 1:-1].flatten(0, 1)), dim=-1)
            constant = F.normalize(target.mean(0), dim=0).expand_as(target)
            target, constant = (t.view(len(latent), count, -1) for t in (target, constant))
            mask = sequence_mask(batch["is_last"][:, : count + 1])
            guesses = [
                model.predict(latent, a) for a in (batch["action"], batch["action"].roll(1, 0))
            ]
            own, other, best = (
                spr_loss(guess, target, mask).mean() for guess in (*guesses, constant)
            )
            found["action_shuffle_ratio"] = other / own
            found["loss_ratio"] = (own + 1e-12) / (best + 1e-12)
            found |= spread(thinned(target[:, 0]))
            bn = variance_spread(model.transition)
            if bn is not None:
                found["variance_spread"] = bn
            found["ema_distance"] = ema_distance(model.prediction_target.encoder, model.encoder)
        return {f"health/{name}": value for name, value in found.items()}

    # state

    def state_dict(self) -> dict[str, Any]:
        """Weights, target copies, running statistics, noise, optimisers, generators, counter."""
        return {
            "model": dict(self.model.state_dict()),
            "optimisers": {k: o.state_dict() for k, o in self._optimisers.items()},
            "generators": {k: g.get_state() for k, g in self._generators.items()},
            "head_noise": self.head_noise.clone(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Strict inverse of `state_dict`."""
        own = self.state_dict()
        same_keys("agent state", own, state)
        for part in ("model", "generators", "optimisers"):
            same_keys(part, own[part], state[part])
        self.model.load_state_dict(state["model"])
        for name, optimiser in self._optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        for name, generator in self._generators.items():
            restore_generator(generator, state["generators"][name])
        # moments were replaced: a captured graph would write the old ones
        self._graph = None
        self.head_noise.copy_(state["head_noise"])
        self.updates = int(state["updates"])
