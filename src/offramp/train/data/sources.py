"""Documents from files: read lazily, in a stable order, each with a name for messages."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import UsageError, nearest
from offramp.train.data.chat import Messages, check_messages
from offramp.train.data.files import SourceFile, Tally, find, is_binary, unreadable
from offramp.train.data.packages import need
from offramp.train.job import DataSection

BLOCK_BYTES = 1 << 22
BLOCK_TOKENS = 1 << 20
BLOCK_ROWS = 256
# The header of a token file that says so: 256 int32, the first one this (llm.c's).
_HEADED = 20240520


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one; with `ends` the document ends here.

    name is for messages (file and line or row), key for holding out. content is text, a
    conversation, or token ids that may hold several documents, each closed by the end token.
    """

    name: str
    key: str
    content: str | Messages | NDArray[np.integer[Any]]
    ends: bool = True


class Sources:
    """The documents of a job's data. Raises UsageError where a source is missing or unusable."""

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._found = Tally()
        self.files = find(data, self._found)
        for file in self.files:
            if data.chat and file.format in ("text", "tokens"):
                raise UsageError(
                    f"{file.path}: {file.format}, which has no field {data.chat!r} (data.chat); "
                    "expected JSON lines, Parquet or a datasets folder"
                )

    def identity(self) -> list[tuple[str, int, int]]:
        """What tells changed sources from the same ones."""
        return [one for file in self.files for one in file.identity()]

    def tally(self) -> Tally:
        """A new count, starting from the files that were left out."""
        return Tally(self._found.left.copy())

    def pieces(self, tally: Tally) -> Iterator[Piece]:
        """All documents, in order; what is skipped is counted. Raises UsageError."""
        for file in self.files:
            try:
                yield from _READERS[file.format](file, self._data, tally)
            except OSError as error:
                raise unreadable(file.path, error) from error

    def texts(self) -> Iterator[str]:
        """The text alone, such as a tokenizer learns from; of conversations, each message's."""
        for piece in self.pieces(self.tally()):
            if isinstance(piece.content, str):
                yield piece.content
            elif isinstance(piece.content, list):
                yield from (message["content"] for message in piece.content)
            else:
                raise UsageError(
                    f"{piece.name}: tokens, not text, and no tokenizer can be learned from it; "
                    "expected tokenizer.kind 'folder', with the tokenizer that made them"
                )


class _BadRowError(Exception):
    """A line or row that cannot be used, and why."""


def _read_text(file: SourceFile, data: DataSection, tally: Tally) -> Iterator[Piece]:
    """One document; a file longer than a block comes in parts, cut after line ends."""
    if is_binary(file.path):
        raise UsageError(
            f"{file.path}: not text (it holds zero bytes); expected UTF-8, or set data.format"
        )
    name, key = str(file.path), file.key
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held, offset, begun = "", 0, False
    with file.path.open("rb") as stream:
        block = stream.read(BLOCK_BYTES)
        while True:
            following = stream.read(BLOCK_BYTES) if block else b""
            pending = len(decoder.getstate()[0])
            try:
                text = held + decoder.decode(block, final=not following)
            except UnicodeDecodeError as error:
                bad, at = error.object[error.start], offset - pending + error.start
                reason = f"{name}: not text: byte 0x{bad:02x} at offset {at} is not UTF-8"
                _reject(reason, "convert it, or leave it out", data, tally)
                if begun:
                    yield Piece(name, key, "")
                return
            offset += len(block)
            if not following:
                yield Piece(name, key, text)
                return
            cut = text.rfind("\n") + 1 or len(text)
            held, begun, block = text[cut:], True, following
            yield Piece(name, key, text[:cut], ends=False)


def _read_jsonl(file: SourceFile, data: DataSection, tally: Tally) -> Iterator[Piece]:
    opened: Callable[..., Any] = gzip.open if file.path.name.lower().endswith(".gz") else open
    try:
        with opened(file.path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                name = f"{file.path}:{number}"
                try:
                    content = _content(_json_row(line.rstrip(), data), data)
                except _BadRowError as error:
                    _reject(f"{name}: {error}", "correct the line", data, tally)
                    continue
                yield Piece(name, f"{file.key}:{number}", content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{file.path}: not a whole gzip file ({error})") from error


def _json_row(line: bytes, data: DataSection) -> Any:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise _BadRowError(f"byte {error.start + 1} of the line is not UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _BadRowError(f"not JSON{at}; expected one object a line") from error
    if not isinstance(row, dict):
        raise _BadRowError(f"not an object with a field {_field(data)!r}, but {type(row).__name__}")
    if _field(data) not in row:
        raise _BadRowError(_missing(data, list(row)))
    return row[_field(data)]


def _read_parquet(file: SourceFile, data: DataSection, tally: Tally) -> Iterator[Piece]:
    invalid = need("pyarrow", f"{file.path}: Parquet").ArrowInvalid
    parquet = need("pyarrow.parquet", f"{file.path}: Parquet")
    try:
        with parquet.ParquetFile(file.path) as table:
            names = list(table.schema_arrow.names)
            if _field(data) not in names:
                raise UsageError(f"{file.path}: {_missing(data, names)}")
            batches = table.iter_batches(batch_size=BLOCK_ROWS, columns=[_field(data)])
            blocks = (batch.column(0).to_pylist() for batch in batches)
            yield from _rows(blocks, file, data, tally)
    except invalid as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{file.path}: not a Parquet file ({reason})") from error


def _read_dataset(file: SourceFile, data: DataSection, tally: Tally) -> Iterator[Piece]:
    datasets = need("datasets", f"{file.path}: a datasets folder")
    try:
        table = datasets.load_from_disk(str(file.path))
    except Exception as error:  # the library raises many kinds for a damaged folder
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{file.path}: not a datasets folder ({reason})") from error
    if isinstance(table, datasets.DatasetDict):
        splits = ", ".join(sorted(table))
        raise UsageError(
            f"{file.path}: has the splits {splits}; give the folder of one, "
            f"such as {file.path / next(iter(table), 'train')}"
        )
    if _field(data) not in table.column_names:
        raise UsageError(f"{file.path}: {_missing(data, table.column_names)}")
    column = table.select_columns([_field(data)]).with_format(None)
    blocks = (block[_field(data)] for block in column.iter(BLOCK_ROWS))
    yield from _rows(blocks, file, data, tally)


def _rows(
    blocks: Iterator[list[Any]], file: SourceFile, data: DataSection, tally: Tally
) -> Iterator[Piece]:
    number = 0
    for block in blocks:
        for value in block:
            number += 1
            name = f"{file.path}: row {number}"
            try:
                content = _content(value, data)
            except _BadRowError as error:
                _reject(f"{name}: {error}", "correct the row", data, tally)
                continue
            yield Piece(name, f"{file.key}:{number}", content)


def _read_tokens(file: SourceFile, data: DataSection, tally: Tally) -> Iterator[Piece]:
    ids = _token_array(file.path)
    blocks = range(0, len(ids), BLOCK_TOKENS)
    for start in blocks:
        last = start == blocks[-1]
        yield Piece(f"{file.path}", file.key, ids[start : start + BLOCK_TOKENS], ends=last)


def _token_array(path: Path) -> NDArray[np.integer[Any]]:
    if path.suffix.lower() != ".npy":
        size = path.stat().st_size
        if size % 2:
            raise UsageError(f"{path}: {size} bytes; expected 16-bit token ids, so an even number")
        if size >= 1024 and int(np.fromfile(path, "<i4", 1)[0]) == _HEADED:
            return np.memmap(path, "<u2", "r", offset=1024)
        return np.memmap(path, "<u2", "r") if size else np.empty(0, np.uint16)
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path}: not a NumPy array ({error})") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        shape = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "an archive"
        raise UsageError(f"{path}: {shape}; expected a 1-D array of integers, the token ids")
    return ids


_READERS: dict[str, Callable[[SourceFile, DataSection, Tally], Iterator[Piece]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "datasets": _read_dataset,
    "tokens": _read_tokens,
}


def _field(data: DataSection) -> str:
    return data.chat or data.field


def _missing(data: DataSection, names: list[str]) -> str:
    which = "chat" if data.chat else "field"
    fields = ", ".join(names) or "none"
    hint = nearest(_field(data), names)
    return f"no field {_field(data)!r} (data.{which}); the fields are {fields}{hint}"


def _content(value: Any, data: DataSection) -> str | Messages:
    if not data.chat:
        if not isinstance(value, str):
            raise _BadRowError(f"the field {data.field!r} is {type(value).__name__}, not text")
        _check_unicode(value)
        return value
    try:
        messages = check_messages(value)
    except ValueError as error:
        raise _BadRowError(f"{data.chat}: {error}") from error
    for message in messages:
        _check_unicode(message["content"] + message["role"])
    return messages


def _check_unicode(text: str) -> None:
    """JSON can spell half a surrogate pair, which no text file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _BadRowError(
            f"character {error.start + 1} is half a surrogate pair, not text"
        ) from error


def _reject(reason: str, way_out: str, data: DataSection, tally: Tally) -> None:
    if data.bad_lines != "skip":
        raise UsageError(f"{reason}; {way_out}, or set data.bad_lines to 'skip'")
    tally.bad(reason)
