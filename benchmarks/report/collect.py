"""Records of finished runs, after everything that would make their comparison a lie is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverie.agents.configs import ConfigError
from reverie.benchmarks.report.places import find
from reverie.benchmarks.report.runs import Result, Unfinished, read

LISTED = 12
"""Lines of one kind that an error lists before it counts the rest."""


@dataclass(frozen=True)
class Study:
    """Everything that was found."""

    results: list[Result]
    unfinished: list[Unfinished] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was cut, for the reader to know."""

    def labels(self, group: str) -> list[str]:
        """Labels of a group, in the order they were found."""
        return list(dict.fromkeys(r.label for r in self.results if r.group == group))

    def groups(self) -> list[str]:
        """Groups, in alphabetical order."""
        return sorted({r.group for r in self.results})

    def tasks(self, group: str) -> list[str]:
        """Tasks of a group, in alphabetical order."""
        return sorted({r.task for r in self.results if r.group == group})

    def of(self, label: str, task: str) -> list[Result]:
        """Seeds of a label on a task, in their order."""
        found = [r for r in self.results if (r.label, r.task) == (label, task)]
        return sorted(found, key=lambda r: r.seed)


def collect(
    paths: Sequence[Path], *, without: Sequence[Path] = (), common_seeds: bool = False
) -> Study:
    """Finished runs at or below `paths`, but for those at or below `without`.

    Raises:
        ConfigError: unreadable or contradictory runs, each named; mixed protocols or budgets on a
            task; ragged seeds, unless `common_seeds` cuts them; nothing finished.
    """
    study = gather(paths, without=without)
    return _rectangular(study, cut=common_seeds)


def gather(paths: Sequence[Path], *, without: Sequence[Path] = ()) -> Study:
    """The same, whichever seeds and tasks there are."""
    problems: list[str] = [] if paths else ["expected at least one DIR"]
    left_out = [path.resolve() for path in without]
    results: list[Result] = []
    unfinished: list[Unfinished] = []
    for place in find(paths, problems):
        if any(place.run.resolve().is_relative_to(path) for path in left_out):
            continue
        found, faults = read(place)
        if faults:
            problems.append(f"{place.run}: {'; '.join(faults)}")
        elif isinstance(found, Result):
            results.append(found)
        elif found is not None:
            unfinished.append(found)
    problems += _conflicts(results)
    if not problems and not results:
        listed = [f"{u.name} is {u.state}{u.reason and f' ({u.reason})'}" for u in unfinished]
        problems.append(
            "expected finished runs, found none: " + ("; ".join(_some(listed)) or "no runs at all")
        )
    if problems:
        raise ConfigError(problems)
    return Study(results, unfinished, [f"left out: {path}" for path in without])


# all of them


def _conflicts(results: Sequence[Result]) -> list[str]:
    """Seeds that come twice, and whatever differs where it must not."""
    problems = []
    seen: dict[tuple[str, str, int], Result] = {}
    for result in results:
        key = (result.label, result.task, result.seed)
        if key in seen:
            problems.append(
                f"{result.run}: seed {result.seed} of {result.label} on {result.task} is that of "
                f"{seen[key].run} already; every run counts once, and its episodes are averaged "
                "before"
            )
        seen.setdefault(key, result)
    for task, members in _by(results, lambda r: r.task).items():
        problems += mixed(task, members)
    for (label, task), members in _by(results, lambda r: (r.label, r.task)).items():
        problems += _unequal(f"{label} on {task}", members)
    return problems


def mixed(task: str, members: Sequence[Result]) -> list[str]:
    """What differs between runs of a task although comparing them needs it equal."""
    problems = []
    for term in members[0].terms:
        kinds: dict[str, list[str]] = {}
        for member in members:
            kinds.setdefault(member.terms[term], []).append(str(member.run))
        if len(kinds) > 1:
            listed = [f"{kind} in {', '.join(_some(runs))}" for kind, runs in kinds.items()]
            problems.append(
                f"{task}: mixed {term}, which no comparison allows: {'; '.join(listed)}; report "
                "them apart, or name some in --without"
            )
    return problems


def _unequal(name: str, members: Sequence[Result]) -> list[str]:
    first, problems = members[0], []
    for other in members[1:]:
        names = sorted(
            key
            for key in first.settings.keys() | other.settings.keys()
            if first.settings.get(key) != other.settings.get(key)
        )
        if names:
            problems.append(
                f"{name}: {first.run} and {other.run} have one label but other settings "
                f"({', '.join(_some(names))}); report them apart"
            )
    return problems[:1]


def _rectangular(study: Study, *, cut: bool) -> Study:
    """The study, if every label has the same seeds of all tasks of its group; else it is cut."""
    kept: list[Result] = []
    notes, problems = list(study.notes), []
    for group in study.groups():
        members = [r for r in study.results if r.group == group]
        missing = _missing(study, study.labels(group), study.tasks(group))
        if missing and not cut:
            problems.append(
                f"{group}: ragged seeds; every label needs the same seeds of every task, missing "
                f"are {'; '.join(_some(missing))}. Finish them, or cut to what all have with "
                "--common-seeds"
            )
        common = _common(study, group, problems) if missing and cut else members
        if missing and cut:
            gone = sorted({r.task for r in members} - {r.task for r in common})
            notes.append(
                f"{group}: cut to common seeds, {len(members) - len(common)} finished runs left out"
                + (
                    f"; of all tasks, those that some label lacks: {', '.join(gone)}"
                    if gone
                    else ""
                )
            )
        kept += common
    if problems:
        raise ConfigError(problems)
    return Study(kept, study.unfinished, notes)


def _common(study: Study, group: str, problems: list[str]) -> list[Result]:
    """Runs of tasks that every label has, with seeds that the label has of all of these."""
    labels = study.labels(group)
    tasks = [t for t in study.tasks(group) if all(study.of(label, t) for label in labels)]
    kept = []
    for label in labels:
        seeds = [{r.seed for r in study.of(label, task)} for task in tasks]
        common = set.intersection(*seeds) if seeds else set()
        if not common:
            problems.append(f"{group}: {label} has no seed of all tasks that the others have")
        kept += [r for task in tasks for r in study.of(label, task) if r.seed in common]
    return kept


def _missing(study: Study, labels: Sequence[str], tasks: Sequence[str]) -> list[str]:
    found = []
    for label in labels:
        have = {task: {r.seed for r in study.of(label, task)} for task in tasks}
        every = set.union(*have.values())
        for task, seeds in have.items():
            lacking = sorted(every - seeds)
            if lacking:
                listed = ", ".join(map(str, lacking))
                found.append(f"{label} on {task}, seed{'s' * (len(lacking) > 1)} {listed}")
    return found


def _by(results: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    found: dict[Any, list[Result]] = {}
    for result in results:
        found.setdefault(key(result), []).append(result)
    return found


def _some(names: Sequence[str]) -> list[str]:
    rest = len(names) - LISTED
    return [*names[:LISTED], *([f"and {rest} more"] if rest > 0 else [])]
