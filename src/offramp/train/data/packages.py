"""Packages that only some jobs need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from offramp.errors import UsageError


def need(module: str, what: str) -> Any:
    """An optional package's module. Raises UsageError: what needs it, and how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"{what} needs the {package} package: pip install 'offramp[train]'"
        ) from error
