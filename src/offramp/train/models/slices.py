"""Which elements of a parameter this rank holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed.tensor import DTensor, Partial

from offramp.errors import RefusedError

Indices = list[npt.NDArray[np.int64]]


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that is stored on this rank: itself, unless it is a DTensor."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def local_indices(tensor: torch.Tensor) -> Indices:
    """For each dimension, the indices of the whole tensor that the local part holds, in its order.

    Raises RefusedError for a DTensor that is a partial sum, or whose parts are laid out otherwise
    than its placements say.
    """
    whole = [np.arange(size, dtype=np.int64) for size in tensor.shape]
    if not isinstance(tensor, DTensor):
        return whole
    mesh, placements = tensor.device_mesh, tensor.placements
    if any(isinstance(placement, Partial) for placement in placements):
        raise RefusedError(f"placements {placements}: a partial sum holds no elements to fill")
    places = mesh.get_coordinate()
    if places is None:
        return [indices[:0] for indices in whole]
    splits = [
        (placement, mesh.size(axis), places[axis])
        for axis, placement in enumerate(placements)
        if hasattr(placement, "dim")
    ]
    expected = tuple(tensor._local_tensor.shape)
    for ordered in (_outermost_first(splits), splits):
        parts = list(whole)
        for placement, ways, place in ordered:
            factor = 1 if ordered is not splits else _factor(placement)
            parts[placement.dim] = _split(parts[placement.dim], ways, place, factor)
        if tuple(len(part) for part in parts) == expected:
            return parts
    raise RefusedError(
        f"a tensor of {tuple(tensor.shape)} with placements {placements} on a mesh of "
        f"{tuple(mesh.shape)} holds {expected} here, which those placements do not give"
    )


def take(whole: torch.Tensor, indices: Indices) -> torch.Tensor:
    """The elements of a whole tensor at the cross product of indices."""
    for dim, index in enumerate(indices):
        if len(index) == whole.shape[dim]:
            continue
        first = int(index[0]) if len(index) else 0
        if len(index) == 0 or int(index[-1]) - first == len(index) - 1:
            whole = whole.narrow(dim, first, len(index))
        else:
            whole = whole.index_select(dim, torch.from_numpy(index).to(whole.device))
    return whole


def _factor(placement: Any) -> int:
    return int(getattr(placement, "split_factor", 1))


def _outermost_first(splits: list[tuple[Any, int, int]]) -> list[tuple[Any, int, int]]:
    """Mesh axes from left to right, but strided ones last: these split what the others left.

    FSDP2 over tensor parallelism shards the tensor-parallel part; the mesh lists FSDP first and
    marks its placement as strided.
    """
    plain = [split for split in splits if _factor(split[0]) == 1]
    strided = [split for split in splits if _factor(split[0]) != 1]
    return plain + strided[::-1]


def _split(
    indices: npt.NDArray[np.int64], ways: int, place: int, factor: int
) -> npt.NDArray[np.int64]:
    """Part `place` of `ways` in the sense of torch.chunk, from each of `factor` pieces."""
    pieces = [_chunk(indices, factor, piece) for piece in range(factor)]
    return np.concatenate([_chunk(piece, ways, place) for piece in pieces])


def _chunk(indices: npt.NDArray[np.int64], ways: int, place: int) -> npt.NDArray[np.int64]:
    size = math.ceil(len(indices) / ways)
    return indices[place * size : (place + 1) * size]
