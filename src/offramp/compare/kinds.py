"""What kind of difference a tensor shows: its size, its pattern, and the formats that make such."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offramp.compare.pairing import GRID, NONFINITE, NORM, SUBNORMAL, Pair
from offramp.record import rows

PRODUCTS = ("Linear", "Conv", "Attention", "LSTM", "GRU", "RNN", "Bilinear", "Embedding")
LOOKED_UP = "Embedding"  # not computed
# Relative errors of a float32 product whose factors have so few bits, by the square root of the sum
# of squares of independent roundings: each is off by up to 2^-(bits + 1), 0.41 of that in the root
# mean square over a binade, and there are two. Two binades of room around 10 bits, and around 7.
TF32 = (0.6e-4, 1.0e-3)
BF16 = (1.0e-3, 1.2e-2)
ALONG = 0.75  # of an error that is a change of scale: the part along the tensor itself
RANDOM_ALONG = 0.55  # of 32 sums of independent errors, the part along is below by 3 sigma
LEAST_ELEMENTS = 64


@dataclass(frozen=True)
class Kind:
    """What it is, and whether a format's precision explains it.

    by_pattern  whether the values themselves show the format, and not their error's size alone
    size        what to say where precision is no explanation after all
    """

    text: str
    is_precision: bool = False
    by_pattern: bool = False
    size: str = ""

    @property
    def plain(self) -> str:
        """In words, without an explanation."""
        return self.size or self.text


def multiplies(module_kind: str) -> bool:
    """Whether a module of this class computes sums of products with its weights."""
    return LOOKED_UP not in module_kind and any(word in module_kind for word in PRODUCTS)


def kind_of(pair: Pair, row: int, before: Pair | None, module_kind: str) -> Kind:
    """What kind of difference the paired row shows.

    before        the last step in detail before, for values that stayed
    module_kind   the class of the module that the row is of
    """
    if pair.reshaped[row]:
        return Kind("another shape")
    a, b = (found[row] for found in pair.stats())
    error, along = float(pair.error[row]), float(pair.along[row])
    if a[NONFINITE] != b[NONFINITE]:
        where = "the second" if b[NONFINITE] > a[NONFINITE] else "the first"
        return Kind(f"non-finite values in {where} only ({max(a[NONFINITE], b[NONFINITE]):.2%})")
    flushed = _flushed(pair, row, a, b)
    if flushed is not None:
        return flushed
    if (a[NORM] == 0) != (b[NORM] == 0):
        return Kind(f"all zero in the {'second' if b[NORM] == 0 else 'first'} only")
    if max(a[GRID], b[GRID]) > 0.99 and min(a[GRID], b[GRID]) < 0.5:
        where = "second" if b[GRID] > a[GRID] else "first"
        return Kind(f"rounded to bfloat16 in the {where}", error < BF16[1], True)
    if before is not None and _stayed(pair, row, before):
        return Kind(f"stale: the values of step {before.number} again")
    elements = float(a[0])
    factor = float(pair.factor[row])
    if elements > 1 and abs(along) > ALONG and np.isfinite(factor):
        return Kind(f"scaled by {factor:.6g}")
    if error > 0.1 and abs(a[NORM] - b[NORM]) < 1e-5 * a[NORM] and elements >= LEAST_ELEMENTS:
        return Kind("the same values in another order (norms agree)")
    return _by_size(pair, row, error, along, elements, module_kind)


def _flushed(pair: Pair, row: int, a: np.ndarray, b: np.ndarray) -> Kind | None:
    """Zeros where the other run has subnormal numbers, and no larger difference than these make."""
    share = max(a[SUBNORMAL], b[SUBNORMAL])
    if not share or min(a[SUBNORMAL], b[SUBNORMAL]):
        return None
    where = "second" if a[SUBNORMAL] else "first"
    least = rows.LEAST_NORMAL[int(pair.column("format")[row])]
    # All elements of the sample that are subnormal, each as large as it can be.
    most = least * np.sqrt(share * a[0]) / max(a[NORM], b[NORM])
    error = float(pair.error[row])
    if not (error < BF16[1] or error <= most):
        return None
    return Kind(f"flush to zero in the {where}: it has no subnormal numbers", True, True)


def _by_size(
    pair: Pair, row: int, error: float, along: float, elements: float, module_kind: str
) -> Kind:
    what = pair.keys[row][0]
    is_wide = int(pair.column("format")[row]) == rows.FORMATS.index("float32")
    is_product = any(word in module_kind for word in PRODUCTS) and what in (
        rows.OUTPUT,
        rows.WEIGHT_GRADIENT,
        rows.GRADIENT,
    )
    said = f"values differ by {error:.2g} of their size"
    if abs(along) > RANDOM_ALONG or elements < LEAST_ELEMENTS or error > BF16[1]:
        return Kind(said)
    if is_wide and is_product and TF32[0] <= error <= TF32[1]:
        return Kind("products with 10 bits of mantissa, as TF32's or fp16's", True, size=said)
    if is_wide and is_product and BF16[0] < error <= BF16[1]:
        return Kind("products or sums with 7 to 8 bits of mantissa, as bf16's", True, size=said)
    if not is_wide and is_product:
        return Kind("sums in a narrower format, or in another order of few parts", True, size=said)
    return Kind(said)


def _stayed(pair: Pair, row: int, before: Pair) -> bool:
    """Whether the second run has again what it had a step ago, and the first has not."""
    key = pair.keys[row]
    if key not in before.keys:
        return False
    old = before.keys.index(key)
    if before.error[old] != 0 and before.number != pair.number - 1:
        return False
    now_b, now_a = pair.rows_b.sketches[pair.at_b[row]], pair.rows_a.sketches[pair.at_a[row]]
    was_b, was_a = (
        before.rows_b.sketches[before.at_b[old]],
        before.rows_a.sketches[before.at_a[old]],
    )
    moves = not np.allclose(now_a, was_a, rtol=1e-4)
    return bool(np.allclose(now_b, was_b, rtol=1e-6) and moves and np.any(now_b))
