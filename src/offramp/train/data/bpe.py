"""A byte-level BPE, learned from the data with the `tokenizers` library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.train.data.packages import need
from offramp.train.data.store import locked, temporary
from offramp.train.data.tokenizer import END_TEXT, Ids, Tokenizer, byte_letters, save_files

# Enough to fix the merges of any usual vocabulary; beyond it only memory and time would grow.
LEARN_CHARACTERS = 1 << 28


class BpeTokenizer(Tokenizer):
    """A byte-level BPE given by the text of its tokenizer.json; the end token has id 0.

    As with bytes, END_TEXT within a text is plain text here, and the end token to AutoTokenizer.
    """

    end = 0

    def __init__(self, tokenizer_json: str) -> None:
        self._json = tokenizer_json
        self._tokenizer = _library().Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True
        self.vocabulary = self._tokenizer.get_vocab_size()
        self.fingerprint = hashlib.blake2b(tokenizer_json.encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> Ids:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in found]

    def decode(self, ids: Any) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        save_files(folder, self._json)


def learn(vocabulary: int, texts: Callable[[], Iterator[str]], cache: Path) -> BpeTokenizer:
    """The BPE of at most `vocabulary` tokens learned from the first LEARN_CHARACTERS of the texts.

    Equal texts give equal tokenizers. It is kept in `cache` under the digest of the texts, so
    that only one process of a machine learns it, once. Raises UsageError.
    """
    library = _library()
    digest = hashlib.blake2b(f"bpe 1 {vocabulary} {library.__version__}".encode(), digest_size=16)
    for text in _first(texts()):
        digest.update(len(text).to_bytes(8, "little") + text.encode())
    kept = cache / f"bpe-{digest.hexdigest()}.json"
    with locked(cache, kept.stem):
        try:
            return BpeTokenizer(kept.read_text(encoding="utf-8"))
        except Exception:  # absent, or damaged: the library raises bare Exception for the latter
            tokenizer_json = _train(library, vocabulary, _first(texts()))
        made = temporary(kept)
        made.write_text(tokenizer_json, encoding="utf-8")
        os.replace(made, kept)
    return BpeTokenizer(tokenizer_json)


def _train(library: Any, vocabulary: int, texts: Iterator[str]) -> str:
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_TEXT],
        initial_alphabet=byte_letters(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def _first(texts: Iterator[str]) -> Iterator[str]:
    left = LEARN_CHARACTERS
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _library() -> Any:
    return need("tokenizers", "tokenizer.kind 'bpe'")
