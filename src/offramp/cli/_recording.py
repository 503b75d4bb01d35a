"""The options that `record` and `compare` share."""

from __future__ import annotations

import argparse
from typing import Any

from offramp.record.part import EVERY, FIRST, MOST_MIB, SAMPLE, Part


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is recorded."""
    parser.add_argument(
        "--every",
        type=int,
        metavar="N",
        help=f"details each Nth step (each {EVERY}th, fewer as the run goes on)",
    )
    parser.add_argument(
        "--first", type=int, default=FIRST, metavar="N", help=f"and of the first N ({FIRST})"
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=SAMPLE,
        metavar="N",
        help=f"elements of a tensor that are looked at, 0 for all ({SAMPLE})",
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory of each virtual chip, such as 2GiB"
    )


def part(arguments: argparse.Namespace, out: str, **more: object) -> Part:
    """What the options ask for. Raises UsageError."""
    from offramp.errors import UsageError

    least = {"every": 1, "first": 0, "sample": 0}
    for name, number in least.items():
        given = getattr(arguments, name)
        if given is not None and given < number:
            raise UsageError(f"--{name} {given}: expected a number of at least {number}")
    settings: dict[str, Any] = {name: getattr(arguments, name) or 0 for name in least}
    return Part(out=out, command=tuple(arguments.command), **{**settings, **more})


__all__ = ["MOST_MIB", "configure", "part"]
