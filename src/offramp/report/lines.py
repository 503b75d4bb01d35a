"""Labelled lines: the form of every short report, as plain text or styled for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

Tone = Literal["plain", "good", "warn", "bad"]
STYLES: dict[Tone, str] = {"plain": "", "good": "green", "warn": "yellow", "bad": "bold red"}
MARGIN = 2


@dataclass(frozen=True)
class Line:
    """One statement; an empty label continues the line above."""

    label: str
    text: str
    tone: Tone = "plain"


def plain(title: str, lines: Sequence[Line], width: int = 100) -> str:
    """Text of at most `width` columns: the title, then label and text in two columns."""
    label_width = max((len(line.label) for line in lines), default=0)
    hanging = " " * (MARGIN + label_width + MARGIN)
    room = max(width, len(hanging) + 20)
    output = [shorten(title, width)]
    for line in lines:
        first = f"{' ' * MARGIN}{line.label:<{label_width}}{' ' * MARGIN}"
        output += textwrap.wrap(
            line.text,
            room,
            initial_indent=first,
            subsequent_indent=hanging,
            break_on_hyphens=False,
            break_long_words=False,
        ) or [first.rstrip()]
    return "\n".join(output)


def styled(title: str, lines: Sequence[Line]) -> RenderableType:
    """The same for a terminal, with colour."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, MARGIN))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        label = Text(f"{' ' * MARGIN}{line.label}", "dim")
        table.add_row(label, Text(line.text, STYLES[line.tone]))
    return Group(Text(title, "bold", no_wrap=True, overflow="ellipsis"), table)


def shorten(text: str, width: int) -> str:
    """`text` in one line of at most `width` columns."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def plural(count: int, noun: str) -> str:
    """`1 op`, `1,234 ops`."""
    word = noun if count == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {word}"


def listed(items: Sequence[str], most: int) -> str:
    """The first `most` items and how many are left out."""
    left = len(items) - most
    return ", ".join(items[:most]) + (f" and {left} more" if left > 0 else "")
