"""The doctor, on machines made of stand-ins: other compilers, other torches, other chips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import SOURCE, environment

Write = Callable[[str, str], Path]
FAKE_TORCH = """
class Properties:
    name, total_memory = "PPU-ZW810E", 98304 * 2**20
class Module:
    get_device_properties = staticmethod(lambda index: Properties)
class Kind:
    type = "cuda"
class accelerator:
    current_accelerator = staticmethod(lambda check_available: Kind)
    device_count = staticmethod(lambda: 2)
get_device_module = lambda kind: Module
print("a banner of the plug-in")
"""


def doctor(
    folder: Path, *words: str, flags: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs the doctor where the packages in `folder` come first."""
    return subprocess.run(
        [sys.executable, *flags, "-m", "offramp", "doctor", *words],
        cwd=folder,
        env=environment(PYTHONPATH=f"{folder}{os.pathsep}{SOURCE}", **env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def examined(folder: Path, **env: str) -> dict[str, Any]:
    result = doctor(folder, "--json", **env)
    document = json.loads(result.stdout)
    assert result.returncode == bool(document["findings"])
    return document


def whats(document: dict[str, Any]) -> str:
    return "\n".join(f"{row['what']} -> {row['fix']}" for row in document["findings"])


def fake_torch(folder: Path, version: str, code: str) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text(version)
    (folder / "torch" / "__init__.py").write_text(code)


def test_this_machine(tmp_path: Path) -> None:
    from importlib.metadata import version

    document = examined(tmp_path)
    assert document["torch"]["version"].partition("+")[0] == version("torch").partition("+")[0]
    assert document["python"] == sys.executable
    assert document["cores"] == len(os.sched_getaffinity(0))
    assert document["registered"] is True


def test_text_and_json_agree(tmp_path: Path) -> None:
    document, text = examined(tmp_path), doctor(tmp_path).stdout
    assert document["torch"]["version"] in text
    assert document["cache"]["folder"] in text
    assert all(row["fix"] in " ".join(text.split()) for row in document["findings"])


def test_no_compiler(tmp_path: Path) -> None:
    document = examined(tmp_path, PATH="/nosuch")
    assert document["compiler"] is None
    assert "no C++ compiler (none of CXX, c++, g++, clang++ is on PATH) -> install GCC" in whats(
        document
    )


def test_a_compiler_that_is_too_old(tmp_path: Path, write: Write) -> None:
    old = write("old", "#!/bin/sh\n[ $1 = --version ] && echo g++ 4.8 || exit 1\n")
    old.chmod(0o755)
    document = examined(tmp_path, CXX=str(old))
    assert document["compiler"] == {"command": str(old), "version": "g++ 4.8", "cpp20": False}
    assert f"{old} cannot compile C++20 (g++ 4.8)" in whats(document)


def test_switched_off_autoload(tmp_path: Path) -> None:
    document = examined(tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert document["autoload"] is False
    assert "-> unset TORCH_DEVICE_BACKEND_AUTOLOAD" in whats(document)


def test_the_cache_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    empty = examined(tmp_path, OFFRAMP_CACHE=str(folder))["cache"]
    assert empty == {"folder": str(folder), "writable": True, "builds": [], "size_bytes": 0}
    assert not folder.exists(), "looking makes nothing"
    (folder / "key").mkdir(parents=True)
    (folder / "key" / "core.so").write_bytes(b"12345")
    full = examined(tmp_path, OFFRAMP_CACHE=str(folder))["cache"]
    assert (full["builds"], full["size_bytes"]) == (["key/core.so"], 5)
    blocked = examined(tmp_path, OFFRAMP_CACHE="/dev/null/cache")
    assert blocked["cache"]["writable"] is False
    assert "-> export OFFRAMP_CACHE=" in whats(blocked)


def test_neither_torch_nor_registration(tmp_path: Path) -> None:
    result = doctor(tmp_path, flags=("-S",))
    assert result.returncode == 1
    assert "torch is not installed" in result.stdout
    assert "not registered" in result.stdout


def test_an_old_torch(tmp_path: Path) -> None:
    fake_torch(tmp_path, "__version__ = '2.1.0'\ncuda: str = None\n", "raise SystemExit")
    document = examined(tmp_path)
    assert document["torch"]["version"] == "2.1.0"
    assert "torch 2.1.0 is older than 2." in whats(document)
    assert document["accelerator_note"].startswith("this torch is a CPU build")


def test_real_devices_and_what_is_behind_them(tmp_path: Path) -> None:
    version = "__version__ = '2.13.0'\ncuda: str = '12.9'\nhip = None\n"
    fake_torch(tmp_path, version, FAKE_TORCH)
    document = examined(tmp_path)
    assert document["torch"]["built_for"] == {"cuda": "12.9"}
    first, second = document["accelerators"]
    assert (first["device"], second["device"]) == ("cuda:0", "cuda:1")
    assert first["memory_bytes"] == 98304 * 2**20
    assert first["behind"] == "zhenwu-810e"
    assert first["why"]
    assert f"zhenwu-810e ({first['why']})" in doctor(tmp_path).stdout


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("import os; os.abort()", "torch failed when asked for devices: exit status -6"),
        ("raise ImportError('libcuda.so.1: no such file')", "libcuda.so.1: no such file"),
        ("import time; time.sleep(60)", "torch did not answer within 1 s"),
    ],
)
def test_a_broken_torch_is_a_finding(tmp_path: Path, code: str, note: str) -> None:
    fake_torch(tmp_path, "__version__ = '2.13.0'\ncuda = '12.9'\n", code)
    line = "from offramp.launch import machine; machine.PROBE_TIMEOUT_S = 1.0"
    program = f"{line}; print(*machine.examine().findings, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{SOURCE}"),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert note in result.stdout


def test_signs_of_a_chip_that_torch_does_not_offer(tmp_path: Path) -> None:
    found = examined(tmp_path, PPU_SDK="/usr/local/PPU_SDK")
    assert "Alibaba T-Head: PPU_SDK is set" in found["signs"]
    assert "install the torch, or the torch plug-in, of the chip's maker" in whats(found)
    assert examined(tmp_path)["signs"] is None
