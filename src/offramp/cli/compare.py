"""`offramp compare`: is it still the same model on the other chip?"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli import _recording

if TYPE_CHECKING:
    from offramp.compare.run import Compared

HELP = "compare two recordings of one program, or record it on two chips and compare"
MARGIN, REPEATS = 0.005, 2
EPILOG = """\
Two recordings (offramp record), also of two machines; or a program, recorded here on two chips:
  offramp compare a.rec b.rec --noise noise.rec
  offramp compare --chip NAME --chip NAME -- python train.py
In place of a chip's name, `here` is what this machine has. Exit status: 0 for `same`, else 1."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.usage = (
        "offramp compare A.rec B.rec [options] | --chip A --chip B [options] -- COMMAND..."
    )
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(command=[])
    parser.add_argument("recordings", nargs="*", metavar="FILE", help="the two recordings")
    parser.add_argument("--chip", action="append", default=[], metavar="NAME", help="twice: record")
    parser.add_argument(
        "--noise",
        action="append",
        default=[],
        metavar="FILE",
        help="a recording of the first's program with --perturb; may be given again",
    )
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, metavar="N", help=f"recordings of noise ({REPEATS})"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        metavar="SHARE",
        help=f"of the loss, that is no difference between curves ({MARGIN})",
    )
    parser.add_argument("--keep", metavar="FOLDER", help="keep the recordings that are made")
    parser.add_argument(
        "--bisect", action="store_true", help="replay the first module's operators in float64"
    )
    parser.add_argument("--json", metavar="FILE", help="write the verdict as JSON")
    parser.add_argument("--html", metavar="FILE", help="write the verdict as a page with plots")
    _recording.configure(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Compare; 0 for `same`, else 1."""
    from offramp.cli import _output
    from offramp.compare import run
    from offramp.compare.verdict import SAME
    from offramp.launch.files import check_writable, write_text
    from offramp.report import comparison, comparison_page
    from offramp.report.lines import Line

    _check(arguments)
    if arguments.html:
        comparison_page.check()
    for path in filter(None, (arguments.json, arguments.html)):
        check_writable(Path(path))
    if arguments.recordings:
        a, b = map(Path, arguments.recordings)
        found = run.files(a, b, [Path(path) for path in arguments.noise], arguments.margin)
        found, operator = run.bisect(found, a, b) if arguments.bisect else (found, "")
    else:
        found, operator = _record(arguments)
    if arguments.json:
        whole = {
            "names": found.names,
            "devices": found.devices,
            "rank": found.rank,
            "ranks": found.ranks,
            "operator": operator,
            **found.verdict.data(),
        }
        write_text(Path(arguments.json), json.dumps(whole, indent=1) + "\n")
    if arguments.html:
        write_text(Path(arguments.html), comparison_page.draw(found))
    more = [Line("operator", operator)] if operator else []
    _output.show(comparison.title(found), [*comparison.lines(found), *more], sys.stdout)
    return 0 if found.verdict.verdict == SAME else 1


def _record(arguments: argparse.Namespace) -> tuple[Compared, str]:
    """Record the program on two chips, and with noise on the first; compare; name the operator."""
    from offramp.compare import run

    def tell(text: str) -> None:
        print(f"offramp: {text}", file=sys.stderr, flush=True)

    first, second = arguments.chip
    with tempfile.TemporaryDirectory(prefix="offramp-compare-") as scratch:
        folder = Path(arguments.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        part = _recording.part(arguments, str(folder / "a.rec"))
        sys.stdout.flush()
        a, b, noisy = run.record(
            part, (first, second), folder, arguments.repeats, tell, arguments.memory
        )
        found = run.files(a, b, noisy, arguments.margin)
        if not arguments.bisect:
            return found, ""
        reason = run.not_replayed(found)
        modules, step = ("", 0) if reason else run.to_replay(found, a)
        if not modules:
            return found, reason or "no module differs, and none has weights that it multiplies by"
        again = replace(part, tensors=modules, steps=(step,))
        (folder / "operators").mkdir(exist_ok=True)
        a, b, _ = run.record(
            again, (first, second), folder / "operators", 0, tell, arguments.memory
        )
        return run.bisect(found, a, b)


def _check(arguments: argparse.Namespace) -> None:
    from offramp.errors import UsageError

    given = len(arguments.recordings)
    if arguments.command or arguments.chip:
        if given:
            raise UsageError("give two recordings, or --chip twice and a command; not both")
        if len(arguments.chip) != 2 or not arguments.command:
            raise UsageError(
                f"--chip was given {len(arguments.chip)} times, with "
                f"{'a' if arguments.command else 'no'} command; expected: "
                "offramp compare --chip NAME --chip NAME -- COMMAND... (`here`: this machine)"
            )
        if arguments.noise:
            raise UsageError("--noise is of recordings; a program's own is made: --repeats N")
    elif given != 2:
        raise UsageError(f"{given} recordings given; expected two, or --chip twice and a command")
    if not 0 < arguments.margin < 1:
        raise UsageError(f"--margin {arguments.margin}: expected a share between 0 and 1")
    if arguments.repeats < 0:
        raise UsageError(f"--repeats {arguments.repeats}: expected a number of at least 0")
