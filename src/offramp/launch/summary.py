"""Reads the records of a run and adds them up."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from offramp.launch.record import COUNTED, LISTED, rows, tally
from offramp.launch.schema import (
    RECORDS_FOLDER,
    SCHEMA,
    DeviceUse,
    ProcessRow,
    Record,
    Summary,
)

SECTIONS: Mapping[str, type] = {
    **dict.fromkeys(COUNTED, dict),
    **dict.fromkeys((*LISTED, "devices", "unknown_formats", "argv"), list),
    "wall_s": (float),
    "pid": int,
}


def read_records(run_dir: Path) -> tuple[list[Record], list[str]]:
    """The records of a run in the order in which processes started, and what is wrong with them."""
    records: list[Record] = []
    problems: list[str] = []
    for path in sorted((run_dir / RECORDS_FOLDER).glob("[!.]*.json")):
        try:
            data = json.loads(path.read_bytes())
            flaw = _flaw(data)
        except (OSError, ValueError):
            flaw = "cut short or not JSON"
        if flaw:
            problems.append(f"{RECORDS_FOLDER}/{path.name} is left out: {flaw}")
        else:
            records.append(cast(Record, data))
    records.sort(key=lambda record: record["started_unix_s"])
    return records, problems + _unfinished(records)


def _flaw(data: Any) -> str | None:
    if not isinstance(data, dict):
        return "it holds no object"
    if data.get("schema") != SCHEMA:
        return f"its schema is {data.get('schema')!r}, this version reads {SCHEMA}"
    for section, kind in SECTIONS.items():
        if not isinstance(data.get(section), (int, float) if kind is float else kind):
            return f"{section!r} is missing or no {kind.__name__}"
    return None


def _unfinished(records: Iterable[Record]) -> list[str]:
    """One line for all processes without a last record, one for each that failed to count."""
    problems: list[str] = []
    running: list[Record] = []
    killed: list[Record] = []
    for record in records:
        if record.get("problem"):
            problems.append(f"{_who(record)}: {record['problem']}")
        if not record.get("finished"):
            (running if _lives(record["pid"]) else killed).append(record)
    for group, what in ((running, "still running"), (killed, "killed before its last record")):
        if group:
            who = ", ".join(_who(record) for record in group[:4])
            more = f" and {len(group) - 4} more" if len(group) > 4 else ""
            problems.append(f"{what}: {who}{more}; figures up to the last save")
    return problems


def _who(record: Record) -> str:
    rank = record.get("rank")
    return f"process {record['pid']}" + (f" (rank {rank})" if rank is not None else "")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def merge(records: Iterable[Record], run: Mapping[str, Any]) -> Summary:
    """One summary of all `records`.

    `run` holds what the launcher knows: run_dir, command, chip, started_unix_s, wall_s,
    exit_status, signal and problems.
    """
    records = list(records)
    counted: dict[str, Counter[str]] = {section: Counter() for section in COUNTED}
    listed: dict[str, list[dict[str, Any]]] = {section: [] for section in LISTED}
    for record in records:
        data = cast(dict[str, Any], record)
        for section, total in counted.items():
            total.update(data[section])
        for section, gathered in listed.items():
            gathered.extend(data[section])
    summary = {
        "schema": SCHEMA,
        **run,
        "torch": sorted({record["torch"] for record in records if record.get("torch")}),
        "processes": [_process(record) for record in records],
        "devices": _devices(records),
        **{section: dict(total.most_common()) for section, total in counted.items()},
        **{section: rows(tally(gathered)) for section, gathered in listed.items()},
        "unknown_formats": sorted({f for record in records for f in record["unknown_formats"]}),
    }
    return cast(Summary, summary)


def _process(record: Record) -> ProcessRow:
    return {
        "pid": record["pid"],
        "rank": record.get("rank"),
        "argv": record["argv"],
        "wall_s": record["wall_s"],
        "ops": sum(record["ops"].values()),
        "finished": record["finished"],
    }


def _devices(records: Iterable[Record]) -> list[DeviceUse]:
    uses: dict[int, DeviceUse] = {}
    for record in records:
        for device in record["devices"]:
            use = uses.setdefault(
                device["index"],
                {
                    "index": device["index"],
                    "capacity_bytes": device["capacity_bytes"],
                    "peak_allocated_bytes": 0,
                    "peak_reserved_bytes": 0,
                    "processes": 0,
                    "together_bytes": 0,
                },
            )
            peak = device["peak_allocated_bytes"]
            use["capacity_bytes"] = max(use["capacity_bytes"], device["capacity_bytes"])
            use["peak_allocated_bytes"] = max(use["peak_allocated_bytes"], peak)
            reserved = max(use["peak_reserved_bytes"], device["peak_reserved_bytes"])
            use["peak_reserved_bytes"] = reserved
            use["processes"] += peak > 0
            use["together_bytes"] += peak
    return [uses[index] for index in sorted(uses)]
