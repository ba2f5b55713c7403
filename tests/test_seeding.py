"""One seed tree: different seeds differ everywhere, equal seeds nowhere."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import pytest
import torch

from reverie.agents.checks import restore_generator
from reverie.agents.registry import build_agent
from reverie.agents.replay.buffer import Replay, replay_schema
from reverie.agents.resolve import resolve
from reverie.agents.seeding import seed_sequence, stream, torch_generator, torch_seed
from reverie.agents.trainer import build_env


def test_trap_15_streams_are_functions_of_their_keys() -> None:
    draw = {
        key: tuple(stream(*key).integers(0, 2**62, 4))
        for key in [
            *((0, "replay", i) for i in range(3)),
            *((0, "prefill", i) for i in range(3)),
            (1, "replay", 0),
            (0, "replay"),
            (0, "replay", 0, 0),
        ]
    }
    assert len(set(draw.values())) == len(draw)
    for key, values in draw.items():
        assert tuple(stream(*key).integers(0, 2**62, 4)) == values
    assert torch_seed(0, "weights") != torch_seed(1, "weights")
    first = torch.rand(3, generator=torch_generator(3, "imagination"))
    assert torch.equal(first, torch.rand(3, generator=torch_generator(3, "imagination")))
    with pytest.raises(ValueError, match="at least 0"):
        stream(-1, "x")


def test_trap_15_streams_stay_clear_of_the_environments() -> None:
    def env_words(purpose: int) -> tuple[int, ...]:
        return tuple(np.random.SeedSequence([0, purpose, 0, 0]).generate_state(4))

    theirs = {env_words(purpose) for purpose in range(8)}
    ours = {tuple(seed_sequence(0, name, 0, 0).generate_state(4)) for name in ("train", "eval")}
    assert len(ours | theirs) == 10


def digest(arrays: Any) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def starts(seed: int, purpose: Literal["train", "eval"]) -> list[str]:
    cfg = resolve({"task": "toy/dot", "seed": seed, "env": {"num_envs": 3}}, configs=["debug"])
    env = build_env(cfg, purpose, 3)
    try:
        first = env.reset()
        return [digest([first.obs["image"][slot]]) for slot in range(3)]
    finally:
        env.close()


def leaves(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [leaf for value in inner for leaf in leaves(value)]


def weights(seed: int) -> str:
    cfg = resolve({"task": "toy/dot", "seed": seed}, configs=["debug"])
    env = build_env(cfg, "train", 1)
    try:
        return digest(leaf.numpy() for leaf in leaves(build_agent(env.spec, cfg).state_dict()))
    finally:
        env.close()


def draws(seed: int) -> str:
    cfg = resolve({"task": "toy/dot", "seed": seed}, configs=["debug"])
    env = build_env(cfg, "train", 1)
    schema = replay_schema(env.spec)
    env.close()
    replay = Replay(schema, num_envs=1, capacity=100)
    for step in range(60):
        rows = {key: np.zeros((1, *shape), dtype) for key, (shape, dtype) in schema.items()}
        rows["reward"][:] = step
        replay.add(rows)
    batch = replay.sample(4, 5, stream(seed, "replay", 0))
    return digest([batch["reward"].numpy()])


def test_trap_15_seeds_change_replay_draws_env_starts_and_weights() -> None:
    for parts in (draws, weights, lambda seed: digest([starts(seed, "train")])):
        assert parts(1) == parts(1)
        assert parts(1) != parts(2)


def test_trap_15_evaluation_never_starts_where_training_does() -> None:
    groups = [starts(0, "train"), starts(0, "eval"), starts(1, "train"), starts(1, "eval")]
    flat = [start for group in groups for start in group]
    assert len(set(flat)) == len(flat)


def test_fault_20_a_stream_of_another_device_begins_anew_by_its_state() -> None:
    own = torch.Generator().manual_seed(3)
    kept = torch.Generator().manual_seed(9)
    restore_generator(kept, own.get_state())
    assert torch.equal(torch.rand(4, generator=kept), torch.rand(4, generator=own))
    # a CUDA generator saves 16 bytes: seed and offset
    foreign = [torch.arange(16, dtype=torch.uint8) + shift for shift in (0, 0, 1)]
    draws = []
    for state in foreign:
        restore_generator(kept, state)
        draws.append(torch.rand(4, generator=kept))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
