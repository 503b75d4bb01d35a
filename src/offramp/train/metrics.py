"""Metrics of a run: one JSON object a line, and TensorBoard's files beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Metrics:
    """Appends to `path`; after a resume, first drops what came after the step it resumes from.

    So every step is there once, with the values that led to the weights.
    """

    def __init__(self, path: Path, *, first_step: int, tensorboard: Path | None = None) -> None:
        self._board = _open_board(tensorboard, first_step) if tensorboard else None
        kept = [line for line in read_lines(path) if line["step"] <= first_step]
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        scratch.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        scratch.replace(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 -- closed by close()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one record; numbers go to TensorBoard too. Raises OSError."""
        self._file.write(_line({"kind": kind, "step": step, **values}))
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite) + "\n"


def _open_board(folder: Path, first_step: int) -> Any:
    """TensorBoard's writer, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
