"""Files of constants: all read strictly, general ones complete, families' chips known."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from offramp import chips
from offramp.chips import ChipFileError
from offramp.costs import Cost, Span, families, for_chip
from offramp.costs.constants import DATA, KEYS, read

FILES = sorted(DATA.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_reads_and_every_constant_is_complete(path: Path) -> None:
    file = read(path)
    raw = tomllib.loads(path.read_text())
    used = set()
    for key, span in file.spans.items():
        assert span.low <= span.value <= span.high
        section, _, name = key.partition(".")
        row = raw[section][name]
        assert row["low"] < row["high"], "a constant without an interval"
        assert set(row) == {"value", "low", "high", "unit", "tier", "source", "note"}
        used.add(row["source"])
    assert set(raw["sources"]) == used | ({"reasoning"} if "tiles" in raw else set())


def test_general_constants_are_complete() -> None:
    assert set(for_chip("nobody").spans) == set(KEYS)
    assert for_chip("nobody").family == "general"
    assert max(tile.share for tile in for_chip("nobody").tiles) == 1


def test_families_name_chips_of_the_catalogue_once() -> None:
    named = [name for members in families().values() for name in members]
    assert len(named) == len(set(named))
    assert set(named) <= set(chips.names())
    for family, members in families().items():
        assert all(for_chip(name).family == family for name in members)


def test_shares_are_at_most_one() -> None:
    for name in chips.names():
        for key, span in for_chip(name).spans.items():
            if key.endswith("_share"):
                assert 0 < span.low <= span.high <= 1, f"{name} {key}"


GOOD = """
title = "T"
chips = ["x"]
[sources]
s = "somewhere"
[memory]
kernel = { value = 2, low = 1, high = 3, unit = "us", tier = "assumed", source = "s", note = "n" }
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kernel =", "kernels =", "memory.kernels: unknown key; did you mean 'kernel'"),
        ("[memory]", "[memry]", "memry: unknown key"),
        ('"us"', '"um"', "not a unit of seconds"),
        ("low = 1", "low = 2.5", "not in rising order"),
        ("low = 1, ", "", "low: missing"),
        ('source = "s"', 'source = "t"', "is not in"),
        ('note = "n"', 'note = ""', "expected the physical meaning"),
        ('tier = "assumed"', 'tier = "guess"', "is not one of measured"),
        ('title = "T"', "", "title: missing"),
        ('chips = ["x"]', 'chips = ["x"', "not TOML"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "family.toml"
    path.write_text(GOOD)
    assert read(path).spans["memory.kernel"] == Span(2e-6, 1e-6, 3e-6, "assumed")
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ChipFileError, match=said):
        read(path)


def test_a_missing_file_and_bad_tiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ChipFileError, match="cannot be read"):
        read(tmp_path / "nothing.toml")
    path = tmp_path / "family.toml"
    tiles = '[tiles]\nsizes = [[8, 8, 2.0]]\ntier = "assumed"\nsource = "s"\nnote = "n"\n'
    path.write_text(GOOD + tiles)
    with pytest.raises(ChipFileError, match="rows, columns, share up to 1"):
        read(path)


def test_spans_hold_every_combination() -> None:
    a, b = Span(4.0, 2.0, 8.0, "vendor"), Span(2.0, 1.0, 4.0, "assumed")
    assert a * b == Span(8.0, 2.0, 32.0, "assumed")
    assert a / b == Span(2.0, 0.5, 8.0, "assumed")
    assert a + b == Span(6.0, 3.0, 12.0, "assumed")
    assert a.at_least(b) == a
    assert (a + b * 0.01).tier == "vendor", "a small term does not set the tier"
    with pytest.raises(ValueError, match="rising order"):
        Span(1.0, 2.0, 3.0)


def test_costs_from_spans_and_from_relative_intervals() -> None:
    assert Cost.of_span(Span(2.0, 1.0, 3.0, "press"), "copy", "a link", bytes=8.0) == Cost(
        2.0, 1.0, 3.0, "copy", "a link; weakest: press", 0.0, 8.0
    )
    cost = Cost.around(2.0, (0.5, 1.5), "collective", "ring")
    assert (cost.low, cost.seconds, cost.high) == (1.0, 2.0, 3.0)
