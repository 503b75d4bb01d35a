"""Factors of training, fitted to measured runs: least squares with priors, on logarithms.

What a factor does to a step is found by pricing the step's tape again with the factor a little
larger: so a step that waits for the host answers to the host's factor alone, as it would. Every
source of runs weighs as the square root of its rows; rows far off count less (pseudo-Huber loss);
a factor of which runs say nothing stays at 1.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offramp.costs.cost import Span
from offramp.costs.training import MEANINGS, Factors

Floats = npt.NDArray[np.float64]

# How far a factor may be from 1 before any run was seen: standard deviations of its logarithm,
# from how far benchmarks of the same thing lie apart.
PRIORS: Mapping[str, float] = {
    "products": 0.15,
    "attention": 0.2,
    "memory": 0.2,
    "kernels": 0.4,
    "host": 0.5,
    "links": 0.25,
    "network": 0.5,
    "latency": 0.7,
    "overlap": 0.7,
}
NOISE = 0.1  # of a measured step's logarithm, that no factor explains
STEP = 0.1  # of a factor's logarithm, by which slopes are found
SWEEPS = 40
CERTAIN = 1.64  # standard deviations to either end of a factor: nine in ten


@dataclass(frozen=True)
class Seen:
    """A run as the fit sees it: d log seconds / d log factor, near the factors `at`.

    seconds   of the step with `at`, measured beside it
    """

    id: str
    source: str
    measured: float
    seconds: float
    slopes: Mapping[str, float]


def fitted(rows: Sequence[Seen], at: Mapping[str, float]) -> Factors:
    """The factors with which rows come out best, each with nine tenths of its probability.

    rows   with their slopes near the factors `at`, logarithms by name; 0 where missing
    """
    names = list(PRIORS)
    start = np.array([at.get(name, 0.0) for name in names])
    slopes = np.array([[row.slopes.get(name, 0.0) for name in names] for row in rows])
    slopes = slopes.reshape(len(rows), len(names))
    # What is left to explain at factors of 1, by the line through `at`.
    wanted = np.array([math.log(row.measured / row.seconds) for row in rows]) + slopes @ start
    sizes = Counter(row.source for row in rows)
    weight = np.array([sizes[row.source] ** -0.5 for row in rows]) / NOISE**2
    prior = np.diag([PRIORS[name] ** -2 for name in names])
    found = np.zeros(len(names))
    information: Floats = prior
    for _ in range(SWEEPS):
        off = (wanted - slopes @ found) / NOISE
        robust = weight / np.sqrt(1 + off**2)
        information = slopes.T @ (robust[:, None] * slopes) + prior
        found = np.linalg.solve(information, slopes.T @ (robust * wanted))
    spread = CERTAIN * np.sqrt(np.diag(np.linalg.inv(information)))
    return {
        name: Span(math.exp(middle), math.exp(middle - wide), math.exp(middle + wide))
        for name, middle, wide in zip(names, found, spread, strict=True)
    }


def unseen(rows: Sequence[Seen], at: Mapping[str, float]) -> dict[str, Factors]:
    """For each source, the factors that are fitted without its rows and those of its makers."""
    return {
        source: fitted([row for row in rows if _maker(row.source) != _maker(source)], at)
        for source in sorted({row.source for row in rows})
    }


def _maker(source: str) -> str:
    """Whose runs they are: the first word of a source's title."""
    return source.partition(" ")[0]


def logarithms(factors: Factors) -> dict[str, float]:
    """The factors as `fitted` takes them for a start."""
    return {name: math.log(span.value) for name, span in factors.items()}


def text(whole: Factors, without: Mapping[str, Factors], told: str) -> str:
    """The file of factors, as `offramp.costs.training` reads it; `told`: what it was fitted to."""
    lines = ['title = "Costs in training over costs in benchmarks"', "", "[sources]"]
    lines += [f"runs = {_quoted(told)}", "", "[all]", *_rows(whole)]
    for source, factors in without.items():
        lines += ["", "[[without]]", f"unseen = {_quoted(source)}", *_rows(factors)]
    return "\n".join(lines) + "\n"


def _rows(factors: Factors) -> list[str]:
    return [
        f"{name} = {{ value = {span.value:.3f}, low = {span.low:.3f}, high = {span.high:.3f}, "
        f'unit = "1", tier = "derived", source = "runs", note = {_quoted(MEANINGS[name])} }}'
        for name, span in factors.items()
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
