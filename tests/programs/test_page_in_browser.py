"""The page of a rehearsal in headless Chromium, where there is one: it opens without the network.

A browser is found by `OFFRAMP_CHROMIUM`, by name on the path, or where playwright keeps its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.programs, pytest.mark.timeout(240)]
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = """
import torch
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(4)]).cuda()
optimizer = torch.optim.Adam(model.parameters())
while True:
    optimizer.zero_grad()
    model(torch.randn(64, 512, device="cuda")).square().mean().backward()
    optimizer.step()
"""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--no-first-run", "--window-size=1300,3000"),
    *("--enable-logging=stderr", "--virtual-time-budget=20000"),
)


def browser() -> str:
    """The path of a Chromium; skips where there is none."""
    given = os.environ.get("OFFRAMP_CHROMIUM", "")
    kept = sorted((Path.home() / ".cache" / "ms-playwright").glob("chromium*/*/*headless*shell*"))
    found = given or next(filter(None, map(shutil.which, NAMES)), "") or str(next(iter(kept), ""))
    if not found:
        pytest.skip("no Chromium: expected OFFRAMP_CHROMIUM, one on the path, or playwright's")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("page")
    (folder / "a.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "offramp", "rehearse", "--chip", "nvidia-h100"]
    command += ["--tokens-per-step", "64", "--price", "2.5 EUR", "--html", "page.html"]
    subprocess.run([*command, "--", "python", "a.py"], cwd=folder, check=True, timeout=200)
    return folder / "page.html"


def opened(page: Path, folder: Path, source: str = "") -> tuple[str, str, list[str]]:
    """The page's elements once drawn, what the browser logged, and the addresses it asked for."""
    log = folder / "net.json"
    done = subprocess.run(
        [
            browser(),
            *FLAGS,
            f"--log-net-log={log}",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            source or page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    asked: list[str] = []
    events: Any = json.loads(log.read_text())["events"]
    for event in events:
        address = str(event.get("params", {}).get("url", ""))
        if address.startswith(("http", "ws", "ftp")):
            asked.append(address)
    return done.stdout, done.stderr, asked


def test_every_figure_is_drawn_and_nothing_is_asked_for(page: Path, tmp_path: Path) -> None:
    text, said, asked = opened(page, tmp_path)
    assert 'data-drawn="6"' in text  # one chip has no collectives
    assert not re.findall(r"CONSOLE.*", said)
    assert not asked
    # Every bar of the data is an element, as are the areas of the curve and the parts of the tree.
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text)
    traces = [trace for figure in json.loads(data).values() for trace in figure["data"]]
    bars = sum(len(trace["x"]) for trace in traces if trace["type"] == "bar")
    assert bars > 50
    assert len(re.findall(r'<g class="point"', text)) == bars
    assert len(re.findall(r'class="js-fill"', text)) >= 4
    (tree,) = [trace for trace in traces if trace["type"] == "icicle"]
    assert len(re.findall(r'class="surface"', text)) == len(tree["ids"])
    buttons = set(re.findall(r'class="modebar-btn[^>]*data-title="([^"]*)"', text))
    assert buttons
    assert not [title for title in buttons if re.search("hare|loud|end", title)]
    for words in ("time in the step, ", "memory, MiB", "a step, ", "Fits", "a second", "2.5 EUR"):
        assert words in text


def test_a_page_that_asks_for_something_would_be_seen(page: Path, tmp_path: Path) -> None:
    """The checks above can fail: a script from outside and an error in one show in the log."""
    wrong = tmp_path / "wrong.html"
    extra = '<script src="https://example.invalid/a.js"></script><script>nothing()</script>'
    wrong.write_text(page.read_text().replace("</body>", f"{extra}</body>"))
    said = opened(wrong, tmp_path)[1]
    assert "violates the following Content Security Policy" in said
    assert "nothing is not defined" in said
    bare = tmp_path / "bare.html"
    bare.write_text('<img src="http://127.0.0.1:9/a.png">')
    assert "http://127.0.0.1:9/a.png" in opened(bare, tmp_path)[2]
