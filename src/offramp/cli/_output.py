"""Prints labelled lines, and what goes on: styled on a terminal, plain everywhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
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


@contextlib.contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """A live line with the time on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: print(f"offramp: {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as live:
        task = live.add_task("starting", total=None)
        yield lambda text: live.update(task, description=text)
