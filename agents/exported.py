"""A trained agent as a program of tensors alone: it acts without this package, greedily."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.agents.evaluate import EvaluationStopped, evaluate
from reverie.agents.interface import Carry, Mode, Player
from reverie.agents.registry import family

if TYPE_CHECKING:
    from reverie.agents.act_jepa import ACTJEPA
    from reverie.agents.configs import RunConfig
    from reverie.agents.mudreamer import MuDreamer
    from reverie.agents.spr import SPR
    from reverie.envs.specs import EnvSpec, VecEnv

TOLERANCE = 1e-4
"""Largest difference to the agent: the same kernels run, on other numbers of rows at most."""

RANDOM_ROWS, RANDOM_STEPS = 3, 40
MOST_ROWS = 65_536
"""Rows that the program takes at once."""


class ExportError(RuntimeError):
    """A program that does not do what its agent does; nothing was written."""


class Checked(NamedTuple):
    """What a program was compared with its agent on."""

    random_steps: int
    """Steps on random observations, `RANDOM_ROWS` rows each."""
    episode_steps: int
    difference: float
    """Largest, of all actions and all entries of the carry."""
    score: float | None
    """Of the episode; None: it was longer than what was played of it."""


class Acting(nn.Module):
    """`Player.act` on flat tensors: (*carry, *observations, is_first) -> (*carry, action)."""

    def __init__(self, player: Player, parts: Mapping[str, nn.Module], inputs: tuple[str, ...]):
        """Only `parts`, the modules that acting uses, become weights of the program."""
        super().__init__()
        self.player, self.inputs = player, inputs
        for name, part in parts.items():
            self.add_module(name, part)
        self.carried = tuple(player.initial_carry(1))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One step of N slots."""
        carry, obs = named(tensors, self.carried, self.inputs)
        carry, action = self.step(carry, obs, tensors[-1])
        return (*(carry[name] for name in self.carried), action)

    def step(self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor) -> tuple[Carry, Tensor]:
        """The agent's own code."""
        return self.player.act(carry, obs, is_first, mode="greedy")


class ActingInChunks(Acting):
    """The same for played chunks, whose agent predicts only where a plan is used up.

    Which rows those are is no matter of shapes: the program predicts all and keeps the due ones.
    """

    def __init__(self, agent: ACTJEPA, inputs: tuple[str, ...]):
        model = agent.model
        super().__init__(agent, {"encoder": model.encoder, "policy": model.policy}, inputs)
        self.agent = agent

    def step(self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor) -> tuple[Carry, Tensor]:
        """As `next_action`, for every row."""
        age = carry["age"].masked_fill(is_first, self.agent.execute)
        due = age >= self.agent.execute
        fresh = self.agent.predict_chunk(obs, carry["task"])
        plan = torch.where(due[:, None, None], fresh, carry["plan"])
        age = age.masked_fill(due, 0)
        raw = plan.gather(1, age[:, None, None].expand(-1, 1, plan.shape[-1])).squeeze(1)
        if self.agent.spec.discrete:
            action = F.one_hot(raw.argmax(-1), self.agent.spec.action_size).float()
        else:
            action = raw.clamp(-1.0, 1.0)
        return {**carry, "plan": plan, "age": age + 1}, action


def acting(agent: Any, cfg: RunConfig) -> Acting:
    """The module that is exported for an agent of any family."""
    kind, spec = family(cfg.agent), agent.spec
    seen = [] if spec.image_shape is None else ["image"]
    seen += ["vector"] if spec.vector_size else []
    if kind == "mudreamer":
        dreamer: MuDreamer = agent
        parts: dict[str, nn.Module] = {
            "encoder": dreamer.model.encoder,
            "rssm": dreamer.model.rssm,
            "actor": dreamer.behavior.actor,
        }
        return Acting(dreamer, parts, tuple(seen))
    if kind == "spr":
        spr: SPR = agent
        network = spr.model.online if cfg.spr.act_with == "online" else spr.model.q_target
        return Acting(spr, {"encoder": network.encoder, "head": network.head}, ("image",))
    imitator: ACTJEPA = agent
    names = imitator.cfg.model.inputs
    read = {"image": "image" in names, "vector": bool({"proprio", "state"} & set(names))}
    inputs = tuple(name for name in seen if read[name])
    if imitator.cfg.ensemble is None:
        return ActingInChunks(imitator, inputs)
    model = imitator.model
    return Acting(imitator, {"encoder": model.encoder, "policy": model.policy}, inputs)


def named(
    tensors: tuple[Tensor, ...], carried: tuple[str, ...], inputs: tuple[str, ...]
) -> tuple[Carry, dict[str, Tensor]]:
    """Carry and observations of a program's inputs."""
    carry = dict(zip(carried, tensors, strict=False))
    obs = dict(zip(inputs, tensors[len(carried) :], strict=False))
    return carry, obs


def export(module: Acting) -> bytes:
    """The program as a .pt2 file, for any number of rows."""
    args = example(module, 2)
    rows = torch.export.Dim("N", min=1, max=MOST_ROWS)
    with _without_gradient(module), torch.no_grad():
        program = torch.export.export(
            module, args, dynamic_shapes=(tuple({0: rows} for _ in args),), strict=False
        )
        file = io.BytesIO()
        torch.export.save(program, file)
    return file.getvalue()


@contextmanager
def _without_gradient(module: nn.Module) -> Iterator[None]:
    """Inside, weights ask for none; those of a program keep what they asked for at export.

    Else every step of a loop would hold on to all the steps before it.
    """
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def example(module: Acting, rows: int) -> tuple[Tensor, ...]:
    """Inputs [rows, ...] of a first step, all observations zero."""
    carry = module.player.initial_carry(rows)
    device = next(iter(carry.values())).device
    obs = _random_observations(module, rows, torch.Generator().manual_seed(0), device)
    seen = (torch.zeros_like(obs[name]) for name in module.inputs)
    return (*carry.values(), *seen, torch.ones(rows, dtype=torch.bool, device=device))


def _random_observations(
    module: Acting, rows: int, rng: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    spec: EnvSpec = module.player.spec  # type: ignore[attr-defined]
    obs = {}
    for name in module.inputs:
        if name == "image":
            assert spec.image_shape is not None
            shape = (rows, *spec.image_shape)
            obs[name] = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8).to(device)
        else:
            obs[name] = torch.randn(rows, spec.vector_size, generator=rng).to(device)
    return obs


# the check


class Compared:
    """An agent that acts greedily beside the program that was made of it."""

    def __init__(self, module: Acting, player: Player, content: bytes) -> None:
        """`player` is the module's own, or that on one of its tasks."""
        self._program = torch.export.load(io.BytesIO(content)).module()
        self._player, self._carried, self._inputs = player, module.carried, module.inputs
        self._own: tuple[Tensor, ...] = ()
        self.difference, self.steps = 0.0, 0

    def initial_carry(self, num_envs: int) -> Carry:
        """The agent's; the program begins with the same."""
        carry = self._player.initial_carry(num_envs)
        self.begin(carry)
        return carry

    def begin(self, carry: Carry) -> None:
        """Let the program go on from `carry`."""
        self._own = tuple(carry[name] for name in self._carried)

    def act(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, *, mode: Mode = "greedy"
    ) -> tuple[Carry, Tensor]:
        """The agent's greedy action, in any mode; the program has a carry of its own."""
        seen = [obs[name] for name in self._inputs]
        *own, guess = self._program(*self._own, *seen, is_first)
        self._own = tuple(own)
        carry, action = self._player.act(carry, obs, is_first, mode="greedy")
        pairs = [(carry[name], value) for name, value in zip(self._carried, own, strict=True)]
        for expected, found in [*pairs, (action, guess)]:
            if expected.shape != found.shape or expected.dtype != found.dtype:
                raise ExportError(
                    f"the program returned {found.dtype} {tuple(found.shape)} for the agent's "
                    f"{expected.dtype} {tuple(expected.shape)}; report it with the run's config"
                )
            gap = float((expected.double() - found.double()).abs().max())
            # a comparison with NaN is false: it must not pass for equal
            self.difference = gap if not gap <= self.difference else self.difference
        self.steps += 1
        return carry, action


def check(
    module: Acting, content: bytes, env: VecEnv, player: Player, *, steps: int, seed: int
) -> Checked:
    """Compare a program with its agent on random observations and along an episode of `player`.

    Raises:
        ExportError: they differ by more than `TOLERANCE`.
    """
    random = _check_random(module, content, seed)
    along, score = Compared(module, player, content), None
    try:
        played = evaluate(
            along,
            env,
            episodes=1,
            seed=seed,
            device=_device(player),
            stop=lambda: along.steps >= steps,
        )
        score = played["mean"]
    except EvaluationStopped:
        pass  # long episodes are compared in part
    found = Checked(random.steps, along.steps, max(random.difference, along.difference), score)
    for name, one in (("random observations", random), ("an episode", along)):
        if not one.difference <= TOLERANCE:
            raise ExportError(
                f"program and agent differ by {one.difference:.3g} on {name}, expected at most "
                f"{TOLERANCE:g}; nothing was written. Try --device cpu, or another torch"
            )
    return found


def _check_random(module: Acting, content: bytes, seed: int) -> Compared:
    both = Compared(module, module.player, content)
    carry = both.initial_carry(RANDOM_ROWS)
    if "task" in carry:
        count = len(module.player.tasks)  # type: ignore[attr-defined]
        carry["task"] = torch.arange(RANDOM_ROWS, device=carry["task"].device) % count
        both.begin(carry)
    rng = torch.Generator().manual_seed(seed)
    device = _device(module.player)
    for step in range(RANDOM_STEPS):
        is_first = torch.rand(RANDOM_ROWS, generator=rng) < (0.1 if step else 1.1)
        obs = _random_observations(module, RANDOM_ROWS, rng, device)
        carry, _ = both.act(carry, obs, is_first.to(device))
    return both


def _device(player: Player) -> torch.device:
    return next(iter(player.initial_carry(1).values())).device


# the description


def describe(module: Acting, spec: EnvSpec, cfg: RunConfig, checked: Checked) -> dict[str, Any]:
    """What a program's user has to know, as JSON."""
    carry = module.player.initial_carry(1)
    rng = torch.Generator().manual_seed(0)
    obs = _random_observations(module, 1, rng, torch.device("cpu"))
    inputs = [
        _entry(name, "carry", value) | {"initial": value.flatten()[0].item()}
        for name, value in carry.items()
    ]
    inputs += [_entry(name, "observation", value) for name, value in obs.items()]
    inputs.append({"name": "is_first", "role": "is_first", "shape": ["N"], "dtype": "bool"})
    action = torch.zeros(1, spec.action_size)
    outputs = [_entry(name, "carry", value) for name, value in carry.items()]
    tasks = {"tasks": list(module.player.tasks)} if "task" in carry else {}  # type: ignore[attr-defined]
    return {
        "inputs": inputs,
        "outputs": [*outputs, _entry("action", "action", action)],
        "action": {
            "kind": "one-hot" if spec.discrete else "continuous in [-1, 1]",
            "repeat": spec.action_repeat,
        },
        "acts": "greedily: the most probable latent and action, mean weights",
        "agent": cfg.agent,
        "size": cfg.size,
        "task": cfg.task,
        **tasks,
        "protocol": spec.protocol,
        "seed": cfg.seed,
        "device": str(_device(module.player)),
        "versions": {n: importlib.metadata.version(n) for n in ("reverie", "torch")},
        "checked": checked._asdict() | {"tolerance": TOLERANCE},
    }


def _entry(name: str, role: str, value: Tensor) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    return {"name": name, "role": role, "shape": ["N", *value.shape[1:]], "dtype": dtype}
