"""Files that a user asked for: checked before the work, written whole after it."""

from __future__ import annotations

import os
from pathlib import Path

from offramp.errors import UsageError


def check_writable(path: Path) -> None:
    """See that a result can be written, before anything is played. Raises UsageError."""
    folder = path.parent
    problem = (
        "it is a folder"
        if path.is_dir()
        else f"{folder} does not exist"
        if not folder.exists()
        else f"{folder} is not a folder"
        if not folder.is_dir()
        else f"{folder} cannot be written to"
        if not os.access(folder, os.W_OK)
        else ""
    )
    if problem:
        raise UsageError(f"cannot write {path}: {problem}")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises UsageError where it cannot be written."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
