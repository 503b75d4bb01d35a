"""The operators of one module, each replayed alone in float64 from the inputs that were recorded.

Each run's operator is measured against float64 on its own inputs, so that what came before has no
part in it. The operator to name is the first that was called otherwise, or whose error in one run
is far above its error in the other. What cannot be replayed (random numbers) counts as right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.record.frames import Frame
from offramp.record.recording import Recording
from offramp.record.rows import EPSILONS, FORMATS

ABOVE = 8.0  # times the other run's error, or twice the format's spacing
RANDOM = ("rand", "dropout", "bernoulli", "empty", "normal", "uniform")


@dataclass(frozen=True)
class Named:
    """What the replay found.

    operator  its name; empty: none stands out
    text      what is different about it, or why nothing could be said
    errors    of each operator: name, error in the first run, in the second
    """

    operator: str
    text: str
    errors: tuple[tuple[str, float, float], ...] = ()


def bisect(a: Recording, b: Recording, step: int, module: str) -> Named:
    """Replay a module's operators of both runs."""
    left, right = (one.operators.get((step, module)) for one in (a, b))
    if left is None or right is None:
        which = "first" if left is None else "second"
        return Named(
            "",
            f"the {which} recording has no operators of {module} in step {step}; record both "
            f"with --tensors {module!r} --steps {step}",
        )
    errors: list[tuple[str, float, float]] = []
    pairs = zip(left.head["operators"], right.head["operators"], strict=False)
    for number, (one, other) in enumerate(pairs):
        said = _unlike(one, other)
        if said:
            return Named(str(one["name"]), f"operator {number}: {said}", tuple(errors))
        x, y = error(left, one), error(right, other)
        errors.append((str(one["name"]), x, y))
        room = 2 * _spacing(one["out"])
        if max(x, y) > ABOVE * max(min(x, y), room):
            where = "second" if y > x else "first"
            return Named(
                str(one["name"]),
                f"operator {number} is off by {max(x, y):.2g} of its size in the {where}, by "
                f"{min(x, y):.2g} in the other, from float64 on its own inputs",
                tuple(errors),
            )
    counts = [len(f.head["operators"]) for f in (left, right)]
    if counts[0] != counts[1]:
        return Named("", f"{counts[0]} operators and {counts[1]}", tuple(errors))
    return Named(
        "", "none of its operators stands out from float64 on its own inputs", tuple(errors)
    )


def error(frame: Frame, told: Mapping[str, Any]) -> float:
    """How far an operator's results are from float64's, relative; 0 where it cannot be replayed."""
    if any(word in told["name"] for word in RANDOM):
        return 0.0
    try:
        function = _function(told["name"])
        args = [_value(frame, item) for item in told["args"]]
        kwargs = {name: _value(frame, item) for name, item in told["kwargs"].items()}
        with torch.no_grad():
            exact = function(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError):
        return 0.0
    got = _flat(told["out"])
    wanted = list(exact) if isinstance(exact, list | tuple) else [exact]
    worst = 0.0
    for one, other in zip(got, wanted, strict=False):
        if not isinstance(one, Mapping) or one.get("<tensor>", -1) < 0:
            continue
        if isinstance(other, Tensor) and other.is_floating_point():
            worst = max(worst, _apart(frame.arrays[str(one["<tensor>"])], other.numpy()))
    return worst


def _apart(got: np.ndarray, wanted: np.ndarray) -> float:
    if got.shape != wanted.shape or not got.size:
        return 0.0
    x, y = got.astype(np.float64), wanted.astype(np.float64)
    odd = np.isfinite(x) != np.isfinite(y)
    if odd.any():
        return float("inf")
    x, y = np.nan_to_num(x, posinf=0, neginf=0), np.nan_to_num(y, posinf=0, neginf=0)
    size = float(np.linalg.norm(y))
    return float(np.linalg.norm(x - y)) / size if size else float(np.linalg.norm(x) > 0)


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """How two calls differ in what is no tensor."""
    if one["name"] != other["name"]:
        return f"{one['name']} in the first, {other['name']} in the second"
    x, y = (_settings(told) for told in (one, other))
    differing = [(p, q) for p, q in zip(x, y, strict=False) if p != q]
    if differing or len(x) != len(y):
        p, q = differing[0] if differing else (len(x), len(y))
        return f"{one['name']} was given {p} in the first, {q} in the second"
    return ""


def _settings(told: Mapping[str, Any]) -> list[Any]:
    whole = [*_flat(told["args"]), *_flat(list(told["kwargs"].values()))]
    return [v for v in whole if not (isinstance(v, Mapping) and {"<tensor>", "<device>"} & {*v})]


def _flat(value: Any) -> list[Any]:
    return [w for item in value for w in _flat(item)] if isinstance(value, list) else [value]


def _value(frame: Frame, told: Any) -> Any:
    """An argument in float64, on the host."""
    if isinstance(told, list):
        return [_value(frame, item) for item in told]
    if not isinstance(told, Mapping):
        return told
    if "<tensor>" in told:
        array = torch.from_numpy(frame.arrays[str(told["<tensor>"])].copy())
        return array.double() if array.is_floating_point() else array
    if "<format>" in told:
        found = getattr(torch, str(told["<format>"]))
        return torch.float64 if found.is_floating_point else found
    if "<device>" in told:
        return torch.device("cpu")
    raise ValueError(f"{told} cannot be replayed")


def _function(name: str) -> Any:
    space, operator, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), operator), overload)


def _spacing(out: Any) -> float:
    """The spacing of the coarsest format of the results."""
    found = [0.0]
    for one in _flat(out):
        if isinstance(one, Mapping) and one.get("<format>") in FORMATS:
            found.append(EPSILONS[FORMATS.index(str(one["<format>"]))])
    return max(found)
