"""Where a device's time went in the program: modules, operators and phases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from offramp.tape import kinds as k
from offramp.tape.play import Floats, Ints, Played
from offramp.tape.prices import PriceList, operator_name


@dataclass(frozen=True, slots=True)
class ModuleTime:
    """Device seconds of one module: of its own operators, and with those of all below it."""

    name: str
    calls: int
    self_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """One operator: how often it ran on the chip, device seconds, flops and bytes."""

    name: str
    kind: str
    count: int
    seconds: float
    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Sums over some records of one rank; the longest first."""

    modules: list[ModuleTime]
    operators: list[OperatorTime]
    phases: dict[str, float]  # device seconds by phase
    flops: float


def break_down(
    played: Played, prices: PriceList, begin: int = 0, end: int | None = None
) -> Breakdown:
    """The operators of records [begin, end) by module, by name and by phase."""
    end = len(played.tape.records) if end is None else end
    mine = (played.ops_record >= begin) & (played.ops_record < end)
    records = played.tape.records[played.ops_record[mine]]
    seconds = played.ops_end[mine] - played.ops_start[mine]
    operators = _operators(played, prices, records["what"].astype(np.int64), seconds)
    phases = np.bincount(records["phase"], seconds, minlength=len(k.PHASES))
    return Breakdown(
        _modules(played.tape.names, records["module"].astype(np.int64), seconds),
        operators,
        {name: float(sum_s) for name, sum_s in zip(k.PHASES, phases, strict=True) if sum_s},
        sum(operator.flops for operator in operators),
    )


def pattern_of(module: str) -> str:
    """A module's name with its numbers taken together: `layers.*.mlp` for every layer's."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def tree(modules: Iterable[ModuleTime]) -> dict[str, float]:
    """Device seconds below each node of the modules' tree, numbers taken together.

    The root is "", a node's parent is its name up to the last point, and parents come first.
    """
    found: dict[str, float] = {"": 0.0}
    for row in modules:
        parts = pattern_of(row.name).split(".") if row.name else []
        for depth in range(len(parts) + 1):
            node = ".".join(parts[:depth])
            found[node] = found.get(node, 0.0) + row.self_s
    return dict(sorted(found.items()))


def _modules(names: list[str], numbers: Ints, seconds: Floats) -> list[ModuleTime]:
    own = np.bincount(numbers, seconds)
    calls = np.bincount(numbers)
    count: dict[str, int] = {}
    self_s: dict[str, float] = {}
    total_s: dict[str, float] = {}
    for number in np.flatnonzero(calls).tolist():
        name = names[number] if names else ""
        count[name] = count.get(name, 0) + int(calls[number])
        self_s[name] = self_s.get(name, 0.0) + float(own[number])
        parts = name.split(".") if name else []
        for depth in range(len(parts) + 1):  # every module has the root "" above it
            above = ".".join(parts[:depth])
            total_s[above] = total_s.get(above, 0.0) + float(own[number])
    rows = [
        ModuleTime(name, count.get(name, 0), self_s.get(name, 0.0), total)
        for name, total in total_s.items()
    ]
    return sorted(rows, key=lambda row: (-row.total_s, row.name))


def _operators(
    played: Played, prices: PriceList, whats: Ints, seconds: Floats
) -> list[OperatorTime]:
    sums = np.bincount(whats, seconds)
    counts = np.bincount(whats)
    rows: dict[tuple[str, str], list[float]] = {}
    for what in np.flatnonzero(counts).tolist():
        text = played.tape.signatures[what]
        price = prices.operator(text)
        row = rows.setdefault((operator_name(text), price.kind), [0.0, 0.0, 0.0, 0.0])
        count = int(counts[what])
        amounts = (count, float(sums[what]), count * price.flops, count * price.bytes)
        for place, amount in enumerate(amounts):
            row[place] += amount
    found = [
        OperatorTime(name, kind, int(count), spent, flops, moved)
        for (name, kind), (count, spent, flops, moved) in rows.items()
    ]
    return sorted(found, key=lambda row: (-row.seconds, row.name, row.kind))
