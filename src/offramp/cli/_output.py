"""Prints labelled lines: styled on a terminal, plain everywhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TextIO

from offramp.report.lines import Line, plain, styled

WIDTH = 100


def show(title: str, lines: Sequence[Line], stream: TextIO) -> None:
    """Write the lines to `stream`, with colour where it is a terminal that wants it."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        print(plain(title, lines, WIDTH), file=stream, flush=True)
        return
    from rich.console import Console

    width = min(WIDTH, shutil.get_terminal_size().columns)
    Console(file=stream, width=width, highlight=False).print(styled(title, lines))
