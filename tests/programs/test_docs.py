"""Commands in the documentation, run as they stand; what they print is what the page says.

A line `$ offramp ...` in a code block is run in a folder that has a `train.py`; each line of output
under it must be printed, `...` standing for anything. Commands of the user's own programs are not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
# They need a program of the user's, a real machine's answer, minutes, or a job (test_submit.py).
LEFT_OUT = re.compile(r"offramp run .*(written_for|examples/)|offramp doctor|ex1\.toml|--submit")
pytestmark = pytest.mark.programs


def commands() -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    for page in PAGES:
        lines = page.read_text().splitlines()
        for place, line in enumerate(lines):
            text = line.strip()
            if not text.startswith("$ ") or LEFT_OUT.search(text) or "offramp" not in text.lower():
                continue
            output: list[str] = []
            for following in lines[place + 1 :]:
                shown = following.strip()
                if not shown or shown.startswith(("$ ", "```")):
                    break
                output.append(shown)
            yield page, text.removeprefix("$ "), tuple(output)


@pytest.mark.parametrize(
    ("page", "command", "output"), list(commands()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_command_prints_what_the_page_says(
    page: Path, command: str, output: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text("import torch\nprint(torch.ones(2, device='cuda'))\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # Chips as a user has them: tests set this variable for comparisons with the CPU (conftest.py).
    env = {k: v for k, v in os.environ.items() if k != "PPU_FP32_TENSOR_OVERRIDE"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**env, "PATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = squeezed(done.stdout + done.stderr)
    for line in output:
        pattern = ".*".join(re.escape(squeezed(part)) for part in line.split("..."))
        assert re.search(pattern, printed, re.DOTALL), f"{page.name}: {line!r}\n{printed}"


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def test_some_commands_were_found() -> None:
    assert len(list(commands())) >= 5
