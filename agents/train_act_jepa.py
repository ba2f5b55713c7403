"""Train ACT-JEPA: `python -m reverie.agents.train_act_jepa --config six --seed 0`.

The same as `reverie train act-jepa ...`, to be read from top to bottom: settings, a look at
whether they fit this machine, training on demonstrations that `reverie demos make` wrote.
`--agent act | bc` trains its relatives.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reverie.agents.configs import ConfigError
from reverie.agents.flags import config_from_args
from reverie.agents.launch import launch


def main(args: Sequence[str] | None = None) -> int:
    """Train from command-line flags; returns the exit status."""
    try:
        cfg = config_from_args(sys.argv[1:] if args is None else args, agent="act-jepa")
        return launch(cfg)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
