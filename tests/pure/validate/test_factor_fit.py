"""Factors of training, against rows that were made with known ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from offramp.chips.reading import ChipFileError
from offramp.costs import Span, training
from offramp.validate.fit import PRIORS, Seen, fitted, logarithms, text, unseen

TRUTH = {"products": 1.2, "memory": 0.85, "host": 1.9}


def made(number: int, source: str, factors: dict[str, float] = TRUTH) -> Seen:
    """A step of three kinds of work, in shares that go with its number."""
    share = (number % 10 + 0.5) / 10
    slopes = {"products": share * 0.7, "memory": (1 - share) * 0.7, "host": 0.3}
    ratio = math.exp(sum(slope * math.log(factors[name]) for name, slope in slopes.items()))
    return Seen(f"{source}-{number}", source, 2.0 * ratio, 2.0, slopes)


def test_the_factors_that_rows_were_made_with_are_found() -> None:
    rows = [made(number, f"s{number}") for number in range(400)]
    found = fitted(rows, {})
    for name, factor in TRUTH.items():
        assert found[name].value == pytest.approx(factor, rel=0.06)  # the prior holds it back
        assert found[name].low < factor < found[name].high
    assert found["network"].value == pytest.approx(1.0)  # nothing is told of it
    assert math.log(found["network"].high) == pytest.approx(1.64 * PRIORS["network"])


def test_slopes_taken_elsewhere_lead_to_the_same_factors() -> None:
    """Where the logarithm of a step is linear, it does not matter where it is looked at."""
    rows = [made(number, f"s{number}") for number in range(40)]
    at = {"products": 0.3, "host": -0.2}
    moved = [
        Seen(
            row.id,
            row.source,
            row.measured,
            row.seconds * math.exp(sum(row.slopes[name] * log for name, log in at.items())),
            row.slopes,
        )
        for row in rows
    ]
    here, there = fitted(rows, {}), fitted(moved, at)
    for name, span in here.items():
        assert there[name].value == pytest.approx(span.value, rel=1e-9)


def test_a_source_has_no_part_in_its_own_factors() -> None:
    rows = [made(number, "right") for number in range(50)]
    wrong = [made(number, "wrong", {"products": 3, "memory": 3, "host": 3}) for number in range(50)]
    without = unseen([*rows, *wrong], {})
    alone = fitted(rows, {})
    assert without.keys() == {"right", "wrong"}
    assert {n: s.value for n, s in without["wrong"].items()} == pytest.approx(
        {n: s.value for n, s in alone.items()}
    )
    assert without["right"]["products"].value > alone["products"].value * 1.1


def test_nor_have_its_makers_other_sources() -> None:
    right = [made(number, "right") for number in range(50)]
    odd = {"products": 3.0, "memory": 3.0, "host": 3.0}
    wrong = [made(number, f"wrong table {number % 2}", odd) for number in range(50)]
    without = unseen([*right, *wrong], {})
    assert without.keys() == {"right", "wrong table 0", "wrong table 1"}
    assert without["wrong table 0"] == without["wrong table 1"] == fitted(right, {})


def test_one_row_far_off_moves_little() -> None:
    rows = [made(number, "s") for number in range(50)]
    odd = Seen("odd", "s", 200.0, 2.0, {"products": 1.0})
    assert fitted([*rows, odd], {})["products"].value == pytest.approx(1.2, rel=0.08)


factor = st.floats(0.2, 5).map(lambda x: Span(x, x * 0.9, x * 1.1))


@options(deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(training.MEANINGS)), factor),
    st.dictionaries(st.text(min_size=1), st.fixed_dictionaries({"host": factor}), max_size=3),
)
def test_what_is_written_is_read(tmp_path_factory: object, whole: dict, without: dict) -> None:
    path = tmp_path_factory.mktemp("factors") / "training.toml"  # type: ignore[attr-defined]
    path.write_text(text(whole, without, 'runs "of" others\\'), encoding="utf-8")
    found, others = training.read(path)
    assert {n: round(s.value, 3) for n, s in found.items()} == {
        n: round(s.value, 3) for n, s in whole.items()
    }
    assert set(others) == set(without)


def test_a_file_with_a_factor_that_nothing_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.toml"
    path.write_text(text({"host": Span.exact(2)}, {}, "x").replace("host =", "hosts ="))
    with pytest.raises(ChipFileError, match="hosts"):
        training.read(path)


def test_logarithms_are_those_of_the_factors() -> None:
    assert logarithms({"host": Span(2, 1, 3)}) == {"host": pytest.approx(math.log(2))}
