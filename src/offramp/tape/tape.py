"""The file of one rank: what it did, in order. `docs/tape.md` is the format's page.

A magic line, then chunks of one byte type, eight bytes length (little-endian) and payload. A chunk
is the unit of safety: whatever ends the process, what was appended before stays readable.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from offramp.errors import OfframpError
from offramp.tape.kinds import COLLECTIVE, KIND_COUNT, MARK, OP, PHASES, READBACK, RECORD_TYPE

Records = npt.NDArray[np.void]  # of RECORD_TYPE

MAGIC_WORD: Final = b"offramp-tape "
FORMAT: Final = 1
MAGIC: Final = MAGIC_WORD + b"%d\n" % FORMAT
_CHUNK = struct.Struct("<cQ")
_HEADER, _SIGNATURES, _NAMES, _GROUPS, _RECORDS = b"H", b"S", b"N", b"G", b"R"


class TapeError(OfframpError, ValueError):
    """A file that is not a tape, is damaged, or tells what cannot be."""


@dataclass(frozen=True, slots=True)
class Group:
    """A communication group: its members' global ranks, and its name ("" where it has none).

    `label` is what people read.
    """

    ranks: tuple[int, ...]
    name: str = ""

    label: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", _label(self.ranks, self.name))


def _label(ranks: tuple[int, ...], name: str) -> str:
    """The name for people; where it is a number or there is none, size and stride of the ranks."""
    if name and not name.isdigit():
        return name
    steps = {b - a for a, b in pairwise(ranks)}
    each = f" at a stride of {steps.pop()}" if len(steps) == 1 and steps != {1} else ""
    return f"{len(ranks)} ranks{each}"


class Tables(Protocol):
    """What records name; the tables may grow between two calls of `feed`."""

    @property
    def signatures(self) -> Sequence[str]:
        """Texts of operators and collectives."""
        ...

    @property
    def groups(self) -> Sequence[Group]:
        """Communication groups."""
        ...


@dataclass(slots=True)
class Tape:
    """One rank's tape in memory: a header, three tables, and records of RECORD_TYPE in order.

    `truncated` says that the file's last chunk was cut off and left out.
    """

    header: dict[str, Any]
    signatures: list[str]
    names: list[str]
    groups: list[Group]
    records: Records
    truncated: bool = False

    @property
    def rank(self) -> int:
        """The global rank that left the tape; 0 where the header has none."""
        return int(self.header.get("rank", 0))

    @classmethod
    def read(cls, path: Path | str) -> Tape:
        """Read a tape strictly.

        Raises TapeError where the file is no tape, of a newer format, or damaged.
        """
        return _read(Path(path))


def pack(rows: Sequence[Sequence[int]]) -> Records:
    """Records of RECORD_TYPE from rows (kind, phase, device, stream, what, module, a, b)."""
    return np.array([tuple(row) for row in rows], RECORD_TYPE)


class TapeWriter:
    """Appends chunks to a new tape: each one is on its way to the disk when the call returns.

    The file appears under its name once it has its header; an older one is replaced.
    """

    def __init__(self, path: Path | str, header: Mapping[str, Any]) -> None:
        path = Path(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = draft.open("wb", buffering=0)
        try:
            self._file.write(MAGIC)
            self._append(_HEADER, _to_json(dict(header)))
            draft.replace(path)
        except BaseException:
            self._file.close()
            draft.unlink()
            raise

    def add_signatures(self, texts: Sequence[str]) -> None:
        """Append to the table of signatures; ids count from 0."""
        self._append(_SIGNATURES, _to_json(list(texts)))

    def add_names(self, texts: Sequence[str]) -> None:
        """Append to the table of names; the first one of all is ""."""
        self._append(_NAMES, _to_json(list(texts)))

    def add_groups(self, groups: Sequence[Group]) -> None:
        """Append to the table of groups."""
        rows = [{"ranks": list(group.ranks), "name": group.name} for group in groups]
        self._append(_GROUPS, _to_json(rows))

    def add_records(self, records: Records | bytes) -> None:
        """Append records; what they name is in the tables already."""
        payload = records if isinstance(records, bytes) else records.tobytes()
        self._append(_RECORDS, zlib.compress(payload, 1))

    def close(self) -> None:
        """End the tape."""
        self._file.close()

    def __enter__(self) -> TapeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, kind: bytes, payload: bytes) -> None:
        left = memoryview(_CHUNK.pack(kind, len(payload)) + payload)
        while left:  # an unbuffered file may take a part
            left = left[self._file.write(left) or 0 :]


def write(path: Path | str, tape: Tape) -> None:
    """Write a whole tape."""
    with TapeWriter(path, tape.header) as writer:
        writer.add_signatures(tape.signatures)
        writer.add_names(tape.names)
        writer.add_groups(tape.groups)
        writer.add_records(tape.records)


def check(tape: Tape) -> None:
    """Raise TapeError where a record names what the tables do not have."""
    records = tape.records
    kind = records["kind"]
    _within(records, kind >= 0, "kind", KIND_COUNT, "kinds")
    _within(records, kind >= 0, "phase", len(PHASES), "phases")
    _within(records, kind >= 0, "module", max(1, len(tape.names)), "names")
    calls = (kind == OP) | (kind == COLLECTIVE)
    _within(records, calls, "what", len(tape.signatures), "signatures")
    told = (kind == MARK) | (kind == READBACK)
    _within(records, told, "what", max(1, len(tape.names)), "names")


def _within(
    records: Records, where: npt.NDArray[np.bool_], field: str, count: int, table: str
) -> None:
    bad = np.flatnonzero(where & (records[field] >= count))
    if len(bad):
        value = int(records[field][bad[0]])
        raise TapeError(f"record {bad[0]} has {field} {value}, but there are {count} {table}")


def _read(path: Path) -> Tape:
    data = path.read_bytes()
    end_of_line = data.find(b"\n", 0, 64)
    word = data[: end_of_line + 1]
    number = word[len(MAGIC_WORD) :].strip()
    if not word.startswith(MAGIC_WORD) or not number.isdigit():
        raise TapeError(f"{path} is not a tape: it does not begin with {MAGIC!r}")
    if int(number) != FORMAT:
        raise TapeError(
            f"{path} is a tape of format {int(number)}; this offramp reads format {FORMAT}"
        )
    tape = Tape({}, [], [], [], np.empty(0, RECORD_TYPE))
    parts: list[Records] = []
    at = len(word)
    for kind, payload, end in _chunks(data, at):
        at = end
        try:
            _take(tape, parts, kind, payload)
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            what = f"chunk {kind!r} that ends at byte {at}"
            raise TapeError(f"{path} is damaged: {what}: {error}") from error
    tape.truncated = at != len(data)
    if not tape.header:
        raise TapeError(f"{path} has no header: it ends where it begins")
    if parts:
        tape.records = np.concatenate(parts)
    try:
        check(tape)
    except TapeError as error:
        raise TapeError(f"{path} is damaged: {error}") from error
    return tape


def _chunks(data: bytes, at: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Every whole chunk: type, payload, and the byte after it."""
    while at + _CHUNK.size <= len(data):
        kind, length = _CHUNK.unpack_from(data, at)
        end = at + _CHUNK.size + length
        if end > len(data):
            return
        yield kind, data[at + _CHUNK.size : end], end
        at = end


def _take(tape: Tape, parts: list[Records], kind: bytes, payload: bytes) -> None:
    if (kind == _HEADER) == bool(tape.header):
        raise TapeError("a header is the first chunk, and there is one")
    if kind == _RECORDS:
        parts.append(np.frombuffer(zlib.decompress(payload), RECORD_TYPE))
        return
    if kind not in (_HEADER, _SIGNATURES, _NAMES, _GROUPS):
        raise TapeError("of unknown type")
    rows: Any = json.loads(payload)
    if not isinstance(rows, dict if kind == _HEADER else list) or (kind == _HEADER and not rows):
        raise TapeError("of another content than its type says")
    if kind == _HEADER:
        tape.header = dict(rows)
    elif kind == _GROUPS:
        tape.groups += [Group(tuple(map(int, row["ranks"])), str(row["name"])) for row in rows]
    else:
        if not all(isinstance(row, str) for row in rows):
            raise TapeError("holds something that is not a text")
        if kind == _NAMES and not tape.names and rows and rows[0] != "":
            raise TapeError(f'the first name is "", not {rows[0]!r}')
        (tape.names if kind == _NAMES else tape.signatures).extend(rows)


def _to_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
