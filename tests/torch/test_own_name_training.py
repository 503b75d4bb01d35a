"""The same training program under CUDA's name, under the maker's, and on the plain CPU."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import own_name_process
import pytest


@cache
def run(chip: str | None, device: str, *flags: str) -> dict[str, Any]:
    process = own_name_process.start("training", "--device", device, *flags, chip=chip)
    found: dict[str, Any] = json.loads(own_name_process.last_line(process))
    return found


@pytest.mark.parametrize(
    ("chip", "device"), [("ascend-910b", "cuda"), ("ascend-910b", "npu"), ("mtt-s5000", "musa")]
)
def test_losses_are_those_of_the_plain_cpu(chip: str, device: str) -> None:
    found, expected = run(chip, device), run(None, "cpu")
    assert found["seen"] == [f"{device}:0"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["losses"][-1] < found["losses"][0] / 10


def test_mixed_precision_is_that_of_a_chip_called_cuda() -> None:
    expected = run("zhenwu-810e", "cuda", "--mixed")["losses"]
    assert run("ascend-910b", "cuda", "--mixed")["losses"] == expected
    assert run("ascend-910b", "npu", "--mixed")["losses"] == expected
    assert expected != run("ascend-910b", "cuda")["losses"]


@pytest.mark.parametrize(
    ("chip", "device"),
    [("zhenwu-810e", "cuda"), ("ascend-910b", "cuda"), ("ascend-910b", "npu:0")],
)
def test_transformers_places_a_model(chip: str, device: str) -> None:
    process = own_name_process.start("transformer", device, "auto", chip=chip, memory="8GiB")
    found = json.loads(own_name_process.last_line(process))
    assert found == {"seen": [f"{device.partition(':')[0]}:0"], "equal": [True, True]}


@pytest.mark.parametrize(
    ("chip", "device"),
    [(None, "cpu"), ("zhenwu-810e", "cuda"), ("ascend-910b", "cuda"), ("mtt-s5000", "musa")],
)
def test_shared_weights_stay_shared(chip: str | None, device: str) -> None:
    process = own_name_process.start("tied", device, chip=chip)
    found = json.loads(own_name_process.last_line(process))
    back = ["cpu", "torch.float16"]
    assert found == {"one": True, "parameters": 1, "moved": True, "back": back}
