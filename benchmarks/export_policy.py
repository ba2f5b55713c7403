"""`reverie export RUN`: a trained agent as one file that acts without this package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from reverie.agents.configs import ConfigError
from reverie.agents.devices import memory_advice
from reverie.agents.exported import acting, check, describe, export
from reverie.agents.registry import build_agent, family
from reverie.agents.resolve import with_overrides
from reverie.agents.runs.files import write_atomic
from reverie.agents.trainer import build_env
from reverie.benchmarks.evaluation import TrainedRun, load_run
from reverie.envs.registry import members

FOLDER = "export"
"""In the run directory."""


def main(args: Sequence[str]) -> int:
    """Export from command-line flags; returns the exit status."""
    return tyro.cli(show, args=list(args), prog="reverie export")


def show(
    run: tyro.conf.Positional[Path],
    checkpoint: Annotated[Literal["latest", "best"], tyro.conf.arg(aliases=["--tag"])] = "latest",
    out: Path | None = None,
    steps: int = 1000,
    device: str = "cpu",
) -> int:
    """Write a torch.export program that acts greedily, and compare it with the agent.

    Args:
        run: run directory, as training printed it.
        checkpoint: the newest one, or the one with the best evaluation during training.
        out: file to write, ending in .pt2; its description goes beside it as .json. None:
            <run>/export/<step>-<checkpoint>.pt2.
        steps: of an episode that program and agent are compared on, at most.
        device: where the program will run: cpu, cuda or cuda:N.
    """
    console = Console()
    if steps < 1:
        raise ConfigError([f"expected --steps >= 1, found {steps}"])
    trained = load_run(run, checkpoint=checkpoint)
    out = out or run / FOLDER / f"{trained.step:010d}-{checkpoint}.pt2"
    if out.suffix != ".pt2":
        raise ConfigError([f"out: expected a file that ends in .pt2, found {out.name}"])
    content, about = exported(trained, steps=steps, device=device)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, content)
    beside = out.with_suffix(".json")
    write_atomic(beside, (json.dumps(about, indent=1) + "\n").encode())
    for note in trained.notes:
        console.print(f"note: {note}")
    checked = about["checked"]
    console.print(
        f"same as the agent on {checked['random_steps']} random steps and "
        f"{checked['episode_steps']} of an episode: largest difference {checked['difference']:.2g}"
    )
    for path in (out, beside):
        console.print(f"written: {path}", soft_wrap=True)
    return 0


def exported(trained: TrainedRun, *, steps: int, device: str) -> tuple[bytes, dict[str, Any]]:
    """The checked program of a checkpoint, and its description."""
    plain = {"compile": "off", "precision": "fp32", "device": device}
    cfg = with_overrides(trained.cfg, {"train": plain})
    torch.set_num_threads(cfg.train.threads)
    first = members(cfg.task)[0]
    with memory_advice(cfg):
        env = build_env(dataclasses.replace(cfg, task=first), "eval", 1)
        try:
            agent: Any = build_agent(env.spec, cfg)
            agent.load_state_dict(trained.state)
            module = acting(agent, cfg)
            content = export(module)
            player = agent.playing(first) if family(cfg.agent) == "act_jepa" else agent
            checked = check(module, content, env, player, steps=steps, seed=cfg.seed)
        finally:
            env.close()
    return content, {"step": trained.step} | describe(module, env.spec, cfg, checked)
