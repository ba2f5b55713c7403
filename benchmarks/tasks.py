"""`reverie tasks`: what can be trained on what."""

from __future__ import annotations

from collections.abc import Sequence

import tyro
from rich.console import Console
from rich.table import Table

from reverie.agents.registry import FAMILIES
from reverie.agents.resolve import FAMILY_SIZES, SIZES, preset_names
from reverie.envs.registry import TASK_SETS, tasks


def main(args: Sequence[str]) -> int:
    """Print the tables; `args` may filter tasks by a part of their name."""
    return tyro.cli(show, args=list(args), prog="reverie tasks")


def show(match: tyro.conf.Positional[str] = "") -> int:
    """List tasks, agents, sizes and presets.

    Args:
        match: only tasks whose name contains this text.
    """
    console = Console()
    table = Table("task", "what it is", title="tasks (any Gymnasium id: gym/<EnvId>)")
    for info in tasks():
        if match in info.task:
            table.add_row(info.task, info.summary)
    for name, group in TASK_SETS.items():
        if match in name:
            table.add_row(
                name, f"set of {len(group)} tasks, for agents that learn from demonstrations"
            )
    console.print(table)
    presets = [name for name in preset_names() if "-" not in name]
    for kind, agents in FAMILIES.items():
        sizes = ", ".join(FAMILY_SIZES.get(kind, SIZES))
        console.print(f"agents   {', '.join(agents)}; sizes {sizes}")
    console.print(f"configs  {', '.join(presets)}, or the path of a TOML file")
    return 0
