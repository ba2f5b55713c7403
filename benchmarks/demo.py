"""`reverie demo`: train a small MuDreamer from pixels, then compare it with blind play."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from reverie.agents.evaluate import CONTROLS
from reverie.agents.flags import config_from_args
from reverie.agents.launch import launch
from reverie.agents.resolve import run_directory
from reverie.benchmarks.evaluation import (
    Results,
    as_score,
    as_table,
    load_run,
    save_results,
    score_run,
)

GOAL = 1.5
"""The demo has learned when it scores this many times the best blind control."""


def main(args: Sequence[str]) -> int:
    """Train the preset `demo`, overridden by `args`; the status is 1 if it has not learned.

    Blind controls: uniformly random actions, the zero action, and the same agent on blanked
    images. What none of them earns was learned from pixels.
    """
    console = Console()
    cfg = config_from_args(["mudreamer", "--config", "demo", *args])
    run = run_directory(cfg)
    started = time.monotonic()
    console.print(f"training {cfg.agent}-{cfg.size} on {cfg.task}; stop with Ctrl-C, the same")
    console.print(f"command continues. TensorBoard: tensorboard --logdir {run}")
    status = launch(cfg)
    if status != 0:
        return status
    minutes = (time.monotonic() - started) / 60
    trained = load_run(run)
    results = score_run(
        trained, ("none", *CONTROLS), episodes=cfg.train.eval_episodes, device=cfg.train.device
    )
    path = save_results(run, trained, results)
    console.print(as_table(trained, results))
    console.print(f"{minutes:.1f} minutes of training; all files are in {run}, scores in {path}")
    learned, verdict = judge(results)
    console.print(verdict)
    return 0 if learned else 1


def judge(results: Results) -> tuple[bool, str]:
    """Whether the agent beats the best blind control by the goal, and a sentence that says so."""
    score = results["none"]["mean"]
    name, control = max(((way, results[way]["mean"]) for way in CONTROLS), key=lambda pair: pair[1])
    # the same lead below zero, where a multiple of the control would be the easier goal
    learned = score > control and score >= control + (GOAL - 1) * abs(control)
    ratio = f"{score / control:.1f} times" if control > 0 else f"{score - control:+.3g} against"
    verb = "has learned from pixels" if learned else "has NOT learned from pixels"
    return learned, (
        f"The agent {verb}: {as_score(score)}, {ratio} the best blind control "
        f"({name}: {as_score(control)}; goal {GOAL} times)."
    )
