"""`offramp train` on two chips, compared: what the chips' own arithmetic makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JOB = (
    *("offramp", "train", "--preset", "qwen3-nano", "--steps", "6", "--batch", "8"),
    *("--sequence", "32", "--precision", "fp32", "--set", "sample.prompts=[]"),
)
CHIPS = ("--chip", "nvidia-h100", "--chip", "zhenwu-810e")


def compare(folder: Path, *words: str, override: str | None) -> dict[str, object]:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env.pop("PPU_FP32_TENSOR_OVERRIDE", None)
    if override is not None:
        env["PPU_FP32_TENSOR_OVERRIDE"] = override
    command = ["offramp", "compare", *words, "--repeats", "1", "--json", "verdict.json"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--", *JOB],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (folder / "verdict.json").exists(), done.stderr
    found: dict[str, object] = json.loads((folder / "verdict.json").read_text())
    assert done.returncode == (0 if found["verdict"] == "same" else 1)
    return found


@pytest.mark.parametrize(
    ("override", "verdict"), [(None, "different precision"), ("0", "same")], ids=["cells", "off"]
)
def test_float32_on_tensor_cells_is_named_and_off_is_the_same(
    tmp_path: Path, override: str | None, verdict: str
) -> None:
    found = compare(tmp_path, *CHIPS, override=override)
    assert found["verdict"] == verdict
    assert found["devices"] == ["NVIDIA H100 80GB HBM3, virtual", "PPU-ZW810E, virtual"]
    if verdict == "same":
        return
    place = found["place"]
    assert isinstance(place, dict)
    assert (place["step"], place["pass_name"]) == (0, "forward")
    assert place["module"].endswith("_proj")  # a linear layer of the first block
    assert "10 bits" in str(found["kind"])
