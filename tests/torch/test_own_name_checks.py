"""A device under CUDA's name, and under its maker's."""

from __future__ import annotations

import ast
import json
from functools import cache

import own_name_process
import pytest

TREE = ast.parse((own_name_process.HERE / "checks.py").read_text())
CHECKS = [
    node.name
    for node in TREE.body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
PLAYED = [("ascend-910b", "cuda"), ("ascend-910b", "npu"), ("mtt-s5000", "musa")]


@cache
def outcomes(chip: str, name: str) -> dict[str, str | None]:
    process = own_name_process.start("checks", name, chip=f"{chip}:2")
    try:
        found: dict[str, str | None] = json.loads(own_name_process.last_line(process))
    except AssertionError as error:
        return dict.fromkeys(CHECKS, str(error))
    return found


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("chip", "name"), PLAYED)
def test_check(chip: str, name: str, check: str) -> None:
    problem = outcomes(chip, name)[check]
    assert problem is None, problem


EXPECTED = {
    "a_number": "cuda:0",
    "the_accelerator": "cuda:0",
    "a_string_of_cuda": "cuda:0",
    "an_own_string": "npu:0",
    "an_own_string_kept": "npu:0",
    "the_own_method": "npu:0",
}


def test_the_first_use_decides_the_name() -> None:
    started = {
        case: own_name_process.start("deciding", case, chip="ascend-910b") for case in EXPECTED
    }
    assert {case: own_name_process.last_line(run) for case, run in started.items()} == EXPECTED
