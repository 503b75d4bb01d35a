"""Quantities: exact values against rational arithmetic, and errors that say what is expected."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp import units

DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 1024**3),
        ("96 GB", 96_000_000_000),
        ("500MB", 500_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("1e3 kB", 1_000_000),
        (" 7 B ", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_bytes(text) == size


def test_decimal_and_binary_differ() -> None:
    assert units.parse_bytes("1GiB") - units.parse_bytes("1GB") == 73_741_824


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("4 TB/s", "bytes/s", 4e12),
        ("200 Gbit/s", "bytes/s", 25e9),
        ("820 GiB/s", "bytes/s", 820 * 2**30),
        ("494.5TFLOP/s", "flop/s", 494.5e12),
        ("246 TOP/s", "op/s", 246e12),
        ("20 ms", "seconds", 0.02),
        ("3 min", "seconds", 180),
        ("1700 MHz", "hertz", 1.7e9),
        ("400 W", "watts", 400),
    ],
)
def test_rates_and_the_rest(text: str, dimension: str, value: float) -> None:
    assert units.parse(text, dimension) == value


@given(
    whole=st.integers(0, 10**6),
    tenths=st.integers(0, 9),
    prefix=st.sampled_from(sorted(DECIMAL | BINARY)),
    blank=st.sampled_from(["", " ", "  "]),
)
def test_parsing_is_exact(whole: int, tenths: int, prefix: str, blank: str) -> None:
    exact = Fraction(10 * whole + tenths, 10) * (DECIMAL | BINARY)[prefix]
    value = units.parse(f"{whole}.{tenths}{blank}{prefix}B", "bytes")
    assert value == (int(exact) if exact.denominator == 1 else float(exact))
    assert isinstance(value, int) == (exact.denominator == 1)


@given(st.text(max_size=12).filter(lambda text: not text.strip()[:1].isdecimal()))
def test_what_does_not_start_with_a_number_is_refused(text: str) -> None:
    with pytest.raises(units.UnitError) as caught:
        units.parse(text, "bytes")
    assert repr(text) in str(caught.value)
    assert "expected '2GiB'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2", "'2' has no unit; expected '2GiB' or '96 GB'"),
        ("2G", "did you mean 'GB' or 'GiB'?"),
        ("2gb", "did you mean 'GB'"),
        ("2 GB/s", "'GB/s' is a unit of bytes/s, not of bytes"),
        ("2 Gib", "did you mean"),
        ("-1GB", "cannot read '-1GB'"),
        ("nan GB", "cannot read 'nan GB'"),
        ("1,000 MB", "cannot read '1,000 MB'"),
        ("٣GB", "cannot read"),
        ("", "cannot read ''"),
        ("0GB", "not a whole, positive number of bytes"),
        ("0.5 B", "not a whole, positive number of bytes"),
    ],
)
def test_errors_name_what_was_given_and_what_is_expected(text: str, says: str) -> None:
    with pytest.raises(units.UnitError) as caught:
        units.parse_bytes(text)
    assert says in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, -0.5])
def test_conversion_refuses_what_is_no_quantity(value: float) -> None:
    with pytest.raises(units.UnitError, match="finite"):
        units.convert(value, "GB", "bytes")


def test_text_for_people() -> None:
    assert units.format_bytes(2**31) == "2.00 GiB"
    assert units.format_bytes(96e9, binary=False) == "96.00 GB"
    assert units.format_bytes(1023) == "1023 B"
    assert units.format_bytes(1024) == "1.00 KiB"
    assert units.format_flops(123e12) == "123 TFLOP/s"
    assert units.format_flops(1979e12) == "1,979 TFLOP/s"
    assert units.format_quantity(2.039e12, "B/s") == "2.039 TB/s"
    assert units.format_count(1234567) == "1,234,567"
    assert [units.format_seconds(s) for s in (185, 7.89, 0.0456, 1.23e-5, 2e-9)] == [
        *("3 min 05 s", "7.89 s", "45.6 ms", "12.3 us", "2 ns")
    ]


@given(st.integers(1, 10**17))
def test_formatted_sizes_read_back(size: int) -> None:
    assert abs(units.parse(units.format_bytes(size), "bytes") - size) <= size * 0.005 + 1
