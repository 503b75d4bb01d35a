"""What the test groups share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def chip() -> Iterator[Any]:
    """Two virtual chips in this process; CUDA's names lead to them until the session ends.

    PyTorch keeps a device for the life of a process: tests of another chip start a process.
    """
    import torch

    import offramp

    with offramp.use("zhenwu-810e:2") as session:
        # Autograd's device threads start at the first backward and keep the number of compute
        # threads that holds then: start them before a test group changes that number.
        torch.ones((), device="cuda", requires_grad=True).backward()
        yield session.device
