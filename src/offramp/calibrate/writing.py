"""Writes a calibration as a chip file, with the file of its costs beside it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from offramp import __version__
from offramp.calibrate import device as devices
from offramp.calibrate.measuring import Calibration
from offramp.costs.constants import KEYS
from offramp.costs.cost import Span
from offramp.costs.measured import Curve, curve_text, path_beside
from offramp.errors import UsageError

_MEANINGS: Mapping[str, str] = {
    "host.operator": "the program's own time for an operator, beyond what the curves have of it",
    "host.view": "a view with its place in autograd's graph",
    "host.listed": "each tensor of a list",
    "host.readback": "a value read by the program, once it is there",
}
_NATIVE = ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool")
_HALVES = ("bfloat16", "float16")


def write(found: Calibration, path: Path) -> None:
    """Write both files, each whole or not at all. Raises UsageError."""
    source = _source(found)
    for place, text in (
        (path_beside(path), _costs(found, source)),
        (path, _chip(found, path, source)),
    ):
        scratch = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(place)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise UsageError(f"cannot write {place}: {error.strerror}") from error


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
    lines += ["", "[sources]", f'run = "{source}"', "", "[host]"]
    for key, span in found.constants.items():
        lines.append(_constant(key.partition(".")[2], span, KEYS[key], _MEANINGS[key]))
    blocks = [curve_text(*key, curve, "run") for key, curve in found.curves.items()]
    return "\n".join(lines) + "\n\n" + "\n".join(blocks)


def _constant(name: str, span: Span, dimension: str, meaning: str) -> str:
    unit = "us" if dimension == "seconds" else dimension
    scale = 1e6 if dimension == "seconds" else 1.0
    numbers = ", ".join(
        f"{key} = {number * scale:.5g}"
        for key, number in (("value", span.value), ("low", span.low), ("high", span.high))
    )
    return (
        f'{name} = {{ {numbers}, unit = "{unit}", tier = "measured", source = "run", '
        f'note = "{meaning}" }}'
    )
