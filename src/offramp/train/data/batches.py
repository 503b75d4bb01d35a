"""Batches of packed sequences, as a pure function of the step: nothing to save, nothing to restore.

Shapes: B sequences of a call, T tokens of a sequence. The corpus is one stream of N tokens;
sequence i is tokens iT to iT + T, so that neighbours share one token and each of the first
(N - 1) // T * T tokens is an input exactly once in an epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from offramp.errors import UsageError
from offramp.train.data.corpus import Corpus

IGNORED = -100  # the target of a token that is not trained on
_ROUNDS = 6
_WORD = (1 << 64) - 1

Table = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Sequences to train on, each array int64 [B, T].

    targets: the next token, or IGNORED. positions: from 0 at the row's start and, with boundaries,
    at each document's. documents: 0, 1, 2 ... in a row; tokens attend within their number only.
    """

    tokens_BT: Table
    targets_BT: Table
    positions_BT: Table
    documents_BT: Table


class Batches:
    """The sequences of each optimizer step, from a corpus that lies on disk.

    sequence: tokens in one. batch: sequences in a step, over all ranks. shuffle: each epoch has an
    order of its own, drawn from the seed. boundaries: documents in a sequence are apart: positions
    restart, and no document's end has to predict how the next begins. Raises UsageError.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        sequence: int,
        batch: int,
        seed: int,
        shuffle: bool,
        boundaries: bool,
    ) -> None:
        self._corpus = corpus
        self._length = sequence
        self._batch = batch
        self._seed = seed
        self._shuffle = shuffle
        self._boundaries = boundaries
        self.sequences = (len(corpus.tokens) - 1) // sequence
        if self.sequences < 1:
            raise UsageError(
                f"the data has {len(corpus.tokens)} tokens, and one sequence takes {sequence + 1}; "
                "give more text or a smaller data.sequence"
            )

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that the first sequence of a step belongs to."""
        return step * self._batch // self.sequences

    def rows(self, step: int, first: int, count: int) -> Rows:
        """Sequences `first` to `first + count` of the batch of a step, counted from 0."""
        if step < 0 or first < 0 or count < 1 or first + count > self._batch:
            raise ValueError(
                f"step {step}, sequences {first} to {first + count} of a batch of {self._batch}"
            )
        tables = [np.zeros((count, self._length), np.int64) for _ in range(4)]
        rows = Rows(*tables)
        for row in range(count):
            self._fill(rows, row, self._index(step * self._batch + first + row))
        return rows

    def _index(self, visit: int) -> int:
        """Which sequence of the corpus is met as number `visit` since the start."""
        epoch, place = divmod(visit, self.sequences)
        if not self._shuffle:
            return place
        return permuted(place, self.sequences, epoch_keys(self._seed, epoch))

    def _fill(self, rows: Rows, row: int, index: int) -> None:
        length, corpus = self._length, self._corpus
        start = index * length
        window = corpus.tokens[start : start + length + 1]
        rows.tokens_BT[row] = window[:-1]
        targets = rows.targets_BT[row]
        targets[:] = window[1:]
        if corpus.mask is not None:
            targets[corpus.mask[start + 1 : start + length + 1] == 0] = IGNORED
        positions = rows.positions_BT[row]
        positions[:] = np.arange(length)
        if not self._boundaries:
            return
        low, high = np.searchsorted(corpus.ends, (start, start + length), "right")
        begins = corpus.ends[low:high] - start  # in 1..T: where a new document begins
        targets[begins - 1] = IGNORED
        begins = begins[begins < length]
        rows.documents_BT[row, begins] = 1
        np.cumsum(rows.documents_BT[row], out=rows.documents_BT[row])
        offsets = np.concatenate(([0], begins))
        positions -= offsets[rows.documents_BT[row]]


@lru_cache(maxsize=16)
def epoch_keys(seed: int, epoch: int) -> tuple[int, ...]:
    """The keys of an epoch's permutation: one 64-bit number a round."""
    text = f"offramp order {seed} {epoch}".encode()
    digest = hashlib.blake2b(text, digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))


def permuted(place: int, size: int, keys: tuple[int, ...]) -> int:
    """The image of `place` under a pseudo-random permutation of range(size), in constant memory.

    A balanced Feistel network permutes the smallest power of four that holds `size` (Luby and
    Rackoff, 1988); images beyond `size` are permuted again until one is within (cycle walking,
    Black and Rogaway, 2002), fewer than four times on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & low)
        place = left << half | right
        if place < size:
            return place


def _mixed(word: int) -> int:
    """A 64-bit mix in which each bit of the word reaches each bit (splitmix64's last steps)."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
