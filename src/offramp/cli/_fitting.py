"""`offramp rehearse --fit` and `--vary`: other settings, each of them rehearsed."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli import Parser

if TYPE_CHECKING:
    from offramp.launch.fit import Change, Search
    from offramp.launch.rehearse import Plan, Rehearsal
    from offramp.launch.warm import Warm
    from offramp.report.lines import Line

Told = Callable[[str], None]
Planned = Callable[[argparse.Namespace], "Plan"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    if isinstance(parser, Parser):
        parser.takes_flags |= {"--vary"}
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--fit",
        action="store_true",
        help="where a job of `offramp train` does not fit: rehearse what could make it fit",
    )
    group.add_argument(
        "--vary",
        metavar="FLAG=V,V",
        help="rehearse the command with each value of one of its flags",
    )
    parser.add_argument(
        "--most-tries", type=int, default=12, metavar="N", help="settings to rehearse (default: 12)"
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is played. Raises UsageError."""
    from offramp.errors import UsageError
    from offramp.launch import fit
    from offramp.launch.launcher import Program

    if arguments.most_tries < 1:
        raise UsageError(f"--most-tries {arguments.most_tries}: expected at least 1")
    if arguments.fit and not Program.of(arguments.command).is_train:
        raise UsageError(
            "--fit changes settings of `offramp train`; for another program name the flag to "
            "change: --vary '--batch-size=16,8,4'"
        )
    if arguments.vary:
        fit.values_of(arguments.command, arguments.vary)
        if arguments.trace:
            raise UsageError("--trace is of one rehearsal, and --vary asks for several")


def ways_out(
    arguments: argparse.Namespace, planned: Planned, plan: Plan, found: Rehearsal, told: Told
) -> list[Line]:
    """Where a program does not fit: with --fit what makes it fit, else that it can be asked for.

    What was tried is kept as `fit` of the rehearsal's summary.
    """
    from offramp.launch.warm import Warm
    from offramp.report import fitting

    if found.summary["fits"]:
        return []
    if not arguments.fit:
        return [fitting.hint(plan.program.is_train)]
    with Warm() as warm:  # --fit is of `offramp train` alone
        search = _search(arguments, planned, told, warm).run(_ladders(arguments, plan))
    found.summary["fit"] = search.plain()
    return list(fitting.lines(found.summary["fit"]))


def vary(arguments: argparse.Namespace, planned: Planned, told: Told) -> int:
    """Rehearse with each value; 0 where one fits."""
    from offramp.cli import _output
    from offramp.launch import fit
    from offramp.launch.files import write_text
    from offramp.report import fitting
    from offramp.tape.summary import to_json

    ladder = fit.values_of(arguments.command, arguments.vary)
    plan = planned(arguments)
    if plan.note:
        print(f"offramp: {plan.note}", file=sys.stderr)
    search = _search(arguments, planned, told, None).run([ladder])
    outcome: dict[str, Any] = {"cluster": plan.cluster.title, **search.plain()}
    if arguments.json:
        write_text(Path(arguments.json), to_json(outcome))
    _output.show(f"offramp rehearse: {plan.cluster.title}", [*fitting.lines(outcome)], sys.stdout)
    return 0 if any(one.fits for one in search.tried) else 1


def _search(
    arguments: argparse.Namespace, planned: Planned, told: Told, warm: Warm | None
) -> Search:
    from offramp.launch import rehearse
    from offramp.launch.fit import Search

    def play(change: Change) -> dict[str, Any]:
        other = copy.copy(arguments)
        other.command = list(change.command)
        if change.nodes is not None:
            other.nodes, other.per_node = change.nodes, change.per_node
        return rehearse.execute(planned(other), warm=warm).summary

    return Search(play, told, arguments.most_tries)


def _ladders(arguments: argparse.Namespace, plan: Plan) -> tuple[Any, ...]:
    from offramp.cli.train import read_job
    from offramp.train import smaller

    grows = not (arguments.cluster or plan.program.launcher)
    job = read_job(plan.program.train_words)
    room = job.chip.per_node or plan.chip.chips_per_node or plan.per_node
    nodes = plan.cluster.groups[0].count
    placed = smaller.Placed(job, plan.program.given, nodes, plan.per_node, room if grows else 0)
    return smaller.ladders(placed)
