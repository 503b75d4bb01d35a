"""CUDA's names for any device: what makes a program written for CUDA meet the chip it runs on."""

from __future__ import annotations

from offramp.identity.install import Identity, install

__all__ = ["Identity", "install"]
