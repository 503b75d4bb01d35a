"""Starts offramp and small programs as real processes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import arguments, environment


@pytest.fixture
def offramp(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `offramp WORDS...` in a folder of its own and waits for it."""

    def start(*words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments(*words),
            cwd=tmp_path,
            env=environment(**env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return start


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file into the test's folder."""

    def save(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return save
