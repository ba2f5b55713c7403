"""Train SPR: `python -m reverie.agents.train_spr --task atari/pong --budget 100k --seed 0`.

The same as `reverie train spr ...`, to be read from top to bottom: settings, a look at whether
they fit this machine, training. `--agent rainbow | spr-noaug | sr-spr | bbf` trains its relatives.
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
        cfg = config_from_args(sys.argv[1:] if args is None else args, agent="spr")
        return launch(cfg)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
