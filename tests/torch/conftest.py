"""The chip is there before the first backward pass: autograd gives threads to devices only then."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _chip_first(opened_chip: Any) -> None:
    """Whatever test is first."""
