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

import numpy as np
import torch
from torch import Tensor

WIDTH = 32
STATS = ("elements", "norm", "mean", "max", "nonfinite", "subnormal", "bf16_grid")
_SEED = 0x0FF7A3


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
    if hasattr(local, "to_local"):
        local = local.to_local()
    if local.layout != torch.strided or local.device.type == "meta" or local.numel() == 0:
        return None
    if type(local).__name__ in ("FakeTensor", "FunctionalTensor"):
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
    for (_, dtype), places in groups.items():
        whole = torch.cat([tensors[p].reshape(-1) for p in places]).cpu()
        if dtype in (torch.bfloat16, torch.float16):
            whole = whole.to(torch.float32)  # exact; numpy has no bfloat16
        array, at = whole.numpy(), 0
        for place in places:
            count = tensors[place].numel()
            found[place] = array[at : at + count]
            at += count
    return found


def measure(samples: Sequence[np.ndarray], tiny: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Statistics [R, len(STATS)] and sketches [R, WIDTH] of R samples, in float64.

    tiny   the least normal number of each sample's format
    """
    stats = np.zeros((len(samples), len(STATS)))
    sketches = np.zeros((len(samples), WIDTH))
    groups: dict[int, list[int]] = {}
    for place, values in enumerate(samples):
        groups.setdefault(len(values), []).append(place)
    least = np.asarray(tiny)
    for count, places in groups.items():
        if not count:
            continue
        raw = np.stack([samples[p] for p in places]).astype(np.float64)
        finite = np.isfinite(raw)
        values = raw if finite.all() else np.where(finite, raw, 0.0)
        size = np.abs(values)
        largest = size.max(axis=1)
        # Squares of the largest numbers would overflow, and of the least vanish.
        unit = np.where(largest > 0, largest, 1.0)[:, None]
        stats[places, 0] = count
        stats[places, 1] = np.sqrt(((values / unit) ** 2).sum(axis=1)) * unit[:, 0]
        stats[places, 2] = values.mean(axis=1)
        stats[places, 3] = largest
        stats[places, 4] = 1.0 - finite.mean(axis=1)
        stats[places, 5] = ((size > 0) & (size < least[places][:, None])).mean(axis=1)
        stats[places, 6] = _on_bf16_grid(values)
        signed = values * _signs(count)
        room = -count % WIDTH
        padded = np.pad(signed, ((0, 0), (0, room))) if room else signed
        sketches[places] = padded.reshape(len(places), -1, WIDTH).sum(axis=1)
    return stats, sketches


def _on_bf16_grid(values: np.ndarray) -> np.ndarray:
    """The share of each row's numbers but zeros that bfloat16 holds: float32, low 16 bits zero."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    low = narrow.view(np.uint32) & np.uint32(0xFFFF)
    counted = values != 0
    fits = ((low == 0) & (narrow == values) & counted).sum(axis=1)
    return np.asarray(fits / np.maximum(counted.sum(axis=1), 1))


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
