"""Which arithmetic gives an operator's result: each that is known is tried on its recorded inputs.

What is tried: inputs with fewer bits, narrow sums, no subnormal numbers, and roundings of narrow
results. Of a product a sample of its elements is computed, each sum as a chip would: exact products
are rounded to float32 and added one after the other. The one that is nearest is named where it is
`MARGIN` times nearer than all others and than float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from offramp.compare import replay
from offramp.compare.products import Product, keep_bits, product
from offramp.compare.replay import Result, apart, rounded
from offramp.record.frames import Frame

MARGIN = 4.0
MOST_NAMED = 4
_LIKE = {10: ", as TF32's", 7: ", as bfloat16's"}
_SUMS = ("float16", "bfloat16")
_AT_ONCE = (1, 4, 8, 16, 32)  # products that are added before their sum is rounded
_CHUNKS = (8, 16, 32, 64, 128, 256, 512, 1024)
_NEAR = 0.99  # of the elements: the others may be off by an order of summation
_UNLIKELY = 0.1  # of the elements: how many a rounding to the nearest does not explain
_FLUSH = "no subnormal numbers (flush to zero)"
Candidate = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Explained:
    """What is known of an operator's result.

    arithmetic  that gives it, or those that are left; empty: none that was tried does
    text        how well
    """

    arithmetic: str = ""
    text: str = ""


def explain(frame: Frame, told: Mapping[str, Any]) -> Explained:
    """Which arithmetic gives what an operator gave."""
    found = replay.results(frame, told)
    if not found:
        return Explained()
    place = max(range(len(found)), key=lambda at: (found[at].error, bool(found[at].is_flushed)))
    worst = found[place]
    if _is_flushed(frame, told, place, worst):
        return Explained(_FLUSH, f"its result is that of arithmetic with {_FLUSH}")
    taken = product(frame, told)
    if taken is not None:
        got, exact = worst.got.reshape(-1)[taken.sample], taken.exact()
        said = _nearest(got, exact, list(_of_product(taken)))
    else:
        got, exact = worst.got, worst.nearest
        said = _nearest(got, exact, list(_of_factors(frame, told, place)))
    return said if said.arithmetic else _by_rounding(worst)


def _nearest(got: np.ndarray, exact: np.ndarray, tried: Sequence[Candidate]) -> Explained:
    """The one that is nearest by far, or those that are left; nothing where none is near."""
    base = apart(got, exact)
    changing = [(words, values) for words, values in tried if apart(values, exact) > 0]
    scored = sorted((apart(got, values), words) for words, values in changing)
    if not scored or scored[0][0] > base / MARGIN:
        return Explained()
    best = scored[0][0]
    near = [words for error, words in scored if error <= MARGIN * best]
    if len(near) > 1:
        left = near[:MOST_NAMED]
        left += [f"{len(near) - MOST_NAMED} more"] * (len(near) > MOST_NAMED)
        said = " or ".join(left)
        return Explained(said, f"its result is that of {said}, which give the same here")
    to = "to the bit" if best == 0 else f"to {best:.1g} of its size"
    next_ = f"; the next, {scored[1][1]}, is off by {scored[1][0]:.1g}" if scored[1:] else ""
    return Explained(near[0], f"its result is that of {near[0]}, {to}{next_}")


def _of_product(taken: Product) -> Iterator[Candidate]:
    """Arithmetics of a matrix product, with what each gives."""
    for bits in range(22, 0, -1):
        words = f"inputs with {bits} bits of mantissa{_LIKE.get(bits, '')}"
        yield words, taken.exact(partial(keep_bits, bits=bits))
        if bits in _LIKE:
            words = f"inputs cut off after {bits} bits of mantissa"
            yield words, taken.exact(partial(keep_bits, bits=bits, whole=np.trunc))
    yield "inputs that are sums of two bfloat16 numbers (bf16x3)", taken.in_parts()
    for form in _SUMS:
        for count in _AT_ONCE:
            if count < taken.depth:
                each = f", {count} products at a time" if count > 1 else ""
                yield f"sums in {form}{each}", taken.summed(form, at_once=count)
        for chunk in _CHUNKS:
            if chunk < taken.depth:
                words = f"sums of {chunk} products in {form}, and of these in float32"
                yield words, taken.summed(form, chunk=chunk)
        whole = rounded(taken.exact(partial(rounded, form=form)), form)
        yield f"a product in {form}, inputs and result", whole


def _of_factors(frame: Frame, told: Mapping[str, Any], place: int) -> Iterator[Candidate]:
    """Convolutions whose factors have fewer bits, with what each gives."""
    name = str(told["name"])
    if "convolution" not in name:
        return
    factors = [v["<tensor>"] for v in told["args"][: 3 if "backward" in name else 2]]
    for bits, like in _LIKE.items():

        def fewer(values: np.ndarray, one: Mapping[str, Any], bits: int = bits) -> np.ndarray:
            return keep_bits(values, bits) if one["<tensor>"] in factors else values

        found = replay.results(frame, told, fewer)
        yield f"inputs with {bits} bits of mantissa{like}", found[place].nearest


def _is_flushed(frame: Frame, told: Mapping[str, Any], place: int, worst: Result) -> bool:
    """Whether zeros in place of subnormal inputs and results give what the operator gave."""

    def flush(values: np.ndarray, one: Mapping[str, Any]) -> np.ndarray:
        return _flushed(values, str(one["<format>"]))

    exact = rounded(worst.exact, worst.format, wide=True)
    without = rounded(replay.results(frame, told, flush)[place].exact, worst.format, wide=True)
    without = _flushed(without, worst.format)
    differs = without != exact
    if not differs.any():
        return False
    nearer = np.abs(worst.got - without) < np.abs(worst.got - exact)
    is_explained = apart(worst.got, without) <= max(worst.error / MARGIN, 1e-5)
    return bool(nearer[differs].mean() > _NEAR) and is_explained


def _flushed(values: np.ndarray, form: str) -> np.ndarray:
    return np.where(np.abs(values) < torch.finfo(getattr(torch, form)).tiny, 0.0, values)


def _by_rounding(one: Result) -> Explained:
    """What results show of how they were rounded: in units of the last place from float64's."""
    found = torch.finfo(getattr(torch, one.format))
    size = np.abs(one.exact)
    inside = np.isfinite(one.got) & (size >= found.tiny) & (size <= found.max)
    if not inside.any() or found.bits > 32:
        return Explained()
    exact, got = one.exact[inside], one.got[inside]
    unit = np.ldexp(found.eps, np.frexp(exact)[1] - 1)
    off = (got - exact) / unit
    if found.bits == 16 and (np.abs(off) < 1).mean() > _NEAR:
        odd = float((np.abs(off) > 0.501).mean())  # tie
        towards_zero = float((off * np.sign(exact) <= 1e-3).mean())
        if odd > _UNLIKELY:
            how = "cut off" if towards_zero > _NEAR else "rounded up or down as if by chance"
            said = f"its results are {how}: {odd:.0%} are not the nearest of {one.format}"
            return Explained(f"results {how}", said)
    most = float(np.abs(off).max())
    said = f"no arithmetic that was tried gives it, up to {most:.3g} units in the last place off"
    return Explained("", said)
