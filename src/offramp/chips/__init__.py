"""Chips and what is known about them: one file of facts each, every fact with its source."""

from __future__ import annotations

from offramp.chips.catalogue import Chip, load, names, read
from offramp.chips.facts import TIERS, Cluster, Detection, Fact, Presentation, Quirk
from offramp.chips.reading import ChipFileError

__all__ = [
    "TIERS",
    "Chip",
    "ChipFileError",
    "Cluster",
    "Detection",
    "Fact",
    "Presentation",
    "Quirk",
    "load",
    "names",
    "read",
]
