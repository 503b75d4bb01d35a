"""Tokens, energy and money in words."""

from __future__ import annotations

from typing import Any

import pytest

from offramp.report.spending import (
    format_energy,
    format_long,
    format_money,
    format_rate,
    lines,
)


def three(mid: float) -> dict[str, float]:
    return {"mid": mid, "low": mid / 2, "high": 2 * mid}


def text(**found: Any) -> dict[str, str]:
    empty = {"tokens": None, "energy": None, "money": None, "run": None}
    return {line.label: line.text for line in lines(empty | found)}


ENERGY = {
    "power_w": {"mid": 400.0, "low": 400.0, "high": 400.0},
    "power_tier": "measured",
    "power_note": "",
    "convention": "by the book",
    "step_j": three(3.6e6),
}
MONEY = {"chip_hour": 2.5, "currency": "USD", "step": three(5.0)}


def test_what_is_not_known_is_not_said() -> None:
    assert text() == {"energy": "unknown: no power of the chip is public"}
    assert "tokens" not in text(tokens={"per_step": 10, "source": "said"})


def test_all_of_it() -> None:
    said = text(
        tokens={
            "per_step": 2097152,
            "source": "512 sequences of 4,096",
            "per_s": three(135000.0),
            "per_s_chip": three(263.7),
        },
        energy=ENERGY | {"per_1e9_tokens_j": three(3.6e9)},
        money=MONEY | {"per_1e9_tokens": three(2384.0), "per_1e12_tokens": three(2384000.0)},
        run={
            "steps": 1000,
            "seconds": three(86400.0 * 3),
            "energy_j": three(3.6e9),
            "money": three(5000.0),
        },
    )
    assert said["tokens"] == (
        "135,000 (67,500 to 270,000) a second, 264 a chip; 2,097,152 a step "
        "(512 sequences of 4,096)"
    )
    assert said["energy"] == (
        "1 kWh (500 Wh to 2 kWh) a step, 1 MWh for 10^9 tokens: 400 W a chip (measured), by the "
        "book"
    )
    assert said["money"] == (
        "5 USD (2.5 USD to 10 USD) a step, 2,384 USD for 10^9 tokens, 2,384,000 USD for 10^12: "
        "2.5 USD a chip and hour (--price)"
    )
    assert said["run"] == ("1,000 steps: 3 days (36 h to 6 days), 1 MWh, 5,000 USD; steps alone")


def test_a_range_of_power_is_told() -> None:
    ranged = ENERGY | {"power_w": {"mid": 200.0, "low": 100.0, "high": 400.0}}
    assert "200 W (100 W to 400 W) a chip" in text(energy=ranged)["energy"]
    noted = ENERGY | {"power_note": "a cap"}
    assert "400 W a chip (measured: a cap), by the book" in text(energy=noted)["energy"]
    bare = text(energy=ENERGY, money=MONEY | {"currency": ""})
    assert bare["money"].endswith("2.5 a chip and hour (--price)")
    assert "tokens" not in bare["energy"] + bare["money"]


@pytest.mark.parametrize(
    ("joules", "said"),
    [
        (0.0, "0 J"),
        (886.0, "886 J"),
        (3599.0, "3.6 kJ"),
        (3600.0, "1 Wh"),
        (3.6e9, "1 MWh"),
        (3.5999e6, "1 kWh"),
    ],
)
def test_energy_has_the_unit_that_reads_best(joules: float, said: str) -> None:
    assert format_energy(joules) == said


def test_numbers_have_three_digits() -> None:
    assert format_money(0.012345, "USD") == "0.0123 USD"
    assert format_money(999.6, "") == "1,000"
    assert (format_rate(99.96), format_rate(99.4), format_rate(1.254)) == ("100", "99.4", "1.25")
    assert (format_long(7200.0), format_long(7199.0)) == ("2 h", "119 min 59 s")
