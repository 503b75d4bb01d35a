"""What CUDA says of tensors on different devices, and of formats that the chip lacks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.usefixtures("chip")


def test_scalars_of_the_cpu_mix_in() -> None:
    x = torch.arange(3.0, device="cuda")
    assert (x + torch.tensor(2.0)).device == x.device
    assert (torch.tensor(2.0) * x).tolist() == [0, 2, 4]
    assert torch.where(x > 1, torch.tensor(9.0), x).tolist() == [0, 1, 9]
    assert x.masked_fill(x > 0, torch.tensor(5.0)).tolist() == [0, 5, 5]
    x[1] = torch.tensor(7.0)
    assert x.tolist() == [0, 7, 2]


def test_indices_may_be_on_the_cpu() -> None:
    x = torch.arange(4.0, device="cuda")
    assert x[torch.tensor([3, 1])].tolist() == [3, 1]
    assert x[torch.tensor([True, False, False, True])].device == x.device
    x[torch.tensor([0])] = 8.0
    assert x.tolist() == [8, 1, 2, 3]


@pytest.mark.parametrize(
    "mix",
    [
        lambda chip, host: chip + host,
        lambda chip, host: host + chip,
        lambda chip, host: chip.add_(host),
        lambda chip, host: host.add_(chip),
        lambda chip, host: torch.add(chip, chip, out=host),
        lambda chip, host: torch.tensor(1.0).add_(chip.sum()),
        lambda chip, host: torch.cat([chip, host]),
        lambda chip, host: chip @ host,
        lambda chip, host: torch.nn.functional.linear(chip, host[None]),
        lambda chip, host: torch.where(chip > 0, chip, host),
        lambda chip, host: chip + host.to("cuda:1"),
        lambda chip, host: torch._foreach_add([chip], [host.to("cuda:1")]),
        lambda chip, host: torch.nn.functional.embedding(host.long(), chip[None]),
    ],
)
def test_mixed_devices_are_an_error(mix: object) -> None:
    chip, host = torch.arange(3.0, device="cuda"), torch.arange(3.0)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix(chip, host)  # type: ignore[operator]


def test_indices_on_the_chip_do_not_reach_into_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.arange(4.0)[torch.tensor([1], device="cuda")]


def test_numpy_needs_a_copy_first() -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        torch.ones(2, device="cuda").numpy()


LACKS = """
import torch
from offramp import chips, device
import dataclasses
chip = chips.load("zhenwu-810e")
lacking = frozenset({"float64", "float8_e4m3fn"})
chip = type("Lacking", (type(chip),), {"absent_formats": property(lambda self: lacking)})(
    **{field.name: getattr(chip, field.name) for field in dataclasses.fields(chip)}
)
device.open_device(chip, count=1)
torch.cuda._lazy_init = lambda: None
x = torch.ones(3, dtype=torch.float64, device="cuda")
for op in (lambda: x + 1, lambda: torch.mm(x[None], x[:, None]), lambda: x.sum()):
    try:
        op()
    except NotImplementedError as error:
        text = str(error)
        assert "zhenwu-810e" in text and "Double" in text and "aten::" in text, text
        assert "offramp chips show zhenwu-810e" in text, text
    else:
        raise SystemExit("computed in a format that the chip lacks")
assert x.float().sum().item() == 3
assert repr(torch.ones(3, device="cuda") / 3) == "tensor([0.3333, 0.3333, 0.3333], device='cuda:0')"
assert torch.ones(3, device="cuda").double().cpu().tolist() == [1, 1, 1]
"""


def test_formats_that_the_chip_lacks_are_refused_by_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LACKS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
