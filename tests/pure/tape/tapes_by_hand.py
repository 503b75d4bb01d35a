"""Tapes written by hand, with prices inside the signatures, for closed forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from offramp.tape import Group, Price, Tape, kinds, pack


@dataclass
class FlatPrices:
    """The price that a signature names itself; by default the host costs nothing."""

    launch_s: float = 0.0
    view_s: float = 0.0
    collective_call_s: float = 0.0
    readback_s: float = 0.0
    overlap_slowdown: float = 1.0
    asked: int = 0

    def operator(self, text: str) -> Price:
        self.asked += 1
        data = json.loads(text)["values"]
        s = data["s"]
        low, high = data.get("low", s), data.get("high", s)
        return Price(s, low, high, data["kind"], "by hand", data.get("flops", 0.0), 8.0)

    def collective(self, text: str, ranks: Sequence[int]) -> Price:
        s = json.loads(text)["s"]
        return Price(s, s, s, "collective", "by hand", 0.0, 0.0)


class RingPrices(FlatPrices):
    """All-reduce over a ring of n: 2 (n - 1) / n of the bytes through each link of 1 byte/s."""

    def collective(self, text: str, ranks: Sequence[int]) -> Price:
        s = 2 * (len(ranks) - 1) / len(ranks) * json.loads(text)["bytes"]
        return Price(s, s, s, "collective", "ring", 0.0, 0.0)


@dataclass
class Hand:
    """One rank's tape as it is written down, call by call."""

    rank: int = 0
    groups: list[Group] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=lambda: [""])
    phase: int = 0
    module: str = ""
    header: dict[str, Any] = field(default_factory=dict)
    counter: int = 0

    def _signature(self, data: dict[str, Any]) -> int:
        text = json.dumps(data, sort_keys=True)
        if text not in self.signatures:
            self.signatures.append(text)
        return self.signatures.index(text)

    def name(self, text: str) -> int:
        if text not in self.names:
            self.names.append(text)
        return self.names.index(text)

    def put(self, kind: int, stream: int = 0, what: int = 0, a: int = 0, b: int = 0) -> Hand:
        self.rows.append((kind, self.phase, 0, stream, what, self.name(self.module), a, b))
        return self

    def op(
        self, s: float, stream: int = 0, kind: str = "matmul", op: str = "aten::mm", **more: float
    ) -> Hand:
        values = {"s": s, "kind": kind, **more}
        return self.put(kinds.OP, stream, self._signature({"op": op, "values": values}))

    def call(self, name: str, s: float, stream: int = 0, batch: int = 0, **more: Any) -> int:
        """A collective; returns the work to wait for."""
        data = {"collective": name, "s": s, "bytes": 8, "dtype": "float32", "group": 0} | more
        self.counter += 1
        self.put(kinds.COLLECTIVE, stream, self._signature(data), self.counter, batch)
        return self.counter

    def wait(self, work: int, stream: int = 0, host: bool = False) -> Hand:
        return self.put(kinds.WORK_WAIT, stream, 0, work, int(host))

    def record(self, event: int, stream: int = 0) -> Hand:
        return self.put(kinds.RECORD, stream, 0, event)

    def wait_event(self, event: int, stream: int = 0) -> Hand:
        return self.put(kinds.WAIT, stream, 0, event)

    def mark(self, name: str, place: int) -> Hand:
        return self.put(kinds.MARK, 0, self.name(name), place)

    def end_step(self) -> Hand:
        return self.mark(kinds.OPTIMIZER_MARK, kinds.END)

    def alloc(self, block: int, size: int) -> Hand:
        return self.put(kinds.ALLOC, 0, 0, block, size)

    def free(self, block: int, size: int) -> Hand:
        return self.put(kinds.FREE, 0, 0, block, size)

    def tape(self) -> Tape:
        header = {"chip": "test", "rank": self.rank, "world": 8} | self.header
        return Tape(header, self.signatures, self.names, self.groups, pack(self.rows))
