"""The operators and formats of PyTorch's OpInfo database that the examination covers."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from examine import Examiner
from torch.testing._internal import common_methods_invocations as database

KNOWN = tomllib.loads(Path(__file__).with_name("known.toml").read_text())
# Samples of each operator: the first tier is looked at closely, the rest by a few.
TIERS = {
    torch.float32: 16,
    torch.bfloat16: 4,
    torch.float16: 3,
    torch.int64: 4,
    torch.bool: 3,
    torch.complex64: 4,
}
_SOURCES = (
    database.op_db,
    database.foreach_unary_op_db,
    database.foreach_binary_op_db,
    database.foreach_pointwise_op_db,
    database.foreach_reduce_op_db,
    database.foreach_other_op_db,
)


@dataclass(frozen=True)
class Case:
    """One operator (an OpInfo) in one format."""

    op: Any
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return str(self.op.formatted_name)

    @property
    def format(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def limit(self) -> int:
        return TIERS[self.dtype]

    @property
    def known(self) -> dict[str, str] | None:
        """The entry of known.toml for this case, if any."""
        for entry in KNOWN["known"]:
            if entry["op"] == self.name and entry["dtype"] in ("*", self.format):
                return dict(entry)
        return None


def cases() -> Iterator[Case]:
    """Every operator in every tier's format that the CPU supports by the database."""
    for dtype in TIERS:
        for source in _SOURCES:
            for op in source:
                if dtype in op.supported_dtypes("cpu"):
                    yield Case(op, dtype)


def examiner(generator: torch.Generator) -> Examiner:
    return Examiner(
        generator,
        uninitialized=frozenset(KNOWN["uninitialized"]["ops"]),
        on_the_host=frozenset(KNOWN["on_the_host"]),
    )
