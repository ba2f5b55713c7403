"""Command-line flags of a run: dotted names laid over presets, all mistakes in one message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.overlays import Tree
from reverie.agents.resolve import resolve

EPILOG = """Presets are laid in this order: task suite, agent family, agent, --size, every \
--config (a preset's name or a TOML file), then the other flags. The same command resumes an \
interrupted run; --fresh refuses to. --budget N (100k, 1.5M) is short for --train.steps: actions \
of the agent, not frames. --distractor NAME is short for --env.distractor."""

SHORT = {"budget": "train.steps", "distractor": "env.distractor"}
"""Flags that are settings under another name."""


def config_from_args(args: Sequence[str], *, agent: str | None = None) -> RunConfig:
    """Resolve `[AGENT] --task SUITE/TASK [--config NAME ...] [--dotted.name VALUE ...]`.

    Raises:
        ConfigError: lists every problem found.
        SystemExit: after printing the manual, if `args` ask for help.
    """
    words, flags, problems = split_flags(args)
    tree: Tree = {} if agent is None else {"agent": agent}
    if agent is None and words:
        tree["agent"] = words.pop(0)
        if "agent" in flags:
            problems.append(f"--agent: {tree['agent']} is named already; keep one of the two")
            del flags["agent"]
    problems += [f"unexpected argument {word!r}; settings are --name value" for word in words]
    configs = flags.pop("config", [])
    _shortened(flags, problems)
    for name, values in flags.items():
        _plant(tree, name, values, problems)
    if "help" in flags:
        tree.pop("help", None)
        print_help(resolve(tree, configs=configs))
    try:
        cfg = resolve(tree, configs=configs)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return cfg


def split_flags(args: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Words before the first flag, values of each flag, and what is wrong with them."""
    words: list[str] = []
    flags: dict[str, list[str]] = {}
    problems: list[str] = []
    values = words
    for arg in args:
        if arg == "-h":
            arg = "--help"
        if not arg.startswith("--"):
            values.append(arg)
            continue
        name, equals, value = arg[2:].partition("=")
        name = name.replace("-", "_")
        if name in flags and name != "config":
            problems.append(f"--{arg[2:]}: given twice; keep one")
        values = flags.setdefault(name, [])
        if equals:
            values.append(value)
    return words, flags, problems


def _shortened(flags: dict[str, list[str]], problems: list[str]) -> None:
    """Turn short flags into the settings that they stand for."""
    for short, name in SHORT.items():
        if short not in flags:
            continue
        values = flags.pop(short)
        if short == "budget":
            values = _steps(" ".join(values), problems)
        if name in flags:
            problems.append(f"--{short}: is --{name} under another name; keep one of the two")
        elif values or short != "budget":
            flags[name] = values


def _steps(text: str, problems: list[str]) -> list[str]:
    """Agent steps of a budget such as 100k."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", text)
    # exact: 8.2 * 1e6 is no whole float
    steps = Fraction(found[1]) * {"": 1, "k": 10**3, "M": 10**6}[found[2]] if found else None
    if steps is None or steps.denominator != 1:
        problems.append(f"--budget: expected agent steps such as 100k or 1.5M, found {text!r}")
        return []
    return [str(int(steps))]


def _plant(tree: Tree, name: str, values: list[str], problems: list[str]) -> None:
    """Put the values of a dotted flag into the tree; several make a list."""
    if name == "help":
        return
    if not values:
        problems.append(f"--{name}: expected a value, found none")
        return
    *sections, last = name.split(".")
    node: Any = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            problems.append(f"--{name}: {section} is a single setting, not a section")
            return
    if isinstance(node.get(last), dict):
        problems.append(f"--{name}: is a section; set one of {', '.join(node[last])} in it")
        return
    node[last] = values[0] if len(values) == 1 else values


def print_help(cfg: RunConfig) -> None:
    """Print the manual of every setting with the presets' values as defaults, and exit.

    Raises:
        SystemExit: always, with status 0.
    """
    import tyro

    tyro.cli(
        RunConfig,
        default=cfg,
        args=["--help"],
        config=(tyro.conf.FlagConversionOff,),  # our flags have values: --env.gray true
        prog="reverie train AGENT",
        description=f"{EPILOG} Defaults below: {cfg.agent} on {cfg.task} at size {cfg.size}.",
    )
