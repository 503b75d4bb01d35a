"""The tokens of a job's data: made once, kept in a cache folder, memory-mapped from there."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.cache import cache_dir
from offramp.errors import UsageError
from offramp.train.data.build import (
    ENDS,
    MASK,
    PARTS,
    TOKENS,
    Progress,
    token_dtype,
    write_parts,
)
from offramp.train.data.files import Tally
from offramp.train.data.sources import Sources
from offramp.train.data.store import locked, publish, remove_partials, temporary
from offramp.train.data.tokenizer import Tokenizer
from offramp.train.job import DataSection

_FORMAT = 1
_ABOUT = "corpus.json"
_KEYS = ("source", "format", "field", "chat", "held_out", "bad_lines")


@dataclass(frozen=True)
class Corpus:
    """A stream of tokens [N] (uint16 or uint32) and where its documents end [D] (int64, last N).

    mask [N] (uint8) has 1 where a token is trained on; None: all of them.
    """

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    mask: NDArray[np.uint8] | None = None

    @property
    def documents(self) -> int:
        """How many documents, or parts of one, there are."""
        return len(self.ends)

    def part(self, first: int, last: int) -> Corpus:
        """The tokens from `first` up to `last`, as a corpus; a document may be cut."""
        inside = self.ends[(self.ends > first) & (self.ends < last)] - first
        return Corpus(
            self.tokens[first:last],
            np.append(inside, last - first).astype(np.int64),
            None if self.mask is None else self.mask[first:last],
        )


@dataclass(frozen=True)
class Corpora:
    """What is trained on and what is kept for evaluation (None where data.held_out is 0).

    left_out says in words what was skipped, such as '3 bad lines'; empty: nothing.
    """

    train: Corpus
    held_out: Corpus | None
    folder: Path
    left_out: str


def data_cache(data: DataSection) -> Path:
    """The folder of tokenized data: `data.cache`, or 'data' in the user's cache folder."""
    return Path(data.cache).expanduser() if data.cache else cache_dir() / "data"


def open_corpora(
    data: DataSection, tokenizer: Tokenizer, cache: Path, progress: Progress | None = None
) -> Corpora:
    """The tokens of a job's data, from the cache or made now.

    The cache knows a corpus by its source files (path, size, time of change), the tokenizer and
    the keys of the section that decide the tokens. Documents are held out by the hash of their
    names, `data.held_out` of them; where that leaves either part shorter than a sequence, the end
    of the data is held out instead. progress(documents, tokens) is called while it is made. Of
    several processes that want the same corpus one makes it. Raises UsageError.
    """
    sources = Sources(data)
    folder = cache / _digest(sources, data, tokenizer)
    about = _read_about(folder)
    if about is None:
        with locked(cache, folder.name) as held:
            about = _read_about(folder)
            if about is None:
                about = _make(sources, data, tokenizer, folder, progress, alone=held)
    dtype = token_dtype(tokenizer.vocabulary)
    parts = [_open_part(folder / part, about["parts"][part], dtype, about) for part in PARTS]
    train, held_out = _divide(parts[0], parts[1], data, about["left_out"])
    return Corpora(train, held_out, folder, about["left_out"])


def _digest(sources: Sources, data: DataSection, tokenizer: Tokenizer) -> str:
    keys = [getattr(data, key) for key in _KEYS]
    formats = [(file.key, file.format) for file in sources.files]
    facts = [_FORMAT, tokenizer.fingerprint, keys, formats, sources.identity()]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _make(
    sources: Sources,
    data: DataSection,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress | None,
    *,
    alone: bool,
) -> dict[str, Any]:
    if alone:
        remove_partials(folder)
    made = temporary(folder)
    tally = sources.tally()
    masked = bool(data.chat)
    try:
        parts = write_parts(
            sources.pieces(tally),
            tokenizer,
            made,
            tally,
            share=data.held_out,
            masked=masked,
            skip_bad=data.bad_lines == "skip",
            progress=progress,
        )
        _check_made(sources, data, tokenizer, folder, parts, tally)
        about = {"format": _FORMAT, "masked": masked, "parts": parts, "left_out": str(tally)}
        about["token_bytes"] = token_dtype(tokenizer.vocabulary).itemsize
        (made / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        if _read_about(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)  # absent, or damaged
        publish(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return about


def _check_made(
    sources: Sources,
    data: DataSection,
    tokenizer: Tokenizer,
    folder: Path,
    parts: dict[str, dict[str, int]],
    tally: Tally,
) -> None:
    if not any(part["tokens"] for part in parts.values()):
        left = f"; left out: {tally}" if str(tally) else ""
        raise UsageError(
            f"data.source: {', '.join(data.source)}: no text in {len(sources.files)} files{left}; "
            "expected at least one document that is not empty"
        )
    if _digest(sources, data, tokenizer) != folder.name:
        raise UsageError(
            f"data.source: {', '.join(data.source)}: changed while it was read; start again when "
            "nothing writes to it"
        )


def _read_about(folder: Path) -> dict[str, Any] | None:
    """What is known of a whole corpus; None where it is absent or a file has another size."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        for name, part in about["parts"].items():
            sizes = {TOKENS: part["tokens"] * about["token_bytes"], ENDS: part["documents"] * 8}
            if about["masked"]:
                sizes[MASK] = part["tokens"]
            if any((folder / name / file).stat().st_size != size for file, size in sizes.items()):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(about)


def _open_part(
    folder: Path, part: dict[str, int], dtype: np.dtype[Any], about: dict[str, Any]
) -> Corpus:
    if not part["tokens"]:
        mask = np.empty(0, np.uint8) if about["masked"] else None
        return Corpus(np.empty(0, dtype), np.empty(0, np.int64), mask)
    return Corpus(
        _mapped(folder / TOKENS, dtype),
        _mapped(folder / ENDS, np.dtype("<i8")),
        _mapped(folder / MASK, np.dtype(np.uint8)) if about["masked"] else None,
    )


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.asarray(np.memmap(path, dtype, "r"))  # slices of the plain class cost less


def _divide(
    train: Corpus, held_out: Corpus, data: DataSection, left_out: str
) -> tuple[Corpus, Corpus | None]:
    """Both parts with at least one sequence each. Raises UsageError where there is too little."""
    need = data.sequence + 1
    longer = max(train, held_out, key=lambda corpus: len(corpus.tokens))
    total = len(longer.tokens)
    short = f"; left out: {left_out}" if left_out else ""
    if total < need:
        raise UsageError(
            f"data.source: {', '.join(data.source)}: {total} tokens, and one sequence takes {need}"
            f"{short}; give more text or a smaller data.sequence"
        )
    if not data.held_out:
        return train, None
    if min(len(train.tokens), len(held_out.tokens)) >= need:
        return train, held_out
    if total < 2 * need:
        raise UsageError(
            f"data.source: {', '.join(data.source)}: {total} tokens, and a sequence to train on "
            f"and one to evaluate take {2 * need}{short}; give more text, a smaller "
            "data.sequence, or data.held_out = 0"
        )
    cut = total - max(need, math.ceil(data.held_out * total))
    before = int(np.searchsorted(longer.ends, cut, "right")) - 1
    if before >= 0 and longer.ends[before] >= max(need, total // 2):
        cut = int(longer.ends[before])  # whole documents, where that leaves enough
    return longer.part(0, cut), longer.part(cut, total)
