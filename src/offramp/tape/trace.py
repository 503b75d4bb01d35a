"""A trace for Perfetto (ui.perfetto.dev) or chrome://tracing: a process a rank, a thread a lane.

The format is Google's "Trace Event Format": `ts` and `dur` are microseconds of the chip's clock.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.tape import kinds as k
from offramp.tape.meeting import describe
from offramp.tape.memory import measure_memory
from offramp.tape.play import Played
from offramp.tape.prices import PriceList, operator_name

Event = dict[str, Any]
_HOST_THREAD = 0
_PLACES = {k.BEGIN: "B", k.END: "E", k.INSTANT: "i"}


def write_trace(
    path: Path | str,
    played: Sequence[Played],
    prices: PriceList,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write the timeline of `played` as JSON, compressed where `path` ends in ".gz".

    `notes` go to the trace's metadata. The file appears whole or not at all.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    other = {"clock": "chip", "time": "us", "memory": "bytes", **(notes or {})}
    head = json.dumps(other, sort_keys=True)
    try:
        with draft.open("wb") as file:
            packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.suffix == ".gz" else file
            packed.write(f'{{"displayTimeUnit":"ms","otherData":{head},"traceEvents":[\n'.encode())
            comma = b""
            for event in events(played, prices):
                packed.write(comma + json.dumps(event, separators=(",", ":")).encode())
                comma = b",\n"
            packed.write(b"\n]}\n")
            if packed is not file:
                packed.close()
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def events(played: Sequence[Played], prices: PriceList) -> Iterator[Event]:
    """Every event of the trace, rank by rank."""
    for each in played:
        yield from _rank(each, prices.of(each.tape.rank))


def _rank(played: Played, prices: PriceList) -> Iterator[Event]:
    rank = played.tape.rank
    records = played.tape.records[played.ops_record]
    keys = records["device"].astype(np.int64) << 32 | records["stream"]
    streams = np.unique(keys).tolist()
    threads = {key: number for number, key in enumerate(streams, 1)}
    lanes = sorted({(unit.device, unit.lane) for unit in played.units})
    comms = {lane: number for number, lane in enumerate(lanes, len(streams) + 1)}
    chip = played.tape.header.get("chip", "")
    yield _named("process_name", rank, 0, f"rank {rank} {chip}".strip())
    yield _named("thread_name", rank, _HOST_THREAD, "host")
    for key, thread in threads.items():
        yield _named("thread_name", rank, thread, f"device {key >> 32} stream {key & 0xFFFFFFFF}")
    for (device, lane), thread in comms.items():
        yield _named("thread_name", rank, thread, f"device {device} {lane}")
    yield from _operators(played, prices, [threads[key] for key in keys.tolist()])
    yield from _calls(played, comms)
    yield from _marks(played)
    yield from _memory(played)


def _operators(played: Played, prices: PriceList, threads: list[int]) -> Iterator[Event]:
    tape = played.tape
    records = tape.records[played.ops_record]
    columns = (records["what"], records["module"], records["phase"])
    known: dict[int, tuple[str, str]] = {}
    rows = zip(
        threads,
        played.ops_start.tolist(),
        played.ops_end.tolist(),
        *(column.tolist() for column in columns),
        strict=True,
    )
    for thread, start, end, what, module, phase in rows:
        if what not in known:
            text = tape.signatures[what]
            known[what] = (operator_name(text), prices.operator(text).kind)
        name, kind = known[what]
        told = {"phase": k.PHASES[phase], "module": tape.names[module] if tape.names else ""}
        yield _span(tape.rank, thread, (start, end), name, kind) | {"args": told}


def _calls(played: Played, threads: dict[tuple[int, str], int]) -> Iterator[Event]:
    for unit in played.units:
        thread = threads[unit.device, unit.lane]
        name = ", ".join(describe(part) for part in unit.parts)
        told = {"bytes": sum(part.call.bytes for part in unit.parts)}
        if unit.start > unit.ready:
            waited = (unit.ready, unit.start)
            yield _span(played.tape.rank, thread, waited, "waits for a peer", "bubble")
        span = _span(played.tape.rank, thread, (unit.start, unit.end), name, "communication")
        yield span | {"args": told}


def _marks(played: Played) -> Iterator[Event]:
    names = played.tape.names or [""]
    for mark in played.marks:
        place = _PLACES.get(mark.place, "i")
        event = {"ph": place, "name": names[mark.what], "cat": "mark", "ts": _us(mark.host_s)}
        scope = {"s": "t"} if place == "i" else {}
        yield event | {"pid": played.tape.rank, "tid": _HOST_THREAD} | scope


def _memory(played: Played) -> Iterator[Event]:
    memory = measure_memory(played.tape)
    times = played.host_times(memory.curve_record).tolist()
    rows = zip(times, memory.curve_bytes.tolist(), memory.curve_reserved.tolist(), strict=True)
    for at, allocated, reserved in rows:
        held = {"allocated": allocated} | ({"reserved": reserved} if reserved else {})
        common = {"ph": "C", "name": "memory", "pid": played.tape.rank, "tid": _HOST_THREAD}
        yield common | {"ts": _us(at), "args": held}


def _named(what: str, rank: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": rank, "tid": thread, "args": {"name": name}}


def _span(rank: int, thread: int, times: tuple[float, float], name: str, kind: str) -> Event:
    start, end = times
    common = {"ph": "X", "pid": rank, "tid": thread, "name": name, "cat": kind}
    return common | {"ts": _us(start), "dur": _us(end - start)}


def _us(seconds: float) -> float:
    """Microseconds, to the picosecond."""
    return round(seconds * 1e6, 6)
