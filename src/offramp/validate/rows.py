"""Rows of published measurements."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path

from offramp.errors import UsageError

FOLDER = Path(__file__).parent / "published"
BUILT_IN = (FOLDER / "all_sources.csv", FOLDER / "vtrain_single.csv")
# Kinds of values that say how long a step took, without a convention of counting operations.
TIMES = ("step_time_s", "tokens_per_s_per_chip", "tokens_per_s_global", "samples_per_s")
MEMORY = "peak_memory_GB"


@dataclass(frozen=True)
class Row:
    """One published value; texts as in the file, numbers None where the file has none.

    value_s   seconds of a step, for TIMES
    bytes     for MEMORY, 10^9 of them a GB, or 2^30 where the note says GiB
    """

    id: str
    source_title: str
    chip: str
    chip_count: int
    framework: str
    model: str
    task: str
    precision: str
    attention_impl: str
    dp_sharding: str
    recompute: str
    network: str
    value_kind: str
    value: float
    confidence: str
    notes: str
    mlp_gated: str
    tied_emb: str
    seq_parallel: str
    node_size: int | None = None
    layers: int | None = None
    hidden: int | None = None
    ffn_hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab: int | None = None
    seq_len: int | None = None
    moe_experts: int | None = None
    gbs_seqs: int | None = None
    mbs: int | None = None
    tp: int | None = None
    pp: int | None = None
    vpp: int | None = None
    cp: int | None = None
    ep: int | None = None
    dp: int | None = None

    @property
    def step_s(self) -> float | None:
        """Seconds of a step as measured; None where the value is no time, or inputs lack."""
        if self.value_kind == "step_time_s":
            return self.value
        if not self.gbs_seqs or not self.chip_count or self.value_kind not in TIMES:
            return None
        if self.value_kind == "samples_per_s":
            return self.gbs_seqs / self.value
        if not self.seq_len:
            return None
        per_s = self.value * (self.chip_count if self.value_kind.endswith("per_chip") else 1)
        return self.gbs_seqs * self.seq_len / per_s

    @property
    def memory_bytes(self) -> float | None:
        """Peak memory as measured, in bytes; None where the value is no memory."""
        if self.value_kind != MEMORY:
            return None
        return self.value * (2**30 if "GiB" in self.notes else 1e9)

    @property
    def memory_is_allocated(self) -> bool:
        """Whether the memory is that of live tensors, as far as the note says."""
        return "max_memory_allocated" in self.notes

    @property
    def job(self) -> tuple[object, ...]:
        """Equal for rows that train one model with one batch on the same chips, however spread."""
        return (
            *(self.source_title, self.chip, self.chip_count, self.framework, self.model),
            *(self.task, self.seq_len, self.precision, self.gbs_seqs, self.attention_impl),
        )


_NUMBERS = {f.name for f in fields(Row) if f.type == "int | None"} | {"chip_count"}


def read(path: Path) -> list[Row]:
    """The rows of a file. Raises UsageError: file, line, what was found, what was expected."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as CSV: {error}") from error
    needed = {f.name for f in fields(Row)}
    missing = sorted(needed - set(lines[0] if lines else ()))
    if missing:
        raise UsageError(
            f"{path}: expected rows with the columns of {BUILT_IN[0].name}; lacks "
            f"{', '.join(missing)}"
        )
    return [_row(line, f"{path}, row {at}") for at, line in enumerate(lines, 2)]


def _row(line: dict[str, str | None], where: str) -> Row:
    values: dict[str, object] = {}
    for one in fields(Row):
        text = (line[one.name] or "").strip()
        if one.name == "value":
            values["value"] = _number(text, f"{where}: value")
        elif one.name in _NUMBERS:
            values[one.name] = None if not text else _whole(text, f"{where}: {one.name}")
        else:
            values[one.name] = text
    if values["chip_count"] is None:
        values["chip_count"] = 0
    return Row(**values)  # type: ignore[arg-type]


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{where} is {text!r}; expected a positive number")
    return value


def _whole(text: str, where: str) -> int | None:
    """A whole number; None for what is no single number, such as '2,4' or 'varies'."""
    try:
        value = float(text)
    except ValueError:
        return None
    if value != int(value) or value < 0:
        raise UsageError(f"{where} is {text!r}; expected a whole number")
    return int(value)
