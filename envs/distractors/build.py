"""From the settings of an environment to what distracts in it."""

from __future__ import annotations

import contextlib
from typing import get_args

from reverie.envs.distractors.distraction import Distraction, Mask
from reverie.envs.distractors.natural import NaturalPreset
from reverie.envs.distractors.player import ClipPlayer
from reverie.envs.distractors.presets import (
    DOTS,
    clip_size,
    preset,
    require_defined,
    uses_clips,
)
from reverie.envs.distractors.sources import SPLITS, ClipSource, make_source
from reverie.envs.settings import EnvSettings
from reverie.envs.specs import EnvError


def check(settings: EnvSettings) -> None:
    """Raise `EnvError` unless the settings can be built; clips of a folder are decoded here."""
    require_defined(settings.distractor, settings.task)
    if settings.split not in SPLITS or settings.distractor_mask not in get_args(Mask):
        raise EnvError(
            f"{settings.task}: expected split {' or '.join(SPLITS)} and distractor_mask "
            f"{', '.join(get_args(Mask))}; found {settings.split} and {settings.distractor_mask}."
        )
    if settings.observe == "state" and preset(settings.distractor).family != "subtle":
        raise EnvError(
            f"{settings.task}: expected images for the distractor {settings.distractor}, found "
            "observe state, which nothing distracts from. Use observe image or both."
        )
    if settings.task in DOTS and (
        settings.action_repeat != 1 or settings.distractor_mask == "blue"
    ):
        raise EnvError(
            f"{settings.task}: expected action_repeat 1 and the mask preset or exact in front of a "
            f"film, found {settings.action_repeat} and {settings.distractor_mask}."
        )
    with contextlib.closing(clips(settings)) as source:
        preset(settings.distractor).build(source, settings.split, settings.distractor_mask)


def clips(settings: EnvSettings) -> ClipSource:
    """Return the source of the preset's clips, in the size that it needs."""
    shows = uses_clips(settings.distractor)
    text = settings.distractor_source if shows else "procedural"  # which nobody looks at
    return make_source(text, size=clip_size(settings.distractor, settings.image_size))


def distraction(settings: EnvSettings, source: ClipSource) -> Distraction:
    """Return what a dm_control task calls; `source` as `clips` gives it."""
    return preset(settings.distractor).build(source, settings.split, settings.distractor_mask)


def backdrop(settings: EnvSettings, source: ClipSource) -> ClipPlayer:
    """Return the film behind the dot world; `source` as `clips` gives it."""
    found = preset(settings.distractor)
    assert isinstance(found, NaturalPreset), settings.distractor
    return found.player(source, settings.split)


def mark(settings: EnvSettings, source: ClipSource) -> str:
    """Return what every result of a distracted task is reported with."""
    found, mask, split = preset(settings.distractor), settings.distractor_mask, settings.split
    parts = [f"distractor={found.name}"]
    if uses_clips(settings.distractor):
        if settings.task in DOTS:
            mask = "exact"
        elif mask == "preset" and found.family == "natural":
            mask = "blue"
        if isinstance(found, NaturalPreset):
            split = found.shown(split)
        parts += [f"source={source.name}", f"mask={mask}", f"split={split}"]
    return ",".join(parts)
