"""What a report says, section by section."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from reverie.agents.progress import duration
from reverie.benchmarks.report.aggregate import STATISTICS, Estimate, Row, Summary
from reverie.benchmarks.report.collect import Study
from reverie.benchmarks.report.document import Block, Document, Listing, Section, Table, Text
from reverie.benchmarks.report.figures import figures
from reverie.benchmarks.report.published import (
    MAIN,
    TOLERANCE,
    Comparison,
    Method,
    human_scores,
    published,
    recompute,
)
from reverie.benchmarks.report.runs import Result
from reverie.benchmarks.stats import LEVEL, RESAMPLES

INTERVALS = (
    f"[low, high]: {100 * LEVEL:.0f} % percentile bootstrap ({RESAMPLES:,} samples) over seeds; of "
    "aggregates stratified, runs drawn anew inside each task. Too narrow for few seeds: of "
    "normally distributed scores they hold the true mean in 76 % of all cases with 3 seeds, 83 % "
    "with 5, 91 % with 10. Not corrected for the number of comparisons."
)
SINGLE = "One seed says nothing about others: no intervals for "
PRINTED = {"IQM": "iqm", "median": "median", "mean": "mean", "optimality gap": "optimality_gap"}


def document(study: Study, summaries: Sequence[Summary]) -> Document:
    """The whole report."""
    title = "Benchmark report: " + ", ".join(summary.group for summary in summaries)
    sections = [_what(study)]
    for summary in summaries:
        sections += [
            Section(f"Scores: {summary.group}", list(_scores(summary))),
            Section(f"Aggregates: {summary.group}", list(_aggregates(summary))),
            Section(f"Figures: {summary.group}", figures(summary)),
        ]
        found = published(summary)
        if found is not None:
            name = f"Published scores: {summary.group}"
            sections.append(Section(name, list(_published(summary, found))))
    if any(summary.group == "atari" for summary in summaries):
        sections.append(Section("Published aggregates, recomputed", list(_recomputed())))
    return Document(title, sections)


def number(value: float) -> str:
    """As many digits as a score deserves."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def ranged(one: Estimate, form: str = "") -> str:
    """A number and its interval."""

    def text(value: float) -> str:
        return format(value, form) if form else number(value)

    if one.low is None or one.high is None:
        return text(one.value)
    return f"{text(one.value)} [{text(one.low)}, {text(one.high)}]"


def command(made: dict[str, Any]) -> str:
    """What was typed, without the place of the run; empty where it was no command."""
    argv = made.get("argv")
    words = [str(word) for word in argv[1:]] if isinstance(argv, list) else []
    if "--run" in words:
        place = words.index("--run")
        words = words[:place] + words[place + 2 :]
    words = [word for word in words if not word.startswith("--run=")]
    return shlex.join(["reverie", *words]) if words[:1] == ["train"] else ""


def hardware(made: dict[str, Any]) -> str:
    """Processor, or graphics card, and what else decides how fast it was."""
    if not made:
        return "not recorded"
    return f"{made.get('gpu') or made.get('cpu')}, {made.get('cores')} cores"


def versions(made: dict[str, Any]) -> str:
    """Versions and commit."""
    known = made.get("versions")
    parts = [f"{k} {v}" for k, v in known.items() if v] if isinstance(known, dict) else []
    git = made.get("git")
    if isinstance(git, dict) and git.get("commit"):
        parts.append(f"commit {str(git['commit'])[:10]}{' and changes' * bool(git.get('dirty'))}")
    return ", ".join(parts) or "not recorded"


# what was run


def _what(study: Study) -> Section:
    count, labels = len(study.results), dict.fromkeys(r.label for r in study.results)
    blocks: list[Block] = [Text(f"{count} finished runs of {len(labels)} labels.")]
    rows = []
    for label in labels:
        members = [r for r in study.results if r.label == label]
        rows.append(
            [
                label,
                str(len(members)),
                command(members[0].made) or "not a command of `reverie train`",
                _several([hardware(r.made) for r in members]),
                _took(members),
                _several([str(r.made.get("promise", "unknown")) for r in members]),
            ]
        )
    columns = ("label", "runs", "command of the first", "hardware", "time of a run", "resume")
    blocks.append(Table(columns, rows, "Time: first start to end where no grid measured it."))
    blocks.append(Text(f"Versions: {_several([versions(r.made) for r in study.results])}."))
    if study.notes:
        blocks.append(Listing(study.notes))
    if study.unfinished:
        told = [[u.name, u.label, u.task, u.state, u.reason] for u in study.unfinished]
        caption = "Not finished, and counted nowhere."
        blocks.append(Table(("run", "label", "task", "state", "reason"), told, caption))
    return Section("What was run", blocks)


def _several(texts: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _took(members: Sequence[Result]) -> str:
    known = [r.seconds for r in members if r.seconds is not None]
    if not known:
        return "unknown"
    low, high = (f(known) for f in (min, max))
    return (
        duration(low) if duration(low) == duration(high) else f"{duration(low)} to {duration(high)}"
    )


# scores


def _scores(summary: Summary) -> Iterator[Block]:
    columns = ("task", "label", "mean", "seeds", "scores by seed")
    yield Table(columns, [_score(row) for row in summary.rows], INTERVALS)
    measured: dict[tuple[str, ...], list[str]] = {}
    for row in summary.rows:
        if not row.view:
            terms = (row.label, row.episodes, row.budget, row.protocol)
            measured.setdefault(terms, []).append(row.task)
    every = len(summary.tasks)
    rows = [
        [label, "all" if len(tasks) == every else ", ".join(tasks), *terms]
        for (label, *terms), tasks in measured.items()
    ]
    yield Table(("label", "tasks", "episodes", "budget", "protocol"), rows, "Final evaluations.")
    lonely = [label for label, seeds in summary.seeds.items() if len(seeds) == 1]
    if lonely:
        yield Text(SINGLE + ", ".join(lonely) + ".")


def _score(row: Row) -> list[str]:
    view = f" ({row.view})" if row.view else ""
    return [
        row.task + view + (", success" if row.metric == "success" else ""),
        row.label,
        ranged(row.mean),
        str(len(row.seeds)),
        ", ".join(f"{s}: {number(v)}" for s, v in zip(row.seeds, row.scores, strict=True)),
    ]


def _aggregates(summary: Summary) -> Iterator[Block]:
    if summary.unit is None:
        yield Text(
            f"Scores of {summary.group} have no common scale: nothing is averaged over tasks."
        )
    else:
        rows = [
            [label, str(len(summary.seeds[label])), *(ranged(found[s], ".3f") for s in STATISTICS)]
            for label, found in summary.aggregates.items()
        ]
        kind = f"{summary.unit}, {len(summary.tasks)} tasks; IQM over runs x tasks"
        yield Table(("label", "seeds", *STATISTICS), rows, kind + ". " + INTERVALS)
    if summary.pairs:
        rows = [[p.first, p.second, ranged(p.probability, ".3f")] for p in summary.pairs]
        caption = (
            "How often a run of the first scores higher than one of the second on the same task "
            "(ties: one half), averaged over tasks; 0.5: no difference. How much is not asked."
        )
        yield Table(("first", "second", "probability of improvement"), rows, caption)


# what others report


def _published(summary: Summary, found: Comparison) -> Iterator[Block]:
    if found.reasons:
        yield Text(
            "Not comparable with the runs above, which therefore stand in no table here: "
            + "; ".join(found.reasons)
            + "."
        )
    if not found.complete:
        yield Text(
            f"Mean and median of published methods are recomputed on these {len(summary.tasks)} "
            "tasks. An IQM cannot be: it needs every run."
        )
    for heading, methods in found.tables().items():
        if not methods:
            continue
        rows = [] if heading != MAIN or found.reasons else _own(summary)
        rows += [_method(method) for method in methods]
        columns = ("method", "seeds", *PRINTED, "source")
        kind = f"{summary.unit}, {len(summary.tasks)} tasks"
        apart = (
            f"{heading}: a table of its own, not to be compared with the others" if heading else ""
        )
        yield Table(columns, rows, f"{apart or 'Final agents'}. {kind}; empty: not stated.")
    if not found.reasons:
        yield from _by_task(summary, found)
    yield from _protocols(found)
    yield Listing(found.warnings)


def _own(summary: Summary) -> list[list[str]]:
    return [
        [f"{label} (here)", str(len(summary.seeds[label]))]
        + [ranged(values[name], ".3f") for name in PRINTED]
        + ["these runs"]
        for label, values in summary.aggregates.items()
    ]


def _method(method: Method) -> list[str]:
    printed = [method.statistics[key] for key in PRINTED.values()]
    return [method.name, method.seeds, *printed, method.source]


def _by_task(summary: Summary, found: Comparison) -> Iterator[Block]:
    shown = [m for m in found.methods if m.table == MAIN and m.scores]
    if not shown:
        return
    atari = summary.group == "atari"
    constants = human_scores(summary.tasks) if atari else {}
    means = {(row.task, row.label): row.mean for row in summary.rows if not row.view}
    rows = [
        [
            task,
            *(number(means[task, label].value) for label in summary.labels),
            *map(number, constants.get(task, ())),
            *(number(method.scores[task]) for method in shown),
        ]
        for task in summary.tasks
    ]
    own = [f"{label} (here)" for label in summary.labels]
    columns = ("task", *own, *(("random", "human") if atari else ()), *(m.name for m in shown))
    yield Table(columns, rows, "Raw scores, means over seeds.")


def _protocols(found: Comparison) -> Iterator[Block]:
    known = [method for method in found.methods if method.protocol]
    if known:
        names = list(known[0].protocol)
        rows = [[method.name, *method.protocol.values()] for method in known]
        caption = "How these were measured. Methods that are not listed state no protocol."
        yield Table(("method", *(name.replace("_", " ") for name in names)), rows, caption)


def _recomputed() -> Iterator[Block]:
    checks = recompute()
    odd = [check for check in checks if check.reason or not check.agrees]
    count = len({check.method for check in checks})
    agreeing = sum(check.agrees for check in checks)
    yield Text(
        f"{len(checks)} printed aggregates of {count} methods, recomputed from their scores of "
        f"each game: {agreeing} agree, to {TOLERANCE} or to the digits they are printed with. "
        "Listed are the others, and what is known to differ."
    )
    rows = [
        [c.method, c.statistic, f"{c.recomputed:.3f}", c.printed, c.reason or "unknown"]
        for c in odd
    ]
    yield Table(("method", "statistic", "recomputed", "printed", "why"), rows)
