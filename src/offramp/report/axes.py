"""What the figures of a page share: colours, units, labels, layouts and bars of plotly's JSON."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]
ROWS = 15  # of a bar chart
LABEL_WIDTH = 46
ROW_PX = 24
COLORS = {
    "matmul": "#4c78a8",
    "attention": "#b279a2",
    "memory": "#f58518",
    "copy": "#9d755d",
    "communication": "#54a24b",
    "exposed communication": "#54a24b",
    "waits for a peer": "#d9a6a6",
    "bubble": "#d9a6a6",
    "forward": "#72b7b2",
    "backward": "#2f6f8f",
    "optimizer": "#e45756",
    "recompute": "#eeca3b",
    "data": "#ff9da6",
    "other": "#a9a9a9",
    "host's own work": "#6b4c9a",
    "host waits": "#e3e3e3",
    "host": "#8a8a8a",
    "idle": "#e3e3e3",
    "parameters": "#4c78a8",
    "gradients": "#f58518",
    "activations": "#72b7b2",
    "temporary": "#bab0ac",
}
LIMIT = "#c1272d"
SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
BYTES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def layout(height: int, title: str) -> dict[str, Any]:
    """A figure of `height` pixels; `title` is of the horizontal axis, with its unit."""
    grid = {"gridcolor": "#e6e6e6", "zerolinecolor": "#c8c8c8", "automargin": True}
    grid |= {"ticks": "outside", "ticklen": 6, "tickcolor": "#c8c8c8"}
    return {
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"size": 12, "color": "#222222"},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "namelength": -1},
        "xaxis": grid | {"title": {"text": title}},
        "yaxis": dict(grid),
    }


def categories(labels: Sequence[str]) -> dict[str, Any]:
    """An axis of names, the first on top, that a drag does not zoom."""
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(labels),
        "range": [len(labels) - 0.5, -0.5],
        "fixedrange": True,
        "dtick": 1,
        "showgrid": False,
    }


def bar(name: str, bars: Mapping[str, Any], color: str = "") -> dict[str, Any]:
    """A trace of bars in the colour of its name."""
    marker = {"color": color or COLORS.get(name, "#888888"), "line": {"width": 0}}
    return {"type": "bar", "orientation": "h", "name": name, "marker": marker, **bars}


def line(
    name: str, x: Sequence[float], y: Sequence[float | None], line: Mapping[str, Any]
) -> dict[str, Any]:
    """A trace of a line."""
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": dict(line)}


def label(name: str) -> str:
    """A name that fits beside an axis: its end, which tells modules apart."""
    return html.escape(name if len(name) <= LABEL_WIDTH else f"...{name[3 - LABEL_WIDTH :]}")


def apart(names: Sequence[str]) -> list[str]:
    """The names, with a number where one is there already: an axis tells them apart."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def words(text: str) -> str:
    """Text for a hover label, in which "<" is no mark-up."""
    return html.escape(text).replace("\n", "<br>")


def unit(largest: float, units: Sequence[tuple[float, str]], least: float) -> tuple[float, str]:
    """The largest unit of which there are at least `least`."""
    return next((unit for unit in units if largest >= least * unit[0]), units[-1])


def shorts(values: Iterable[float]) -> list[float]:
    """Each value by `short`."""
    return [short(float(value)) for value in values]


def short(value: float) -> float:
    """Seven digits: more cannot be seen, and make the page long."""
    return float(np.format_float_positional(value, 7, fractional=False)) if value else 0.0
