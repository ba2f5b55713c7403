"""The card of a finished run: what was trained, how well it does, how to do it again."""

from __future__ import annotations

import json
import math
import shlex
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.resolve import changed_settings, load
from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.jsonl import read_jsonl
from reverie.agents.runs.rundir import read_status
from reverie.benchmarks.report.places import CONFIG
from reverie.benchmarks.report.runs import number, read_json
from reverie.benchmarks.report.sections import command, hardware, versions

CARD = "card.md"
KINDS = {"dmc": ["robotics"], "metaworld": ["robotics"], "atari": ["atari"]}
"""Further tags by suite."""


def write_card(run: Path) -> Path:
    """Write card.md of a finished run: Markdown with a head in YAML, as model hubs read it.

    Raises:
        ConfigError: the run is not finished, or cannot be read or written.
    """
    status = read_status(run)
    state, evaluation = status.get("state", "unknown"), status.get("evaluation")
    if state != "done" or not isinstance(evaluation, dict):
        raise ConfigError([f"{run}: expected a finished run, found it {state}; continue it first"])
    cfg = load(run / CONFIG)
    made = read_json(run / "fingerprint.json")
    text = f"---\n{_head(cfg, run, evaluation)}---\n{_body(cfg, run, evaluation, made)}"
    path = run / CARD
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise ConfigError([f"cannot write {path}: {error}; make the folder writable"]) from error
    return path


def _name(cfg: RunConfig) -> str:
    return f"{cfg.agent}-{cfg.size}-{cfg.task.replace('/', '-')}-seed{cfg.seed}"


def _task(cfg: RunConfig) -> str:
    return cfg.task + ("" if cfg.env.distractor == "none" else f"+{cfg.env.distractor}")


def _scores(run: Path, evaluation: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean, spread over episodes and success of every evaluation, by view."""
    found = {"": {k: number(evaluation.get(k)) for k in ("mean", "std", "success")}}
    if not math.isfinite(found[""]["std"]):
        step = evaluation.get("step")
        file = run / "metrics.jsonl"
        rows = read_jsonl(file) if file.is_file() else iter(())
        for row in rows:
            if row.get("step") == step and "eval/std" in row:
                found[""]["std"] = number(row["eval/std"])
    others = evaluation.get("others")
    for view, one in others.items() if isinstance(others, dict) else ():
        found[str(view)] = {k: number(one.get(k)) for k in ("mean", "std", "success")}
    known = {
        view: {k: v for k, v in one.items() if math.isfinite(v)} for view, one in found.items()
    }
    return {view: one for view, one in known.items() if one}


def _spread(one: dict[str, float]) -> str:
    return f"{one['mean']:.2f}" + (f" +/- {one['std']:.2f}" if "std" in one else "")


def _head(cfg: RunConfig, run: Path, evaluation: dict[str, Any]) -> str:
    """YAML; texts are quoted as JSON, which YAML contains."""
    suite, task = cfg.task.partition("/")[0], _task(cfg)
    tags = ["reinforcement-learning", *KINDS.get(suite, []), suite, cfg.agent]
    metrics = []
    for view, one in _scores(run, evaluation).items():
        suffix = f" ({view})" if view else ""
        about = {"seed": cfg.seed, "episodes": evaluation.get("episodes")}
        if "mean" in one:
            metrics.append(
                {"type": "mean_reward", "value": _spread(one), "name": f"mean return{suffix}"}
                | {"args": about, "verified": False}
            )
        if "success" in one:
            metrics.append(
                {"type": "success_rate", "value": one["success"], "name": f"success{suffix}"}
                | {"args": about, "verified": False}
            )
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement learning"},
        "dataset": {"type": task, "name": task},
        "metrics": metrics,
    }
    head = {
        "license": _license().lower(),
        "library_name": "reverie",
        "tags": list(dict.fromkeys(tags)),
        "model-index": [{"name": _name(cfg), "results": [result]}],
    }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())


def _license() -> str:
    found, key = metadata("reverie"), "License-Expression"
    return found[key] if key in found else "unknown"


def _body(cfg: RunConfig, run: Path, evaluation: dict[str, Any], made: dict[str, Any]) -> str:
    try:
        settings = [f"- `{name}` = `{value}`" for name, value in changed_settings(cfg).items()]
    except ConfigError:
        settings = ["Unknown: agent or task are not of this package."]
    exact = shlex.join(["reverie", "train", cfg.agent, "--config", CONFIG, "--run", "again"])
    lines = [
        f"# {cfg.agent}, size {cfg.size}, on {_task(cfg)}",
        "",
        f"One run of reverie's `{cfg.agent}`, seed {cfg.seed}. One seed says nothing about others.",
        "",
        "| evaluation | return, mean +/- standard deviation over episodes | success |",
        "| --- | --- | --- |",
    ]
    for view, one in _scores(run, evaluation).items():
        success = f"{one['success']:.3f}" if "success" in one else "not defined"
        mean = _spread(one) if "mean" in one else "not stated"
        lines.append(f"| {view or 'final'} | {mean} | {success} |")
    typed = command(made)
    lines += [
        "",
        f"- episodes: {evaluation.get('episodes')}, at step {evaluation.get('step')}",
        f"- protocol: {evaluation.get('protocol') or 'none stated'}",
        f"- hardware: {hardware(made)}",
        f"- versions: {versions(made)}",
        f"- resume promise: {made.get('promise', 'unknown')}",
        "",
        "## Do it again",
        "",
        "```",
        *([typed] if typed else []),
        f"{exact}    # the same settings, in this folder's {CONFIG}",
        "```",
        "",
        "## Settings changed from the presets",
        "",
        *(settings or ["None."]),
        "",
        "## Licence",
        "",
        f"{_license()}, as reverie's own; tasks and demonstrations have licences of their own.",
        "",
    ]
    return "\n".join(lines)
