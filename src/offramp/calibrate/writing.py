"""Writes a calibration as a chip file, with its costs and its cluster in files beside it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from offramp import __version__
from offramp.calibrate import device as devices
from offramp.calibrate.collectives import Exchange
from offramp.calibrate.measuring import Calibration
from offramp.costs.constants import KEYS
from offramp.costs.cost import Span
from offramp.costs.measured import Curve, curve_text, path_beside
from offramp.errors import UsageError

_MEANINGS: Mapping[str, str] = {
    "host.operator": "the program's own time for an operator, beyond what the curves have of it",
    "host.view": "a view with its place in autograd's graph",
    "host.listed": "each tensor of a list",
    "host.collective": "the call of a collective whose end is waited for later",
    "overlap.slowdown": "compute beside all-reduces over compute alone",
    "host.readback": "a value read by the program, once it is there",
}
_NATIVE = ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool")
_HALVES = ("bfloat16", "float16")


def write(found: Calibration, path: Path) -> None:
    """Write all files, each whole or not at all. Raises UsageError."""
    source = _source(found)
    texts = {path_beside(path): _costs(found, source), path: _chip(found, path, source)}
    if found.exchange is not None:
        texts[cluster_beside(path)] = _cluster(found, found.exchange, path, source)
    for place, text in texts.items():
        scratch = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(place)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise UsageError(f"cannot write {place}: {error.strerror}") from error


def cluster_beside(chip_file: Path) -> Path:
    """Where the cluster of a calibrated chip file is: `this.toml` has `this.cluster.toml`."""
    return chip_file.with_name(f"{chip_file.stem}.cluster.toml")


def _source(found: Calibration) -> str:
    device = found.device
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    today = datetime.datetime.now(datetime.UTC).date()
    text = (
        f"offramp {__version__} calibrate on {platform.node()}, {today}: {devices.title(device)} "
        f"as {device.type}{threads}; torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.platform()}; medians, times from {found.clock}"
    )
    return text.replace("\\", "/").replace('"', "'")


def _chip(found: Calibration, path: Path, source: str) -> str:
    device = found.device
    is_host = device.type == "cpu"
    name = devices.title(device).replace('"', "'")
    facts = [
        _fact("memory", f'value = {devices.memory_bytes(device)}, unit = "B"'),
        *_bandwidth(found.curves),
    ]
    count = devices.multiprocessors(device)
    if count:
        facts.append(_fact("multiprocessors", f"value = {count}"))
    if is_host:
        facts.append(_fact("execution", 'value = "synchronous"'))
    kind = "cuda" if is_host else device.type
    why = 'note = "programs written for CUDA are rehearsed unchanged; the machine itself is cpu"'
    presented = [
        f'device_type = {{ value = "{kind}", tier = "measured", source = "run"'
        + (f", {why} }}" if is_host else " }"),
        _fact("device_name", f'value = "{name}"'),
        _fact("collectives", f'value = "{"gloo" if is_host else "nccl"}"'),
    ]
    capability = devices.capability(device)
    if capability:
        presented.append(_fact("capability", f'value = "{capability}"'))
    halves = [d for d in _HALVES if ("product.nn", d) in found.curves or is_host]
    lines = [
        f'title = "{name}"',
        'vendor = "this machine"',
        f'costs = "{path_beside(path).name}"',
        *("", "[sources]", f'run = "{source}"'),
        *("", "[facts]", *facts),
        *("", "[rates.matrix]", *_rates(found.curves)),
        *("", "[[formats]]", 'support = "native"'),
        f"names = [{', '.join(repr(n) for n in (*_NATIVE, *halves))}]".replace("'", '"'),
        *('tier = "measured"', 'source = "run"'),
        *("", "[presentation]", *presented, ""),
    ]
    return "\n".join(lines)


def _fact(key: str, value: str) -> str:
    return f'{key} = {{ {value}, tier = "measured", source = "run" }}'


def _bandwidth(curves: Mapping[tuple[str, str], Curve]) -> list[str]:
    """What elements that lie in order move at, at the largest size that was measured."""
    curve = curves.get(("mul.2", "float32"))
    if curve is None:
        return []
    place = {axis: points[-1] for axis, points in curve.axes}
    speed = place["bytes"] / curve.at(place)
    return [
        _fact(
            "memory_bandwidth",
            f"value = {speed / 1e9:.4g}, low = {speed / curve.high / 1e9:.4g}, "
            f'high = {speed / curve.low / 1e9:.4g}, unit = "GB/s"',
        )
    ]


def _rates(curves: Mapping[tuple[str, str], Curve]) -> list[str]:
    """The best that products of each format reached."""
    rates = []
    for dtype in ("float32", *_HALVES):
        curve = curves.get(("product.nn", dtype))
        if curve is not None:
            rates.append(_fact(dtype, f'value = {_best(curve) / 1e12:.4g}, unit = "TFLOP/s"'))
    return rates


def _best(curve: Curve) -> float:
    """Operations a second of the best product on the curve."""
    places: list[dict[str, float]] = [{}]
    for axis, points in curve.axes:
        places = [{**place, axis: point} for place in places for point in points]
    work = (2 * place["m"] * place["n"] * place["k"] for place in places)
    return max(flops / seconds for flops, seconds in zip(work, curve.seconds, strict=True))


def _costs(found: Calibration, source: str) -> str:
    lines = [f'title = "Measured costs of {devices.title(found.device)}"'.replace("\\", "/")]
    lines += ["", "[sources]", f'run = "{source}"']
    section = ""
    for key, span in sorted(found.constants.items()):
        part, _, name = key.partition(".")
        if part != section:
            lines += ["", f"[{(section := part)}]"]
        lines.append(_constant(name, span, KEYS[key], _MEANINGS[key]))
    blocks = [curve_text(*key, curve, "run") for key, curve in found.curves.items()]
    return "\n".join(lines) + "\n\n" + "\n".join(blocks)


def _constant(name: str, span: Span, dimension: str, meaning: str) -> str:
    unit = "us" if dimension == "seconds" else dimension
    scale = 1e6 if dimension == "seconds" else 1.0
    numbers = _interval(span, scale)
    return (
        f'{name} = {{ {numbers}, unit = "{unit}", tier = "measured", source = "run", '
        f'note = "{meaning}" }}'
    )


def _cluster(found: Calibration, exchange: Exchange, path: Path, source: str) -> str:
    """One node of the ranks that were measured, and the link that fits their collectives."""
    name = devices.title(found.device).replace("\\", "/").replace('"', "'")
    off = f"points of the curves in costs are at most {exchange.link.worst:.1f} times off"
    latency = _interval(exchange.link.latency, 1e6)
    bandwidth = _interval(exchange.link.bandwidth, 1e-9)
    trust = f'tier = "measured", source = "run", note = "fitted to a ring; {off}"'
    lines = [
        f'title = "{exchange.ranks} ranks on one node of {name}"',
        *("", "[sources]", f'run = "{source}; collectives of {exchange.backend}, wall time"'),
        *("", "[[nodes]]", f'chip = "{path.name}"', "count = 1"),
        f"chips_per_node = {exchange.ranks}",
        *("", "[nodes.link]", f'name = "measured {exchange.backend}"', 'topology = "switch"'),
        f'costs = "{path_beside(path).name}"',
        f'bandwidth = {{ {bandwidth}, unit = "GB/s", {trust} }}',
        f'latency = {{ {latency}, unit = "us", {trust} }}',
    ]
    return "\n".join(lines) + "\n"


def _interval(span: Span, scale: float) -> str:
    """The numbers of a fact, in a unit of which `scale` make one of the span's."""
    pairs = (("value", span.value), ("low", span.low), ("high", span.high))
    return ", ".join(f"{key} = {number * scale:.5g}" for key, number in pairs)
