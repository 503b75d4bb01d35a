"""What docs/arithmetic.md defines, in numpy: formats by their bits, sums one step at a time.

And the way of numpy's numbers to the chip and back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Set = Callable[..., Any]  # what the fixture `arith` gives
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SPECIAL = 0x7F800000


def keep_bits(x: Floats, bits: int) -> Floats:
    """float32 with `bits` stored bits of significand: to the nearest, ties to even."""
    if bits >= 23:
        return x
    drop = 23 - bits
    words = x.astype(np.float32).view(np.uint32)
    up = words + np.uint32((1 << (drop - 1)) - 1) + ((words >> drop) & 1)
    kept = up & np.uint32(0xFFFFFFFF ^ ((1 << drop) - 1))
    return np.where((words & SPECIAL) == SPECIAL, words, kept).astype(np.uint32).view(np.float32)


def as_half(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def as_bfloat16(x: Floats) -> Floats:
    return keep_bits(x, 7)


def bfloat16_bits(x: Floats) -> npt.NDArray[np.uint16]:
    """The 16 bits of numbers that bfloat16 has."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


FORMATS = {"fp32": lambda x: x, "fp16": as_half, "bf16": as_bfloat16}


def summed(a: Floats, b: Floats, form: str = "fp32", chunk: int = 0, splits: int = 1) -> Floats:
    """a [m, k] times b [k, n], one product after the other."""
    rounded = FORMATS[form]
    depth = a.shape[1]
    part = -(-depth // splits)
    whole = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for start in range(0, depth, part):
        stop = min(start + part, depth)
        partial = np.zeros_like(whole)
        step = chunk or stop - start
        for begin in range(start, stop, step):
            inner = np.zeros_like(whole)
            for i in range(begin, min(begin + step, stop)):
                inner = rounded(inner + a[:, i : i + 1] * b[i : i + 1, :])
            partial = partial + inner
        whole = whole + partial
    return whole


def split_mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 of Steele, Lea and Flood (2014), as in Java's SplittableRandom."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def chances(count: int, seed: int, call: int) -> npt.NDArray[np.uint32]:
    """The 16 bits that each element of the call's result draws."""
    key = split_mix(np.uint64(seed) ^ split_mix(np.array([call], np.uint64)))
    with np.errstate(over="ignore"):
        drawn = split_mix(key + np.arange(count, dtype=np.uint64))
    return (drawn >> np.uint64(48)).astype(np.uint32)


def stochastic(x: Floats, form: str, seed: int, call: int) -> Floats:
    """Finite float32 rounded to the format below or above, by chance."""
    draw = chances(x.size, seed, call).reshape(x.shape)
    if form == "bf16":
        words = (x.view(np.uint32) + draw) & np.uint32(0xFFFF0000)
        return words.astype(np.uint32).view(np.float32)
    size = np.abs(x)
    normal = ((size.view(np.uint32) + (draw >> 3)) & np.uint32(0xFFFFE000)).view(np.float32)
    steps = size * np.float32(2**24)
    part = ((steps - np.floor(steps)) * 65536).astype(np.uint32)
    tiny = (np.floor(steps) + ((part + draw) >> 16)) / np.float32(2**24)
    made = np.where(size < 2.0**-14, tiny, np.where(normal > 65504, np.inf, normal))
    return np.copysign(made, x).astype(np.float32)


def flushed(x: Floats, smallest: float = 2.0**-126) -> Floats:
    """Without the numbers below the smallest normal one."""
    return np.where(np.abs(x) < smallest, np.copysign(np.float32(0), x), x).astype(np.float32)


def exponential(x: Floats, ulp: int) -> Floats:
    """exp, off by up to `ulp` representable numbers, as the argument's bits say."""
    right = np.exp(x.astype(np.float64)).astype(np.float32)
    key = x.view(np.uint32)
    with np.errstate(over="ignore"):
        key = (key ^ (key >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        key = (key ^ (key >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        key = key ^ (key >> np.uint32(16))
    away = (key % np.uint32(2 * ulp + 1)).astype(np.int64) - ulp
    words = right.view(np.uint32).astype(np.int64) + away
    moved = words.astype(np.uint32).view(np.float32)
    edge = (right < 2.0**-126) | np.isinf(right) | (moved < 2.0**-126) | ~np.isfinite(moved)
    return np.where(edge | (x == 0), right, moved).astype(np.float32)


def normal(*shape: int, seed: int = 3) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def on_chip(array: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(array).to("cuda").to(dtype)


def back(tensor: torch.Tensor) -> Any:
    return tensor.detach().float().cpu().numpy()
