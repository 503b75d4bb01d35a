"""Recordings that are made in this process, as the recorder inside a program makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from offramp.record.part import Part
from offramp.record.recorder import Recorder
from offramp.record.recording import Recording, read


def record(path: Path, work: Callable[[], Any], **part: Any) -> tuple[Recording, Any]:
    """The recording of `work`, which builds its model itself, and what it returns."""
    recorder = Recorder(Part(out=str(path), **part))
    try:
        result = work()
    finally:
        recorder.close()
    return read(path), result
