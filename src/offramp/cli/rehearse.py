"""`offramp rehearse`: play a program at the full size of its job, in the chip's own time."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from offramp.cli import _fitting

if TYPE_CHECKING:
    from offramp.launch.rehearse import Plan
    from offramp.launch.spending import Terms
    from offramp.train.job import Job

HELP = "play a program on a cluster without computing values: does it fit, how long is a step"
EPILOG = """\
The command is played as one rank of the whole job (and as one of each pipeline stage), unchanged:
  offramp rehearse --chip NAME -- python train.py
  offramp rehearse --chip NAME --nodes 64 -- torchrun --nproc-per-node 8 train.py
  offramp rehearse -- offramp train job.toml"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.usage = "offramp rehearse --chip NAME [--nodes N] [options] -- COMMAND..."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--chip", default="", metavar="NAME", help="the chip of every node (of a job: its own)"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="how many nodes")
    parser.add_argument("--per-node", type=int, metavar="N", help="chips of a node")
    parser.add_argument(
        "--cluster", default="", metavar="FILE", help="a cluster file, instead of --chip"
    )
    parser.add_argument(
        "--steps", type=int, default=4, metavar="N", help="steps to play, the first to warm up (4)"
    )
    parser.add_argument(
        "--limit", type=float, default=600, metavar="S", help="seconds a rank (default: 600)"
    )
    parser.add_argument(
        "--most-ranks", type=int, default=64, metavar="N", help="most ranks to play (default: 64)"
    )
    parser.add_argument(
        "--mask-keeps", type=float, default=1.0, metavar="SHARE", help="of unknown values (1)"
    )
    parser.add_argument(
        "--clock",
        choices=("machine", "chip"),
        default="machine",
        help="what the program's own `time` reads (default: machine)",
    )
    _fitting.configure(parser)
    parser.add_argument(
        "--tokens-per-step", type=int, metavar="N", help="over all chips (of a job: its own)"
    )
    parser.add_argument(
        "--price", metavar="AMOUNT", help="of a chip for an hour, such as 2.5 or '2.5 USD'"
    )
    parser.add_argument("--html", metavar="FILE", help="write the result as a page with plots")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--trace", metavar="FILE", help="write a trace that Perfetto opens")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def execute(arguments: argparse.Namespace) -> int:
    """Rehearse; 0 where it fits, 1 where it does not."""
    from offramp.cli import _output
    from offramp.launch import rehearse
    from offramp.launch.files import check_writable, write_text
    from offramp.report import page, rehearsal
    from offramp.tape.summary import to_json

    _fitting.check(arguments)
    job = _job(arguments.command)
    if job is not None and not arguments.cluster:
        _take_from_job(arguments, job)
    if arguments.html:
        page.check()
    for path in filter(None, (arguments.json, arguments.trace, arguments.html)):
        check_writable(Path(path))
    if arguments.vary:
        with _ended_by_signals(), _output.telling() as tell:
            return _fitting.vary(arguments, planned, tell)
    plan = planned(arguments)
    if plan.note:
        print(f"offramp: {plan.note}", file=sys.stderr)
    with _ended_by_signals(), _output.telling() as tell:
        found = rehearse.execute(plan, tell)
        more = _fitting.ways_out(arguments, planned, plan, found, tell)
        if arguments.html:
            tell("drawing the page")
            text = page.draw(found.summary, found.tapes, found.prices)
            write_text(Path(arguments.html), text)
    if arguments.json:
        write_text(Path(arguments.json), to_json(found.summary))
    if arguments.trace:
        found.write_trace(Path(arguments.trace))
    lines = [*rehearsal.lines(found.summary), *more]
    _output.show(rehearsal.title(found.summary), lines, sys.stdout)
    return 0 if found.summary["fits"] else 1


def planned(arguments: argparse.Namespace) -> Plan:
    """The rehearsal that the arguments ask for. Raises UsageError."""
    from offramp.launch import rehearse

    job = _job(arguments.command)
    return rehearse.plan(
        arguments.command,
        chip=arguments.chip,
        nodes=arguments.nodes,
        per_node=arguments.per_node,
        cluster=arguments.cluster,
        steps=arguments.steps,
        limit_s=arguments.limit,
        most_ranks=arguments.most_ranks,
        kept=arguments.mask_keeps,
        leads_time=arguments.clock == "chip",
        terms=_terms(arguments, job),
        partners=() if job is None else tuple(job.layout.pipeline_ranks),
    )


def _job(command: list[str]) -> Job | None:
    """The job of a command that is `offramp train`."""
    from offramp.cli.train import read_job
    from offramp.launch.launcher import Program

    program = Program.of(command)
    return read_job(program.train_words) if program.is_train else None


def _terms(arguments: argparse.Namespace, job: Job | None) -> Terms:
    """What the flags, or the job, say of tokens, steps and prices. Raises UsageError."""
    from offramp.errors import UsageError
    from offramp.launch.spending import Price, Terms

    price = None if arguments.price is None else Price.parse(arguments.price)
    given = arguments.tokens_per_step
    if job is None:
        return Terms(given, "--tokens-per-step", price=price)
    batch, sequence = job.train.batch, job.data.sequence
    if given not in (None, batch * sequence):
        raise UsageError(
            f"--tokens-per-step {given}: the job's step has {batch} sequences of {sequence} "
            f"tokens, {batch * sequence} in all; leave the option out, or change the job"
        )
    source = f"{batch:,} sequences of {sequence:,}"
    return Terms(batch * sequence, source, job.train.steps or None, price)


def _take_from_job(arguments: argparse.Namespace, job: Job) -> None:
    """Where `offramp train` is rehearsed, its job says on which chip and on how many."""
    from offramp import chips
    from offramp.errors import UsageError
    from offramp.launch.launcher import Program

    if not arguments.chip and job.chip.name not in ("cpu", "here"):
        arguments.chip = job.chip.name
    world = job.layout.world
    is_placed = arguments.nodes is not None or arguments.per_node is not None
    if is_placed or Program.of(arguments.command).launcher or world == 1 or not arguments.chip:
        return
    room = job.chip.per_node or chips.load(arguments.chip).chips_per_node or world
    arguments.nodes = -(-world // room)
    arguments.per_node = world // arguments.nodes
    if arguments.nodes * arguments.per_node != world:
        raise UsageError(
            f"the layout is for {world} chips, which do not spread evenly over nodes of {room}; "
            "give --nodes and --per-node"
        )


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that nothing is left behind."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
