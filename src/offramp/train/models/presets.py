"""Published model configurations and our own laptop sizes: one TOML file a preset.

The keys under `[config]` are those of the model's published config.json, unchanged; keys that
transformers' class does not read are left out. `parameters` counts the tensors of a checkpoint,
tied ones once, and is written only where the exact figure is public (or the size is our own).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offramp.errors import UnknownNameError, UsageError
from offramp.train.reading import build

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Source:
    """Where a preset's values were published."""

    config: str = ""
    parameters: str = ""
    note: str = ""


@dataclass(frozen=True)
class Preset:
    """One model.

    parameters: exact count of weights, tied ones once; 0 where none is published.
    published, active: the maker's rounded figures ("235B", "22B"); empty for our own sizes.
    config: keys of config.json, `model_type` among them.
    """

    name: str
    title: str = ""
    parameters: int = 0
    published: str = ""
    active: str = ""
    source: Source = field(default_factory=Source)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether it is one of our own sizes: no published weights, no tokenizer of its own."""
        return not self.published

    @property
    def model_type(self) -> str:
        """The name by which transformers finds the model's classes."""
        return str(self.config["model_type"])


@cache
def names() -> tuple[str, ...]:
    """All presets, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load(name: str) -> Preset:
    """The preset of that name. Raises UnknownNameError with the nearest names."""
    if name not in names():
        raise UnknownNameError("preset", name, names(), hint="or give model.folder")
    return read(FOLDER / f"{name}.toml")


def read(path: Path) -> Preset:
    """The preset in a file. Raises UsageError: file, key, what was expected."""
    try:
        data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        preset = build(Preset, MappingProxyType({"name": path.stem, **data}))
    except (tomllib.TOMLDecodeError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from error
    missing = [
        key
        for key, value in (
            ("title", preset.title),
            ("source.config", preset.source.config),
            ("config.model_type", preset.config.get("model_type")),
        )
        if not value
    ]
    if missing:
        raise UsageError(f"{path}: {missing[0]} is missing; expected a text")
    return preset
