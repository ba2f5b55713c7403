"""Every published way to distract, by name."""

from __future__ import annotations

import difflib
from typing import Protocol

from reverie.envs.distractors import dcs, dmcgb, natural, subtle
from reverie.envs.distractors.distraction import Distraction, Mask
from reverie.envs.distractors.sources import ClipSource, Split
from reverie.envs.dmc import split_task
from reverie.envs.specs import EnvError

ALIASES = {"natural": "dreamerpro"}


class Preset(Protocol):
    """One protocol: what is disturbed, how, and where that is defined."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def family(self) -> str:
        """Natural, dcs, dmcgb or subtle."""
        ...

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        ...

    def defined(self, domain: str, task: str) -> bool:
        """Whether it exists for this task of the suite."""
        ...

    def build(self, source: ClipSource, split: Split, mask: Mask) -> Distraction:
        """Build it; EnvError if it has no such mask."""
        ...


PRESETS: dict[str, Preset] = {
    **natural.PRESETS,
    **dcs.PRESETS,
    **dmcgb.PRESETS,
    **subtle.PRESETS,
}


def names() -> list[str]:
    """All names, aliases included."""
    return [*ALIASES, *PRESETS]


def canonical(name: str) -> str:
    """Return the name under which results are kept: an alias is the same protocol."""
    return ALIASES.get(name, name)


def preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        EnvError: there is none; the message has the nearest names.
    """
    found = PRESETS.get(canonical(name))
    if found is None:
        close = difflib.get_close_matches(name, names(), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise EnvError(
            f"Expected a distractor that `reverie distractors list` names, found {name!r}.{hint}"
        )
    return found


def require_defined(name: str, task: str) -> None:
    """Raise `EnvError` unless the preset `name` exists and is defined for "suite/task"."""
    found = preset(name)
    suite, _, own = task.partition("/")
    if suite == "dmc":
        if found.defined(*split_task(own)):
            return
    elif task in DOTS:
        if found.family == "natural":
            return
    else:
        raise EnvError(
            f"{task}: expected a dmc task or {' or '.join(DOTS)} for the distractor {name}. Leave "
            "the distractor out."
        )
    raise EnvError(
        f"{task}: expected a task that the distractor {name} is defined for ({found.summary}). "
        "`reverie distractors list` names the presets and their tasks."
    )


DOTS = ("toy/dot", "toy/home")
"""Small pixel worlds that natural films can run behind."""


def uses_clips(name: str) -> bool:
    """Whether the preset shows clips at all."""
    found = preset(name)
    if isinstance(found, dcs.DcsPreset):
        return "background" in found.parts
    if isinstance(found, dmcgb.DmcGbPreset):
        return found.kind == "video"
    return found.family == "natural"


def has_splits(name: str) -> bool:
    """Whether an evaluation on test clips shows anything else than one on training clips."""
    found = preset(name)
    same = isinstance(found, natural.NaturalPreset) and found.tested_on == "train"
    return uses_clips(name) and not same


def clip_size(name: str, image_size: int) -> int:
    """Pixels of the clips that the preset needs for pictures of `image_size`."""
    return dcs.SKY_SIZE if preset(name).family == "dcs" else image_size
