"""Which chip, how many and how much memory: what `--chip` and `OFFRAMP_CHIP` mean."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offramp.errors import UsageError
from offramp.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from offramp.chips import Chip
    from offramp.chips.arithmetic import Arithmetic


@dataclass(frozen=True)
class Choice:
    """`count` chips of one kind in one node, each with `memory_bytes`."""

    chip: Chip
    name: str  # as in the catalogue, or the absolute path of a chip file
    count: int
    memory_bytes: int
    arithmetic: Arithmetic

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


def choose(text: str, memory: str | None = None, arith: Sequence[str] = ()) -> Choice:
    """Read `NAME[:COUNT]` and a memory size such as `2GiB` (without one, all that the chip has).

    `arith` changes how the chip computes, each `KEY=VALUE` (`chips.arithmetic.KEYS`).

    Raises UsageError: unknown chip, malformed chip file, a count that is no positive number or
    beyond the chip's node, a size that cannot be read or is above the chip's memory, arithmetic
    that cannot be meant.
    """
    from offramp import chips
    from offramp.chips.arithmetic import resolve

    name, colon, number = text.partition(":")
    if not name:
        raise UsageError(f"{text!r}: expected NAME or NAME:COUNT; `offramp chips` lists the names")
    chip = chips.load(name)
    if name.endswith(".toml"):
        name = os.path.abspath(name)
    count = 1
    if colon:
        if not (number.isascii() and number.isdecimal() and int(number) > 0):
            raise UsageError(f"{text!r}: expected NAME:COUNT with a count of at least 1")
        count = int(number)
    node = chip.chips_per_node
    if node is not None and count > node:
        raise UsageError(
            f"{text!r}: a node holds at most {node} of {name}; give {name}:{node} or fewer"
        )
    arithmetic = resolve(chip.arithmetic, arith)
    memory_bytes = _memory(chip, memory) if memory else chip.memory_bytes
    return Choice(_formatted(chip, arithmetic), name, count, memory_bytes, arithmetic)


def _formatted(chip: Chip, arithmetic: Arithmetic) -> Chip:
    """The chip with or without float64, where that was set."""
    from offramp.chips import Fact
    from offramp.chips.arithmetic import BY_HAND

    asked = arithmetic.value("float64")
    if asked is None or (asked == "refused") == ("float64" in chip.absent_formats):
        return chip
    said = Fact("absent" if asked == "refused" else "emulated", "text", "assumed", BY_HAND)
    return replace(chip, formats={**chip.formats, "float64": said})


def _memory(chip: Chip, text: str) -> int:
    size = parse_bytes(text)
    if size > chip.memory_bytes:
        raise UsageError(
            f"memory {text!r} is above the {format_bytes(chip.memory_bytes)} of {chip.name}"
        )
    return size
