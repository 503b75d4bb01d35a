"""The page of a rehearsal: whole, offline, with the figures of the summary, the same every time."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.errors import UsageError
from offramp.launch.spending import Price, Terms, spend
from offramp.report import axes, page, rehearsal

sys.path.insert(0, str(Path(__file__).parents[1] / "tape"))
from tapes_by_hand import FlatPrices, Hand

from offramp import chips
from offramp.tape import Group, PriceList, Tape, kinds
from offramp.tape.summary import summarize
from offramp.tape.timeline import Lane, Timeline

plotly = pytest.importorskip("plotly")
GIB = 1 << 30


def tape(rank: int, wait: float) -> Tape:
    """Three steps of two layers, an all-reduce and 3 GiB at the peak."""
    hand = Hand(rank=rank, groups=[Group((0, 1))])
    block = 0
    for _ in range(3):
        hand.phase = kinds.FORWARD
        for layer in range(2):
            hand.module = f"layers.{layer}.<mlp>"
            block += 1
            hand.alloc(block, GIB).op(0.1 + wait, flops=1e9)
        hand.phase, hand.module = kinds.BACKWARD, ""
        hand.alloc(1000 + block, GIB).op(0.3, kind="memory", op="aten::add.Tensor")
        hand.wait(hand.call("all_reduce", 0.2))
        hand.phase = kinds.OPTIMIZER
        hand.op(0.1, kind="memory", op="aten::_foreach_add_.List").end_step()
        for old in (block - 1, block, 1000 + block):
            hand.free(old, GIB)
    return hand.tape()


def found(capacity: int = 4 * GIB) -> tuple[dict[str, Any], list[Tape], PriceList]:
    tapes = [tape(0, 0.0), tape(1, 0.2)]
    prices = PriceList(FlatPrices(launch_s=1e-3))
    summary = summarize(tapes, prices, peak_flops=1e12, capacity_bytes=capacity)
    for rank in summary["ranks"]:
        for row in rank["collectives"]:
            row["ranks"] = 2
    terms = Terms(1000, "said", price=Price(2.0, "EUR"))
    summary |= spend(summary["step_s"], 8, chips.load("nvidia-h100").facts["power"], terms)
    missing = summary["memory"]["allocated_bytes"] - capacity
    # The tapes have no record of the allocator's own.
    for memory in (summary["memory"], *(rank["memory"] for rank in summary["ranks"])):
        memory["reserved_bytes"] = memory["allocated_bytes"]
    summary |= {
        "cluster": "1 node of 8 <Chip>",
        "command": ["python", "a b.py"],
        "declared": {"values read by the host": 3},
        "refused": {},
        "fits": missing <= 0,
        "shortfall_bytes": max(0, missing),
        "given_back": 0,
    }
    return summary, tapes, prices


@pytest.fixture(scope="module")
def text() -> str:
    return page.draw(*found())


def drawn(text: str) -> dict[str, Any]:
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text)
    result: dict[str, Any] = json.loads(data)
    return result


def own(text: str) -> str:
    """The page without plotly's code."""
    from plotly.offline import get_plotlyjs

    return text.replace(get_plotlyjs(), "")


def test_it_says_what_the_terminal_says(text: str) -> None:
    import html

    summary = found()[0]
    for line in rehearsal.lines(summary):
        assert html.escape(line.text) in text
    assert "1 node of 8 &lt;Chip&gt;" in text
    assert "'a b.py'" in html.unescape(own(text))
    assert "<b>Fits</b>: 3.00 GiB of 4.00 GiB" in text
    assert "<Chip>" not in text


def test_it_needs_nothing_from_outside(text: str) -> None:
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", own(text))
    assert "http" not in own(text).replace("http-equiv", "")
    assert "<mlp>" not in own(text)


def test_the_same_rehearsal_gives_the_same_bytes(text: str) -> None:
    assert page.draw(*found()) == text


def test_what_is_drawn_is_what_was_found(text: str) -> None:
    summary, shown = found()[0], drawn(text)
    assert list(shown) == [
        *("timeline", "split", "memory", "peak", "operators", "collectives", "modules"),
    ]
    parts = {trace["name"]: trace["x"] for trace in shown["split"]["data"]}
    step = summary["step_s"]["mid"]
    assert sum(seconds[0] for seconds in parts.values()) == pytest.approx(1e3 * step, rel=1e-5)
    bubble = [1e3 * rank["split"]["bubble_s"] for rank in summary["ranks"]]
    assert parts["bubble"] == pytest.approx(bubble, rel=1e-5)
    bars = [bar for trace in shown["peak"]["data"] for bar in trace["x"]]
    assert sum(bars) == pytest.approx(3.0)
    (peak,) = [trace for trace in shown["memory"]["data"] if trace["name"].startswith("peak")]
    assert peak["y"] == [3.0]
    (limit,) = [trace for trace in shown["memory"]["data"] if trace["name"].startswith("capacity")]
    assert limit["y"] == [4.0, 4.0]
    kinds_drawn = {trace["name"]: trace for trace in shown["operators"]["data"]}
    assert kinds_drawn["memory"]["y"] == ["add", "_foreach_add_"]
    assert kinds_drawn["memory"]["x"] == pytest.approx([300.0, 100.0])
    modules = shown["modules"]["data"][0]
    assert dict(zip(modules["labels"], modules["values"], strict=True)) == pytest.approx(
        {"all": 0.6, "layers, each.&lt;mlp&gt;": 0.2}
    )


def test_each_figure_is_one_of_plotlys(text: str) -> None:
    """plotly's own schema refuses a property or a value that there is not."""
    from plotly.graph_objects import Figure

    for figure in drawn(text).values():
        Figure(figure)
        axes = [figure["layout"][axis]["title"]["text"] for axis in ("xaxis",)]
        assert axes[0].endswith((", s", ", ms", ", GiB")) or figure["data"][0]["type"] == "icicle"


def test_a_far_capacity_is_said_and_not_drawn() -> None:
    text = page.draw(*found(capacity=100 * GIB))
    assert "The chip has 100.00 GiB, far above this scale." in text
    assert not [t for t in drawn(text)["memory"]["data"] if t["name"].startswith("capacity")]


def test_a_shortfall_is_the_verdict() -> None:
    text = page.draw(*found(capacity=2 * GIB))
    assert '<div class="verdict bad"><b>Does not fit</b> by 1.00 GiB: 3.00 GiB of 2.00' in text


def test_what_is_left_out_is_told() -> None:
    times = np.arange(2.0)
    lane = Lane(0, "host", times, times + 1, ["forward"] * 2, ["said"] * 2, merged=1234)
    merged = page._told(Timeline([lane], 0.0, 2.0, 0.005), 20)
    assert "Spans shorter than 5 ms are merged with their neighbours" in merged
    assert "1,234 spans are drawn as 2, also when zoomed in" in merged
    assert "8 of the 20 ranks" in merged
    assert page._told(Timeline([lane], 0.0, 2.0, 0.0), 1).endswith("Every span is drawn.")


def test_ranks_are_chosen_from_first_to_last() -> None:
    assert page._chosen(3) == [0, 1, 2]
    assert page._chosen(64) == [0, 9, 18, 27, 36, 45, 54, 63]


def test_without_plotly_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'offramp\[html\]', or use --json"):
        page.check()


@pytest.mark.parametrize(
    ("value", "short"), [(0.0, 0.0), (1 / 3, 0.3333333), (123456789.0, 123456800.0), (2.0, 2.0)]
)
def test_numbers_have_seven_digits(value: float, short: float) -> None:
    assert axes.short(value) == short


def test_labels_tell_rows_apart() -> None:
    assert axes.apart(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    long = axes.label("x" * 50 + ".<end>")
    assert long.startswith("...xxx")
    assert long.endswith(".&lt;end&gt;")
