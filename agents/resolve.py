"""From presets, files and flags to one resolved `RunConfig`, and from there to its directory."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reverie.agents.config_checks import find_problems
from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.overlays import Tree, as_tree, flatten, merge, overlay, to_toml
from reverie.agents.registry import AGENTS, FAMILIES, family

TASK_PRESETS = {
    "dmc": "task-dmc",
    "atari": "task-atari100k",
    "toy": "task-toy",
    "torch": "task-toy",
    "metaworld": "task-metaworld",
}
"""Suite -> preset; tasks of other suites start from the defaults."""

SIZES = ("nano", "XS", "S", "M", "L", "XL")
"""World-model sizes, smallest first."""

FAMILY_SIZES = {"spr": ("nano", "S"), "act_jepa": ("nano", "S")}
"""Sizes of the families that have fewer; a size must change something."""

PRESETS = Path(__file__).with_name("presets")
"""Folder of the packaged presets."""

PLACE = ("run", "seed", "train.inspect_every", "train.inspect_probe")
"""Settings that say where a run lies, or how closely it is watched, and not what it is; they stay
out of the hash."""


def resolve(
    overrides: Mapping[str, Any] | None = None, *, configs: Sequence[str] = ()
) -> RunConfig:
    """Lay task, agent and size presets, then `configs`, then `overrides` over the defaults.

    Args:
        overrides: nested tree of settings; the last word.
        configs: names of packaged presets, or paths of TOML files. A preset that has a form of
            its own for the agent's family, <name>-<family>, is followed by that.

    Raises:
        ConfigError: lists every problem found.
    """
    problems: list[str] = []
    given = dict(overrides or {})
    named = merge([*(_read_config(name, problems) for name in configs), given])
    kind = family(str(named.get("agent", RunConfig().agent)))
    forms = [form for name in configs for form in (name, f"{name}-{kind}")]
    known = preset_names()
    own = merge([*(_read_config(f, problems) for f in forms if f in known or f in configs), given])
    cfg = RunConfig()
    for tree in [*_base_presets(own, problems), own]:
        cfg = overlay(cfg, tree, problems)
    cfg = _with_absolute_clips(_without_aliases(cfg))
    problems += [*_foreign(cfg.agent, given), *find_problems(cfg)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return cfg


def _foreign(agent: str, given: Tree) -> list[str]:
    """What was asked for and the agent would never read, though its run would have another name.

    Files and presets may hold sections of every family.
    """
    if agent not in AGENTS:
        return []
    sections = [name for name in FAMILIES if name != family(agent) and name in given]
    return [
        f"{name}: {agent} does not read it; it is a setting of {', '.join(FAMILIES[section])}"
        for section in sections
        for name in flatten({section: given[section]})
    ]


def _without_aliases(cfg: RunConfig) -> RunConfig:
    """Settings with one name for what distracts: it says where a run lies and how it is listed."""
    if cfg.env.distractor == "none":
        return cfg
    # late: settings are read where no environment is
    from reverie.envs.distractors.presets import canonical

    env = dataclasses.replace(cfg.env, distractor=canonical(cfg.env.distractor))
    return dataclasses.replace(cfg, env=env)


def _with_absolute_clips(cfg: RunConfig) -> RunConfig:
    """Settings whose folder of clips is the same one in any working directory."""
    if cfg.env.distractor_source == RunConfig().env.distractor_source:
        return cfg
    from reverie.envs.distractors.sources import absolute

    env = dataclasses.replace(cfg.env, distractor_source=absolute(cfg.env.distractor_source))
    return dataclasses.replace(cfg, env=env)


def _base_presets(own: Tree, problems: list[str]) -> list[Tree]:
    default = RunConfig()
    agent, task, size = (str(own.get(k, getattr(default, k))) for k in ("agent", "task", "size"))
    suite, kind = task.partition("/")[0], family(agent)
    names = [TASK_PRESETS.get(suite, ""), f"family-{kind}", f"family-{kind}-{suite}"]
    names = [name for name in names if name in preset_names()]
    sizes = FAMILY_SIZES.get(kind, SIZES)
    for key, name, known in (("agent", agent, tuple(AGENTS)), ("size", size, sizes)):
        if name in known:
            names.append(f"{key}-{name}")
        else:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{key}: expected one of {', '.join(known)}, found {name!r}{hint}")
    return [read_preset(name) for name in names]


def preset_names() -> list[str]:
    """Names of all packaged presets."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_preset(name: str) -> Tree:
    """Settings of a packaged preset; it must exist."""
    return tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))


def _read_config(name: str, problems: list[str]) -> Tree:
    if name in preset_names():
        return read_preset(name)
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        free = [preset for preset in preset_names() if "-" not in preset]
        problems.append(
            f"config {name!r}: neither a preset ({', '.join(free)}) nor a readable file: {error}"
        )
    except tomllib.TOMLDecodeError as error:
        problems.append(f"config {name!r}: not valid TOML: {error}")
    return {}


def dump(cfg: RunConfig) -> str:
    """TOML text of every setting; `load` and `--config` read it back to an equal config."""
    return to_toml(as_tree(cfg))


def load(path: Path) -> RunConfig:
    """Read what `dump` wrote: no presets are laid under it, but every key must be known.

    Raises:
        ConfigError: unreadable file, or unknown or impossible settings.
    """
    problems: list[str] = []
    cfg = _without_aliases(overlay(RunConfig(), _read_config(str(path), problems), problems))
    problems += find_problems(cfg)
    if problems:
        raise ConfigError(problems)
    return cfg


def changed_settings(cfg: RunConfig) -> Tree:
    """Dotted settings in which `cfg` differs from its agent, task and size presets.

    What distracts is part of the task.
    """
    own = {"agent": cfg.agent, "task": cfg.task, "size": cfg.size}
    base = flatten(as_tree(resolve({**own, "env": {"distractor": cfg.env.distractor}})))
    mine = flatten(as_tree(cfg))
    return {name: mine[name] for name in mine if name not in PLACE and mine[name] != base[name]}


def override_hash(cfg: RunConfig) -> str:
    """Eight hex digits that name the settings changed from the presets; empty: none changed."""
    changed = changed_settings(cfg)
    if not changed:
        return ""
    text = json.dumps(changed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_directory(cfg: RunConfig) -> Path:
    """Where the run lives: `cfg.run`, or its place below runs/."""
    if cfg.run is not None:
        return Path(cfg.run)
    suffix = override_hash(cfg)
    name = f"{cfg.agent}-{cfg.size}" + (f"-{suffix}" if suffix else "")
    distracted = "" if cfg.env.distractor == "none" else f"+{cfg.env.distractor}"
    return Path("runs", *f"{cfg.task}{distracted}".split("/"), name, str(cfg.seed))


def with_overrides(cfg: RunConfig, tree: Mapping[str, Any]) -> RunConfig:
    """`cfg` with some settings replaced and checked again.

    Raises:
        ConfigError: lists every problem found.
    """
    problems: list[str] = []
    changed = _without_aliases(overlay(dataclasses.replace(cfg), tree, problems))
    changed = _with_absolute_clips(changed)
    problems += find_problems(changed)
    if problems:
        raise ConfigError(problems)
    return changed
