"""`reverie bench compare`: two sets of runs, paired by task and seed; regressions are flagged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from reverie.agents.configs import ConfigError
from reverie.agents.runs.files import write_atomic
from reverie.benchmarks.report.aggregate import UNITS, Estimate, estimate, normaliser, suite_of
from reverie.benchmarks.report.collect import Study, gather, mixed
from reverie.benchmarks.report.document import Block, Document, Listing, Section, Table, Text
from reverie.benchmarks.report.markdown import show
from reverie.benchmarks.report.runs import Result
from reverie.benchmarks.report.sections import INTERVALS, number, ranged
from reverie.benchmarks.stats import Array, bootstrap, bootstrap_mean_interval, percentile_interval

SAME, WORSE = 0, 3
"""Exit statuses: no regression is shown; at least one is."""


@dataclass(frozen=True)
class Difference:
    """B minus A, over pairs of runs; below 0 B is worse."""

    label: str
    task: str
    """Empty: over all tasks of the group, normalised."""
    group: str
    seeds: list[int]
    a: float
    b: float
    difference: Estimate
    verdict: str

    @property
    def regression(self) -> bool:
        """Whether B is worse, and its interval excludes 0."""
        return self.difference.high is not None and self.difference.high < 0.0


def main(args: Sequence[str]) -> int:
    """Compare what `args` name; returns the exit status."""
    return tyro.cli(compare, args=list(args), prog="reverie bench compare")


def compare(
    a: tyro.conf.Positional[str], b: tyro.conf.Positional[str], out: Path | None = None
) -> int:
    """Is B worse than A? Finished runs, paired by task and seed; differences are B minus A.

    Per task the mean difference and its 95 % bootstrap interval over pairs; over all tasks of a
    suite the mean of normalised differences (human-normalised, return / 1000, success), pairs
    drawn anew inside each task. Where A and B have one label each, these are compared; else labels
    of the same name. Runs without a partner are listed and left out. One pair has no interval, and
    no verdict.

    Exit status: 0 no regression shown; 3 at least one whose interval lies below 0; 2 unfit runs.
    One comparison of forty without a difference is flagged by chance.

    Args:
        a: grid, run, or folder of runs to compare with; LABEL=DIR takes one label of it.
        b: the same, of what is judged.
        out: JSON to write.
    """
    found, notes = differences(_side(a), _side(b))
    worse = [one for one in found if one.regression]
    console = Console()
    show(_document(a, b, found, notes), console)
    if out is not None:
        tree = {"a": a, "b": b, "differences": [_plain(one) for one in found], "notes": notes}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (json.dumps(tree, indent=1) + "\n").encode())
        console.print(f"wrote {out}", markup=False, highlight=False, soft_wrap=True)
    return WORSE if worse else SAME


def _side(word: str) -> Study:
    label, sign, name = word.partition("=")
    if not sign or Path(word).exists():
        return gather([Path(word)])
    study = gather([Path(name)])
    kept = [result for result in study.results if result.label == label]
    if not kept:
        known = ", ".join(dict.fromkeys(result.label for result in study.results))
        raise ConfigError([f"{word}: expected a label of {name}, one of {known}, found {label!r}"])
    return Study(kept, [one for one in study.unfinished if one.label == label], study.notes)


def differences(a: Study, b: Study) -> tuple[list[Difference], list[str]]:
    """Every difference that pairs allow, and notes on what has no partner.

    Raises:
        ConfigError: nothing can be paired, or two runs of a task were measured otherwise.
    """
    alone = _alone(a, b)
    sides = [_keyed(study, alone) for study in (a, b)]
    both = [key for key in sides[0] if key in sides[1]]
    if not both:
        listed = [
            ", ".join(sorted({f"{r.label} on {r.task}" for r in study.results})) for study in (a, b)
        ]
        raise ConfigError(
            [
                "expected runs of A and B with the same task and seed, and label where a side has "
                f"several, found {listed[0]} in A and {listed[1]} in B; LABEL=DIR chooses a label"
            ]
        )
    pairs = [(key, sides[0][key], sides[1][key]) for key in sorted(both)]
    tasks = {key[1] for key in both}
    problems = [
        problem
        for task in sorted(tasks)
        for problem in mixed(task, [r for _, *two in pairs for r in two if r.task == task])
    ]
    if problems:
        raise ConfigError(problems)
    notes = _notes(sides, a, b)
    found: list[Difference] = []
    for label in dict.fromkeys(key[0] for key, _, _ in pairs):
        own = [(x, y) for key, x, y in pairs if key[0] == label]
        for group in sorted({x.group for x, _ in own}):
            found += _group(label, group, [(x, y) for x, y in own if x.group == group])
    return found, notes


def _alone(a: Study, b: Study) -> str:
    """What a pair is called where both sides have one label; empty: by its own label."""
    left, right = (list(dict.fromkeys(r.label for r in study.results)) for study in (a, b))
    if len(left) > 1 or len(right) > 1:
        return ""
    return left[0] if left == right else f"{right[0]} - {left[0]}"


def _keyed(study: Study, alone: str) -> dict[tuple[str, str, int], Result]:
    return {(alone or r.label, r.task, r.seed): r for r in study.results}


def _notes(sides: list[dict[tuple[str, str, int], Result]], a: Study, b: Study) -> list[str]:
    left, right = sides
    notes = [
        f"only in {name}: {result.label} on {result.task}, seed {result.seed}"
        for name, side, other in (("A", left, right), ("B", right, left))
        for key, result in side.items()
        if key not in other
    ]
    notes += [
        f"{name}: {one.name} is {one.state}, left out"
        for name, study in (("A", a), ("B", b))
        for one in study.unfinished
    ]
    return notes


def _group(label: str, group: str, pairs: list[tuple[Result, Result]]) -> list[Difference]:
    """Differences on each task of a group, then over all."""
    by_task: dict[str, list[tuple[Result, Result]]] = {}
    for pair in pairs:
        by_task.setdefault(pair[0].task, []).append(pair)
    found = [_task(label, group, task, own) for task, own in by_task.items()]
    if suite_of(group) in UNITS and len(by_task) > 1:
        found.append(_over_tasks(label, group, by_task))
    return found


def _task(label: str, group: str, task: str, pairs: list[tuple[Result, Result]]) -> Difference:
    a, b = (np.array([pair[side].score for pair in pairs]) for side in (0, 1))
    interval = bootstrap_mean_interval(b - a) if len(pairs) > 1 else None
    value = estimate(float((b - a).mean()), interval)
    seeds = [x.seed for x, _ in pairs]
    means = float(a.mean()), float(b.mean())
    return Difference(label, task, group, seeds, *means, value, _verdict(value))


def _over_tasks(
    label: str, group: str, by_task: dict[str, list[tuple[Result, Result]]]
) -> Difference:
    """Mean over tasks of the mean normalised difference; tasks may have other numbers of pairs."""
    rng = np.random.default_rng(0)
    sides: list[Array] = []
    drawn: list[Array] = []
    for task, pairs in by_task.items():
        scale = normaliser(group, [task])
        a, b = (scale(np.array([[pair[side].score] for pair in pairs]))[:, 0] for side in (0, 1))
        sides.append(np.array([a.mean(), b.mean(), (b - a).mean()]))
        if len(pairs) > 1:
            drawn.append(bootstrap(b - a, rng))
    whole = len(drawn) == len(by_task)
    interval = percentile_interval(np.mean(drawn, axis=0)) if whole else None
    mean_a, mean_b, value = np.mean(sides, axis=0).tolist()
    found = estimate(value, interval)
    seeds = sorted({x.seed for pairs in by_task.values() for x, _ in pairs})
    return Difference(label, "", group, seeds, mean_a, mean_b, found, _verdict(found))


def _verdict(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return "no interval: only one pair"
    if one.low <= 0.0 <= one.high:
        return "interval contains 0"
    return "REGRESSION" if one.high < 0.0 else "better"


def _document(a: str, b: str, found: list[Difference], notes: list[str]) -> Document:
    rows = [
        [
            one.task or f"all of {one.group}, {UNITS[suite_of(one.group)]}",
            one.label,
            str(len(one.seeds)),
            number(one.a),
            number(one.b),
            ranged(one.difference),
            one.verdict,
        ]
        for one in found
    ]
    columns = ("task", "label", "seeds", "A", "B", "B - A", "verdict")
    worse = sum(one.regression for one in found)
    told = [Text(f"A: {a}"), Text(f"B: {b}")]
    told.append(Text(f"{worse or 'No'} regression{'s' * (worse > 1)} shown."))
    blocks: list[Block] = [*told, Table(columns, rows, INTERVALS)]
    blocks += [Listing(notes)] if notes else []
    return Document("Comparison", [Section("Differences by task and seed", blocks)])


def _plain(one: Difference) -> dict[str, Any]:
    return {**asdict(one), "regression": one.regression}
