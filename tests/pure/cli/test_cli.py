"""The command line as a whole: speed, help, and misuse in one line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import offramp
from offramp import cli

SOURCE = Path(offramp.__file__).parents[1]


def start(*words: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-m", "offramp", *words],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_takes_at_most_a_fifth_of_a_second() -> None:
    """Processor time of a cold interpreter, so that a busy machine does not decide."""
    times = []
    for _ in range(3):
        begun = cpu_s()
        assert start("--help").returncode == 0
        times.append(cpu_s() - begun)
    assert min(times) < 0.2


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["doctor", "--help"]])
def test_help_loads_nothing_slow(words: list[str]) -> None:
    result = start(*words, flags=("-X", "importtime"))
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "offramp.cli" in loaded
    assert not {name for name in loaded if name.split(".")[0] in {"torch", "rich", "numpy"}}


def test_help_has_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert {"run", "doctor"} <= set(cli.verbs())
    assert all(f"    {verb} " in output for verb in cli.verbs())


def test_verbs_are_the_files_of_the_folder() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("[!_]*.py")}
    assert set(cli.verbs()) == files


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"offramp {offramp.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["docter"], "unknown verb 'docter'; did you mean 'doctor'?; see: offramp --help"),
        (["--colour"], "unrecognized arguments: --colour; see: offramp --help"),
        (["doctor", "--jso"], "unrecognized arguments: --jso"),
        (["doctor", "now"], "unrecognized arguments: now"),
        (["doctor", "--", "true"], "offramp doctor takes nothing after '--', got 'true'"),
        (["run"], "the following arguments are required: --chip; see: offramp run --help"),
    ],
)
def test_misuse_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(words) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith(f"offramp: {message}")
    assert error.count("\n") == 1


def test_no_verb_shows_the_help_and_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("usage: offramp")


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    line = f"{sys.executable} -m offramp doctor --json | head -c 1"
    result = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "{"
    assert result.stderr == ""
    assert result.returncode in (0, 1, 141)
