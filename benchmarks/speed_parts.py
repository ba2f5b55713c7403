"""Clocks of the speed benchmark: matrix products, updates, replay, environments and worlds."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from reverie.agents.interface import Agent
from reverie.agents.replay.buffer import Replay, Storage, replay_schema
from reverie.benchmarks.counting import time_update
from reverie.envs.registry import make_vec
from reverie.envs.specs import Array, EnvSpec
from reverie.envs.torch_vector import measure

Times = dict[str, float]
"""CPU seconds of this process and wall seconds."""


def elapsed(function: Callable[[], object]) -> Times:
    """Times of one call, with all its work on the device done."""
    _wait()
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    _wait()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def spread(rows: Sequence[Times]) -> dict[str, dict[str, float]]:
    """Median and range of each entry over repeats."""
    return {key: summary([row[key] for row in rows]) for key in rows[0]}


def product_rate(
    clock: str, device: torch.device, *, rows: int = 1024, inner: int = 1024, columns: int = 1024
) -> float:
    """GFLOP per second of `clock` of a float32 product [rows, inner] x [inner, columns]."""
    left = torch.rand(rows, inner, device=device)
    right = torch.rand(inner, columns, device=device)
    gflop = 2e-9 * rows * inner * columns
    calls = max(1, round((2.0 if device.type == "cpu" else 2000.0) / gflop))

    def work() -> None:
        for _ in range(calls):
            left @ right

    work()
    return gflop * calls / float(np.median([elapsed(work)[clock] for _ in range(5)]))


def random_batch(
    spec: EnvSpec, batch: int, length: int, *, device: torch.device | str
) -> TensorDict:
    """Windows [batch, length] of noise, with one episode end in the middle of the first."""
    generator = torch.Generator().manual_seed(0)
    action = torch.rand(batch, length, spec.action_size, generator=generator) * 2 - 1
    if spec.discrete:
        action = torch.nn.functional.one_hot(action.argmax(-1), spec.action_size).float()
    flags = {k: torch.zeros(batch, length, dtype=torch.bool) for k in ("is_first", "is_last")}
    flags["is_last"][0, length // 2 - 1] = flags["is_first"][0, length // 2] = True
    rows = {
        "action": action,
        "reward": torch.rand(batch, length, generator=generator),
        **flags,
        "is_terminal": flags["is_last"].clone(),
    }
    if spec.image_shape is not None:
        shape = (batch, length, *spec.image_shape)
        rows["image"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if spec.vector_size:
        rows["vector"] = torch.rand(batch, length, spec.vector_size, generator=generator)
    return TensorDict(rows, [batch, length], device=device)


def time_updates(
    agent: Agent, batch: TensorDict, repeats: int, *, clock: str, phases: bool
) -> dict[str, Any]:
    """Repeated plain updates, each beside a measurement of the matrix-product rate.

    With `phases` as many metered updates follow each other in turn with the plain ones.
    """
    agent.update(batch)
    rates, totals, parts = [], [], []
    device = batch["reward"].device
    for _ in range(repeats):
        rates.append(product_rate(clock, device))
        totals.append(elapsed(lambda: agent.update(batch)))
        if phases:
            parts.append(time_update(agent, batch))
    result: dict[str, Any] = {"matmul_gflop_per_s": summary(rates), "update": spread(totals)}
    if phases:
        result["phases"] = {name: spread([part[name] for part in parts]) for name in parts[0]}
    return result


@contextmanager
def cold_compiler() -> Iterator[None]:
    """Begin without anything compiled earlier, neither in this process nor on the disk."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        torch._dynamo.reset()
        try:
            yield
        finally:
            torch._dynamo.reset()
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def compare_compiled(
    build: Callable[[str], Agent], batch: TensorDict, repeats: int, *, clock: str
) -> dict[str, Any]:
    """Eager, compiled and, on CUDA, captured updates in turn, and what compiling costs at first.

    `warm_first_update` is a second agent in the same process, whose kernels are on the disk.
    """
    agents = {"eager": build("off")}
    if batch["reward"].is_cuda:
        agents["graph"] = build("graph")
    for agent in agents.values():
        agent.update(batch)
    with cold_compiler():
        compiled = build("inductor")
        cold = elapsed(lambda: compiled.update(batch))
        agents["inductor"] = compiled
        rows: dict[str, list[Times]] = {name: [] for name in agents}
        for _ in range(repeats):
            for name, agent in agents.items():
                rows[name].append(elapsed(functools.partial(agent.update, batch)))
        torch._dynamo.reset()
        again = build("inductor")
        warm = elapsed(lambda: again.update(batch))
    ratios = {
        f"{name}_over_eager": summary(
            [b[clock] / a[clock] for a, b in zip(rows["eager"], other, strict=True)]
        )
        for name, other in rows.items()
        if name != "eager"
    }
    return {
        "cold_first_update": cold,
        "warm_first_update": warm,
        **{name: spread(times) for name, times in rows.items()},
        **ratios,
    }


def time_replay(
    spec: EnvSpec, batch: int, length: int, *, device: torch.device, draws: int = 100
) -> dict[str, Any]:
    """Time to draw one batch of windows, in turn with one plain copy of as many bytes.

    The ring is larger than the caches; the copy is the least that any sampler costs, and leaves
    nothing of the batch's memory in them. Afterwards as many draws follow each other alone.
    """
    slots, size = 4, max(2048, 2 * length)
    storage: Storage = "device" if device.type == "cuda" else "ram"
    replay = Replay(
        replay_schema(spec), num_envs=slots, capacity=slots * size, storage=storage, device=device
    )
    rng = np.random.default_rng(0)
    row = {
        key: rng.integers(0, 2, (slots, *shape)).astype(dtype)
        for key, (shape, dtype) in replay_schema(spec).items()
    }
    for _ in range(size):
        replay.add(row)
    for _ in range(5):
        replay.sample(batch, length, rng)
    size_of_batch = sum(v.nbytes for v in replay.sample(batch, length, rng).values())
    source = np.ones((16, size_of_batch), np.uint8)
    target = np.ones_like(source[0])
    drawing, copying = [], []
    for turn in range(draws):
        drawing.append(elapsed(lambda: replay.sample(batch, length, rng)))
        part = source[turn % len(source)]
        copying.append(elapsed(functools.partial(np.copyto, target, part)))
    times = spread(drawing)
    alone = [elapsed(lambda: replay.sample(batch, length, rng)) for _ in range(draws)]
    return {
        "rows": slots * size,
        "storage": storage,
        "sample": times,
        "sample_alone": spread(alone),
        "copy_of_as_many_bytes": spread(copying),
        "windows_per_s": batch / times["wall_s"]["median"],
    }


def time_env(task: str, num_envs: int, *, image_size: int, seconds: float = 3.0) -> dict[str, Any]:
    """Agent steps per second of a task under random actions.

    Steps per CPU second count this process alone, so there are none with worker processes.
    """
    env = make_vec(task, num_envs, seed=0, image_size=image_size)
    rng, spec = np.random.default_rng(0), env.spec

    def act() -> Array:
        if spec.discrete:
            chosen = rng.integers(0, spec.action_size, num_envs)
            return np.eye(spec.action_size, dtype=np.float32)[chosen]
        return rng.uniform(-1, 1, (num_envs, spec.action_size)).astype(np.float32)

    try:
        env.reset()
        env.step(act())
        cpu, wall, steps = time.process_time(), time.perf_counter(), 0
        while time.perf_counter() - wall < seconds:
            steps += int((~env.step(act()).is_first).sum())
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    finally:
        env.close()
    inside = num_envs == 1 or spec.task.partition("/")[0] in ("atari", "toy", "torch")
    return {
        "task": task,
        "protocol": spec.protocol,
        "num_envs": num_envs,
        "steps_per_s": steps / wall,
        "steps_per_cpu_s": steps / cpu if inside else None,
    }


def time_worlds(count: int, *, device: torch.device, image_size: int) -> dict[str, Any]:
    """World steps per second of `count` torch worlds; the share of a core they really got."""
    rates: list[float] = []
    steps = max(5, min(200, 20_000 // count))
    times = elapsed(
        lambda: rates.append(measure(count, device=str(device), image_size=image_size, steps=steps))
    )
    share = times["cpu_s"] / times["wall_s"]
    on_cpu = rates[0] / share if device.type == "cpu" else None
    return {"worlds": count, "steps_per_s": rates[0], "steps_per_cpu_s": on_cpu}
