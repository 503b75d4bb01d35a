"""`offramp chips`, through its own parser: what is printed, and as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from offramp import chips
from offramp.chips import ChipFileError
from offramp.cli import chips as verb
from offramp.errors import UnknownNameError, UsageError


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    parser = argparse.ArgumentParser(prog="offramp chips")
    verb.configure(parser)
    assert verb.execute(parser.parse_args(arguments)) == 0
    return capsys.readouterr().out


def data(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(run(capsys, *arguments, "--json"))


def words(text: str) -> str:
    return "".join(text.split())


def test_the_list_has_every_chip_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys)
    for name in chips.names():
        assert f" {name} " in text
    assert "not legal advice" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


@pytest.mark.parametrize("name", chips.names())
def test_show_has_every_fact_with_tier_and_source(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(capsys, "show", name)
    flat = words(text)
    chip = chips.load(name)
    for _, _, fact in chip.all_facts():
        assert words(fact.source) in flat
        assert fact.tier in text
    for quirk in chip.quirks:
        assert quirk.name in text
    for rule in ("2022-10-21", "2023-11-17", "2026-01-15", "not legal advice"):
        assert rule in text
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_show_says_what_is_uncertain(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "show", "zhenwu-810e")
    assert "1 TB/s to 2.8 TB/s?" in text
    assert "3A090.a if the die is at most 332" in text
    assert "61.5 TFLOP/s" in text


def test_json_has_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    shown = data(capsys, "show", "zhenwu-810e")["chip"]
    assert shown["rates"]["matrix"]["bfloat16"]["value"] == 123e12
    assert shown["rates"]["matrix"]["bfloat16"]["tier"] == "vendor"
    assert shown["facts"]["memory_bandwidth"] | {"source": "", "note": ""} == {
        "value": None,
        "unit": "B/s",
        "tier": "assumed",
        "source": "",
        "low": 1e12,
        "high": 2.8e12,
        "note": "",
    }
    assert shown["export"]["disclaimer"] == "not legal advice"
    assert [rule["class"] for rule in shown["export"]["rules"]] == [
        *("not controlled", "unknown", "unknown")
    ]
    assert [chip["name"] for chip in data(capsys)["chips"]] == list(chips.names())


def test_json_before_the_action_counts_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(capsys, "--json", "show", "cpu"))["chip"]["name"] == "cpu"


def test_compare_puts_chips_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "compare", "zhenwu-810e", "nvidia-h20")
    row = next(line for line in text.splitlines() if "matrix bfloat16" in line)
    assert row.index("123 TFLOP/s") < row.index("148 TFLOP/s")
    both = data(capsys, "compare", "zhenwu-810e", "nvidia-h20")["chips"]
    assert [chip["name"] for chip in both] == ["zhenwu-810e", "nvidia-h20"]


def test_misuse(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'nvidia-h100'"):
        run(capsys, "show", "nvidia-h10")
    with pytest.raises(UsageError, match="two chips or more"):
        run(capsys, "compare", "cpu")
    broken = tmp_path / "broken.toml"
    broken.write_text("title = 3\n")
    with pytest.raises(ChipFileError, match=r"broken\.toml: "):
        run(capsys, "show", str(broken))
