"""One calibration: every probe on every place of its grid, then what calls cost the host."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from offramp.calibrate import collectives, overheads
from offramp.calibrate.collectives import Exchange
from offramp.calibrate.probe import Axes, Probe
from offramp.calibrate.probes import all_probes
from offramp.calibrate.timing import Sample, Timer
from offramp.costs.cost import Span
from offramp.costs.measured import Curve, Measured

SETTLING_BYTES = 31 << 20  # glibc returns what is larger to the system at once
QUICK_POINT_S = 1e-3
# A quick calibration leaves out the places that take long.
QUICK_LIMITS: Mapping[str, int] = {
    "bytes": 3 << 19,
    "m": 512,
    "n": 512,
    "k": 512,
    "table": 4096,
    "length": 128,
    "rows": 1024,
}


@dataclass(frozen=True)
class Calibration:
    """What was measured on `device`.

    clock    what times were read from
    spread   the median of the spreads of all places: the quartiles' distance over the median
    exchange collectives; None where one device was measured alone
    """

    device: torch.device
    curves: Mapping[tuple[str, str], Curve]
    constants: Mapping[str, Span]
    clock: str
    spread: float
    left_out: tuple[str, ...] = ()
    exchange: Exchange | None = None


def measure(
    device: torch.device,
    *,
    quick: bool = False,
    ranks: int = 1,
    told: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Measure `device`, telling in a line what comes next.

    quick   few places, few samples: the shape of a calibration, not its precision
    ranks   processes between which collectives are measured; 1: none are

    Raises OfframpError where one of these processes dies.
    """
    exchange = None
    if ranks > 1:
        exchange = collectives.measure(device, ranks, quick=quick, told=told)
    _settle(device)
    timer = Timer(device, **({"point_s": QUICK_POINT_S} if quick else {}))
    curves: dict[tuple[str, str], Curve] = {}
    spreads: list[float] = []
    left_out: list[str] = []
    said = ""
    for title, probe in all_probes(device):
        if title != said:
            told(said := title)
        try:
            curve, spread = _curve(timer, probe, quick)
        except (RuntimeError, NotImplementedError):  # the device has no such operator or format
            left_out.append(f"{probe.name} {probe.dtype_name}")
            continue
        curves[probe.name, probe.dtype_name] = curve
        spreads.append(spread)
    told("calls of operators")
    constants = overheads.measure(timer, Measured(curves))
    if exchange is not None:
        curves.update(exchange.curves)
        constants.update(exchange.constants)
    middle = statistics.median(spreads)
    return Calibration(device, curves, constants, timer.clock, middle, tuple(left_out), exchange)


def _settle(device: torch.device) -> None:
    """Let the allocator see a large block go, after which it keeps such blocks, as in a program."""
    torch.empty(SETTLING_BYTES, dtype=torch.uint8, device=device)


def _curve(timer: Timer, probe: Probe, quick: bool) -> tuple[Curve, float]:
    """The curve of one probe, and how far apart its samples were."""
    axes = _thinned(probe.axes) if quick else probe.axes
    names = [name for name, _ in axes]
    samples: list[Sample] = []
    for points in itertools.product(*(points for _, points in axes)):
        samples.append(timer.of(probe.build(dict(zip(names, points, strict=True)))))
    low = statistics.median(s.low / s.seconds for s in samples)
    high = statistics.median(s.high / s.seconds for s in samples)
    grid = tuple((name, tuple(map(float, points))) for name, points in axes)
    curve = Curve(grid, tuple(s.seconds for s in samples), min(1.0, low), max(1.0, high))
    return curve, high - low


def _thinned(axes: Axes) -> Axes:
    """The ends of every axis, the far end not too far."""
    thin = []
    for name, points in axes:
        near = [p for p in points if p <= QUICK_LIMITS.get(name, p)]
        thin.append((name, tuple(dict.fromkeys((near[0], near[-1])))))
    return tuple(thin)
