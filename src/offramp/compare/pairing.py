"""Two recordings side by side: how far apart each tensor is, relative to its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from offramp.record import rows
from offramp.record.recording import Key, Recording, Rows, Step

NORM, NONFINITE, SUBNORMAL, GRID = 1, 4, 5, 6  # columns of the statistics


@dataclass(frozen=True)
class Pair:
    """One step that both recordings have in detail; rows in the first one's order of time.

    at_a, at_b  [R] rows of the two recordings that are of the same tensor
    keys        of each, in the first recording's numbers
    error       [R] |x_b - x_a| / max(|x_a|, |x_b|) by sketches; inf where non-finite shares differ
    along       [R] the part of the error that lies along x_a, from -1 to 1
    factor      [R] <x_a, x_b> / <x_a, x_a>
    reshaped    [R] whether the shapes differ
    """

    a: Step
    b: Step
    at_a: np.ndarray
    at_b: np.ndarray
    keys: tuple[Key, ...]
    error: np.ndarray
    along: np.ndarray
    factor: np.ndarray
    reshaped: np.ndarray
    only: tuple[int, int]

    @property
    def number(self) -> int:
        """The number of the step."""
        return self.a.number

    @property
    def rows_a(self) -> Rows:
        """The first recording's rows."""
        assert self.a.rows is not None
        return self.a.rows

    @property
    def rows_b(self) -> Rows:
        """The second recording's rows."""
        assert self.b.rows is not None
        return self.b.rows

    def column(self, name: str) -> np.ndarray:
        """A column of the first recording's table, for the paired rows."""
        return np.asarray(self.rows_a.column(name)[self.at_a])

    def stats(self) -> tuple[np.ndarray, np.ndarray]:
        """Statistics of the paired rows in both recordings."""
        return (
            self.rows_a.stats[_own(self.rows_a)[self.at_a]],
            self.rows_b.stats[_own(self.rows_b)[self.at_b]],
        )


def pairs(a: Recording, b: Recording) -> Iterator[Pair]:
    """Every step that both recordings have in detail."""
    same = {name: number for number, name in enumerate(a.names)}
    number_of = {k: same.get(name, -1 - k) for k, name in enumerate(b.names)}
    others = {step.number: step for step in b.steps}
    for step in a.steps:
        other = others.get(step.number)
        if step.rows is not None and other is not None and other.rows is not None:
            yield pair(step, other, number_of)


def pair(a: Step, b: Step, number_of: Mapping[int, int]) -> Pair:
    """One step of both; `number_of` leads from the second's numbers of names to the first's."""
    assert a.rows is not None
    assert b.rows is not None
    places: dict[Key, int] = {}
    for key, place in b.rows.at.items():
        places[(key[0], number_of.get(key[1], -1), *key[2:])] = place
    keys = [key for key in a.rows.keys if key in places]
    at_a = np.asarray([a.rows.at[key] for key in keys], dtype=np.int64)
    at_b = np.asarray([places[key] for key in keys], dtype=np.int64)
    own_a, own_b = _own(a.rows)[at_a], _own(b.rows)[at_b]
    error, along, factor = _apart(a.rows, own_a, b.rows, own_b)
    reshaped = a.rows.column("shape")[own_a] != b.rows.column("shape")[own_b]
    only = (len(a.rows.keys) - len(keys), len(b.rows.keys) - len(keys))
    return Pair(a, b, at_a, at_b, tuple(keys), error, along, factor, reshaped, only)


def _own(found: Rows) -> np.ndarray:
    """For each row the one that has its figures: itself, or the one it is linked to."""
    link = found.column("link")
    return np.where(link >= 0, link, np.arange(len(link)))


def _apart(
    a: Rows, at_a: np.ndarray, b: Rows, at_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sketch_a, sketch_b = a.sketches[at_a], b.sketches[at_b]
    stats_a, stats_b = a.stats[at_a], b.stats[at_b]
    norms_a, norms_b = stats_a[:, NORM], stats_b[:, NORM]
    largest = np.maximum(norms_a, norms_b)
    unit = np.where(largest > 0, largest, 1.0)[:, None]
    sketch_a, sketch_b = sketch_a / unit, sketch_b / unit
    difference = sketch_b - sketch_a
    error = np.sqrt((difference**2).sum(axis=1))
    # A sketch may miss what is one number per bucket at most; norms are exact.
    error = np.maximum(error, np.abs(norms_b - norms_a) / unit[:, 0])
    size_a = np.sqrt((sketch_a**2).sum(axis=1))
    dot = (sketch_a * sketch_b).sum(axis=1)
    both = np.where(size_a > 0, size_a, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.sqrt((difference**2).sum(axis=1))
        along = np.where(size > 0, (sketch_a * difference).sum(axis=1) / (both * size), 0.0)
        factor = np.where(size_a > 0, dot / both**2, np.nan)
    odd = stats_a[:, NONFINITE] != stats_b[:, NONFINITE]
    return np.where(odd, np.inf, error), along, factor


def module_of(name: str) -> str:
    """The module that a parameter is of."""
    return name.rpartition(".")[0]


def is_forward(what: int) -> bool:
    """Whether a row is of the forward pass."""
    return what in (rows.INPUT, rows.OUTPUT, rows.LOSS)
