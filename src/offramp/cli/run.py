"""`offramp run`: start any command with a chip, and tell at the end what happened."""

from __future__ import annotations

import argparse
import sys

HELP = "run a command on a virtual chip and report at the end"
EPILOG = """\
Everything after -- is run as it stands, in the foreground; its exit status is the exit status.
  offramp run --chip NAME -- python train.py --epochs 3
  offramp run --chip NAME:4 --memory 8GiB -- torchrun --nproc-per-node 4 train.py"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.usage = "offramp run --chip NAME[:COUNT] [options] -- COMMAND..."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--chip", required=True, metavar="NAME[:COUNT]", help="the chip, and how many of them"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory of each chip, such as 2GiB (default: all it has)"
    )
    parser.add_argument(
        "--arith",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change how the chip computes, such as accumulate=fp16; may be given again",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", help="the run's folder (default: a new one under ./runs)"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no report on stderr; run.json is written all the same"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status is its own."""
    from offramp.launch import run

    plan = run.plan(
        arguments.chip,
        arguments.command,
        memory=arguments.memory,
        arith=arguments.arith,
        run_dir=arguments.run_dir,
    )
    if plan.prepared.note and not arguments.quiet:
        print(f"offramp: {plan.prepared.note}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    result = run.execute(plan)
    if not arguments.quiet:
        from offramp.cli import _output
        from offramp.report import text

        _output.show(text.title(result), text.lines(result), sys.stderr)
    return result["exit_status"]
