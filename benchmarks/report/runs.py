"""One run: what its files say, and whether they can be trusted."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.overlays import as_tree, flatten
from reverie.agents.registry import family
from reverie.agents.resolve import PLACE, load, run_directory
from reverie.agents.runs.rundir import read_status
from reverie.agents.trainer import MAY_DIFFER
from reverie.benchmarks.curves import Curve, curve
from reverie.benchmarks.grid.cells import GRID
from reverie.benchmarks.report.places import CONFIG, Place
from reverie.benchmarks.verify import FREE
from reverie.envs.registry import REPEATS

Metric = Literal["return", "success"]

FREE_TERMS = ("view",)
"""Parts of a protocol in which agents may differ: what they look at is their own affair."""

REMEDY = "restore the run, train it again, or name it in --without"


@dataclass(frozen=True)
class Result:
    """One finished run."""

    run: Path
    name: str
    """Path below the folder that was named."""
    label: str
    """What is compared: an arm of the grid, or agent, size and hash of changed settings."""
    task: str
    """suite/task[+distractor]."""
    seed: int
    metric: Metric
    score: float
    """Mean of the final evaluation: return of an episode, or share of solved ones."""
    views: dict[str, float]
    """The same of further evaluations, such as the training clips of a distracted task."""
    terms: dict[str, str]
    """What must agree before two scores of a task are compared."""
    settings: dict[str, Any]
    """What must agree within a label: all but seed, place, and how it is computed."""
    protocol: str
    """The whole protocol of the final evaluation, with what agents may choose."""
    curve: Curve
    """Agent steps (ACT-JEPA family: updates) and evaluations during training."""
    seconds: float | None
    made: dict[str, Any]
    """fingerprint.json: command, versions, hardware."""

    @property
    def group(self) -> str:
        """Results that are aggregated together: suite[+distractor]."""
        suite, _, rest = self.task.partition("/")
        _, sign, distractor = rest.partition("+")
        return suite + sign + distractor


@dataclass(frozen=True)
class Unfinished:
    """A run that counts nowhere yet."""

    name: str
    label: str
    task: str
    seed: int | None
    state: str
    reason: str


def read(place: Place) -> tuple[Result | Unfinished | None, list[str]]:
    """A run, or what is wrong with it."""
    status, cell = read_status(place.run), place.cell
    state = status.get("state", place.state or "unknown: no readable status.json")
    if not (place.run / CONFIG).is_file():
        if state == "done" or cell is None:
            return None, [f"finished, but without {CONFIG}; {REMEDY}"]
        found = (place.name, cell.arm, cell.task, cell.seed, place.state, place.reason)
        return Unfinished(*found), []
    try:
        cfg = load(place.run / CONFIG)
    except ConfigError as error:
        return None, [f"{CONFIG}: {problem}" for problem in error.problems]
    if cell is not None and (cell.seed, cell.task) != (cfg.seed, cfg.task):
        other = f"seed {cfg.seed} of {cfg.task}"
        return None, [f"expected seed {cell.seed} of {cell.task} as {GRID} says, found {other}"]
    label = cell.arm if cell is not None else _label(cfg)
    task = cfg.task + ("" if cfg.env.distractor == "none" else f"+{cfg.env.distractor}")
    if state != "done":
        state = place.state or state
        reason = place.reason or str(status.get("reason") or "")
        return Unfinished(place.name, label, task, cfg.seed, state, reason), []
    result, faults = _finished(place, cfg, (label, task), status)
    return result, [f"{fault}; {REMEDY}" for fault in faults]


def _label(cfg: RunConfig) -> str:
    try:
        return run_directory(dataclasses.replace(cfg, run=None)).parent.name
    except ConfigError:  # an agent or a task of one's own has no presets to differ from
        return f"{cfg.agent}-{cfg.size}"


def _finished(
    place: Place, cfg: RunConfig, names: tuple[str, str], status: dict[str, Any]
) -> tuple[Result | None, list[str]]:
    label, task = names
    said = status.get("evaluation")
    evaluation: dict[str, Any] = said if isinstance(said, dict) else {}
    metric: Metric = "success" if task.startswith("metaworld/") else "return"
    key = "success" if metric == "success" else "mean"
    score, step = number(evaluation.get(key)), number(evaluation.get("step"))
    if not math.isfinite(score):
        hint = ": train.eval_episodes is 0" if cfg.train.eval_episodes == 0 else ""
        said = evaluation.get(key)
        return None, [f"expected a finite {key} in its evaluation, found {said}{hint}"]
    if not step >= cfg.train.steps:
        at = f"at step {cfg.train.steps}, found one at step {evaluation.get('step')}"
        return None, [f"expected a final evaluation {at}"]
    values = _curve(place.run, key, step, score)
    if isinstance(values, str):
        return None, [values]
    made = read_json(place.run / "fingerprint.json")
    result = Result(
        run=place.run,
        name=place.name,
        label=label,
        task=task,
        seed=cfg.seed,
        metric=metric,
        score=score,
        views=_views(status, evaluation, key),
        terms=_terms(cfg, evaluation, metric),
        settings=_settings(cfg),
        protocol=str(evaluation.get("protocol") or "none stated"),
        curve=values,
        seconds=_seconds(status, made) if place.seconds is None else place.seconds,
        made=made,
    )
    return result, []


def _curve(run: Path, key: str, step: float, score: float) -> Curve | str:
    """Evaluations during training, or why metrics.jsonl cannot be trusted."""
    file = run / "metrics.jsonl"
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        return f"metrics.jsonl cannot be read ({error})"
    for number, line in enumerate(lines, 1):
        if line.strip() and not _is_record(line):
            return f"metrics.jsonl is corrupt: line {number} of {len(lines)} is no JSON record"
    try:
        steps, values = curve(run, f"eval/{key}")
    except ConfigError:
        return f"metrics.jsonl holds no finite eval/{key}"
    last = values[steps == step]
    if not len(last) or not math.isclose(last[0], score, rel_tol=1e-6, abs_tol=1e-6):
        said = f"{last[0]:g}" if len(last) else "nothing"
        return (
            f"status.json says eval/{key} {score:g} at step {step:g}, metrics.jsonl says {said}: "
            "one of them is corrupt"
        )
    return steps, values


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _views(status: dict[str, Any], evaluation: dict[str, Any], key: str) -> dict[str, float]:
    """Scores of the evaluations besides the one that counts."""
    found: dict[str, float] = {}
    for more in (evaluation.get("others"), status.get("evaluations")):
        for name, one in (more or {}).items() if isinstance(more, dict) else ():
            value = number(one.get(key)) if isinstance(one, dict) else math.nan
            if math.isfinite(value):
                found[str(name)] = value
    return found


def _terms(cfg: RunConfig, evaluation: dict[str, Any], metric: Metric) -> dict[str, str]:
    parts = str(evaluation.get("protocol") or "").split(",")
    kept = [part for part in parts if part and part.partition("=")[0] not in FREE_TERMS]
    unit = "updates" if family(cfg.agent) == "act_jepa" else "agent steps"
    repeat, limit = cfg.env.action_repeat, cfg.env.time_limit
    return {
        "protocol": ",".join(kept) or "none stated",
        "metric": metric,
        "episodes": str(evaluation.get("episodes")),
        "budget": f"{cfg.train.steps:,} {unit}",
        "action repeat": str(
            REPEATS.get(cfg.task.partition("/")[0], 1) if repeat is None else repeat
        ),
        "time limit": "of the suite" if limit is None else str(limit),
    }


def _settings(cfg: RunConfig) -> dict[str, Any]:
    free = {*PLACE, *FREE, *MAY_DIFFER, "task"}
    return {k: v for k, v in flatten(as_tree(cfg)).items() if k not in free}


def _seconds(status: dict[str, Any], made: dict[str, Any]) -> float | None:
    """From the first start to the end, pauses included."""
    earlier = made.get("earlier")
    first = earlier[0] if isinstance(earlier, list) and earlier else made
    begun, ended = (number(one.get("time")) for one in (first, status))
    return ended - begun if math.isfinite(ended - begun) else None


def read_json(path: Path) -> dict[str, Any]:
    """Object in a file; {} if there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float:
    """`value`, or NaN where it is none."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known else math.nan
