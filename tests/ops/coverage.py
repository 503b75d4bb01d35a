"""Writes docs/operators.md: how much of PyTorch's operator database the virtual chip passes.

Run as `python tests/ops/coverage.py`; it examines every case, which takes some minutes.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from battery import KNOWN, TIERS, Case, cases, examiner
from examine import Outcome

import offramp
from offramp.chips.arithmetic import resolve

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


def main() -> int:
    listed = list(cases())
    torch.set_num_threads(1)
    with offramp.use("zhenwu-810e") as session:
        session.device.set_arithmetic(resolve((), ()))  # the CPU's, as in the tests
        judge = examiner(session.device.default_generator(0))
        outcomes = [(case, judge.examine(case.op, case.dtype, case.limit)) for case in listed]
    PAGE.write_text(page(outcomes))
    return 0


def page(outcomes: list[tuple[Case, Outcome]]) -> str:
    rows, everything = [], Counter[str]()
    for dtype, limit in TIERS.items():
        counts = Counter(o.verdict for case, o in outcomes if case.dtype == dtype)
        everything.update(counts)
        rows.append(row(str(dtype).removeprefix("torch."), counts, str(limit)))
    rows.append(row("**all**", everything, ""))
    compared = sum(outcome.variants for _, outcome in outcomes)
    rounded = sum(outcome.rounded for _, outcome in outcomes)
    others = [
        f"| `{case.name}` | {case.format} | {outcome.verdict} | {why(case, outcome)} |"
        for case, outcome in outcomes
        if outcome.verdict in ("failed", "refused")
    ]
    return "\n".join(
        [
            "# Operators on the virtual chip",
            "",
            f"PyTorch {torch.__version__.split('+')[0]}'s own operator database (OpInfo: `op_db` "
            "and the foreach lists) on a virtual chip, each",
            "operator against the CPU on the same inputs: values, formats, shapes, strides, which "
            "memory results share, gradients,",
            "in-place and `out=` variants, errors. `make test MARKERS=opinfo` checks it; "
            "`python tests/ops/coverage.py` writes this page.",
            "",
            "| format | operators of the CPU | passed | refused | failed | passed | samples each |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{compared:,} variants were compared; {rounded} comparisons were equal to rounding "
            "only, all others to the bit.",
            "",
            "## What is not equal",
            "",
            "| operator | format | outcome | reason |",
            "|---|---|---|---|",
            *others,
            "",
            "Not compared by value, because "
            + KNOWN["uninitialized"]["reason"]
            + ": "
            + ", ".join(f"`{name}`" for name in KNOWN["uninitialized"]["ops"])
            + ".",
            "",
        ]
    )


def row(name: str, counts: Counter[str], limit: str) -> str:
    total = counts["passed"] + counts["refused"] + counts["failed"]
    share = 100 * counts["passed"] / total
    return (
        f"| {name} | {total} | {counts['passed']} | {counts['refused']} | {counts['failed']} "
        f"| {share:.2f} % | {limit} |"
    )


def why(case: Case, outcome: Outcome) -> str:
    return case.known["reason"] if case.known else outcome.reason.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
