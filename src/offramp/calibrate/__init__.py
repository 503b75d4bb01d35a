"""`offramp calibrate`: measure the machine it runs on, and write that as a chip."""

from __future__ import annotations

from offramp.calibrate.measuring import Calibration, measure
from offramp.calibrate.writing import write

__all__ = ["Calibration", "measure", "write"]
