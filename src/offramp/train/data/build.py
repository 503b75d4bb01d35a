"""Documents to token files, in one pass and little memory.

A part of a corpus is a folder of raw little-endian arrays: tokens.bin (uint16 or uint32), ends.bin
(int64: where each document ends, counted in tokens from the start, its end token included) and,
of conversations, mask.bin (uint8: 1 where the token is trained on).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import UsageError
from offramp.train.data.files import Tally
from offramp.train.data.sources import Piece
from offramp.train.data.tokenizer import Mask, Tokenizer

Progress = Callable[[int, int], None]
PARTS = ("train", "held_out")
TOKENS, ENDS, MASK = "tokens.bin", "ends.bin", "mask.bin"
_BATCH_PIECES = 256
_BATCH_CHARACTERS = 1 << 20
_REPORT_S = 0.2
_UNTRAINED = np.zeros(1, np.uint8)


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """The smallest format that holds every id."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def is_held_out(key: str, share: float) -> bool:
    """Whether a document is kept for evaluation: by its name, so the same ones every time."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2.0**64


class PartWriter:
    """Appends documents to the folder of one part of a corpus."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, masked: bool, files: ExitStack):
        folder.mkdir(parents=True)
        self._end = tokenizer.end
        self._dtype = token_dtype(tokenizer.vocabulary)
        self._tokens = files.enter_context((folder / TOKENS).open("wb", 1 << 20))
        self._ends = files.enter_context((folder / ENDS).open("wb", 1 << 16))
        self._mask = files.enter_context((folder / MASK).open("wb", 1 << 18)) if masked else None
        self._last = -1
        self.tokens = 0
        self.documents = 0

    def add(self, ids: NDArray[np.integer[Any]], mask: Mask | None, *, ends: bool) -> None:
        """Append to the open document; where it ends, close it by one end token."""
        if len(ids):
            self._write(ids, mask)
            self._last = int(ids[-1])
        if ends:
            if self._last != self._end:
                self._write(np.array([self._end]), _UNTRAINED)
            self._ends.write(self.tokens.to_bytes(8, "little"))
            self._last = -1
            self.documents += 1

    def _write(self, ids: NDArray[np.integer[Any]], mask: Mask | None) -> None:
        self._tokens.write(ids.astype(self._dtype).tobytes())
        if self._mask is not None:
            assert mask is not None
            self._mask.write(mask.tobytes())
        self.tokens += len(ids)


def write_parts(
    pieces: Iterator[Piece],
    tokenizer: Tokenizer,
    folder: Path,
    tally: Tally,
    *,
    share: float,
    masked: bool,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """Write both parts of a corpus into a new folder; gives tokens and documents of each.

    share: of the documents, by the hash of their keys, that go to the part held out. skip_bad:
    count conversations that the tokenizer refuses, instead of stopping. progress is called with
    the documents and tokens so far, a few times a second. Raises UsageError.
    """
    with ExitStack() as files:
        parts = {
            part: PartWriter(folder / part, tokenizer, masked=masked, files=files) for part in PARTS
        }
        reported = time.monotonic()
        for key, ids, mask, ends in _documents(pieces, tokenizer, tally, skip_bad):
            part = parts["held_out" if is_held_out(key, share) else "train"]
            part.add(ids, mask, ends=ends)
            if progress and time.monotonic() - reported > _REPORT_S:
                reported = time.monotonic()
                progress(*_totals(parts))
    if progress:
        progress(*_totals(parts))
    return {
        name: {"tokens": part.tokens, "documents": part.documents} for name, part in parts.items()
    }


def _totals(parts: dict[str, PartWriter]) -> tuple[int, int]:
    written = parts.values()
    return sum(part.documents for part in written), sum(part.tokens for part in written)


_Coded = tuple[str, NDArray[np.integer[Any]], Mask | None, bool]


def _documents(
    pieces: Iterator[Piece], tokenizer: Tokenizer, tally: Tally, skip_bad: bool
) -> Iterator[_Coded]:
    """Key, ids, mask and whether the document ends there, of all that is not empty."""
    begun = False
    splitter = _Splitter(tokenizer)
    for batch in _batches(pieces):
        texts = [piece.content for piece in batch if isinstance(piece.content, str)]
        coded = iter(tokenizer.encode_batch(texts) if texts else ())
        for piece in batch:
            if isinstance(piece.content, np.ndarray):
                yield from splitter.split(piece)
                continue
            if isinstance(piece.content, str):
                ids, mask = next(coded), None
            else:
                assert isinstance(piece.content, list)
                try:
                    ids, mask = tokenizer.chat(piece.content)
                except ValueError as error:
                    if not skip_bad:
                        raise UsageError(
                            f"{piece.name}: {error}; correct it, or set data.bad_lines to 'skip'"
                        ) from error
                    tally.bad(f"{piece.name}: {error}")
                    continue
            if not len(ids) and piece.ends and not begun:
                tally.left["empty documents"] += 1
                continue
            yield piece.key, ids, mask, piece.ends
            begun = not piece.ends


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in groups that are worth a call of the tokenizer, and small in memory."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.content) if isinstance(piece.content, str) else 1
        if len(group) >= _BATCH_PIECES or size >= _BATCH_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Splitter:
    """Cuts token files into documents at the end token, also across pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._end = tokenizer.end
        self._vocabulary = tokenizer.vocabulary
        self._number = 0
        self._offset = 0
        self._open = False

    def split(self, piece: Piece) -> Iterator[_Coded]:
        """The documents of a piece; those of the end token alone are left out."""
        ids = np.asarray(piece.content)
        wrong = np.flatnonzero((ids < 0) | (ids >= self._vocabulary))
        if len(wrong):
            raise UsageError(
                f"{piece.name}: token {ids[wrong[0]]} at index {self._offset + wrong[0]}, and the "
                f"tokenizer has {self._vocabulary}; expected tokenizer.kind 'folder', with the "
                "tokenizer that made the file"
            )
        start = 0
        for cut in (*(np.flatnonzero(ids == self._end) + 1).tolist(), len(ids)):
            closed = cut > start and int(ids[cut - 1]) == self._end
            ends = closed or (piece.ends and cut == len(ids))
            if cut - start > closed or (ends and self._open):
                yield f"{piece.key}:{self._number}", ids[start:cut], None, ends
                self._open = not ends
                self._number += ends
            start = cut
        self._offset = 0 if piece.ends else self._offset + len(ids)
        self._number = 0 if piece.ends else self._number
