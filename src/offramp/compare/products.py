"""A sample of the elements of a recorded matrix product, in the arithmetics that chips may have.

Shapes: B batch, M rows, K depth, N columns, S elements of the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from offramp.compare.replay import is_kept, rounded, values
from offramp.record.frames import Frame
from offramp.record.sampling import stride

# Operators, and whether a tensor comes first to which the product is added.
ADDS = {
    "aten.mm.default": False,
    "aten.bmm.default": False,
    "aten.mv.default": False,
    "aten.addmm.default": True,
    "aten.baddbmm.default": True,
}
MOST_ELEMENTS, MOST_FACTORS = 512, 1 << 22
Round = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Product:
    """Elements of `added + scale * (left @ right)`.

    sample       [S] places of the elements in the result, flat
    left, right  [S, K] the factors of each element's products, float64
    added        [S] or a number: what is added, with its own scale
    format       of the result
    """

    sample: np.ndarray
    left: np.ndarray
    right: np.ndarray
    added: np.ndarray | float
    scale: float
    format: str

    @property
    def depth(self) -> int:
        """K: how many products are summed."""
        return int(self.left.shape[1])

    def exact(self, change: Round = lambda x: x) -> np.ndarray:
        """[S] summed in float64, with factors that `change` made."""
        return self._finish((change(self.left) * change(self.right)).sum(axis=1))

    def in_parts(self) -> np.ndarray:
        """[S] with each factor as the sum of two bfloat16 numbers, without the least product."""
        (a, c), (b, d) = (_parts(x) for x in (self.left, self.right))
        return self._finish((a * b + a * d + c * b).sum(axis=1))

    def summed(self, form: str, *, at_once: int = 1, chunk: int = 0) -> np.ndarray:
        """[S] with running sums that are rounded to float32 and then to a 16-bit format.

        at_once  products that are added exactly before the running sum is rounded
        chunk    products after which a sum begins anew; these are added in float32; 0: all
        """
        with np.errstate(over="ignore", invalid="ignore"):
            terms = _grouped(self.left * self.right, at_once).sum(axis=2).astype(np.float32)
            chunks = _grouped(terms, chunk or terms.shape[1])
            running = np.zeros(chunks.shape[:2], np.float32)
            for place in range(chunks.shape[2]):
                running = _narrow(running + chunks[:, :, place], form)
            total = np.zeros(len(terms), np.float32)
            for place in range(chunks.shape[1]):
                total = total + running[:, place]
            return self._finish(total.astype(np.float64))

    def _finish(self, sums: np.ndarray) -> np.ndarray:
        return rounded(self.scale * sums + self.added, self.format)


def product(frame: Frame, told: Mapping[str, Any]) -> Product | None:
    """A sample of a matrix product; None where the operator is none, or not wholly recorded."""
    name, args = str(told["name"]), list(told["args"])
    if name not in ADDS or not all(is_kept(v) for v in [*args, told["out"]]):
        return None
    added = args.pop(0) if ADDS[name] else None
    left, right = (values(frame, v) for v in args)
    if right.ndim == 1:
        right = right[:, None]
    left, right = (x if x.ndim == 3 else x[None] for x in (left, right))
    shape = (*left.shape[:2], right.shape[2])
    count, depth = int(np.prod(shape)), left.shape[2]
    if not count or not depth:
        return None
    most = max(min(MOST_ELEMENTS, MOST_FACTORS // depth), 16)
    sample = np.arange(0, count, stride(count, most))
    b, m, n = np.unravel_index(sample, shape)
    beta = float(told["kwargs"].get("beta", 1))
    more: np.ndarray | float = 0.0
    if added is not None and beta:
        more = beta * np.broadcast_to(values(frame, added), shape).reshape(-1)[sample]
    scale = float(told["kwargs"].get("alpha", 1))
    form = str(told["out"]["<format>"])
    return Product(sample, left[b, m, :], right[b, :, n], more, scale, form)


def keep_bits(x: np.ndarray, bits: int, whole: Round = np.rint) -> np.ndarray:
    """Numbers with so many stored bits of mantissa: to the nearest and ties to even, or as `whole`
    makes integers."""
    share, power = np.frexp(x)
    return np.asarray(np.ldexp(whole(np.ldexp(share, bits + 1)), power - bits - 1))


def _narrow(x: np.ndarray, form: str) -> np.ndarray:
    if form == "float16":
        return np.asarray(x.astype(np.float16).astype(np.float32))
    return keep_bits(x, 7)


def _parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = keep_bits(x, 7)
    return high, keep_bits(x - high, 7)


def _grouped(x: np.ndarray, size: int) -> np.ndarray:
    """[S, K] as [S, groups, size], the last group filled with zeros."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(len(x), -1, size)
