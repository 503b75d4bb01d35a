"""Random values that are a pure function of seed, name and place.

Element i of a tensor takes word i of a Philox 4x64 stream (Salmon et al. 2011) keyed by the seed
and the tensor's name; a counter-based generator starts at any place at no cost, so each rank draws
exactly the elements that it holds. Words are 32 bits. Two of them make two normal values by the
Box-Muller transform, computed in fp64: after rounding to fp32 the values do not depend on the
machine's vector units. Normal values reach 6.66 deviations, those of the smallest word.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from offramp.errors import RefusedError
from offramp.train.models.recipe import ELEMENTWISE, UNKNOWN, Recipe, Step
from offramp.train.models.slices import Indices

CHUNK = 1 << 18  # elements drawn at a time: their fp64 temporaries stay in the cache
_SHORT = 4096  # runs below this are drawn with what lies between them
_WORDS = 8  # 32-bit words of one block of the generator
_SCALE = 2.0**-32

Key = npt.NDArray[np.uint64]


def key_of(seed: int, name: str) -> Key:
    """The generator's key for one tensor."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def words(key: Key, start: int, count: int) -> npt.NDArray[np.uint32]:
    """Words start to start + count of a stream, uint32."""
    generator = np.random.Philox(key=key)
    block = start // _WORDS
    if block:
        generator.advance(block)
    skip = start - block * _WORDS
    raw = generator.random_raw((skip + count + 1) // 2)
    return raw.astype("<u8", copy=False).view(np.uint32)[skip : skip + count]


def uniform(key: Key, start: int, count: int) -> torch.Tensor:
    """Values in (0, 1), fp64, symmetric about one half."""
    drawn = torch.from_numpy(words(key, start, count).astype(np.float64))
    return drawn.add_(0.5).mul_(_SCALE)


def normal(key: Key, start: int, count: int) -> torch.Tensor:
    """Values with mean 0 and deviation 1, fp64."""
    lead = start % 2
    drawn = words(key, start - lead, (lead + count + 1) // 2 * 2)
    return _box_muller(drawn.reshape(-1, 2)).view(-1)[lead : lead + count]


def _box_muller(pairs: npt.NDArray[np.uint32]) -> torch.Tensor:
    """Two normal values of each two words, [n, 2], fp64."""
    unit = torch.from_numpy(pairs.astype(np.float64)).add_(0.5).mul_(_SCALE)
    radius = unit[:, 0].log().mul_(-2.0).sqrt_()
    angle = unit[:, 1].mul(2.0 * math.pi)
    return torch.stack((angle.cos().mul_(radius), angle.sin().mul_(radius)), dim=1)


def values(recipe: Recipe, key: Key, start: int, count: int) -> torch.Tensor:
    """Elements start to start + count of a tensor, in memory order, fp64.

    Raises RefusedError for a recipe with an operation that cannot be repeated by element.
    """
    made = torch.full((count,), math.nan, dtype=torch.float64)
    for step in recipe:
        low, high = max(start, step.start), min(start + count, step.start + step.count)
        if low < high:
            part = made[low - start : high - start]
            part.copy_(_apply(step, part, key, low))
    return made


def runs(
    recipe: Recipe, key: Key, shape: tuple[int, ...], indices: Indices
) -> Iterator[tuple[int, torch.Tensor]]:
    """The local part in pieces: place in its memory order and fp64 values, at most CHUNK at once.

    indices: what `slices.local_indices` gives for a tensor of this shape.
    """
    cut = _last_cut(shape, indices)
    inner = math.prod(shape[cut + 1 :])
    spans = _spans(indices[cut]) if cut >= 0 else [(0, 1)]
    short = cut > 0 and max((length for _, length in spans), default=0) * inner < _SHORT
    if short and shape[cut] * inner <= CHUNK:
        yield from _thinned(recipe, key, shape, indices, cut)
        return
    place = 0
    width = (shape[cut] if cut >= 0 else 1) * inner
    for row in _rows(shape, indices, cut):
        for first, length in spans:
            begin, left = row * width + first * inner, length * inner
            while left > 0:
                count = min(left, CHUNK)
                yield place, values(recipe, key, begin, count)
                place, begin, left = place + count, begin + count, left - count


def _thinned(
    recipe: Recipe, key: Key, shape: tuple[int, ...], indices: Indices, cut: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Whole rows are drawn, and the held part of each is kept: for short runs."""
    inner = math.prod(shape[cut + 1 :])
    width = shape[cut] * inner
    columns = (indices[cut][:, None] * inner + np.arange(inner)[None, :]).reshape(-1)
    place = 0
    rows = _rows(shape, indices, cut)
    for first, length in _spans(np.fromiter(rows, dtype=np.int64)):
        step = max(1, CHUNK // width)
        for begin in range(first, first + length, step):
            count = min(step, first + length - begin)
            if _is_normal(recipe, math.prod(shape)) and width % 2 == 0:
                held = _thinned_normal(recipe[0], key, begin * width, (count, width), columns)
            else:
                block = values(recipe, key, begin * width, count * width)
                held = block.view(count, width)[:, columns].reshape(-1)
            yield place, held
            place += held.numel()


def _is_normal(recipe: Recipe, count: int) -> bool:
    return len(recipe) == 1 and recipe[0].op == "normal_" and recipe[0].count >= count


def _thinned_normal(
    step: Step, key: Key, start: int, block: tuple[int, int], columns: npt.NDArray[np.int64]
) -> torch.Tensor:
    """Some columns of a block of rows, each of even width: words are cheap, so all are drawn, and
    only the pairs that are needed become values."""
    mean, deviation = step.values
    rows, width = block
    pairs, places = np.unique(columns // 2, return_inverse=True)
    drawn = words(key, start, rows * width).reshape(rows, width // 2, 2)[:, pairs]
    made = _box_muller(drawn.reshape(-1, 2)).view(rows, -1)[:, places * 2 + columns % 2]
    return made.mul_(deviation).add_(mean).reshape(-1)  # type: ignore[arg-type]


def _last_cut(shape: tuple[int, ...], indices: Indices) -> int:
    """The last dimension of which only a part is held; -1: the tensor is whole."""
    cuts = [dim for dim, size in enumerate(shape) if len(indices[dim]) != size]
    return cuts[-1] if cuts else -1


def _rows(shape: tuple[int, ...], indices: Indices, cut: int) -> Iterator[int]:
    """Flat places, over the dimensions before `cut`, of the rows held."""
    flat = np.zeros(1, dtype=np.int64)
    for dim in range(max(cut, 0)):
        flat = (flat[:, None] * shape[dim] + indices[dim][None, :]).reshape(-1)
    yield from flat.tolist()


def _spans(indices: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of consecutive indices: first, length."""
    if not len(indices):
        return []
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [(int(part[0]), len(part)) for part in np.split(indices, breaks)]


def _truncated(
    drawn: torch.Tensor, mean: float, deviation: float, low: float, high: float
) -> torch.Tensor:
    """Normal values within low and high, by the inverse of their distribution."""
    first, last = (math.erf((edge - mean) / (deviation * math.sqrt(2.0))) for edge in (low, high))
    drawn = drawn.mul_(last - first).add_(first).erfinv_()
    return drawn.mul_(deviation * math.sqrt(2.0)).add_(mean).clamp_(low, high)


def _apply(step: Step, part: torch.Tensor, key: Key, start: int) -> torch.Tensor:
    if step.op == "normal_":
        mean, deviation = step.values
        return normal(key, start, part.numel()).mul_(deviation).add_(mean)  # type: ignore[arg-type]
    if step.op == "uniform_":
        low, high = step.values
        assert low is not None
        assert high is not None
        return uniform(key, start, part.numel()).mul_(high - low).add_(low)
    if step.op == "trunc_normal_":
        return _truncated(uniform(key, start, part.numel()), *step.values)  # type: ignore[arg-type]
    if step.op == "fill_":
        return torch.full_like(part, step.values[0])  # type: ignore[arg-type]
    if step.op in ELEMENTWISE:
        return getattr(part.clone(), step.op)(*step.values)  # type: ignore[no-any-return]
    assert step.op == UNKNOWN
    raise RefusedError(
        f"the model's own initialization uses {step.note!r}, which cannot be drawn by element; "
        "start from a folder with weights instead"
    )
