"""How fast the world of a task runs, for the timestamps of recordings."""

from __future__ import annotations

import gymnasium

from reverie.envs.specs import EnvSpec

METAWORLD_RATE = 80.0
"""Steps of 5 x 2.5 ms."""

ATARI_RATE = 60.0
"""Frames of the console."""


def steps_per_second(spec: EnvSpec) -> float:
    """Return agent steps per second of the task's own time; 1 where nobody says what that is."""
    return _simulator_rate(spec.task) / spec.action_repeat


def _simulator_rate(task: str) -> float:
    suite, _, name = task.partition("/")
    if suite == "metaworld":
        return METAWORLD_RATE
    if suite == "atari":
        return ATARI_RATE
    if suite == "dmc":
        from reverie.envs.dmc import load

        world = load(name, drawn=False)
        period = float(world.control_timestep())
        world.close()
        return 1.0 / period
    if suite == "gym":
        made = gymnasium.make(name)
        rate = made.metadata.get("render_fps")
        made.close()
        return float(rate or 1.0)
    return 1.0
