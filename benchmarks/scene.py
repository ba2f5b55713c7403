"""What an agent is scored in front of, where that is not what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverie.agents.clips_record import CLIPS, clip_changes, trained_in_front_of
from reverie.agents.configs import RunConfig
from reverie.agents.resolve import with_overrides
from reverie.envs.distractors.distraction import Mask
from reverie.envs.distractors.presets import canonical, names, uses_clips


@dataclass(frozen=True)
class Scene:
    """Flags of `reverie eval` about what distracts; none given: what the run was trained on."""

    distractor: str | None = None
    """Preset whose test clips the agent plays in front of, or none for the plain task. The result
    is another than the run's own score, and in a file of its own."""
    distractor_source: str | None = None
    """procedural, static, noise, procedural-shift or a folder. Alone: where the clips of the run
    are now; other clips than those make the result another than the run's own."""
    distractor_mask: Mask | None = None
    """How the scene is cut out of the picture."""


OWN = Scene()
"""What the run was trained on."""


def place(run: Path, cfg: RunConfig, scene: Scene) -> tuple[RunConfig, str]:
    """Settings of a run in front of `scene`, and terms that say what it was trained on.

    These are empty where the scene is the run's own: then the score is the run's own too.

    Raises:
        ConfigError: the scene is not defined for the task, or has no use for a flag.
        EnvError: the folder of clips cannot be used.
    """
    if scene == OWN:
        return cfg, ""
    changed = with_overrides(cfg, {"env": _settings(cfg, scene)})
    return changed, "" if _is_own(run, cfg, changed) else trained_in_front_of(run, cfg)


def _settings(cfg: RunConfig, scene: Scene) -> dict[str, Any]:
    """Settings that change; what the run had for another preset is no wish for this one."""
    found: dict[str, Any] = {}
    name = None if scene.distractor is None else canonical(scene.distractor)
    if name is not None and name != cfg.env.distractor:
        default = RunConfig().env
        found = {"distractor": name, "distractor_mask": default.distractor_mask}
        if name not in names() or not uses_clips(name):
            found["distractor_source"] = default.distractor_source
    if scene.distractor_source is not None:
        found["distractor_source"] = scene.distractor_source
    if scene.distractor_mask is not None:
        found["distractor_mask"] = scene.distractor_mask
    return found


def _is_own(run: Path, cfg: RunConfig, changed: RunConfig) -> bool:
    before, after = cfg.env, changed.env
    if (before.distractor, before.distractor_mask) != (after.distractor, after.distractor_mask):
        return False
    if (run / CLIPS).exists():
        return not clip_changes(run, changed)
    return before.distractor_source == after.distractor_source
