"""A comparison as one HTML page: both loss curves with the band of noise, and the map of modules.
It holds its data and plotly's code, and asks the network for nothing.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from importlib import resources
from string import Template

from offramp.compare.judge import TIMES
from offramp.compare.run import Compared
from offramp.compare.verdict import ModuleRow, Verdict
from offramp.report import axes, comparison, page
from offramp.report.axes import Figure

check = page.check
FIRST, SECOND, BAND = "#4c78a8", "#f58518", "rgba(76,120,168,0.25)"
MOST_MODULES = 400
_LEAST, _MOST = 1e-2, 1e12  # of what is drawn on a logarithmic axis


def draw(found: Compared) -> str:
    """The page, whole. Raises UsageError where plotly is not installed."""
    check()
    from plotly.offline import get_plotlyjs

    verdict = found.verdict
    lines = comparison.lines(found)
    sections = list(_sections(found))
    drawn = {name: figure for name, _, _, figure in sections if figure["data"]}
    template = Template(resources.files("offramp.report").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=html.escape(comparison.title(found)),
        command=html.escape(" and ".join(found.names)),
        verdict=f"<b>{html.escape(verdict.verdict.capitalize())}</b> {html.escape(verdict.kind)}",
        tone=lines[0].tone,
        cards="".join(_cards(verdict)),
        sections=page.words(lines, "") + "".join(map(page.section, sections)),
        figures=json.dumps(drawn, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        library=get_plotlyjs(),
    )


def _cards(verdict: Verdict) -> Iterator[str]:
    place = verdict.place
    if place is not None:
        step = str(place.step) if place.step >= 0 else "unknown"
        yield page.card("first step", step, place.pass_name)
        yield page.card("first module", place.module or "unknown", place.tensor)
    if verdict.times:
        yield page.card(
            "error there", f"{verdict.error:.2g}", f"{comparison.times(verdict.times)} the floor"
        )
    if verdict.judged:
        yield page.card("judged", f"{verdict.judged:,} tensors", verdict.floor)
    if verdict.curves is not None:
        yield page.card("loss", f"{verdict.curves.relative:+.3%}", comparison.curve(verdict))


def _sections(found: Compared) -> Iterator[page.Section]:
    verdict = found.verdict
    band = verdict.losses.get("band") or []
    noise = "the band is the largest that noise of rounding size moved it so far" if band else ""
    yield (
        "curves",
        "Loss",
        f"First: {found.devices[0]}; second: {found.devices[1]}. {noise}",
        curves(verdict),
    )
    yield (
        "apart",
        "Second loss less the first",
        "Step by step; within the band it is rounding.",
        difference(verdict),
    )
    yield (
        "modules",
        "Modules",
        "The largest error of each module's tensors over its noise floor, in the step that is "
        f"judged, in the order in which they ran. What is above {TIMES:g} is no rounding.",
        module_map(verdict.modules),
    )


def curves(verdict: Verdict) -> Figure:
    """Both loss curves, and the band of noise around the first."""
    a, b = verdict.losses.get("a", []), verdict.losses.get("b", [])
    band = verdict.losses.get("band", [])
    steps = list(range(len(a)))
    traces = []
    if band:
        low = [x - r for x, r in zip(a, band, strict=False)]
        high = [x + r for x, r in zip(a, band, strict=False)]
        edge = {"width": 0, "color": FIRST}
        traces.append(axes.line("", steps, _drawn(low), edge) | {"showlegend": False})
        traces.append(
            axes.line("noise", steps, _drawn(high), edge) | {"fill": "tonexty", "fillcolor": BAND}
        )
    traces.append(axes.line("first", steps, _drawn(a), {"color": FIRST, "width": 2}))
    dashed = {"color": SECOND, "width": 2, "dash": "dot"}
    traces.append(axes.line("second", list(range(len(b))), _drawn(b), dashed))
    layout = axes.layout(380, "step")
    layout["yaxis"] |= {"title": {"text": "loss"}}
    return {"data": traces if a or b else [], "layout": layout}


def difference(verdict: Verdict) -> Figure:
    """The second curve less the first, with the band."""
    a, b = verdict.losses.get("a", []), verdict.losses.get("b", [])
    apart = [y - x for x, y in zip(a, b, strict=False)]
    steps = list(range(len(apart)))
    band = list(verdict.losses.get("band", []))[: len(apart)]
    traces = [axes.line("second less first", steps, _drawn(apart), {"color": SECOND, "width": 2})]
    if band:
        edge = {"width": 1, "dash": "dot", "color": FIRST}
        traces.append(axes.line("noise", steps, _drawn(band), edge))
        traces.append(
            axes.line("", steps, _drawn([-r for r in band]), edge) | {"showlegend": False}
        )
    layout = axes.layout(300, "step")
    layout["yaxis"] |= {"title": {"text": "difference of the loss"}}
    return {"data": traces if apart else [], "layout": layout}


def module_map(modules: Sequence[ModuleRow]) -> Figure:
    """A row a module: errors over the floor, forward and backward, on a logarithmic axis."""
    shown = [m for m in modules if m.forward_times > 0 or m.backward_times > 0][:MOST_MODULES]
    labels = axes.apart([axes.label(module.name or "no module") for module in shown])
    traces = []
    for name in ("forward", "backward"):
        bars = {
            "x": [_log(getattr(module, f"{name}_times")) for module in shown],
            "y": labels,
            "hovertext": [axes.words(_told(module, name)) for module in shown],
        }
        traces.append(axes.bar(name, bars) | {"hoverinfo": "text"})
    layout = axes.layout(len(labels) * axes.ROW_PX + 150, "error over the noise floor")
    layout["barmode"] = "group"
    layout["xaxis"] |= {"type": "log"}
    layout["yaxis"] |= axes.categories(labels)
    limit = {"type": "line", "x0": TIMES, "x1": TIMES, "y0": 0, "y1": 1, "yref": "paper"}
    layout["shapes"] = [limit | {"line": {"color": axes.LIMIT, "width": 2, "dash": "dash"}}]
    return {"data": traces if shown else [], "layout": layout}


def _told(module: ModuleRow, name: str) -> str:
    error, over = getattr(module, f"{name}_error"), getattr(module, f"{name}_times")
    kind = f" ({module.kind})" if module.kind else ""
    return f"{module.name}{kind}, {name}\nerror {error:.2g}, {comparison.times(over)} its floor"


def _log(value: float) -> float:
    """What a logarithmic axis can show of it."""
    return axes.short(min(max(value, _LEAST), _MOST))


def _drawn(values: Sequence[float]) -> list[float | None]:
    """Numbers that JSON has; a gap where a loss is not finite."""
    return [axes.short(float(v)) if math.isfinite(v) else None for v in values]
