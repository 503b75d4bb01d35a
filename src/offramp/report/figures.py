"""Figures of a rehearsal, as plotly's JSON: lists of traces and a layout. Nothing is computed here
but units, shares and labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offramp.report import axes
from offramp.report.axes import BYTES, COLORS, LIMIT, ROW_PX, ROWS, SECONDS, Figure
from offramp.tape.held import Held
from offramp.tape.prices import short_name
from offramp.tape.timeline import CLASSES, Timeline
from offramp.units import format_bytes, format_seconds

FAR = 5  # times the peak: a capacity above is told, and not drawn


def timeline(drawn: Timeline, ranks: int) -> Figure:
    """The lanes, a bar a span; colour is what it is of."""
    size, unit = axes.unit(drawn.end_s - drawn.begin_s, SECONDS, 2.0)
    whose = [f"rank {lane.rank} · " if ranks > 1 else "" for lane in drawn.lanes]
    labels = axes.apart(
        [f"{of}{axes.label(lane.name)}" for of, lane in zip(whose, drawn.lanes, strict=True)]
    )
    traces = []
    for name in CLASSES:
        bars: dict[str, list[Any]] = {"base": [], "x": [], "y": [], "hovertext": []}
        for label, lane in zip(labels, drawn.lanes, strict=True):
            starts, lengths = lane.start / size, (lane.end - lane.start) / size
            rows = zip(starts.tolist(), lengths.tolist(), lane.classes, lane.words, strict=True)
            for start, length, of, words in rows:
                if of == name:
                    bars["base"].append(axes.short(start))
                    bars["x"].append(axes.short(length))
                    bars["y"].append(label)
                    bars["hovertext"].append(axes.words(words))
        if bars["x"]:
            traces.append(axes.bar(name, bars) | {"hoverinfo": "text", "width": 0.82})
    layout = axes.layout(len(labels) * ROW_PX + 130, f"time in the step, {unit}")
    layout["barmode"] = "overlay"
    layout["xaxis"] |= {"range": [0, axes.short((drawn.end_s - drawn.begin_s) / size)]}
    layout["yaxis"] |= axes.categories(labels)
    return {"data": traces, "layout": layout}


def memory(held: Held, capacity: int) -> Figure:
    """Bytes over time, a category above the other, with the peak and the chip's capacity."""
    size, unit = axes.unit(held.peak_bytes, BYTES, 1.0)
    span = float(held.at_s[-1]) if len(held.at_s) else 0.0
    second, second_unit = axes.unit(span, SECONDS, 2.0)
    at = axes.shorts(held.at_s / second)
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": at,
            "y": axes.shorts(held.by_category[name] / size),
            "stackgroup": "held",
            "line": {"width": 0, "shape": "hv", "color": COLORS.get(name)},
            "fillcolor": COLORS.get(name),
            "hovertemplate": f"%{{y:.2f}} {unit}",
        }
        for name in _held_order(held)
    ]
    dashed = {"color": "#444444", "width": 1, "dash": "dot", "shape": "hv"}
    if len(held.reserved):
        y = axes.shorts(held.reserved / size)
        traces.append(
            axes.line("reserved", at, y, dashed) | {"hovertemplate": f"%{{y:.2f}} {unit}"}
        )
    peak = [axes.short(held.peak_s / second), axes.short(held.peak_bytes / size)]
    traces.append(_peak(peak, format_bytes(held.peak_bytes)))
    top = max(held.peak_bytes, int(held.reserved.max(initial=0))) / size
    layout = axes.layout(430, f"time on the host, {second_unit}")
    layout["hovermode"] = "x unified"
    if capacity <= FAR * held.peak_bytes:
        top = max(top, capacity / size)
        line = {"color": LIMIT, "width": 2, "dash": "dash"}
        said = f"capacity, {format_bytes(capacity)}"
        ends = [at[0], at[-1]] if at else []
        flat = [axes.short(capacity / size)] * len(ends)
        traces.append(axes.line(said, ends, flat, line) | {"hoverinfo": "skip"})
    layout["yaxis"] |= {"title": {"text": f"memory, {unit}"}, "range": [0, axes.short(top * 1.12)]}
    layout["shapes"] = [_step_line(axes.short(step / second)) for step in held.steps_s.tolist()]
    return {"data": traces, "layout": layout}


def peak_modules(held: Held) -> Figure:
    """What holds the memory at the peak, by module and category."""
    sums: dict[str, int] = {}
    for module, _, amount in held.peak_modules:
        sums[module] = sums.get(module, 0) + amount
    shown = sorted(sums, key=lambda module: (-sums[module], module))[:ROWS]
    names = axes.apart([axes.label(module or "no module") for module in shown])
    labels = dict(zip(shown, names, strict=True))
    size, unit = axes.unit(max(sums.values(), default=0), BYTES, 1.0)
    traces = []
    for name in _held_order(held):
        rows = [(m, amount) for m, of, amount in held.peak_modules if of == name and m in labels]
        if rows:
            bars = {
                "x": axes.shorts(amount / size for _, amount in rows),
                "y": [labels[module] for module, _ in rows],
                "hovertext": [
                    axes.words(f"{m or 'no module'}\n{format_bytes(s)}, {name}") for m, s in rows
                ],
            }
            traces.append(axes.bar(name, bars) | {"hoverinfo": "text"})
    layout = axes.layout(len(labels) * ROW_PX + 130, f"memory at the peak, {unit}")
    layout["barmode"] = "stack"
    layout["yaxis"] |= axes.categories(list(labels.values()))
    return {"data": traces, "layout": layout}


def split(summary: Mapping[str, Any]) -> Figure:
    """Where the step goes, a row a rank that was played; parts sum to the step."""
    step = summary["step_s"]["mid"]
    size, unit = axes.unit(step, SECONDS, 2.0)
    ranks = summary["ranks"]
    labels = [f"rank {rank['rank']}" for rank in ranks]
    rows = [_parts(rank["split"]) for rank in ranks]
    traces = []
    for name in rows[0]:
        seconds = [row[name] for row in rows]
        if not any(seconds):
            continue
        bars = {
            "x": axes.shorts(s / size for s in seconds),
            "y": labels,
            "text": [f"{s / step:.0%}" if s >= 0.03 * step else "" for s in seconds],
            "hovertext": [f"{name}<br>{format_seconds(s)}, {s / step:.1%}" for s in seconds],
        }
        inside = {"textposition": "inside", "insidetextanchor": "middle", "textangle": 0}
        traces.append(axes.bar(name, bars) | inside | {"hoverinfo": "text"})
    layout = axes.layout(len(labels) * 30 + 130, f"a step, {unit}")
    layout["barmode"] = "stack"
    layout["xaxis"] |= {"range": [0, axes.short(step / size)]}
    layout["yaxis"] |= axes.categories(labels)
    return {"data": traces, "layout": layout}


def operators(rank: Mapping[str, Any], step: float) -> Figure:
    """The longest operators of a rank, by kind."""
    sums: dict[tuple[str, str], list[float]] = {}
    for row in rank["operators"]:
        entry = sums.setdefault((short_name(row["name"]), row["kind"]), [0.0, 0.0])
        entry[0] += row["seconds"]
        entry[1] += row["count"]
    order = sorted(sums, key=lambda key: (-sums[key][0], key))[:ROWS]
    size, unit = axes.unit(max((sums[key][0] for key in order), default=0.0), SECONDS, 2.0)
    traces = []
    for kind in dict.fromkeys(kind for _, kind in order):
        mine = [key for key in order if key[1] == kind]
        bars = {
            "x": axes.shorts(sums[key][0] / size for key in mine),
            "y": [axes.label(name) for name, _ in mine],
            "hovertext": [
                f"{axes.label(key[0])}<br>{format_seconds(sums[key][0])} a step, "
                f"{sums[key][0] / step:.1%}<br>{sums[key][1]:,.0f} calls"
                for key in mine
            ],
        }
        traces.append(axes.bar(kind, bars) | {"hoverinfo": "text"})
    labels = list(dict.fromkeys(axes.label(name) for name, _ in order))
    layout = axes.layout(len(labels) * ROW_PX + 130, f"time on the chip in a step, {unit}")
    layout["barmode"] = "stack"
    layout["yaxis"] |= axes.categories(labels)
    return {"data": traces, "layout": layout}


def collectives(rank: Mapping[str, Any], step: float) -> Figure:
    """The longest collectives of a rank: under way, and of that with no compute beside it."""
    rows = sorted(rank["collectives"], key=lambda row: (-row["seconds"], row["name"], row["group"]))
    rows = rows[:ROWS]
    size, unit = axes.unit(max((row["seconds"] for row in rows), default=0.0), SECONDS, 2.0)
    labels = axes.apart([axes.label(f"{row['name']}, {row['group']}") for row in rows])
    traces = []
    for name, key, color in (
        ("under way", "seconds", "#b8dab3"),
        ("of that exposed: no compute beside it", "exposed_s", COLORS["communication"]),
    ):
        bars = {
            "x": axes.shorts(row[key] / size for row in rows),
            "y": labels,
            "hovertext": [
                axes.words(
                    f"{row['name']}, {row['group']}\n{format_seconds(row[key])} a step, "
                    f"{row[key] / step:.1%}\n{row['count']:,.0f} calls, "
                    f"{format_bytes(row['bytes'])}"
                )
                for row in rows
            ],
        }
        if rows:
            traces.append(axes.bar(name, bars, color) | {"hoverinfo": "text"})
    layout = axes.layout(len(labels) * ROW_PX + 130, f"time in a step, {unit}")
    layout["barmode"] = "overlay"
    layout["yaxis"] |= axes.categories(labels)
    return {"data": traces, "layout": layout}


def modules(tree: Mapping[str, float], step: float) -> Figure:
    """The modules as a tree, as wide as their time on the chip; `tree` has seconds of a step."""
    nodes = [name for name, seconds in tree.items() if seconds > 0 and not _is_link(name, tree)]
    above = {node: _above(node, nodes) for node in nodes}
    trace = {
        "type": "icicle",
        "ids": [f".{node}" for node in nodes],
        "labels": [axes.words(_between(node, above[node])) for node in nodes],
        "parents": [f".{above[node]}" if node else "" for node in nodes],
        "values": axes.shorts(tree[node] for node in nodes),
        "branchvalues": "total",
        "textinfo": "label+percent root",
        "hovertext": [
            axes.words(
                f"{node or 'all modules'}\n{format_seconds(tree[node])}, {tree[node] / step:.1%} "
                "of the step"
            )
            for node in nodes
        ],
        "hoverinfo": "text",
        "marker": {"colors": [_depth_color(node, above) for node in nodes]},
        "tiling": {"orientation": "h", "pad": 1},
        "pathbar": {"visible": False},
    }
    layout = axes.layout(480, "")
    layout["margin"] |= {"l": 10, "t": 10, "b": 10}
    return {"data": [trace], "layout": layout}


def _is_link(node: str, tree: Mapping[str, float]) -> bool:
    """Whether all of a node's time is of one child, so that the child can stand for both."""
    below = [name for name in tree if name and name.rpartition(".")[0] == node and name != node]
    return bool(node) and any(tree[name] > 0.999 * tree[node] for name in below)


def _above(node: str, nodes: Sequence[str]) -> str:
    """The nearest of `nodes` above a node."""
    while node:
        node = node.rpartition(".")[0]
        if node in nodes:
            break
    return node


def _between(node: str, above: str) -> str:
    """What a node's name adds to that above it; `layers.*` is read as "layers, each"."""
    added = node[len(above) :].removeprefix(".") if above else node
    return added.replace(".*", ", each") or "all"


def _depth_color(node: str, above: Mapping[str, str]) -> str:
    depth = 0
    while node:
        node, depth = above[node], depth + 1
    shades = ("#e8eef5", "#cfdeee", "#b3cbe4", "#93b5d8", "#759fca", "#5b8bbb", "#4c78a8")
    return shades[min(depth, len(shades) - 1)]


def _parts(of: Mapping[str, Any]) -> dict[str, float]:
    return {
        **of["compute_s"],
        "exposed communication": sum(of["exposed_communication_s"].values()),
        "bubble": of["bubble_s"],
        "host": of["host_s"],
        "idle": of["idle_s"],
    }


def _held_order(held: Held) -> list[str]:
    """What stays at the bottom, what comes and goes above it."""
    order = ("parameters", "optimizer", "gradients", "activations", "communication")
    return [name for name in (*order, "temporary", "other") if name in held.by_category]


def _peak(at: Sequence[float], said: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": f"peak, {said}",
        "x": [at[0]],
        "y": [at[1]],
        "text": [f"peak {said}"],
        "textposition": "top center",
        "marker": {"color": LIMIT, "size": 9, "symbol": "diamond"},
        "hoverinfo": "skip",
    }


def _step_line(at: float) -> dict[str, Any]:
    line = {"color": "#999999", "width": 1, "dash": "dot"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1} | {
        "line": line
    }
