"""How a run stands, read from outside; importing this costs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATUS = "status.json"


def read_status(run_dir: Path) -> dict[str, Any]:
    """Content of status.json; {} if there is none that can be read."""
    try:
        found = json.loads((run_dir / STATUS).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
