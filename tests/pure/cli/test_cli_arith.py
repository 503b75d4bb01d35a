"""`--arith` on the command line: what cannot be meant ends in one line, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.cli import main
from offramp.cli.train import read_job


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["run", "--chip", "kunlun-p800", "--arith", "split_k=x", "--", "true"],
            "expected a whole",
        ),
        (["run", "--chip", "kunlun-p800", "--arith", "split=2", "--", "true"], "'split_k'"),
        (["train", "--arith", "accumulate=fp8"], "'fp8' is not a value of accumulate"),
        (["train", "--chip", "cpu", "--arith", "split_k=2"], "give a chip of the catalogue"),
    ],
)
def test_wrong_arithmetic_is_one_line(
    words: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert problem in said
    assert list(tmp_path.iterdir()) == []


def test_a_job_keeps_its_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--arith", "accumulate=fp16", "--arith", "split_k=4"]
    assert read_job(words).chip.arith == ("accumulate=fp16", "split_k=4")
    assert main(["train", *words, "--print-job"]) == 0
    assert 'arith = ["accumulate=fp16", "split_k=4"]' in capsys.readouterr().out
