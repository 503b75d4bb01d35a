"""Tokenizers: bytes, a BPE learned from the data, or a local Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import UsageError
from offramp.train.data.chat import PLAIN_TEMPLATE, Messages, plain_parts
from offramp.train.job import TokenizerSection

Ids = NDArray[np.int32]
Mask = NDArray[np.uint8]
END_TEXT = "<|endoftext|>"


class Tokenizer(ABC):
    """Text to token ids and back.

    vocabulary: ids are in [0, vocabulary). end: the id that closes every document.
    fingerprint: hex digest; two tokenizers with one fingerprint give the same ids.
    """

    vocabulary: int
    end: int
    fingerprint: str

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of a text, without `end` or any other token that the text does not spell."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of each text; kinds that can, use every core."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Any) -> str:
        """The text of a sequence of ids; bytes that are not UTF-8 come out as U+FFFD."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what transformers' AutoTokenizer loads from a folder."""

    def chat(self, messages: Messages) -> tuple[Ids, Mask]:
        """Ids of a conversation, and a mask of equal length: 1 on answers and what closes them."""
        ids: list[Ids] = []
        mask: list[Mask] = []
        for text, answer in plain_parts(messages):
            part = self.encode(text)
            if answer:
                part = np.append(part, np.int32(self.end))
            ids.append(part)
            mask.append(np.full(len(part), answer, np.uint8))
        return np.concatenate(ids), np.concatenate(mask)


class ByteTokenizer(Tokenizer):
    """One token a byte of UTF-8: ids 0 to 255, and 256 for the end of a document.

    On disk it is a byte-level BPE without merges, whose vocabulary gives each byte its value as id;
    AutoTokenizer needs no code for it. One difference: AutoTokenizer reads END_TEXT within a text
    as the end token, as chat templates need; here it stays bytes, so that no text can end itself.
    """

    vocabulary = 257
    end = 256
    fingerprint = hashlib.blake2b(b"offramp byte tokenizer 1", digest_size=16).hexdigest()

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Any) -> str:
        array = np.asarray(ids, np.int64)
        text: list[str] = []
        start = 0
        for at in (*np.flatnonzero((array < 0) | (array > 255)).tolist(), len(array)):
            text.append(array[start:at].astype(np.uint8).tobytes().decode(errors="replace"))
            if at < len(array):
                text.append(END_TEXT if array[at] == self.end else "\ufffd")
            start = at + 1
        return "".join(text)

    def save(self, folder: Path) -> None:
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        vocab = {letter: byte for byte, letter in enumerate(byte_letters())} | {END_TEXT: 256}
        added = {"id": 256, "content": END_TEXT, "special": True}
        added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        document = {
            "version": "1.0",
            "added_tokens": [added],
            "pre_tokenizer": {**level, "use_regex": False},
            "decoder": {**level, "use_regex": False},
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        }
        save_files(folder, json.dumps(document, ensure_ascii=False))


def byte_letters() -> list[str]:
    """The printable letter that byte-level tokenizers write for each byte.

    Printable Latin-1 stands for itself; the other bytes take the letters from U+0100 on, in order
    (Radford et al., GPT-2, 2019).
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def save_files(folder: Path, tokenizer_json: str) -> None:
    """Write tokenizer.json, and the tokenizer_config.json that goes with our own kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
        "chat_template": PLAIN_TEMPLATE,
    }
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def open_tokenizer(
    section: TokenizerSection,
    model_folder: str,
    texts: Callable[[], Iterator[str]],
    cache: Path,
) -> Tokenizer:
    """The tokenizer of a job.

    model_folder: where 'folder' looks if the section names none; 'auto' takes it. texts: the data,
    which 'bpe' learns from. cache: where a learned BPE stays. Raises UsageError.
    """
    if section.kind == "byte" or (section.kind == "auto" and not model_folder):
        return ByteTokenizer()
    if section.kind == "bpe":
        from offramp.train.data.bpe import learn

        return learn(section.vocabulary, texts, cache)
    folder = section.folder or model_folder
    if not folder:
        raise UsageError(
            "tokenizer.kind is 'folder', and neither tokenizer.folder nor model.folder names one"
        )
    from offramp.train.data.folder import FolderTokenizer

    return FolderTokenizer(Path(folder))
