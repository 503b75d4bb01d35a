"""How the tests start offramp, and read what it leaves without the help of offramp."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[3] / "src"
BARE_CHIP = "cpu"  # in every catalogue; as much memory as the machine, no limit of chips in a node


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with the tree under test, and no trace of an outer run."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OFFRAMP_", "TORCH_"))}
    return {**kept, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1", **changes}


def arguments(*words: str) -> list[str]:
    return [sys.executable, "-m", "offramp", *words]


def records(folder: Path) -> list[dict[str, Any]]:
    """What lies in a run folder, read without offramp."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("processes/*.json"))]
