"""`offramp validate`: rehearse published runs, and compare with what was measured."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

HELP = "rehearse published training runs and compare with what was measured"
EPILOG = """\
  offramp validate --sample 3
  offramp validate --source torchtitan --out results.jsonl
  offramp validate --rows my_runs.csv
Results are kept in --out as they come: started again, it goes on. With --reprice they are made anew
from the tapes in --tapes, in seconds a row."""
OUT, TAPES = "validate.jsonl", "validate-tapes"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", metavar="FILE", help="other runs, in the columns of our own")
    parser.add_argument("--source", metavar="TEXT", help="only sources whose title has this text")
    parser.add_argument("--chip", metavar="TEXT", help="only chips whose name has this text")
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="at most so many rows of each source"
    )
    parser.add_argument("--out", default=OUT, metavar="FILE", help=f"results, a line each ({OUT})")
    parser.add_argument(
        "--tapes", default=TAPES, metavar="FOLDER", help=f"what was played ({TAPES})"
    )
    parser.add_argument(
        "--reprice",
        action="store_true",
        help="price these rows' kept tapes again",
    )
    parser.add_argument(
        "--fit", metavar="FILE", help="write the factors of training that these runs tell"
    )
    parser.add_argument(
        "--kept", action="store_true", help="only rows whose tapes are kept: nothing is played"
    )
    parser.add_argument("--list", action="store_true", help="say which rows have a job, and stop")
    parser.add_argument("--each", action="store_true", help="show every row, not only the sums")
    parser.add_argument("--json", metavar="FILE", help="write every row and the sums as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write every row as a table")


def execute(arguments: argparse.Namespace) -> int:
    """Rehearse and compare; 0 where anything could be compared, else 1."""
    from offramp.cli import _output
    from offramp.errors import UsageError
    from offramp.launch.files import check_writable, write_text
    from offramp.report import validation
    from offramp.validate import rows, run

    if arguments.sample < 0:
        raise UsageError(f"--sample {arguments.sample}: expected a number of rows, 0 for all")
    for path in filter(None, (arguments.json, arguments.csv, arguments.out, arguments.fit)):
        check_writable(Path(path))
    files = [Path(arguments.rows)] if arguments.rows else list(rows.BUILT_IN)
    read = [row for file in files for row in rows.read(file)]
    for flag, kept in (("source", "source_title"), ("chip", "chip")):
        text = getattr(arguments, flag)
        if text:
            read = [row for row in read if text.lower() in getattr(row, kept).lower()]
            if not read:
                raise UsageError(f"no row's {kept} has {text!r}")
    cases, left_out = run.cases_of(read)
    cases = run.sampled(cases, arguments.sample)
    if arguments.kept:
        cases = run.kept(cases, Path(arguments.tapes))
    if arguments.list:
        _output.show("offramp validate", validation.listed_lines(cases, left_out), sys.stdout)
        return 0
    results = run.Results(Path(arguments.out))
    if arguments.reprice:
        results.forget(cases)
    with _output.telling() as tell:
        run.predict_all(cases, results, Path(arguments.tapes), tell)
        if arguments.fit:
            write_text(Path(arguments.fit), run.fit(cases, Path(arguments.tapes), tell))
    scored, failed = run.scored(cases, results)
    if arguments.json:
        whole = {"rows": [asdict(row) for row in scored], "failed": failed, "left_out": left_out}
        write_text(Path(arguments.json), json.dumps(whole, indent=1) + "\n")
    if arguments.csv:
        write_text(Path(arguments.csv), validation.table(scored))
    lines = validation.lines(scored, failed, left_out)
    if arguments.each:
        lines = [*map(validation.row_line, scored), *lines]
    _output.show("offramp validate", lines, sys.stdout)
    return 0 if scored else 1
