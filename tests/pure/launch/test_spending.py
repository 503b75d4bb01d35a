"""Tokens, energy and money: products of what is known, and nothing of what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp import chips
from offramp.chips.facts import Fact
from offramp.errors import UsageError
from offramp.launch.spending import Price, Terms, spend

STEP = {"mid": 2.0, "low": 1.0, "high": 4.0}


def powered(power: Fact | None) -> chips.Chip:
    chip = chips.load("nvidia-h100")
    facts = {name: fact for name, fact in chip.facts.items() if name != "power"}
    return replace(chip, facts=facts | ({"power": power} if power is not None else {}))


CHIP = powered(Fact(500, "W", "vendor", "sheet"))


def test_closed_forms() -> None:
    """64 chips of 500 W for 2 s: 64 kJ; at 3 a chip and hour 64 * 2 * 3 / 3600."""
    terms = Terms(1000, "said", run_steps=10, price=Price(3.0, "EUR"))
    found = spend(STEP, 64, CHIP.facts["power"], terms)
    assert found["energy"]["step_j"] == {"mid": 64e3, "low": 32e3, "high": 128e3}
    assert found["energy"]["per_1e9_tokens_j"]["mid"] == pytest.approx(64e3 * 1e6)
    cost = 64 * 2 * 3 / 3600
    expected = {"mid": cost, "low": cost / 2, "high": cost * 2}
    assert found["money"]["step"] == pytest.approx(expected)
    assert found["money"]["per_1e12_tokens"] == pytest.approx(
        {name: value * 1e9 for name, value in expected.items()}
    )
    assert found["money"]["currency"] == "EUR"
    # The longest step has the fewest tokens a second.
    assert found["tokens"]["per_s"] == {"mid": 500.0, "low": 250.0, "high": 1000.0}
    assert found["tokens"]["per_s_chip"]["mid"] == pytest.approx(500 / 64)
    assert found["run"]["seconds"] == {"mid": 20.0, "low": 10.0, "high": 40.0}
    assert found["run"]["energy_j"]["mid"] == 640e3
    assert found["run"]["money"]["mid"] == pytest.approx(10 * cost)


def test_nothing_is_invented() -> None:
    found = spend(STEP, 8, None, Terms())
    assert found == {"tokens": None, "energy": None, "money": None, "run": None}
    plain = spend(STEP, 8, CHIP.facts["power"], Terms(price=Price(1.0)))
    assert not [name for part in ("energy", "money") for name in plain[part] if "tokens" in name]
    without = spend(STEP, 8, None, Terms(run_steps=3))
    assert without["run"]["energy_j"] is without["run"]["money"] is None


def test_an_uncertain_power_widens_the_interval() -> None:
    ranged = powered(Fact(None, "W", "assumed", "thought", 100.0, 400.0, "why"))
    energy = spend(STEP, 1, ranged.facts["power"], Terms())["energy"]
    assert energy["step_j"] == {"mid": 400.0, "low": 100.0, "high": 1600.0}  # 200 W between
    assert energy["power_tier"] == "assumed"


def test_a_step_without_time_has_no_rate() -> None:
    none = spend({"mid": 0.0, "low": 0.0, "high": 0.0}, 8, CHIP.facts["power"], Terms(10, "said"))
    assert none["tokens"] == {"per_step": 10, "source": "said"}


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [("2.5", 2.5, ""), (" 2.5 USD ", 2.5, "USD"), ("16RMB", 16.0, "RMB"), ("0", 0.0, "")],
)
def test_prices_are_read(text: str, amount: float, currency: str) -> None:
    assert Price.parse(text) == Price(amount, currency)


@pytest.mark.parametrize("text", ["", "USD", "-1", "2,5", "1 2", "nan", "inf", "1.2.3", "USD 2"])
def test_other_prices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--price .*: expected the price of a chip for an hour"):
        Price.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_price_or_refused(text: str) -> None:
    try:
        price = Price.parse(text)
    except UsageError:
        return
    assert price.amount >= 0
    assert price.amount < float("inf")


@given(st.floats(0, 1e6), st.sampled_from(["", "USD", "CNY a card"]))
def test_prices_are_what_was_written(amount: float, currency: str) -> None:
    assert Price.parse(f"{amount:.6f} {currency}") == Price(float(f"{amount:.6f}"), currency)


def test_a_step_has_tokens() -> None:
    with pytest.raises(UsageError, match="--tokens-per-step 0: expected a positive number"):
        Terms(0)
