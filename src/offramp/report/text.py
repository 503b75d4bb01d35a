"""What a user reads at the end of every run: the summary of a run as a few labelled lines."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from offramp.launch.schema import SUMMARY_FILE, DeviceUse, Summary
from offramp.report.lines import Line, Tone, listed, plural, shorten
from offramp.units import format_bytes, format_seconds

CLASSES = ("same", "mapped", "emulated", "refused")
NEARLY_FULL = 0.9  # of the capacity
DEVICE_LINES = 4
FEW = 3


def title(run: Summary) -> str:
    """One line that names the command."""
    return f"offramp run: {shlex.join(run['command'])}"


def lines(run: Summary) -> list[Line]:
    """The whole summary; sections in which nothing happened are left out."""
    return [
        *_chip(run),
        *_outcome(run),
        *_arithmetic(run),
        *_work(run),
        *_memory(run),
        *_names(run),
        *_defaults(run),
        *_compiled(run),
        *_limits(run),
        *(Line("note", problem, "warn") for problem in run["problems"]),
        Line("details", f"{run['run_dir'].rstrip('/')}/{SUMMARY_FILE}"),
    ]


def _chip(run: Summary) -> Iterator[Line]:
    chip = run["chip"]
    count = f"{chip['count']} virtual chips" if chip["count"] > 1 else "virtual chip"
    each = " each" if chip["count"] > 1 else ""
    memory = format_bytes(chip["memory_bytes"])
    yield Line("chip", f"{chip['name']} ({chip['title']}), {count} with {memory}{each}")


def _arithmetic(run: Summary) -> Iterator[Line]:
    """Settings that are not the host's arithmetic, and where they met an operator."""
    label = "arithmetic"
    for row in run["chip"].get("arithmetic", []):
        met = [m for m in run.get("arithmetic", []) if m["setting"] == row["key"]]
        applied = sum(m["count"] for m in met if m["applied"])
        left = [m for m in met if not m["applied"]]
        if not (row["by_hand"] or met):
            continue
        how = "set by hand" if row["by_hand"] else f"of the chip, {row['tier']}"
        text = f"{row['key']}={row['value']} ({how}): {_met(row['key'], applied)}"
        yield Line(label, text, "warn" if row["by_hand"] else "plain")
        label = ""
        if left:
            ops = listed([_bare(m["op"]) for m in left], FEW)
            calls = plural(sum(m["count"] for m in left), "call")
            yield Line("", f"{row['key']} is not covered in {ops}: {calls} as the host", "warn")


def _met(key: str, applied: int) -> str:
    if key == "float64":
        return "see refused and formats"
    return f"{plural(applied, 'call')} computed so" if applied else "met no operator"


def _outcome(run: Summary) -> Iterator[Line]:
    status, killer = run["exit_status"], run["signal"]
    ended = f"killed by {killer}, exit status {status}" if killer else f"exit status {status}"
    processes = run["processes"]
    who = plural(len(processes), "process")
    ranks = len({process["rank"] for process in processes} - {None})
    if ranks:
        who += f", {plural(ranks, 'rank')}"
    after = format_seconds(run["wall_s"])
    yield Line("ended", f"{ended} after {after}; {who}", "bad" if status else "good")


def _work(run: Summary) -> Iterator[Line]:
    ops, formats = run["ops"], run["dtypes"]
    if not run["processes"]:
        return
    if not ops:
        yield Line("ops", "none ran on the chip", "warn")
        return
    top = listed([f"{_bare(op)} {count:,}" for op, count in _most(ops)], FEW)
    yield Line("ops", f"{sum(ops.values()):,} of {plural(len(ops), 'kind')}: {top}")
    if formats:
        total = sum(formats.values())
        shares = [f"{name} {_percent(count, total)}" for name, count in _most(formats)]
        yield Line("formats", listed(shares, 2 * FEW))


def _memory(run: Summary) -> Iterator[Line]:
    device_type = run["chip"]["device_type"]
    used = [device for device in run["devices"] if device["peak_reserved_bytes"]]
    idle = [device["index"] for device in run["devices"] if not device["peak_reserved_bytes"]]
    label = "memory"
    shown = used
    if len(used) > DEVICE_LINES:
        shown = [max(used, key=lambda device: device["peak_allocated_bytes"])]
    for device in shown:
        most = " (the fullest)" if shown is not used else ""
        yield Line(label, f"{device_type}:{device['index']}{most}: {_peak(device)}", _tone(device))
        label = ""
    if shown is not used:
        least = min(device["peak_allocated_bytes"] for device in used)
        others = plural(len(used) - 1, "other device")
        yield Line("", f"{others}: from {format_bytes(least)} allocated at peak")
    if idle:
        yield Line(label, f"unused: {listed([f'{device_type}:{i}' for i in idle], 8)}")
    for device in used:
        if device["processes"] > 1 and device["together_bytes"] > device["capacity_bytes"]:
            yield Line(
                "",
                f"{device['processes']} processes shared {device_type}:{device['index']}: up to "
                f"{format_bytes(device['together_bytes'])} together, more than one chip has",
                "warn",
            )


def _peak(device: DeviceUse) -> str:
    peak, capacity = device["peak_allocated_bytes"], device["capacity_bytes"]
    share = f" ({_percent(peak, capacity)})" if capacity else ""
    return (
        f"{format_bytes(peak)} of {format_bytes(capacity)} allocated at peak{share}, "
        f"{format_bytes(device['peak_reserved_bytes'])} reserved"
    )


def _tone(device: DeviceUse) -> Tone:
    full = device["peak_allocated_bytes"] > NEARLY_FULL * device["capacity_bytes"]
    return "warn" if full else "plain"


def _names(run: Summary) -> Iterator[Line]:
    names = run["names"]
    if not names:
        return
    kinds = Counter(row["class"] for row in names)
    order = [*CLASSES, *sorted(set(kinds) - set(CLASSES))]
    split = ", ".join(f"{kinds[kind]} {kind}" for kind in order if kinds[kind])
    calls = sum(row["count"] for row in names)
    of_cuda = run["chip"]["device_type"] == "cuda"
    counted = plural(len(names), "CUDA name" if of_cuda else "device name")
    yield Line("names", f"{counted}, used {calls:,} times: {split}")
    ranked = sorted(names, key=lambda row: (-row["count"], row["name"]))
    top = [f"{row['name']} {row['count']:,}" for row in ranked if row["class"] != "refused"]
    if top:
        yield Line("", f"most used: {listed(top, FEW)}")


def _defaults(run: Summary) -> Iterator[Line]:
    rows = [
        f"{row['name']} was answered {row['answer']} by default{_times(row['count'])}: {row['why']}"
        for row in run["defaults"]
    ]
    yield from _capped("assumed", rows, "plain")


def _compiled(run: Summary) -> Iterator[Line]:
    rows = [
        f"{row['requested']} was asked for, {row['did']} was done{_times(row['count'])}"
        + (f": {row['why']}" if row["why"] else "")
        for row in run["compiled"]
    ]
    yield from _capped("compile", rows, "plain")


def _limits(run: Summary) -> Iterator[Line]:
    """What the chip cannot do, or may not be able to do."""
    refused = [f"{r['name']}{_times(r['count'])}: {r['reason']}" for r in run["refused"]]
    lacking = [f"{_bare(r['op'])}{_times(r['count'])}: {r['reason']}" for r in run["missing_ops"]]
    unknown = run["unknown_formats"]
    yield from _capped("refused", refused, "bad")
    yield from _capped("lacking", lacking, "warn")
    if unknown:
        text = f"no public source tells whether the chip has {listed(unknown, 2 * FEW)}"
        yield Line("unknown", text, "warn")
    if run["ops"] and not (refused or lacking or unknown):
        yield Line("limits", "no call refused, no missing op, no format of unknown support")


def _capped(label: str, rows: Sequence[str], tone: Tone) -> Iterator[Line]:
    for position, row in enumerate(rows[:FEW]):
        yield Line("" if position else label, shorten(row, 400), tone)
    if len(rows) > FEW:
        yield Line("", f"and {len(rows) - FEW} more in {SUMMARY_FILE}", tone)


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _bare(op: str) -> str:
    return op.removeprefix("aten::")


def _times(count: int) -> str:
    return f", {count:,} times" if count > 1 else ""


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1 %"
    whole_number = share == 0 or 9.95 <= share < 99 or share == 100
    return f"{share:.0f} %" if whole_number else f"{share:.1f} %"
