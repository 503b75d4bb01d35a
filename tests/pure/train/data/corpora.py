"""Small corpora for tests, and what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from offramp.train.data.corpus import Corpus
from offramp.train.job import DataSection


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def section(path: Path, **keys: Any) -> DataSection:
    return DataSection(source=(str(path),), **{"sequence": 8, "held_out": 0.3, **keys})


def documents(corpus: Corpus | None) -> list[list[int]]:
    assert corpus is not None
    starts = [0, *corpus.ends.tolist()]
    return [corpus.tokens[a:b].tolist() for a, b in zip(starts, corpus.ends.tolist(), strict=False)]


def many(count: int) -> list[str]:
    return [f"document number {number}" for number in range(count)]
