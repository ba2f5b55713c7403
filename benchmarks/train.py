"""`reverie train AGENT --task SUITE/TASK ...`: the generic form of the train_*.py scripts."""

from __future__ import annotations

from collections.abc import Sequence

from reverie.agents.flags import config_from_args
from reverie.agents.launch import launch


def main(args: Sequence[str]) -> int:
    """Train from command-line flags; returns the exit status.

    `--fresh` refuses a run directory that holds a run already, instead of continuing it.
    """
    fresh = "--fresh" in args
    cfg = config_from_args([arg for arg in args if arg != "--fresh"])
    return launch(cfg, fresh=fresh)
