"""Samples of tensors, copied exactly, and what is computed of them on the host.

[Note: nothing rests on the chip's arithmetic] A recording is to tell two chips apart, so that none
of its figures may be computed by them: a chip only copies elements; the host computes in float64.

[Note: sketches] Of a tensor's sample x a sketch is kept: S[b] = sum of s_i x_i over i with
i mod WIDTH = b, with fixed random signs s. It is linear, and for any two samples E[|S(x)-S(y)|^2] =
|x-y|^2 with a relative variance of at most 2 / WIDTH (Charikar, Chen and Farach-Colton 2002; Alon,
Matias and Szegedy 1996): how far two tensors are apart is known without keeping either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

WIDTH = 32
STATS = ("elements", "norm", "mean", "max", "nonfinite", "subnormal", "bf16_grid")
_SEED = 0x0FF7A3
_BLOCK = 1 << 16  # numbers that are measured together: what they need stays in a processor's cache


@functools.lru_cache(maxsize=4096)
def stride(count: int, limit: int) -> int:
    """Every how many elements one is looked at: coprime to the count, so that no column is left
    out of a matrix."""
    if limit <= 0 or count <= limit:
        return 1
    step = -(-count // limit)
    while math.gcd(step, count) != 1:
        step += 1
    return step


def plain(tensor: Tensor) -> Tensor | None:
    """The tensor's own elements without its history; None where it has none that can be read."""
    local = tensor.detach()
    if type(local) is not Tensor:
        if hasattr(local, "to_local"):
            local = local.to_local()
        if type(local).__name__ in ("FakeTensor", "FunctionalTensor"):
            return None
    if local.layout != torch.strided or local.is_meta or local.numel() == 0:
        return None
    return torch.view_as_real(local) if local.is_complex() else local


def sample(tensor: Tensor, limit: int) -> Tensor | None:
    """Copies of at most `limit` elements (0: all), where the tensor is; None as for `plain`."""
    local = plain(tensor)
    if local is None:
        return None
    flat = local.reshape(-1)[:: stride(local.numel(), limit)]
    if flat.is_floating_point() and flat.dtype.itemsize == 1:
        return flat.to(torch.float32)  # exact; eight-bit formats have few operators
    return flat.clone()


def on_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Each sample as a numpy array; those of one device and format come over together."""
    found: list[np.ndarray] = [np.empty(0)] * len(tensors)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(place)
    for (device, dtype), places in groups.items():
        parts = [tensors[p].reshape(-1) for p in places]
        if device.type != "cpu":
            counts = [part.numel() for part in parts]
            parts = list(torch.cat(parts).cpu().split(counts))
        if dtype in (torch.bfloat16, torch.float16):
            parts = [part.to(torch.float32) for part in parts]  # exact; numpy has no bfloat16
        for place, part in zip(places, parts, strict=True):
            found[place] = part.numpy()
    return found


def measure(samples: Sequence[np.ndarray], tiny: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Statistics [R, len(STATS)] and sketches [R, WIDTH] of R samples, in float64.

    tiny   the least normal number of each sample's format
    """
    stats = np.zeros((len(samples), len(STATS)))
    sketches = np.zeros((len(samples), WIDTH))
    groups: dict[tuple[int, np.dtype[Any]], list[int]] = {}
    for place, values in enumerate(samples):
        groups.setdefault((len(values), values.dtype), []).append(place)
    least = np.asarray(tiny)
    for (count, _), places in groups.items():
        together = max(1, _BLOCK // max(count, 1))
        for at in range(0, len(places) if count else 0, together):
            block = places[at : at + together]
            raw = np.stack([samples[p] for p in block])
            stats[block], sketches[block] = _measure_block(raw, least[block, None])
    return stats, sketches


def _measure_block(raw: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`measure` for samples [R, n] of one length and format, with `least` [R, 1]."""
    count, values = raw.shape[1], raw.astype(np.float64)
    size = np.abs(values)
    nonfinite: np.ndarray | float = 0.0
    if not np.isfinite(size.max()):
        finite = np.isfinite(values)
        values, size = np.where(finite, values, 0.0), np.where(finite, size, 0.0)
        nonfinite = 1.0 - finite.mean(axis=1)
    largest = size.max(axis=1)
    # Squares of the largest numbers would overflow, and of the least vanish.
    unit = np.where(largest > 0, largest, 1.0)
    scaled = values / unit[:, None]
    stats = np.zeros((len(raw), len(STATS)))
    stats[:, 0] = count
    stats[:, 1] = np.sqrt(np.einsum("rn,rn->r", scaled, scaled)) * unit
    stats[:, 2] = values.mean(axis=1)
    stats[:, 3] = largest
    stats[:, 4] = nonfinite
    stats[:, 5] = np.count_nonzero((size > 0) & (size < least), axis=1) / count
    stats[:, 6] = _on_bf16_grid(values)
    signs, whole = _signs(count), count - count % WIDTH
    sketches = np.einsum(
        "rjw,jw->rw",
        values[:, :whole].reshape(len(raw), -1, WIDTH),
        signs[:whole].reshape(-1, WIDTH),
    )
    sketches[:, : count - whole] += values[:, whole:] * signs[whole:]
    return stats, sketches


def _on_bf16_grid(values: np.ndarray) -> np.ndarray:
    """The share of each row's numbers but zeros that bfloat16 holds: float32, low 16 bits zero."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    low = narrow.view(np.uint32) & np.uint32(0xFFFF)
    counted = values != 0
    fits = np.count_nonzero((low == 0) & (narrow == values) & counted, axis=1)
    return np.asarray(fits / np.maximum(np.count_nonzero(counted, axis=1), 1))


@functools.lru_cache(maxsize=64)
def _signs(count: int) -> np.ndarray:
    """Fixed signs by splitmix64 (Steele, Lea and Flood 2014), alike with every numpy."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(_SEED)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z >> np.uint64(63)).astype(np.float64)) * 2.0 - 1.0
