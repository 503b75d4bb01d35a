"""What a command will run is known before it starts."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from launching import environment

from offramp.errors import UsageError
from offramp.launch.command import lacks, prepare, script_of

OWN = os.path.dirname(sys.executable)


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python train.py --x y.py", "train.py"),
        ("python3 -u -W ignore -X dev train.py", "train.py"),
        ("python3.11 -uWerror -Xdev -- train.py", "train.py"),
        ("python --check-hash-based-pycs always -O train.py", "train.py"),
        ("/opt/env/bin/python sub/train.py", "sub/train.py"),
        ("python -", "-"),
        ("python", None),
        ("python -V", None),
        ("python -c 'import x' train.py", None),
        ("python -uc pass train.py", None),
        ("python -m train a.py", None),
        ("python -mtrain a.py", None),
        ("python -um torch.distributed.run --nproc-per-node 2 train.py a.py", "train.py"),
        ("python -m accelerate.commands.launch train.py", "train.py"),
        ("torchrun --nproc_per_node=2 --standalone train.py --config x", "train.py"),
        ("torchrun --nnodes 1 -m package.train.py", None),
        ("torchrun --no-python ./train.sh a.py", None),
        ("accelerate launch --config_file c.yaml train.py", "train.py"),
        ("accelerate test", None),
        ("bash run.sh train.py", None),
        ("pythonic train.py", None),
    ],
)
def test_script_of(command: str, script: str | None) -> None:
    assert script_of(shlex.split(command)) == script


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """The folder of an interpreter without offramp (isolated mode sees no PYTHONPATH)."""
    text = f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n'
    return program(tmp_path / "foreign" / "bin" / "python", text).parent


def path_of(*folders: Path | str) -> dict[str, str]:
    env = environment(PATH=os.pathsep.join(map(str, folders)))
    return {k: v for k, v in env.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}


def test_what_a_python_lacks(foreign: Path) -> None:
    bare = {**environment(), "PYTHONPATH": ""}
    assert lacks(sys.executable, bare) == ""
    assert lacks(str(foreign / "python"), environment()) == "offramp and torch"
    assert lacks("/nosuch/python", environment()) == "offramp"


def test_a_python_without_torch_cannot_meet_a_chip(tmp_path: Path) -> None:
    text = f'#!/bin/sh\nexec {sys.executable} -S "$@"\n'
    python = program(tmp_path / "python", text)
    assert lacks(str(python), environment()) == "torch"
    note = prepare(["python"], path_of(tmp_path, "/usr/bin")).note
    assert note == f"python is {OWN}/python ({python} has no torch)"


def test_an_activated_environment_with_offramp_is_left_alone() -> None:
    env = path_of(OWN, "/usr/bin")
    prepared = prepare(["python", "-V"], env)
    assert prepared.command == (f"{OWN}/python", "-V")
    assert (prepared.env, prepared.note) == (env, None)


def test_a_python_without_offramp_on_path_gives_way_to_our_own(foreign: Path) -> None:
    prepared = prepare(["python", "-V"], path_of(foreign, "/usr/bin"))
    assert prepared.command[0] == f"{OWN}/python"
    assert prepared.env["PATH"].split(os.pathsep)[:2] == [OWN, str(foreign)]
    assert prepared.note == f"python is {OWN}/python ({foreign}/python has no offramp and torch)"


def test_our_own_python_is_used_where_path_has_none(tmp_path: Path) -> None:
    assert prepare(["python"], path_of(tmp_path)).command == (f"{OWN}/python",)


def test_tools_beside_our_python_are_found_without_activation(foreign: Path) -> None:
    for folders in ([foreign], ["/usr/bin"], ["/nosuch"]):
        assert prepare(["torchrun", "-h"], path_of(*folders)).command[0] == f"{OWN}/torchrun"


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_another_active_environment_is_never_replaced(foreign: Path, variable: str) -> None:
    env = {**path_of(foreign, "/usr/bin"), variable: str(foreign.parent)}
    with pytest.raises(UsageError, match=r"active environment .* pip install offramp"):
        prepare(["python", "-V"], env)
    assert prepare(["ls"], env).env == env


def test_a_foreign_python_by_its_path_is_refused(foreign: Path) -> None:
    with pytest.raises(UsageError, match="has no offramp"):
        prepare([f"{foreign}/python", "-V"], path_of(OWN))


def test_a_tool_of_a_foreign_python_is_refused(foreign: Path, tmp_path: Path) -> None:
    tool = program(tmp_path / "torchrun", f"#!{foreign}/python\n")
    with pytest.raises(UsageError, match=f"{foreign}/python has no offramp and torch"):
        prepare([str(tool)], path_of(OWN))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "no command given"),
        (["torchrn"], "command not found: 'torchrn'; did you mean 'torchrun'"),
        (["./nosuch"], "command not found: './nosuch'"),
        (["folder"], "it is a folder"),
        (["./train.py"], r"give: python \./train.py"),
        (["./train.sh"], r"chmod \+x \./train.sh"),
        (["python", "trian.py"], "script not found: 'trian.py'; did you mean 'train.py'"),
        (["python", "nosuch/train.py"], "script not found: 'nosuch/train.py'"),
        (["torchrun", "--nproc-per-node", "2", "trian.py"], "script not found: 'trian.py'"),
    ],
)
def test_what_cannot_start_is_told_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "train.py").write_text("")
    (tmp_path / "train.sh").write_text("")
    with pytest.raises(UsageError, match=message) as raised:
        prepare(command, path_of(OWN, "/usr/bin"))
    assert "\n" not in str(raised.value)


def test_switched_off_autoload_is_told() -> None:
    env = {**path_of(OWN), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    with pytest.raises(UsageError, match="unset it"):
        prepare(["python"], env)
