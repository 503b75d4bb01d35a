"""What every cost model answers with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds with their interval, and one line that says what they rest on.

    `flops` counts matrix products and attention; `bytes` what is moved.
    """

    seconds: float
    low: float
    high: float
    kind: str
    basis: str
    flops: float
    bytes: float
