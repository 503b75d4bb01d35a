"""Compiled layers draw what they would draw uncompiled, where a job wants that."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from offramp.train.parallel import layers


class Dropped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5) + nn.functional.dropout(x, 0.25)


def drawn(x: torch.Tensor, *, compiled: bool) -> torch.Tensor:
    """What the layer makes of x, from one seed."""
    layer = Dropped()
    layers.prepare(layer, "none", compiled=compiled)
    torch.manual_seed(3)
    made: torch.Tensor = layer(x)
    return made


@pytest.mark.parametrize("eagerly", [True, False])
def test_compiled_layers_draw_as_uncompiled_ones(eagerly: bool) -> None:
    """By TorchInductor itself, in a process that has no virtual chip; without, it draws others."""
    done = subprocess.run(
        [sys.executable, __file__, str(eagerly)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(eagerly)


if __name__ == "__main__":
    if sys.argv[1] == "True":
        layers.draw_eagerly()
    x = torch.ones(64, 64)
    print(torch.equal(drawn(x, compiled=True), drawn(x, compiled=False)))
