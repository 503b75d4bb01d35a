"""PyTorch's own operator database on the virtual chip, against the CPU.

Each case compares an operator in one format: values, layouts, aliases, gradients, in-place and
`out=` variants (tests/ops/examine.py). What differs is listed in known.toml with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from battery import KNOWN, Case, cases, examiner

CASES = list(cases())
pytestmark = pytest.mark.opinfo


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The samples are small: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.format}")
def test_operator(case: Case, chip: Any) -> None:
    outcome = examiner(chip.default_generator(0)).examine(case.op, case.dtype, case.limit)
    if outcome.verdict == "none":
        pytest.skip("the CPU runs no sample of it")
    if known := case.known:
        assert outcome.verdict == known["verdict"], "known.toml lists what no longer holds"
        return
    assert outcome.verdict == "passed", outcome.reason


def test_every_entry_names_a_case() -> None:
    names = {(case.name, case.format) for case in CASES} | {(case.name, "*") for case in CASES}
    for entry in KNOWN["known"]:
        assert (entry["op"], entry["dtype"]) in names, entry
