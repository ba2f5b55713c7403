"""A run in words: what TensorBoard's text page says of it, and its row among others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reverie.agents.configs import RunConfig
from reverie.agents.overlays import as_tree, flatten
from reverie.agents.registry import family
from reverie.agents.resolve import changed_settings
from reverie.agents.runs.rundir import FINGERPRINT
from reverie.agents.runs.tensorboard_events import LAYOUT, Layout, Setting
from reverie.envs.registry import members

CHANGED = "changed"
"""Column with the settings that differ from the presets, as flags."""

FIRST = ("agent", "task", "size", "seed", CHANGED)
"""Columns of the HParams page that come first: it shows five until told otherwise."""

SCORES = (
    *("eval/mean", "eval/success", "episode/score", "health/alarms", "count/updates"),
    *("eval_clean/mean", "eval_train/mean", "inspect/error_last"),
)
"""Tags whose last values the HParams page shows, of every family."""

UNSHOWN = (
    *("run", "env.workers", "env.step_timeout", "demos.path", "demos.verify"),
    *("train.log_every", "train.checkpoint_every", "train.checkpoint_minutes"),
    *("train.checkpoint_keep", "train.inspect_every", "train.inspect_probe"),
    *("train.monitor", "train.monitor_every", "train.monitor_from"),
)
"""Settings that are no column: they say nothing about what is learned."""


def hparams(cfg: RunConfig) -> dict[str, Setting]:
    """Columns of the HParams page, the same for runs of all families."""
    every = flatten(as_tree(cfg)) | {CHANGED: " ".join(_flags(cfg)) or "nothing"}
    return {name: _plain(value) for name, value in every.items() if name not in UNSHOWN}


def layout(cfg: RunConfig) -> Layout:
    """TensorBoard's custom scalars without the charts that would stay empty in this run."""
    kind = family(cfg.agent)
    imitates, dreams = kind == "act_jepa", kind == "mudreamer"
    predicts = cfg.act_jepa.model.w_jepa > 0 if imitates else cfg.spr.model.predictions > 0
    predicts = predicts or dreams
    model = cfg.mudreamer.model
    guarded = predicts and (not dreams or model.enc_norm == "bn" or "value" in model.heads)
    drawn = {
        "success": imitates or cfg.task.startswith("metaworld/"),
        "training episodes": not imitates,
        "other views, tasks": cfg.env.distractor != "none" or len(members(cfg.task)) > 1,
        "imagined": dreams,
        "held out": imitates,
        "behaviour": not imitates,
        "alarms": cfg.train.monitor != "off" and cfg.train.monitor_every > 0,
        "spread": predicts or not imitates,
        "alike: cosines": predicts or not imitates,
        "directions in use": predicts or not imitates,
        "prediction loss over a constant's": predicts,
        "information": dreams,
        "use of actions": predicts and not imitates,
        "share of the first direction": predicts,
        "guards: batch norm, EMA, regulariser": guarded,
        "foresight of the features": imitates,
        "open-loop error": predicts and cfg.train.inspect_every > 0,
        "nearest stored frame": predicts and cfg.train.inspect_every > 0,
    }
    kept = {
        title: {name: tags for name, tags in charts.items() if drawn.get(name, True)}
        for title, charts in LAYOUT.items()
    }
    return {title: charts for title, charts in kept.items() if charts}


def overview(cfg: RunConfig, run_dir: Path) -> str:
    """Markdown: what the run is, how to go on with it and look into it, and what made it."""
    run, quoted = run_dir.as_posix(), shlex.quote(run_dir.as_posix())
    command = f"reverie train {cfg.agent} --config {shlex.quote(f'{run}/config.toml')}"
    unit = "updates" if family(cfg.agent) == "act_jepa" else "agent steps"
    changed = changed_settings(cfg)
    parts = [
        f"# {cfg.agent}-{cfg.size} on {cfg.task}, seed {cfg.seed}",
        f"{cfg.train.steps:,} {unit}. What the tags mean: `docs/reading_a_run.md`.",
        "**Continue**, after any interruption, by the command that began it, or by",
        _code(f"{command} --run {quoted}"),
        "**Look** at its scores again, at what it imagines, at an episode:",
        _code(*(f"reverie {verb} {quoted}" for verb in ("eval", "inspect", "play"))),
        "**Settings that differ from the presets**" + ("" if changed else ": none."),
        _table(changed) if changed else "",
        "**Made with**",
        _table(_made_with(run_dir)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def settings(cfg: RunConfig) -> str:
    """Markdown: every setting, section by section."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in flatten(as_tree(cfg)).items():
        section, _, _ = name.rpartition(".")
        tables.setdefault(section, {})[name] = value
    parts = [f"**{section or 'run'}**\n\n{_table(rows)}" for section, rows in tables.items()]
    return "\n\n".join(parts) + "\n"


def _made_with(run_dir: Path) -> dict[str, Any]:
    """The parts of the fingerprint that a reader asks for first."""
    try:
        found = json.loads((run_dir / FINGERPRINT).read_bytes())
    except (OSError, ValueError):
        return {FINGERPRINT: "unreadable"}
    versions = {name: version for name, version in found["versions"].items() if version}
    git = found.get("git") or {}
    names = ("cpu", "gpu", "cores", "threads", "host")
    commit = f"{git.get('commit', 'unknown')}{', changed' if git.get('dirty') else ''}"
    return {"commit": commit} | {
        **{name: found.get(name) for name in names if found.get(name) is not None},
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _flags(cfg: RunConfig) -> list[str]:
    changed = changed_settings(cfg)
    return [f"--{name.replace('_', '-')} {_plain(value)}" for name, value in changed.items()]


def _plain(value: Any) -> Setting:
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return " ".join(map(str, value))


def _code(*lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for name, value in rows.items():
        told = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
        lines.append(f"| `{name}` | {told.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)
