"""Tests that compute in this process."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _chip_before_autograd(chip: Any) -> None:
    """PyTorch starts its threads for backward passes once, for the devices that it has by then."""
