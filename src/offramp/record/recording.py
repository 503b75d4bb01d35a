"""A recording as it was read: configuration, model and steps. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import UsageError
from offramp.record.frames import Frame, is_recording, read_frames
from offramp.record.rows import COLUMNS

Key = tuple[int, int, int, int, int]  # what, number of the name, call, place, how often met


@dataclass(frozen=True)
class Rows:
    """The detailed rows of a step, in order of time.

    table     [R, columns] as `rows.COLUMNS`; `link` names the row with the same tensor, or -1
    stats     [R, statistics] as `sampling.STATS`; zeros where a row is linked
    sketches  [R, WIDTH]
    """

    table: np.ndarray
    stats: np.ndarray
    sketches: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """A column of the table."""
        return np.asarray(self.table[:, COLUMNS.index(name)])

    @cached_property
    def keys(self) -> list[Key]:
        """What each row is of: equal in two recordings of one program."""
        seen: dict[tuple[int, ...], int] = {}
        found: list[Key] = []
        for row in self.table[:, :4].tolist():
            what, name, call, place = row
            met = seen.get(tuple(row), 0)
            seen[tuple(row)] = met + 1
            found.append((what, name, call, place, met))
        return found

    @cached_property
    def at(self) -> dict[Key, int]:
        """The row of a key."""
        return {key: place for place, key in enumerate(self.keys)}


@dataclass(frozen=True)
class Step:
    """One step: what is known of each, and the rows where it was looked at in detail."""

    number: int
    losses: tuple[float, ...]
    gradient_norm: float | None
    settings: tuple[Mapping[str, Any], ...]
    data: str
    floats: str
    random: str
    rows: Rows | None = None


@dataclass(frozen=True)
class Recording:
    """All that a file of one rank holds.

    flaw     what is wrong with the end of the file; empty: nothing
    ended    whether the program came to its end
    notes    what the recorder left out, and why
    tensors  whole tensors by (step, name, what, call, place)
    operators  of the first call of a module, by (step, name)
    """

    path: Path
    config: Mapping[str, Any]
    kinds: Mapping[str, str]
    weights: Mapping[str, Mapping[str, Any]]
    optimizers: tuple[Mapping[str, Any], ...]
    names: tuple[str, ...]
    steps: tuple[Step, ...]
    flaw: str = ""
    ended: bool = False
    notes: tuple[str, ...] = ()
    tensors: Mapping[tuple[int, str, int, int, int], np.ndarray] = field(default_factory=dict)
    operators: Mapping[tuple[int, str], Frame] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The rank that it was made by."""
        return int(self.config.get("rank", 0))

    @property
    def losses(self) -> np.ndarray:
        """The mean loss of each step; nan where a step has none."""
        return np.asarray([np.mean(s.losses) if s.losses else np.nan for s in self.steps])

    @property
    def detailed(self) -> tuple[int, ...]:
        """The numbers of the steps that have rows."""
        return tuple(step.number for step in self.steps if step.rows is not None)


def read(path: Path) -> Recording:
    """Read the recording of one rank.

    Raises UsageError: no such file, no recording, or nothing whole in it.
    """
    frames, flaw = read_frames(path)
    config: Mapping[str, Any] = {}
    kinds: dict[str, str] = {}
    weights: dict[str, Mapping[str, Any]] = {}
    optimizers, names, steps, notes = [], list[str](), list[Step](), list[str]()
    tensors: dict[tuple[int, str, int, int, int], np.ndarray] = {}
    operators: dict[tuple[int, str], Frame] = {}
    ended = False
    for frame in frames:
        head = frame.head
        if frame.kind == "config":
            config = head
        elif frame.kind == "model":
            kinds |= head["kinds"]
            weights |= {w["name"]: w for w in (*head["parameters"], *head["buffers"])}
        elif frame.kind == "optimizer":
            optimizers.append(head)
        elif frame.kind == "step":
            names += head["names"]
            steps.append(_step(head, frame.arrays))
        elif frame.kind == "tensors":
            for key, array in zip(head["keys"], frame.arrays.values(), strict=True):
                step, name, what, call, place = key
                tensors[(int(step), str(name), int(what), int(call), int(place))] = array
        elif frame.kind == "operators":
            operators.setdefault((int(head["step"]), str(head["module"])), frame)
        elif frame.kind == "note":
            notes.append(str(head["text"]))
        elif frame.kind == "end":
            ended = True
    if not config:
        raise UsageError(f"{path} holds nothing whole ({flaw or 'no frame'}); record it again")
    return Recording(
        path,
        config,
        kinds,
        weights,
        tuple(optimizers),
        tuple(names),
        tuple(steps),
        flaw,
        ended,
        tuple(notes),
        tensors,
        operators,
    )


def read_ranks(path: Path) -> list[Recording]:
    """The recordings of all ranks of one run, rank 0 first. Raises UsageError as `read`."""
    others = sorted(
        (p for p in path.parent.glob(f"{path.name}.rank*") if is_recording(p)),
        key=lambda p: (len(p.name), p.name),
    )
    return [read(path), *map(read, others)]


def _step(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Step:
    rows = Rows(arrays["rows"], arrays["stats"], arrays["sketches"]) if "rows" in arrays else None
    return Step(
        int(head["step"]),
        tuple(float(v) for v in head["losses"]),
        None if head["gradient_norm"] is None else float(head["gradient_norm"]),
        tuple(head["settings"]),
        str(head["data"]),
        str(head["floats"]),
        str(head["random"]),
        rows,
    )
