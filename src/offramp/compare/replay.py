"""One recorded operator, replayed in float64 on the host from the inputs that were recorded.

What a run's operator gave is measured against float64 on its own inputs, so that what came before
has no part in it. What cannot be replayed (random numbers) has no results here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.record.frames import Frame

RANDOM = ("rand", "dropout", "bernoulli", "empty", "normal", "uniform")
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)
Change = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]  # of an input's values, as told


@dataclass(frozen=True)
class Result:
    """One result of an operator.

    got     as it was recorded
    exact   float64's, from the same inputs
    format  of the recorded one, as PyTorch calls it
    """

    got: np.ndarray
    exact: np.ndarray
    format: str

    @property
    def nearest(self) -> np.ndarray:
        """The exact result as a 16-bit format has it; of wider formats as it is."""
        return rounded(self.exact, self.format)

    @property
    def error(self) -> float:
        """How far it is from the best that its format can have, relative to its size."""
        return apart(self.got, self.nearest)

    @property
    def is_flushed(self) -> bool | None:
        """Whether what should be subnormal is zero; None where nothing should be."""
        found = torch.finfo(getattr(torch, self.format))
        size = np.abs(rounded(self.exact, self.format, wide=True))
        # The least of them may be rounded to zero.
        inside = (size < found.tiny) & (size > 8 * found.tiny * found.eps)
        return bool((self.got[inside] == 0).all()) if inside.any() else None


def results(
    frame: Frame, told: Mapping[str, Any], change: Change | None = None
) -> tuple[Result, ...]:
    """The operator's floating-point results; none where it cannot be replayed.

    change  what is done to its floating-point inputs before
    """
    if any(word in told["name"] for word in RANDOM):
        return ()
    try:
        function = _function(told["name"])
        args = [_value(frame, item, change) for item in told["args"]]
        kwargs = {name: _value(frame, item, change) for name, item in told["kwargs"].items()}
        with torch.no_grad():
            exact = function(*args, **kwargs)
    except _FAILURES:
        return ()
    wanted = list(exact) if isinstance(exact, list | tuple) else [exact]
    found = zip(flat(told["out"]), wanted, strict=False)
    return tuple(_paired(frame, found))


def _paired(frame: Frame, found: Any) -> Iterator[Result]:
    for one, other in found:
        if not (isinstance(other, Tensor) and other.is_floating_point() and is_kept(one)):
            continue
        got = frame.arrays[str(one["<tensor>"])].astype(np.float64)
        if got.shape == tuple(other.shape) and got.size:
            yield Result(got, other.double().numpy(), str(one["<format>"]))


def apart(got: np.ndarray, wanted: np.ndarray) -> float:
    """|got - wanted| / |wanted|; inf where one alone is finite, 1 where that alone is zero."""
    if (np.isfinite(got) != np.isfinite(wanted)).any():
        return float("inf")
    x, y = (np.nan_to_num(v, posinf=0, neginf=0) for v in (got, wanted))
    unit = float(np.abs(y).max(initial=0.0))
    if not unit:
        return float(np.abs(x).max(initial=0.0) > 0)
    # Squares of the least numbers would vanish.
    return float(np.linalg.norm((x - y) / unit) / np.linalg.norm(y / unit))


def rounded(values: np.ndarray, form: str, *, wide: bool = False) -> np.ndarray:
    """float64 values as a format has them, in float64; those of 32 bits only where `wide`."""
    found = getattr(torch, form)
    if found.itemsize > (4 if wide else 2):
        return values
    return np.asarray(torch.from_numpy(values).to(found).double().numpy())


def is_kept(told: Any) -> bool:
    """Whether it is a floating-point tensor whose values are in the recording."""
    if not isinstance(told, Mapping) or told.get("<tensor>", -1) < 0:
        return False
    return bool(getattr(torch, str(told["<format>"])).is_floating_point)


def flat(value: Any) -> list[Any]:
    """What nested lists hold, in order."""
    return [w for item in value for w in flat(item)] if isinstance(value, list) else [value]


def values(frame: Frame, told: Mapping[str, Any]) -> np.ndarray:
    """A recorded tensor's values, in float64."""
    return frame.arrays[str(told["<tensor>"])].astype(np.float64)


def _value(frame: Frame, told: Any, change: Change | None) -> Any:
    """An argument in float64, on the host."""
    if isinstance(told, list):
        return [_value(frame, item, change) for item in told]
    if not isinstance(told, Mapping):
        return told
    if is_kept(told):
        own = values(frame, told)
        return torch.from_numpy(own if change is None else change(own, told))
    if "<tensor>" in told:
        return torch.from_numpy(frame.arrays[str(told["<tensor>"])].copy())
    if "<format>" in told:
        found = getattr(torch, str(told["<format>"]))
        return torch.float64 if found.is_floating_point else found
    if "<device>" in told:
        return torch.device("cpu")
    raise ValueError(f"{told} cannot be replayed")


def is_pointwise(name: str) -> bool:
    """Whether each element of the operator's result comes of one element of each input."""
    try:
        return torch.Tag.pointwise in _function(name).tags
    except _FAILURES:  # an operator that is not here
        return False


def _function(name: str) -> Any:
    space, operator, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), operator), overload)
