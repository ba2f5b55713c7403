"""Agents, their training and their run state; names are imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reverie.agents.configs import ConfigError, RunConfig
    from reverie.agents.launch import run
    from reverie.agents.mudreamer import MuDreamer
    from reverie.agents.registry import build_agent
    from reverie.agents.trainer import train

__all__ = ["ConfigError", "MuDreamer", "RunConfig", "build_agent", "run", "train"]

_HOMES = {
    "ConfigError": "configs",
    "MuDreamer": "mudreamer",
    "RunConfig": "configs",
    "build_agent": "registry",
    "run": "launch",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
