"""What collectives take between several devices of this machine, or several processes of its CPU.

Ranks are processes of their own (`rank.py`). Of what they measured come a curve for each of the
collectives, two numbers for the link that fit them all, and two constants of the host.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offramp.costs.cost import Span
from offramp.costs.link_fit import Fit, Point, fit
from offramp.costs.measured import COLLECTIVES_DTYPE, Curve
from offramp.errors import OfframpError, UsageError

_RANK = "offramp.calibrate.rank"
_LINES = 12  # of what a dead rank said


@dataclass(frozen=True)
class Exchange:
    """Collectives of `ranks` ranks: curves, the link that fits them, constants of the host."""

    ranks: int
    backend: str
    curves: Mapping[tuple[str, str], Curve]
    link: Fit
    constants: Mapping[str, Span]


def how_many(device: torch.device, asked: int | None) -> int:
    """Ranks to measure with: those asked for, else every device of the kind; 1: none.

    Raises UsageError for fewer than two, and for more than there are devices.
    """
    if asked is not None and asked < 2:
        raise UsageError(f"--ranks {asked}: expected at least 2; without it no collective is timed")
    if device.type == "cpu":
        return asked or 1
    count = torch.accelerator.device_count()
    if asked is not None and asked > count:
        raise UsageError(f"--ranks {asked}: this machine has {count} of {device.type}")
    return asked or (count if device.index is None else 1)


def measure(
    device: torch.device, ranks: int, *, quick: bool, told: Callable[[str], None]
) -> Exchange:
    """Start the ranks and take what they found. Raises OfframpError where one of them dies."""
    with tempfile.TemporaryDirectory(prefix="offramp-ranks-") as name:
        folder = Path(name)
        with _started(folder, device.type, ranks, quick, told) as processes:
            _wait(processes, folder)
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return _exchange(found, ranks)


@contextlib.contextmanager
def _started(
    folder: Path, kind: str, ranks: int, quick: bool, told: Callable[[str], None]
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes, of which none is left in the end; `told` gets what rank 0 writes."""
    command = [sys.executable, "-m", _RANK, str(folder), kind]
    command += ["quick"] if quick else []
    processes: list[subprocess.Popen[str]] = []
    listener: threading.Thread | None = None
    try:
        for rank in range(ranks):
            own = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
            shared = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
            env = {**os.environ, **own, **shared}
            with (folder / f"said-{rank}").open("w", encoding="utf-8") as said:
                out = subprocess.PIPE if rank == 0 else said
                processes.append(
                    subprocess.Popen(command, env=env, stdout=out, stderr=said, text=True)
                )
        listener = threading.Thread(target=_listen, args=(processes[0], told), daemon=True)
        listener.start()
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()
        if listener is not None:
            listener.join()


def _listen(process: subprocess.Popen[str], told: Callable[[str], None]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            told(line.rstrip())


def _wait(processes: Sequence[subprocess.Popen[str]], folder: Path) -> None:
    """Until all have ended well. Raises OfframpError with what the first dead rank said."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            break
        time.sleep(0.05)
    dead = [rank for rank, process in enumerate(processes) if process.poll()]
    if not dead:
        return
    rank = min(dead, key=lambda r: processes[r].returncode)  # a signal before its consequences
    status = processes[rank].returncode
    how = f"by signal {-status}" if status < 0 else f"with exit status {status}"
    said = (folder / f"said-{rank}").read_text(encoding="utf-8", errors="replace")
    last = "\n".join(f"  {line}" for line in said.strip().splitlines()[-_LINES:]) or "  (nothing)"
    raise OfframpError(
        f"rank {rank} of {len(processes)} ended {how} while collectives were measured; "
        f"it said last:\n{last}"
    )


def _exchange(found: Mapping[str, Any], ranks: int) -> Exchange:
    curves, points = {}, []
    for name, rows in found["curves"].items():
        if rows:
            curve, of_curve = _curve(name, rows)
            curves[name, COLLECTIVES_DTYPE] = curve
            points += of_curve
    try:
        link = fit(points)
    except ValueError as error:
        raise OfframpError(f"collectives of {ranks} ranks: {error}") from error
    slowdown = [max(1.0, one) for one in found["slowdown"]]
    constants = {"host.collective": _span(found["call"]), "overlap.slowdown": _span(slowdown)}
    return Exchange(ranks, found["backend"], curves, link, constants)


def _curve(name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Curve, list[Point]]:
    """A curve over the sizes that every group reached, and its points."""
    counts = sorted({row["ranks"] for row in rows})
    reached = [{row["bytes"] for row in rows if row["ranks"] == count} for count in counts]
    sizes = sorted(set.intersection(*reached))
    times = {(row["ranks"], row["bytes"]): _span(row["seconds"]) for row in rows}
    spans = [times[count, size] for count in counts for size in sizes]
    curve = Curve(
        (("ranks", tuple(map(float, counts))), ("bytes", tuple(map(float, sizes)))),
        tuple(span.value for span in spans),
        statistics.median(span.low / span.value for span in spans),
        statistics.median(span.high / span.value for span in spans),
    )
    points = [Point(name, c, s, times[c, s].value) for c in counts for s in sizes]
    return curve, points


def _span(times: Sequence[float]) -> Span:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Span(middle, low, high, "measured")
