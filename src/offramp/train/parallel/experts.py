"""Mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def experts_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold all experts of a layer in stacked weights."""
    for child in module.modules():
        if "gate_up_proj" in child._parameters and "down_proj" in child._parameters:
            yield child
