"""The two JSON documents of a run, as types: what a process leaves, and what the run sums up to.

    <run folder>/processes/<pid>-<start in ns>.json    `Record`, one for each process
    <run folder>/run.json                              `Summary`, written at the end of the run

Both are read by other programs: a change of meaning raises `SCHEMA`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:
    from offramp.chips.arithmetic import Row

SCHEMA = 1
RECORDS_FOLDER = "processes"
SUMMARY_FILE = "run.json"


class DeviceRow(TypedDict):
    """Memory of one device as one process saw it; bytes."""

    index: int
    capacity_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    allocated_bytes: int


# A name of the CUDA interface that the program met, and how it was answered.
NameRow = TypedDict("NameRow", {"name": str, "class": str, "count": int})


class RefusedRow(TypedDict):
    """A call that was refused, and why."""

    name: str
    reason: str
    count: int


class DefaultRow(TypedDict):
    """A question that no fact answers: the default that the program got instead."""

    name: str
    answer: str
    why: str
    count: int


class CompiledRow(TypedDict):
    """What `torch.compile` was asked for and what it did."""

    requested: str
    did: str
    why: str
    count: int


class MissingOpRow(TypedDict):
    """An op that the chip is known to lack; its calls were refused."""

    op: str
    reason: str
    count: int


class ArithmeticRow(TypedDict):
    """A setting of the chip's arithmetic at an operator: applied, or left to the host."""

    setting: str
    op: str
    applied: bool
    count: int


class Counts(TypedDict, total=False):
    """What was counted, by one process or by all of a run."""

    ops: dict[str, int]
    dtypes: dict[str, int]
    names: list[NameRow]
    refused: list[RefusedRow]
    defaults: list[DefaultRow]
    compiled: list[CompiledRow]
    missing_ops: list[MissingOpRow]
    arithmetic: list[ArithmeticRow]
    unknown_formats: list[str]


class Snapshot(Counts, total=False):
    """What the layers of one process count; the part of a `Record` that they fill."""

    rank: int | None
    devices: list[DeviceRow]


class Record(Snapshot, total=False):
    """A `Snapshot` with the process that it belongs to."""

    schema: int
    pid: int
    argv: list[str]
    chip: str
    torch: str | None
    started_unix_s: float
    saved_unix_s: float
    wall_s: float
    finished: bool  # False: saved while the process ran, and never again
    problem: str | None  # why the figures are incomplete


class ChipRow(TypedDict):
    """The chip of a run as it was asked for; bytes for each device."""

    name: str
    title: str
    device_type: str  # what the program calls it: "cuda", "npu", ...
    count: int
    memory_bytes: int
    arithmetic: NotRequired[list[Row]]  # settings that differ from the host's


class ProcessRow(TypedDict):
    """One process of a run."""

    pid: int
    rank: int | None
    argv: list[str]
    wall_s: float
    ops: int
    finished: bool


class DeviceUse(TypedDict):
    """One device over all processes; bytes.

    `peak_*` are those of the process that took most; `together_bytes` adds the allocated peaks of
    all `processes` that held memory on the device, the most that they can have held at one time.
    """

    index: int
    capacity_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    processes: int
    together_bytes: int


class Summary(Counts):
    """One run: the records of its processes, added up."""

    schema: int
    run_dir: str
    command: list[str]
    chip: ChipRow
    started_unix_s: float
    wall_s: float
    exit_status: int
    signal: str | None
    torch: list[str]
    processes: list[ProcessRow]
    devices: list[DeviceUse]
    problems: list[str]
