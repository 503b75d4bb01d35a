"""The rows of one detailed step, gathered while it runs and measured at its end."""

from __future__ import annotations

import functools
import weakref
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.record import sampling
from offramp.record.rows import COLUMNS

MOST_ROWS = 20_000  # of a step
_FORMAT = {  # places in rows.FORMATS
    torch.float64: 0,
    torch.float32: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
}


@functools.cache
def _format(dtype: torch.dtype) -> tuple[int, float]:
    """The place in rows.FORMATS, and the least normal number."""
    if not dtype.is_floating_point:
        return 5, 0.0
    return _FORMAT.get(dtype, 4), torch.finfo(dtype).tiny


@functools.lru_cache(maxsize=4096)
def _checksum(shape: tuple[int, ...]) -> int:
    return zlib.crc32(repr(list(shape)).encode())


def tensors_of(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif depth < 4 and isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item, depth + 1)
    elif depth < 4 and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item, depth + 1)


class Gathered:
    """Rows, with samples that are still where their tensors are."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: list[list[int]] = []
        self._samples: list[Tensor | None] = []
        self._tiny: list[float] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self.left_out = 0

    def add(
        self,
        tensor: Tensor,
        place: tuple[int, int, int, int],
        *,
        owner: int = -1,
        of: int = -1,
        links: bool = False,
    ) -> int:
        """A row for a tensor: its number, or -1 where it was left out.

        place   what, number of the name, call, place
        owner   number of the enclosing module's name
        of      the row that this is the gradient of
        links   whether a tensor that has a row already is only named again
        """
        if len(self._rows) >= MOST_ROWS:
            self.left_out += 1
            return -1
        link = self._linked(tensor) if links else -1
        taken = None if link >= 0 else sampling.sample(tensor, self._limit)
        if link < 0 and taken is None:
            return -1
        row = len(self._rows)
        kind, tiny = _format(tensor.dtype)
        self._rows.append([*place, owner, link, of, kind, _checksum(tuple(tensor.shape))])
        self._samples.append(taken)
        self._tiny.append(tiny)
        if links and link < 0:
            self._known[id(tensor)] = (weakref.ref(tensor), tensor._version, row)
        return row

    def is_linked(self, row: int) -> bool:
        """Whether a row only names another row's tensor again."""
        return self._samples[row] is None

    def _linked(self, tensor: Tensor) -> int:
        found = self._known.get(id(tensor))
        if found is None or found[0]() is not tensor or found[1] != tensor._version:
            return -1
        return found[2]

    def finish(self) -> dict[str, np.ndarray]:
        """The arrays of the step's frame."""
        own = [place for place, taken in enumerate(self._samples) if taken is not None]
        stats = np.zeros((len(self._rows), len(sampling.STATS)))
        sketches = np.zeros((len(self._rows), sampling.WIDTH))
        if own:
            values = sampling.on_host([self._samples[p] for p in own])  # type: ignore[misc]
            stats[own], sketches[own] = sampling.measure(values, [self._tiny[p] for p in own])
        table = np.asarray(self._rows, dtype=np.int64).reshape(-1, len(COLUMNS))
        return {"rows": table, "stats": stats, "sketches": sketches}
