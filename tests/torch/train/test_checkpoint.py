"""Checkpoints: complete or absent, whole or found out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from offramp.train.checkpoint import CheckpointError, Checkpoints
from offramp.train.world import World

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
HERE = World(0, 1, 0, torch.device("cpu"), None)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    made = Checkpoints(tmp_path / "checkpoints", HERE, keep=2)
    yield made
    made.close()


def tensors(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"a": torch.randn(5, 3), "b": torch.randn(7).bfloat16(), "c": torch.arange(4)}


def write(checkpoints: Checkpoints, step: int) -> dict[str, torch.Tensor]:
    made = tensors(step)
    checkpoints.save(step, made, {"step": step})
    assert checkpoints.wait() == checkpoints.folder / f"step-{step:08d}"
    return made


def test_what_is_loaded_is_what_was_saved(checkpoints: Checkpoints) -> None:
    made = write(checkpoints, 3)
    found, flaws = checkpoints.find()
    assert found is not None
    assert (found.state, flaws) == ({"step": 3}, [])
    empty = {name: torch.zeros_like(tensor) for name, tensor in made.items()}
    checkpoints.load(found, empty)
    assert all(torch.equal(empty[name], made[name]) for name in made)


def test_tensors_may_change_while_they_are_written(checkpoints: Checkpoints) -> None:
    made = {"a": torch.zeros(2_000_000)}
    checkpoints.save(1, made, {})
    made["a"].fill_(1.0)
    checkpoints.wait()
    found, _ = checkpoints.find()
    assert found is not None
    loaded = {"a": torch.ones(2_000_000)}
    checkpoints.load(found, loaded)
    assert not loaded["a"].any()


def test_the_oldest_are_removed(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3):
        write(checkpoints, step)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named_and_the_one_before_is_used(
    checkpoints: Checkpoints, name: str, damage: str
) -> None:
    write(checkpoints, 1)
    write(checkpoints, 2)
    path = checkpoints.folder / "step-00000002" / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    found, flaws = checkpoints.find()
    assert found is not None
    assert found.state == {"step": 1}
    (flaw,) = flaws
    assert str(path.parent) in flaw
    assert name in flaw


def test_a_manifest_that_is_cut_off_is_damage(checkpoints: Checkpoints) -> None:
    write(checkpoints, 1)
    path = checkpoints.folder / "step-00000001" / "manifest.json"
    path.write_text(path.read_text()[:40])
    found, flaws = checkpoints.find()
    assert found is None
    assert "manifest.json cannot be read" in flaws[0]


def test_what_a_killed_process_left_is_not_looked_at(checkpoints: Checkpoints) -> None:
    write(checkpoints, 1)
    partial = checkpoints.folder / "step-00000002.partial"
    partial.mkdir()
    (partial / "__0_0.distcp").write_bytes(b"half")
    found, flaws = checkpoints.find()
    assert found is not None
    assert (found.state, flaws) == ({"step": 1}, [])
    write(checkpoints, 2)
    assert not partial.exists()


def test_a_checkpoint_of_another_model_is_refused(checkpoints: Checkpoints) -> None:
    made = write(checkpoints, 1)
    found, _ = checkpoints.find()
    assert found is not None
    with pytest.raises(CheckpointError, match=r"another model.*a is \(2, 3\).*has it as \(5, 3\)"):
        checkpoints.load(found, {**made, "a": torch.zeros(2, 3)})
    with pytest.raises(CheckpointError, match=r"d is \(1,\), the checkpoint has no such tensor"):
        checkpoints.load(found, {**made, "d": torch.zeros(1)})


def test_the_manifest_has_every_file(checkpoints: Checkpoints) -> None:
    write(checkpoints, 1)
    folder = checkpoints.folder / "step-00000001"
    manifest = json.loads((folder / "manifest.json").read_text())
    there = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == there


def test_a_full_disk_is_one_clear_error_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing fails midway."""
    program = f"""
import resource, signal, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from offramp.train.checkpoint import CheckpointError, Checkpoints
from offramp.train.world import World
made = Checkpoints(Path({str(tmp_path)!r}), World(0, 1, 0, torch.device("cpu"), None))
made.save(1, {{"a": torch.zeros(10)}}, {{}})
made.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    made.save(2, {{"a": torch.zeros(10**6)}}, {{}})
    made.wait()
except CheckpointError as error:
    print(error)
print(made.find()[0].path.name, sorted(p.name for p in Path({str(tmp_path)!r}).iterdir()))
made.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    error, after = done.stdout.splitlines()
    assert error.startswith(f"cannot write the checkpoint {tmp_path}/step-00000002.partial: ")
    assert "File too large" in error
    assert after == "step-00000001 ['step-00000001']"
