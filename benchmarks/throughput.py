"""`reverie bench speed`: what an update costs and needs, and how fast everything around it is."""

from __future__ import annotations

import functools
import json
import os
import resource
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from tensordict import TensorDict

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.devices import memory_advice, resolve_device
from reverie.agents.interface import Agent
from reverie.agents.registry import build_agent, family
from reverie.agents.resolve import resolve
from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.fingerprint import fingerprint
from reverie.benchmarks.counting import count_update
from reverie.benchmarks.speed_parts import (
    compare_compiled,
    product_rate,
    random_batch,
    time_env,
    time_replay,
    time_updates,
    time_worlds,
)
from reverie.benchmarks.speed_report import tables
from reverie.benchmarks.speed_spr import (
    EPISODE,
    FromReplay,
    needed_gflop,
    random_transitions,
    time_transitions,
)
from reverie.envs.specs import EnvSpec


@dataclass(frozen=True)
class SpeedOptions:
    """Measure one update on random data, replay, environments and batched worlds."""

    agent: str = "mudreamer"
    """Name of the agent, as `reverie tasks` lists them."""
    size: str = "S"
    """Size preset."""
    batch: int | None = None
    """B: windows or transitions per update; none: the agent's preset."""
    length: int | None = None
    """T: rows per window; none: the agent's preset."""
    frames: int = 100_000
    """Rows of the replay of an SPR agent; the default is a whole Atari 100k run."""
    image_size: int | None = None
    """Height and width of the images; none: the agent's preset."""
    actions: int = 6
    """Number of discrete actions, or of continuous dimensions."""
    continuous: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continuous actions, which train the actor through the dynamics."""
    compile: Literal["off", "inductor", "graph"] = "off"
    """How the timed updates run; arithmetic and kernels are always counted in eager mode."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 1
    """CPU threads of torch."""
    repeats: int = 5
    """Timed updates; medians and ranges are reported."""
    compare: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also run eager and compiled updates in turn, and time a cold compilation."""
    task: tuple[str, ...] = ("toy/dot",)
    """Tasks whose environments are stepped with random actions; may be empty."""
    num_envs: int = 1
    """Environments stepped at once."""
    worlds: tuple[int, ...] = (16, 256, 4096)
    """Numbers of batched torch worlds; may be empty."""
    out: Path | None = None
    """File that gets all results as JSON."""


def main(args: Sequence[str]) -> int:
    """Measure what the command line asks for and print it; the status is 0."""
    options = tyro.cli(SpeedOptions, args=list(args), prog="reverie bench speed")
    results = {"command": shlex.join(["reverie", "bench", "speed", *args]), **measure_all(options)}
    console = Console()
    for table in tables(results):
        console.print(table)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, (json.dumps(results, indent=1) + "\n").encode())
        console.print(f"written to {options.out}")
    return 0


def settings(options: SpeedOptions) -> tuple[RunConfig, EnvSpec]:
    """Configuration and task sizes that the agent of a measurement is built with.

    Raises:
        ConfigError: unknown names, or numbers that cannot work.
    """
    least = {"repeats": 1, "actions": 1, "num_envs": 1}
    least |= {"frames": EPISODE} if family(options.agent) == "spr" else {"length": 4}
    given = {name: getattr(options, name) for name in least}
    small = [
        f"--{name}: expected at least {bound}, found {given[name]}"
        for name, bound in least.items()
        if given[name] is not None and given[name] < bound
    ]
    if small:
        raise ConfigError(small)
    device = resolve_device(options.device)
    train = {
        "batch_size": options.batch,
        "batch_length": options.length,
        "prefill": max(2000, options.length or 0),
        "threads": options.threads,
        "device": str(device) if device.type == "cuda" else options.device,
        "compile": options.compile,
        "precision": options.precision,
    }
    env = {"image_size": options.image_size, "num_envs": 1}
    sections: dict[str, dict[str, Any]] = {"env": env, "train": train}
    chosen = {k: {n: v for n, v in s.items() if v is not None} for k, s in sections.items()}
    cfg = resolve({"agent": options.agent, "size": options.size, **chosen})
    side, channels = cfg.env.image_size, 1 if family(options.agent) == "spr" else 3
    spec = EnvSpec("bench/random", options.actions, not options.continuous, (side, side, channels))
    return cfg, spec


def build(cfg: RunConfig, spec: EnvSpec, compile_mode: str) -> Agent:
    """A fresh agent with another compile mode."""
    train = replace(cfg.train, compile=compile_mode)  # type: ignore[arg-type]
    return build_agent(spec, replace(cfg, train=train))


def _itself(agent: Agent) -> Agent:
    return agent


def measure_all(options: SpeedOptions) -> dict[str, Any]:
    """Every result as JSON values."""
    cfg, spec = settings(options)
    torch.set_num_threads(cfg.train.threads)
    device = resolve_device(cfg.train.device)
    load = os.getloadavg()
    rows, length, side = cfg.train.batch_size, cfg.train.batch_length, cfg.env.image_size
    shown = asdict(replace(options, batch=rows, length=length, image_size=side))
    results: dict[str, Any] = {"options": json.loads(json.dumps(shown, default=str))}
    whole: Callable[[Agent], Any] = _itself
    if family(cfg.agent) == "spr":
        replay = random_transitions(cfg, spec, device=device, frames=options.frames)
        batch = replay.sample(rows, 1, np.random.default_rng(0))
        results["replay"] = time_transitions(replay, rows)
        results["needed_gflop"] = needed_gflop(cfg, spec)
        whole = functools.partial(FromReplay, replay=replay, rows=rows)
    else:
        batch = random_batch(spec, rows, length, device=device)
        results["replay"] = time_replay(spec, rows, length, device=device)
    with memory_advice(cfg):
        results |= measure_update(options, cfg, spec, batch, whole)
    results["environments"] = [
        time_env(task, options.num_envs, image_size=side) for task in options.task
    ]
    results["worlds"] = [
        time_worlds(count, device=device, image_size=side) for count in options.worlds
    ]
    results["load_average"] = {"before": load, "after": os.getloadavg()}
    # names of machines and folders say nothing about speed
    kept = {k: v for k, v in fingerprint().items() if k not in ("host", "argv")}
    results["fingerprint"] = kept
    return results


def measure_update(
    options: SpeedOptions,
    cfg: RunConfig,
    spec: EnvSpec,
    batch: TensorDict,
    whole: Callable[[Agent], Any],
) -> dict[str, Any]:
    """Counts and times of one update; `clock` is the one that the device is judged by.

    `whole` makes an agent's update all that the trainer does for one.
    """
    device = torch.device(batch["reward"].device)
    clock = "cpu_s" if device.type == "cpu" else "wall_s"
    eager = whole(build(cfg, spec, "off"))
    counts = count_update(eager, batch)
    agent = eager if options.compile == "off" else whole(build(cfg, spec, options.compile))
    phases = options.compile != "graph"
    timed = time_updates(agent, batch, options.repeats, clock=clock, phases=phases)
    results: dict[str, Any] = {"clock": clock, "counts": counts, **timed}
    if family(cfg.agent) == "mudreamer":
        model, rows = cfg.mudreamer.model, cfg.train.batch_size
        shape = {"rows": rows, "inner": model.units + model.deter, "columns": 3 * model.deter}
        results["scan_product"] = {**shape, "gflop_per_s": product_rate(clock, device, **shape)}
    results["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, rate = timed["update"][clock]["median"], timed["matmul_gflop_per_s"]["median"]
    results["matmul_fraction"] = counts["total"]["gflop"] / seconds / rate
    if options.compare:
        results["compare"] = compare_compiled(
            lambda mode: whole(build(cfg, spec, mode)), batch, options.repeats, clock=clock
        )
    return results
