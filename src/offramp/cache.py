"""Where offramp keeps what it makes once and uses again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The folder of compiled cores: `OFFRAMP_CACHE`, or `offramp` in the user's cache folder."""
    if chosen := env.get("OFFRAMP_CACHE"):
        return Path(chosen)
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache", "offramp")
