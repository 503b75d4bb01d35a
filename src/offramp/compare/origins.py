"""Where the tensors that operators were given came from, told by their content.

A recording numbers tensors by content (`record.operators`): that an operator was given what another
had made or been given before shows without a trace of pointers. In two runs of one program each
tensor comes from the same place, though its values may differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offramp.compare.replay import flat, is_kept
from offramp.record.frames import Frame

LEAST_VALUES = 8  # unlike ones: fewer may be alike by chance
Place = tuple[str, int, str, int]  # operator, which of its calls, result or input, which of them
Origins = tuple[frozenset[Place] | None, ...]  # of each tensor that was given; None: not known


def origins(frame: Frame, told: Sequence[Mapping[str, Any]]) -> list[Origins]:
    """For each operator, and each tensor that it was given, the places that had it before."""
    met: defaultdict[int, set[Place]] = defaultdict(set)
    calls: Counter[str] = Counter()
    found: list[Origins] = []
    for one in told:
        name = str(one["name"])
        given = flat([one["args"], list(one["kwargs"].values())])
        tensors = [v for v in given if isinstance(v, Mapping) and "<tensor>" in v]
        found.append(
            tuple(frozenset(met[v["<tensor>"]]) if _is_telling(frame, v) else None for v in tensors)
        )
        for word, values in (("input", tensors), ("result", flat(one["out"]))):
            for place, value in enumerate(values):
                if is_kept(value):
                    met[value["<tensor>"]].add((name, calls[name], word, place))
        calls[name] += 1
    return found


def unlike(one: Origins, other: Origins) -> str:
    """How the origins of one operator's tensors differ in two runs; empty: they do not."""
    for x, y in zip(one, other, strict=False):
        if x is not None and y is not None and x != y and not x & y:
            return f"{_said(x)} in the first, {_said(y)} in the second"
    return ""


def _is_telling(frame: Frame, told: Mapping[str, Any]) -> bool:
    if not is_kept(told):
        return False
    values = frame.arrays[str(told["<tensor>"])].reshape(-1)
    return len(np.unique(values)) >= LEAST_VALUES


def _said(places: frozenset[Place]) -> str:
    if not places:
        return "a tensor that no operator of it had before"
    name, call, word, _ = min(places, key=lambda p: (p[2] != "result", p))
    return f"the {word} of {name}" + (f" (call {call})" if call else "")
