"""What fits, in words: what was rehearsed, those that fit first."""

from __future__ import annotations

from typing import Any

from offramp.report.fitting import hint, lines
from offramp.report.lines import Line

GIB = 1 << 30


def tried(change: str, **more: Any) -> dict[str, Any]:
    return {
        "change": change,
        "fits": True,
        "problem": "",
        "peak_bytes": 3 * GIB,
        "reserved_bytes": 3 * GIB,
        "capacity_bytes": 4 * GIB,
        "shortfall_bytes": 0,
        "given_back": 0,
        "step_s": {"low": 0.5, "mid": 1.0, "high": 2.0},
        **more,
    }


def said(*tried: dict[str, Any], is_cut: bool = False) -> list[Line]:
    return list(lines({"tried": tried, "is_cut": is_cut}))


def test_those_that_fit_come_first() -> None:
    out = said(
        tried("a=2", fits=False, shortfall_bytes=GIB),
        tried("a=1"),
        tried("b=1", given_back=3),
        tried("c=1", fits=False, problem="rank 0 ended:\n  said\n  bad c"),
    )
    assert out == [
        Line("fits", "a=1: 3.00 GiB of 4.00 GiB at peak, step 1 s (500 ms to 2 s)", "good"),
        Line(
            "fits",
            "b=1: 3.00 GiB of 4.00 GiB at peak, where cached memory is given back, step 1 s "
            "(500 ms to 2 s)",
            "good",
        ),
        Line("does not", "a=2: short by 1.00 GiB"),
        Line("failed", "c=1: rank 0 ended: bad c", "warn"),
    ]


def test_nothing_fits() -> None:
    short = tried("a=2", fits=False, shortfall_bytes=GIB)
    first, _, last = said(short, is_cut=True)
    assert first == Line("fits", "nothing that was rehearsed (1 other setting)", "bad")
    assert last == Line("search", "ended after 1 rehearsal; --most-tries allows more", "warn")
    assert said()[0].text == "no setting of the job is left that could make it fit"


def test_the_hint_is_for_the_program() -> None:
    assert "--fit" in hint(True).text
    assert "--vary" in hint(False).text
