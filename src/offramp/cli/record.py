"""`offramp record`: run a training program, and keep what it computed for a comparison."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from offramp.cli import _recording

HELP = "run a training program and keep what it computed, step by step and module by module"
EPILOG = """\
The program runs as it stands, on this machine's device or on a virtual chip:
  offramp record --out a.rec -- python train.py
  offramp record --out b.rec --chip NAME -- torchrun --nproc-per-node 2 train.py
Two recordings, also of two machines, are compared by: offramp compare a.rec b.rec"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.usage = "offramp record --out FILE [--chip NAME] [options] -- COMMAND..."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", required=True, metavar="FILE", help="the recording")
    parser.add_argument("--chip", metavar="NAME[:COUNT]", help="a virtual chip (default: none)")
    parser.add_argument("--tensors", default="", metavar="GLOB,...", help="modules kept whole")
    parser.add_argument("--steps", default="", metavar="LIST", help="in which steps, as 0,10-12")
    parser.add_argument(
        "--perturb", type=int, default=-1, metavar="SEED", help="add noise of rounding size"
    )
    parser.add_argument(
        "--most-mib", type=int, default=_recording.MOST_MIB, metavar="N", help="then losses only"
    )
    _recording.configure(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def execute(arguments: argparse.Namespace) -> int:
    """Record; the exit status is the command's, or 1 where nothing was recorded."""
    from offramp.cli import _output
    from offramp.compare import launching
    from offramp.errors import UsageError
    from offramp.record.recording import read_ranks
    from offramp.report import comparison

    if arguments.steps and not arguments.tensors:
        raise UsageError("--steps says when whole tensors are kept; say of which: --tensors GLOB")
    if arguments.most_mib < 1:
        raise UsageError(f"--most-mib {arguments.most_mib}: expected a size of at least 1")
    part = _recording.part(
        arguments,
        arguments.out,
        tensors=arguments.tensors,
        steps=launching.read_steps(arguments.steps),
        perturb=arguments.perturb,
        most_bytes=arguments.most_mib << 20,
    )
    plan = launching.plan(part, arguments.chip, arguments.memory)
    if plan.prepared.note:
        print(f"offramp: {plan.prepared.note}", file=sys.stderr)
    sys.stdout.flush()
    status = launching.execute(plan).exit_status
    if not Path(plan.part.out).exists():
        print(f"offramp: {comparison.NOTHING}", file=sys.stderr)
        return status or 1
    recorded = read_ranks(Path(plan.part.out))
    _output.show(
        f"offramp record: {arguments.out}", comparison.recorded_lines(recorded), sys.stderr
    )
    return status
