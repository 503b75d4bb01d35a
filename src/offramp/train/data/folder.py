"""A local Hugging Face tokenizer, through transformers' AutoTokenizer."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import UsageError
from offramp.train.data.chat import ANSWERS, Messages
from offramp.train.data.packages import need
from offramp.train.data.tokenizer import Ids, Mask, Tokenizer


class FolderTokenizer(Tokenizer):
    """The tokenizer of a local folder; `end` is its eos token.

    Special tokens that a text spells are read as such, as the folder's own tokenizer does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = _load(folder)
        if self._tokenizer.eos_token_id is None:
            raise UsageError(
                f"{folder}: the tokenizer has no end-of-text token; "
                "expected eos_token in tokenizer_config.json"
            )
        self.end = int(self._tokenizer.eos_token_id)
        ids = self._tokenizer.get_vocab().values()
        self.vocabulary = max(len(self._tokenizer), 1 + max(ids, default=0))
        self.fingerprint = self._digest()

    def encode(self, text: str) -> Ids:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        found = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.array(ids, np.int32) for ids in found["input_ids"]]

    def decode(self, ids: Any) -> str:
        return str(
            self._tokenizer.decode(
                [int(i) for i in ids],
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(str(folder))

    def chat(self, messages: Messages) -> tuple[Ids, Mask]:
        """The folder's chat template, or the plain one where it has none.

        An answer is what the template adds to the text before it that asks for an answer: so the
        mask needs nothing of the template but that text grows as messages are added. Templates
        that drop an earlier answer's head (its reasoning) are followed. Raises ValueError.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            return super().chat(messages)
        text = self._render(messages)
        spans = [
            _answer_span(
                text,
                self._render(messages[:i], asks=True),
                self._render(messages[: i + 1]),
                len(message["content"].strip()),
            )
            for i, message in enumerate(messages)
            if message["role"] == ANSWERS
        ]
        if getattr(self._tokenizer, "is_fast", False):
            found = self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids = np.array(found["input_ids"], np.int32)
            starts = np.array([start for start, _ in found["offset_mapping"]], np.int64)
            mask = np.zeros(len(ids), np.uint8)
            for first, last in spans:
                mask[(starts >= first) & (starts < last)] = 1
            return ids, mask
        edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
        parts = [self.encode(text[a:b]) for a, b in itertools.pairwise(edges)]
        first_edges = {first for first, _ in spans}
        marks = [
            np.full(len(part), edge in first_edges, np.uint8)
            for part, edge in zip(parts, edges, strict=False)
        ]
        return np.concatenate(parts), np.concatenate(marks)

    def _render(self, messages: Messages, *, asks: bool = False) -> str:
        if not messages and not asks:
            return ""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=asks
                )
            )
        except Exception as error:  # templates raise what they like, through Jinja
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"the tokenizer's chat template refuses it: {reason}") from error

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            digest.update(backend.to_str().encode())
        else:
            with tempfile.TemporaryDirectory() as scratch:
                for path in sorted(self._tokenizer.save_vocabulary(scratch)):
                    digest.update(Path(path).read_bytes())
        template = getattr(self._tokenizer, "chat_template", None)
        digest.update(repr((self.end, self.vocabulary, template)).encode())
        return digest.hexdigest()


def _answer_span(text: str, head: str, through: str, least: int) -> tuple[int, int]:
    """Where in `text` an answer of at least `least` characters lies: after `head`.

    `through` ends with it, perhaps with more at its start than `text` keeps. Raises ValueError.
    """
    pairs = zip(head, through, strict=False)
    head = head[: sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))]
    if text.startswith(through):
        return len(head), len(through)
    answer = through[len(head) :]
    if text.startswith(head):
        for drop in range(1, len(answer) - least + 1):
            if text.startswith(answer[drop:], len(head)):
                return len(head), len(head) + len(answer) - drop
    raise ValueError("the tokenizer's chat template does not keep an answer as later messages come")


def _load(folder: Path) -> Any:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected one with a tokenizer")
    loader = need("transformers", "tokenizer.kind 'folder'").AutoTokenizer
    try:
        return loader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{folder}: no tokenizer that transformers can load ({reason}); "
            "expected tokenizer.json and tokenizer_config.json"
        ) from error
