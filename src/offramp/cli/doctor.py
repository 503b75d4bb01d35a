"""`offramp doctor`: what this machine offers, and what to mend."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

HELP = "tell what this machine offers and what to mend"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def execute(arguments: argparse.Namespace) -> int:
    """Examine the machine; 1 when there is something to mend."""
    from offramp.cli import _output
    from offramp.launch.machine import examine

    machine = examine()
    if arguments.json:
        print(json.dumps(dataclasses.asdict(machine), indent=1))
    else:
        from offramp.report import machine as report

        _output.show(report.TITLE, report.lines(machine), sys.stdout)
    return 1 if machine.findings else 0
