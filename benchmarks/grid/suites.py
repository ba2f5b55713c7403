"""Suites: which arms play which tasks, with how many seeds; TOML files that anyone can write."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverie.agents.configs import ConfigError
from reverie.agents.flags import SHORT, split_flags
from reverie.agents.registry import AGENTS
from reverie.envs.registry import TASK_SETS, make_vec, require_known, tasks
from reverie.envs.specs import EnvError

SUITES = Path(__file__).parents[1] / "suites"
"""Folder of the packaged suites."""

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""What an arm may be called: its name becomes a folder."""


@dataclass(frozen=True)
class Suite:
    """A comparison: arms x tasks x seeds, and what all runs share."""

    name: str
    summary: str
    tasks: tuple[str, ...]
    seeds: int
    """Runs of each arm on each task, unless asked otherwise."""
    settings: tuple[str, ...]
    """Words of `reverie train` for every run."""
    arms: Mapping[str, tuple[str, ...]]
    """Label -> agent and further words, which win over `settings`."""
    default: tuple[str, ...]
    """Arms that run unless asked otherwise."""


def suite_names() -> list[str]:
    """Names of all packaged suites."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """A packaged suite by its name, or one of your own by the path of its file.

    Raises:
        ConfigError: there is none, or it says something that cannot be.
    """
    path = SUITES / f"{name}.toml" if name in suite_names() else Path(name)
    if path.suffix != ".toml":
        raise ConfigError([unknown("suite", name, suite_names(), "or the path of a TOML file")])
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([f"suite {name}: cannot be read: {error}"]) from error
    problems = list(_problems(tree))
    if problems:
        raise ConfigError([f"suite {name}: {problem}" for problem in problems])
    return Suite(
        name=path.stem,
        summary=tree["summary"],
        tasks=tuple(tree["tasks"]),
        seeds=tree["seeds"],
        settings=tuple(tree.get("settings", ())),
        arms={label: tuple(words) for label, words in tree["arms"].items()},
        default=tuple(tree.get("default", tree["arms"])),
    )


def _problems(tree: Mapping[str, Any]) -> Iterable[str]:
    known = ("summary", "tasks", "seeds", "settings", "default", "arms")
    yield from (unknown("key", key, known) for key in tree if key not in known)
    if not isinstance(tree.get("summary"), str):
        yield "summary: expected a sentence"
    for key in ("tasks", "settings", "default"):
        needed = key == "tasks"
        if (needed or key in tree) and not _texts(tree.get(key), empty=not needed):
            yield f"{key}: expected a list of texts, found {tree.get(key)!r}"
    if _texts(tree.get("tasks"), empty=False):
        # here, because a cell with such a task would fail, be tried again, and fail again
        names = [name for name in dict.fromkeys(tree["tasks"]) if not is_task(name)]
        yield from (unknown_task(name, "tasks that `reverie tasks` lists") for name in names)
    seeds = tree.get("seeds")
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        yield f"seeds: expected a number of runs, 1 or more, found {seeds!r}"
    yield from _arm_problems(tree)


def _arm_problems(tree: Mapping[str, Any]) -> Iterable[str]:
    arms = tree.get("arms")
    if not isinstance(arms, dict) or not arms:
        yield f"arms: expected a table of one or more, found {arms!r}"
        return
    for label, words in arms.items():
        if not LABEL.fullmatch(label):
            yield f"arms: expected letters, digits, '.', '_', '+' or '-', found {label!r}"
        if not _texts(words, empty=False):
            yield f"arms.{label}: expected an agent and its flags, found {words!r}"
        elif words[0] not in AGENTS:
            yield unknown(f"arms.{label}", words[0], AGENTS)
    if _texts(tree.get("default"), empty=True):
        yield from (unknown("default", name, arms) for name in tree["default"] if name not in arms)


def _texts(value: object, *, empty: bool) -> bool:
    return (
        isinstance(value, list) and bool(value or empty) and all(isinstance(v, str) for v in value)
    )


def unknown(what: str, name: str, known: Iterable[str], further: str = "") -> str:
    """Why a name is refused: what there is, and which of it is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    expected = ", ".join(names) + (f", {further}" if further else "")
    return f"{what}: expected one of {expected}, found {name!r}{hint}"


def is_task(name: str) -> bool:
    """Whether it names a task or a set of tasks, be its packages installed or not."""
    if name in TASK_SETS:
        return True
    try:
        require_known(name)
        if name.startswith("atari/") and all(name != info.task for info in tasks()):
            make_vec(name, 1, seed=0).close()  # the emulator knows more games than are listed
    except EnvError:
        return False
    return True


def unknown_task(name: str, expected: str, further: Iterable[str] = ()) -> str:
    """Why a task is refused; one that is near may also be among the `further` names."""
    names = [*further, *(info.task for info in tasks()), *TASK_SETS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"tasks: expected {expected}, found {name!r}{hint}"


def lay_flags(*layers: Sequence[str]) -> tuple[str, ...]:
    """Flags of all layers; what a later layer sets again replaces what earlier ones said."""
    groups: dict[str, list[str]] = {}
    for words in layers:
        own: dict[str, list[str]] = {}
        name = ""
        for word in words:
            if word.startswith("--"):
                (name,) = split_flags([word])[1]
                name = SHORT.get(name, name)
            own.setdefault(name, []).append(word)
        groups |= own
    return tuple(word for group in groups.values() for word in group)
