"""Data that tests of the corpus share."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import many, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", many(100))
