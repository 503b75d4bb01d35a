"""What is read of `accelerate launch` is what it really starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.chips.cluster import Cluster
from offramp.errors import UsageError
from offramp.launch.launcher import Program
from offramp.launch.rehearse import plan

TOLD = """
import json, os, sys
import torch
if os.environ.get("RANK", "0") == "0":
    print("told", json.dumps([sys.argv[1:], dict(os.environ)]))
"""
SETS = re.compile("ACCELERATE_|FSDP_|PARALLELISM_")
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")

RUN = (sys.executable, "-m", "offramp", "run", "--chip", "nvidia-h100:2", "--")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # no settings of this machine's user
    path = tmp_path / "told.py"
    path.write_text(TOLD)
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        ("--num_processes", "2", "--mixed_precision", "bf16"),
        ("--num_processes", "2", "--use_fsdp", "--fsdp_version", "2"),
        ("--multi_gpu",),
        ("--num_processes", "1", "--mixed_precision", "fp16"),
    ],
)
def test_ranks_get_what_accelerate_gives_them(script: str, options: tuple[str, ...]) -> None:
    started = subprocess.run(
        [*RUN, *LAUNCH, *options, script, "--lr", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OFFRAMP_RUN_DIR": str(Path(script).parent / "records")},
    )
    told = next(line for line in started.stdout.splitlines() if line.startswith("told"))
    words, env = json.loads(told.removeprefix("told"))

    program = Program.of((*LAUNCH, *options, script, "--lr", "1"))
    assert list(program.own[-len(words) :]) == words
    ours = {name: value for name, value in program.variables.items() if SETS.match(name)}
    assert ours == {name: value for name, value in env.items() if SETS.match(name)}
    if "RANK" not in env:
        assert not program.launcher
        return
    place = program.env(0, Cluster.of("nvidia-h100", 1, program.per_node or 2))
    assert {name: place[name] for name in PLACE} == {name: env[name] for name in PLACE}


def test_machines_and_processes_become_nodes_and_chips(script: str) -> None:
    two = ("--num_machines", "2", "--machine_rank", "0", "--main_process_ip", "10.0.0.1")
    made = plan((*LAUNCH, "--num_processes", "16", *two, script), chip="nvidia-h100")
    assert (made.cluster.node_count, made.cluster.world_size) == (2, 16)
    more = plan((*LAUNCH, "--num_processes", "8", script), chip="nvidia-h100", nodes=4)
    assert (more.cluster.node_count, more.cluster.world_size) == (4, 32)
    with pytest.raises(UsageError, match="accelerate starts 8 processes a node, and --per-node sa"):
        plan((*LAUNCH, "--num_processes", "8", script), chip="nvidia-h100", per_node=4)


def test_a_configuration_file_is_followed(script: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\n"
        "num_machines: 1\nnum_processes: 4\nfsdp_config:\n  fsdp_version: 2\n"
    )
    program = Program.of((*LAUNCH, "--config_file", str(config), script))
    assert (program.launcher, program.per_node) == ("accelerate", 4)
    told = program.variables
    assert (told["ACCELERATE_USE_FSDP"], told["FSDP_VERSION"]) == ("true", "2")
    assert told["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("accelerate", "config"), "accelerate config trains nothing; expected: accelerate launch"),
        ((*LAUNCH, "--bogus", "a.py"), "accelerate launch --bogus a.py: "),
        ((*LAUNCH, "--num_processes", "x", "a.py"), "invalid int value: 'x'"),
        ((*LAUNCH, "--use_deepspeed", "a.py"), "hands over to deepspeed, which starts processes"),
    ],
)
def test_what_cannot_be_read_is_explained(command: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        Program.of(command)
    assert "\n" not in str(caught.value)
