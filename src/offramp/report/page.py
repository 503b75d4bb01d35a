"""A rehearsal as one HTML page: it holds its data and plotly's code, and asks the network for
nothing. The same rehearsal gives the same bytes.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from string import Template
from typing import Any

import numpy as np

from offramp.errors import UsageError
from offramp.report import figures, rehearsal, spending
from offramp.report.axes import Figure
from offramp.report.lines import Line, plural
from offramp.tape.held import measure_held
from offramp.tape.modules import break_down, tree
from offramp.tape.play import Played, play
from offramp.tape.prices import PriceList
from offramp.tape.steps import find_steps
from offramp.tape.tape import Tape
from offramp.tape.timeline import Timeline, draw_timeline
from offramp.units import format_bytes, format_flops, format_seconds

MOST_RANKS = 8  # whose lanes are drawn
NOTE = (
    "Times, and what rests on them, are of no measurement: each operator and collective has a "
    "cost with a low and a high end, and an interval has all of them at one end."
)
Section = tuple[str, str, str, Figure]  # id, heading, note, figure


def check() -> None:
    """See that pages can be drawn. Raises UsageError where plotly is not installed."""
    if find_spec("plotly") is None:
        raise UsageError(
            "--html needs plotly, which is not installed; install it with "
            "pip install 'offramp[html]', or use --json and --trace, which need nothing"
        )


def draw(summary: Mapping[str, Any], tapes: Sequence[Tape], prices: PriceList) -> str:
    """The page of a rehearsal, whole.

    summary   of the same tapes at the same prices, as `launch.rehearse` finds it

    Raises UsageError where plotly is not installed.
    """
    check()
    from plotly.offline import get_plotlyjs

    sections = list(_sections(summary, tapes, prices))
    drawn = {name: figure for name, _, _, figure in sections if figure["data"]}
    lines = rehearsal.lines(summary)
    template = Template(resources.files("offramp.report").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=html.escape(rehearsal.title(summary)),
        command=html.escape(shlex.join(summary["command"])),
        verdict=_verdict(summary),
        tone=lines[0].tone,
        cards="".join(_cards(summary)),
        sections=words(lines, NOTE) + "".join(map(section, sections)),
        # "<" ends no script where it is written so.
        figures=json.dumps(drawn, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        library=get_plotlyjs(),
    )


def _verdict(summary: Mapping[str, Any]) -> str:
    memory = summary["memory"]
    of = f"{format_bytes(memory['allocated_bytes'])} of {format_bytes(memory['capacity_bytes'])}"
    if not summary["fits"]:
        missing = format_bytes(summary["shortfall_bytes"])
        why = rehearsal.in_pieces(memory)
        return f"<b>Does not fit</b> by {missing}: {of} a chip at the peak{why}"
    if summary["given_back"]:
        return f"<b>Fits, where cached memory is given back</b>: {of} a chip at the peak"
    return f"<b>Fits</b>: {of} a chip at the peak"


def _cards(summary: Mapping[str, Any]) -> Iterator[str]:
    """The figures that are asked for first; what is not known has no card."""
    step, tokens, energy = summary["step_s"], summary["tokens"], summary["energy"]
    yield _card("step", step, format_seconds)
    if tokens is not None and "per_s" in tokens:
        each = spending.format_rate(tokens["per_s_chip"]["mid"])
        yield _card("tokens a second", tokens["per_s"], spending.format_rate, f"{each} a chip")
    if summary["mfu"] is not None:
        peak = format_flops(summary["peak_flops"])
        yield card("MFU", f"{summary['mfu']:.1%}", f"of {peak}: {summary['mfu_convention']}")
    if energy is not None:
        basis = spending.basis(energy)
        yield _card("energy of a step", energy["step_j"], spending.format_energy, basis)
    else:
        yield card("energy", "unknown", "no power of the chip is public")
    money = summary["money"]
    if money is not None:

        def said(amount: float) -> str:
            return spending.format_money(amount, money["currency"])

        per = money.get("per_1e9_tokens")
        more = f"{said(per['mid'])} for 10^9 tokens; " if per else ""
        price = f"{said(money['chip_hour'])} a chip and hour (--price)"
        yield _card("money of a step", money["step"], said, more + price)


def _card(label: str, interval: Mapping[str, float], text: Any, more: str = "") -> str:
    span = f"{text(interval['low'])} to {text(interval['high'])}"
    return card(label, text(interval["mid"]), span, more)


def card(label: str, figure: str, *more: str) -> str:
    """A figure that is asked for first, and what it is of."""
    rest = "".join(f'<div class="more">{html.escape(text)}</div>' for text in more if text)
    return (
        f'<div class="card"><span class="label">{html.escape(label)}</span>'
        f"<b>{html.escape(figure)}</b>{rest}</div>"
    )


def words(lines: Sequence[Line], note: str) -> str:
    """The lines of the terminal, which name all that is declared and assumed."""
    rows = "".join(
        f'<dt>{html.escape(line.label)}</dt><dd class="{line.tone}">{html.escape(line.text)}</dd>'
        for line in lines
    )
    return f'<h2>In words</h2><p class="note">{note}</p><dl>{rows}</dl>'


def section(drawn: Section) -> str:
    """A heading, a note, and the place of a figure."""
    name, heading, note, figure = drawn
    place = f'<div id="{name}"></div>' if figure["data"] else "<p>There is none.</p>"
    head = f"<h2>{html.escape(heading)}</h2>"
    return f'{head}<p class="note">{html.escape(note)}</p>{place}\n'


def _sections(
    summary: Mapping[str, Any], tapes: Sequence[Tape], prices: PriceList
) -> Iterator[Section]:
    steps = find_steps(tapes)
    played = play(tapes, prices)
    bounds = steps.bounds(played)
    step = summary["step_s"]["mid"]
    first = summary["ranks"][0]
    of = f"rank {first['rank']}, mean of {plural(steps.measured, 'step')}"
    fullest = next(p for p in played if p.tape.rank == summary["memory"]["rank"])
    held = measure_held(fullest)
    capacity = summary["memory"]["capacity_bytes"]
    chosen = [played[place] for place in _chosen(len(played))]
    lanes = draw_timeline(chosen, prices, float(bounds[-2]), float(bounds[-1]))
    number = f"Step {steps.found} of {steps.found} played" if steps.found else "The whole program"
    yield (
        "timeline",
        "Timeline",
        f"{number}. {_told(lanes, len(played))}",
        figures.timeline(lanes, len(played)),
    )
    yield (
        "split",
        "Where the step goes",
        "Each instant is one of: compute by kind, exposed communication (no compute beside it), "
        "bubble (waiting for a peer), host, idle. Parts sum to the step.",
        figures.split(summary),
    )
    yield "memory", "Memory over time", _of_memory(summary), figures.memory(held, capacity)
    yield (
        "peak",
        "What holds the memory at the peak",
        f"Rank {held.rank}. Modules that allocated what is alive at the peak; numbers in their "
        "names are taken together (*).",
        figures.peak_modules(held),
    )
    yield "operators", "Operators", f"On the chip, {of}.", figures.operators(first, step)
    yield (
        "collectives",
        "Collectives",
        f"By name and group, {of}.",
        figures.collectives(first, step),
    )
    yield (
        "modules",
        "Modules",
        f"Time on the chip by module, {of}; layers of one kind are taken together (each). A click "
        "opens a part, a click on its left end goes back.",
        figures.modules(_tree(played[0], prices, steps.records(0), steps.measured), step),
    )


def _tree(
    played: Played, prices: PriceList, records: tuple[int, int | None], count: int
) -> dict[str, float]:
    sums = tree(break_down(played, prices.of(played.tape.rank), *records).modules)
    return {name: seconds / count for name, seconds in sums.items()}


def _chosen(count: int) -> list[int]:
    """Which ranks are drawn: all, or some from the first to the last."""
    return sorted({int(p) for p in np.linspace(0, count - 1, min(count, MOST_RANKS)).round()})


def _told(lanes: Timeline, ranks: int) -> str:
    """What the timeline leaves out."""
    said = "Drag to zoom, double-click to go back; a span says what it is."
    if ranks > MOST_RANKS:
        said += f" {MOST_RANKS} of the {ranks} ranks that were played are drawn."
    if not lanes.resolution_s:
        return f"{said} Every span is drawn."
    before = sum(lane.merged for lane in lanes.lanes)
    after = sum(len(lane.start) for lane in lanes.lanes)
    return (
        f"{said} Spans shorter than {format_seconds(lanes.resolution_s)} are merged with their "
        f"neighbours, and have the colour of the longest kind in them: {before:,} spans are drawn "
        f"as {after:,}, also when zoomed in; a trace (--trace) has every one."
    )


def _of_memory(summary: Mapping[str, Any]) -> str:
    memory = summary["memory"]
    capacity, peak = memory["capacity_bytes"], memory["allocated_bytes"]
    said = f"Rank {memory['rank']}, all steps that were played; dotted lines end steps."
    if capacity > figures.FAR * peak:
        said += f" The chip has {format_bytes(capacity)}, far above this scale."
    return said
