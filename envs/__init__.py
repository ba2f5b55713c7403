"""Environments: tasks by name, vectorised, guarded and resumable."""

from reverie.envs.gym_export import register_gymnasium
from reverie.envs.registry import make_env, make_vec, register, tasks
from reverie.envs.settings import EnvSettings, require_same_settings
from reverie.envs.specs import EnvError, EnvSpec, Step, VecEnv

__all__ = [
    "EnvError",
    "EnvSettings",
    "EnvSpec",
    "Step",
    "VecEnv",
    "make_env",
    "make_vec",
    "register",
    "require_same_settings",
    "tasks",
]

register_gymnasium()
