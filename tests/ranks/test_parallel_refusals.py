"""Layouts that a model or a device cannot have: one clear line each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "programs"))

import parallel


@pytest.mark.parametrize("spec", parallel.REFUSED)
def test_refused(spec: str, play: Callable[..., list[Any]]) -> None:
    for result in play("parallel:refused", chip=None):
        said = result[spec].strip().splitlines()[-1]
        assert said.startswith("offramp.errors.UsageError: "), result[spec]
        assert parallel.REFUSED[spec] in said
