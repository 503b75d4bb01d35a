"""Which module a tensor that differs points at.

In the forward pass the first tensor in time that differs is the output of the culprit, or the input
of the next module where the culprit is a function that the enclosing module calls. In the backward
pass the first gradient that differs was made by what consumed the tensor that it is of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offramp.compare.pairing import Pair, module_of
from offramp.compare.verdict import Place
from offramp.record import rows

FORWARD, BACKWARD, START = "forward", "backward", "start"
BETWEEN, OPTIMIZER = "between backward and optimizer", "optimizer"


EVERY = "every parameter"
MOST = 0.6  # of the parameters: where so many differ, no one of them is to blame


def place(pair: Pair, row: int, differs: np.ndarray, names: Sequence[str], before: int) -> Place:
    """Where the paired row `row`, the first that differs, points at.

    differs  [R] which rows do
    before   the last step in detail before this one; -1: none
    """
    what, number = pair.keys[row][:2]
    name, step = names[number], pair.number
    word = f"{rows.WORDS[what]} of {name}"
    owner = int(pair.column("owner")[row])
    if what == rows.WEIGHT:
        if before < 0 and step == 0:
            return Place(0, module_of(name), START, word)
        if _is_buffer(pair, number):
            return Place(before, module_of(name), FORWARD, f"buffer {name} after the step")
        return Place(before, OPTIMIZER, OPTIMIZER, f"{name} after the step")
    if what == rows.UPDATED:
        return Place(step, OPTIMIZER, OPTIMIZER, word)
    if what == rows.LOSS:
        return Place(step, "loss", FORWARD, "loss")
    if what == rows.OUTPUT:
        return Place(step, name, FORWARD, word)
    if what == rows.INPUT:
        return _from_input(pair, row, names, owner)
    if what == rows.WEIGHT_GRADIENT:
        return Place(step, module_of(name), BACKWARD, word)
    if what in (rows.UNCLIPPED, rows.STEP_GRADIENT):
        alike = np.asarray([key[0] == what for key in pair.keys])
        is_all = alike.sum() > 1 and differs[alike].mean() > MOST
        return Place(step, EVERY if is_all else module_of(name), BETWEEN, word)
    return _from_gradient(pair, row, names, owner)


def _is_buffer(pair: Pair, number: int) -> bool:
    """A weight that no optimizer met."""
    return not any(k[0] == rows.STEP_GRADIENT and k[1] == number for k in pair.keys)


def _from_input(pair: Pair, row: int, names: Sequence[str], owner: int) -> Place:
    name = names[pair.keys[row][1]]
    if owner < 0:
        met = any(k[0] == rows.OUTPUT for k in pair.keys[:row])
        return Place(pair.number, "loss" if met else "data", FORWARD, f"input of {name}")
    return Place(pair.number, names[owner], FORWARD, f"input of {name}")


def _from_gradient(pair: Pair, row: int, names: Sequence[str], owner: int) -> Place:
    name = names[pair.keys[row][1]]
    word = f"gradient at {name}"
    of = int(pair.column("of")[row])
    table = pair.rows_a.table
    links, whats = pair.rows_a.column("link"), pair.rows_a.column("what")
    if of >= 0 and whats[of] == rows.INPUT:
        return Place(pair.number, name, BACKWARD, word)
    found = np.flatnonzero((links == of) & (whats == rows.INPUT)) if of >= 0 else np.empty(0, int)
    inner = [names[int(table[at, 1])] for at in found.tolist()]
    # A module stands for itself; one that only encloses the next consumer adds nothing.
    consumers = [n for n in inner if not any(m != n and m.startswith(f"{n}.") for m in inner)]
    if consumers:
        return Place(pair.number, consumers[-1], BACKWARD, word, tuple(consumers[:-1]))
    if owner >= 0:
        return Place(pair.number, names[owner], BACKWARD, word)
    return Place(pair.number, "loss", BACKWARD, word)


def by_growth(
    pair: Pair, times: np.ndarray, names: Sequence[str], growth: float
) -> tuple[Place, int] | None:
    """The module whose output is furthest above the floor relative to its inputs and weights, at
    least `growth` times: where weights differ already, and every tensor with them."""
    highest, best = growth, -1
    inputs: dict[tuple[int, int], float] = {}
    weights: dict[str, float] = {}
    for row, key in enumerate(pair.keys):
        what, number, call = key[:3]
        if what == rows.WEIGHT:
            module = module_of(names[number])
            weights[module] = max(weights.get(module, 0.0), float(times[row]))
        elif what == rows.INPUT:
            inputs[(number, call)] = max(inputs.get((number, call), 0.0), float(times[row]))
        elif what == rows.OUTPUT and (number, call) in inputs:
            inside = [v for k, v in weights.items() if f"{k}.".startswith(f"{names[number]}.")]
            given = max([1.0, inputs[(number, call)], *inside])
            if times[row] / given > highest:
                highest, best = float(times[row]) / given, row
    if best < 0:
        return None
    return place(pair, best, times > growth, names, -1), best
