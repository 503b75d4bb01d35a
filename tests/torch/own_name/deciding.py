"""First uses of a device that do not all say which name a program is written for.

`deciding.py CASE` places one tensor on an own-name chip and prints its device.
"""

from __future__ import annotations

import sys

import torch


class Keeper:
    def __init__(self) -> None:
        self.device = "npu"

    def place(self) -> torch.Tensor:
        return torch.ones(2).to(self.device)


def a_number() -> torch.Tensor:
    return torch.nn.Linear(2, 2).to(0).weight


def the_accelerator() -> torch.Tensor:
    return torch.ones(2).to(torch.accelerator.current_accelerator())


def a_string_of_cuda() -> torch.Tensor:
    early = torch.device("cuda")  # made before anything was decided
    x = torch.ones(2, device="cuda")
    assert x.device == torch.device("cuda", 0)
    assert torch.ones(1, device=early).device == x.device
    return x


def an_own_string() -> torch.Tensor:
    return torch.zeros(2, device="npu")


def an_own_string_kept() -> torch.Tensor:
    return Keeper().place()


def the_own_method() -> torch.Tensor:
    return torch.ones(2).npu()


if __name__ == "__main__":
    print(globals()[sys.argv[1]]().device)
