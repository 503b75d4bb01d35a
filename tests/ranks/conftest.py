"""Programs of several processes, played twice: on virtual chips, and over Gloo on plain CPUs.

A program is a function of `programs/*.py`, `name(place) -> results`. Each rank's results come back
as plain CPU tensors. The run over Gloo has no part of offramp in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
CHIP = "zhenwu-810e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ranks)


def environment(chip: str | None, **more: str) -> dict[str, str]:
    """The environment of a process that plays `chip`, or none."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OFFRAMP_CHIP")}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "GLOO_SOCKET_IFNAME": "lo"}
    return kept | ({"OFFRAMP_CHIP": chip} if chip else {}) | more


def start(
    program: str, folder: Path, *, world: int, chip: str | None, backend: str, device: str
) -> list[Any]:
    """Run `program` ("module:function") in `world` processes; each rank's results, by rank."""
    command = [sys.executable, str(HERE / "worker.py"), program, str(folder), backend, device]
    variables = environment(chip, WORLD_SIZE=str(world))
    running = [
        subprocess.Popen(
            [*command, str(rank)],
            env=variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=280)[0] for process in running]
    for rank, process in enumerate(running):
        assert process.returncode == 0, f"rank {rank} of {program}:\n{said[rank][-4000:]}"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="session")
def play(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """`play(program, world, chip=...)`: results on virtual chips, or on plain CPUs for chip=None.

    One run serves every test that asks for the same.
    """

    @cache
    def played(
        program: str,
        world: int = 2,
        chip: str | None = CHIP,
        backend: str = "nccl",
        device: str = "cuda",
        count: int | None = None,
    ) -> list[Any]:
        folder = tmp_path_factory.mktemp(program.replace(":", "-"))
        if chip is None:
            backend, device = "gloo", "cpu"
        else:
            chip = f"{chip}:{count or world}"
        return start(program, folder, world=world, chip=chip, backend=backend, device=device)

    return played


def same(found: Any, expected: Any, path: str = "", **tolerance: float) -> None:
    """Assert that two results are equal, containers and all; `tolerance` as assert_close has it."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, path
        torch.testing.assert_close(
            found, expected, **(tolerance or {"rtol": 0, "atol": 0}), msg=lambda m: f"{path}: {m}"
        )
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            same(found[key], expected[key], f"{path}/{key}", **tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, pair in enumerate(zip(found, expected, strict=True)):
            same(*pair, f"{path}/{index}", **tolerance)
    elif isinstance(expected, float) and tolerance:
        assert found == pytest.approx(expected, rel=tolerance["rtol"]), path
    else:
        assert found == expected, path
