"""The virtual chip: a PyTorch device whose tensors live in host memory.

`open_device` makes the calling process play one chip, or several of a kind. Operators run by the
CPU's kernels on the same memory; allocation, streams, events, random numbers and refusals are the
chip's. See docs/virtual-chip.md.
"""

from __future__ import annotations

from offramp.device.build import BuildError
from offramp.device.virtual import VirtualDevice, open_device, opened

__all__ = ["BuildError", "VirtualDevice", "open_device", "opened"]
