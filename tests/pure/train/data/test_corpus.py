"""The corpus on disk: what it holds and when it is made again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import documents, many, section, write_rows
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import UsageError
from offramp.train.data import build
from offramp.train.data import corpus as corpus_module
from offramp.train.data import sources as sources_module
from offramp.train.data.batches import IGNORED, Batches
from offramp.train.data.build import is_held_out, token_dtype
from offramp.train.data.corpus import Corpus, open_corpora
from offramp.train.data.tokenizer import ByteTokenizer, Ids
from offramp.train.job import DataSection

BYTES = ByteTokenizer()
END = BYTES.end


class WideTokenizer(ByteTokenizer):
    """Bytes, in a vocabulary that needs 32 bits."""

    vocabulary = 70_000
    fingerprint = "wide"

    def encode(self, text: str) -> Ids:
        return super().encode(text) + np.int32(69_000 - 256)


def test_every_document_is_in_one_part_and_ends_once(rows: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    found = open_corpora(section(rows), BYTES, tmp_path / "c", lambda d, t: calls.append((d, t)))
    train, held_out = documents(found.train), documents(found.held_out)
    expected = [[*text.encode(), END] for text in many(100)]
    assert sorted(train + held_out) == sorted(expected)
    assert train == [document for document in expected if document in train], "order is kept"
    assert 15 <= len(held_out) <= 45
    assert found.train.tokens.dtype == np.uint16
    assert found.train.ends.dtype == np.int64
    assert found.train.mask is None
    assert found.left_out == ""
    assert calls[-1] == (100, sum(len(document) for document in expected))


def test_what_is_held_out_stays_so_as_data_grows(rows: Path, tmp_path: Path) -> None:
    before = documents(open_corpora(section(rows), BYTES, tmp_path / "c").held_out)
    write_rows(rows, many(150))
    after = documents(open_corpora(section(rows), BYTES, tmp_path / "c").held_out)
    assert [d for d in after if d[:-1] in [list(t.encode()) for t in many(100)]] == before
    assert len(after) > len(before)


@given(share=st.floats(0, 0.5))
def test_the_share_held_out_is_kept(share: float) -> None:
    held = sum(is_held_out(f"x:{number}", share) for number in range(2000))
    assert held / 2000 == pytest.approx(share, abs=5 * (share * (1 - share) / 2000) ** 0.5 + 1e-3)


def test_wide_vocabularies_take_32_bits(rows: Path, tmp_path: Path) -> None:
    assert [token_dtype(size).itemsize for size in (257, 65_536, 65_537)] == [2, 2, 4]
    train = open_corpora(section(rows), WideTokenizer(), tmp_path / "c").train
    assert train.tokens.dtype == np.uint32
    assert train.tokens.max() > 68_000


def test_token_files_give_the_documents_of_the_text(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "BLOCK_TOKENS", 13)
    texts = many(60)
    ids = np.concatenate([[*text.encode(), END] for text in texts]).astype(np.uint16)
    ids.tofile(tmp_path / "d.bin")
    np.save(tmp_path / "d.npy", ids[:-1])  # a last document that nothing closes
    for name in ("d.bin", "d.npy"):
        found = open_corpora(section(tmp_path / name), BYTES, tmp_path / "c")
        both = documents(found.train) + documents(found.held_out)
        assert sorted(both) == sorted([*text.encode(), END] for text in texts)


@given(
    parts=st.lists(st.lists(st.integers(0, 3) | st.just(END), max_size=9), min_size=1, max_size=5)
)
def test_splitting_does_not_depend_on_the_pieces(parts: list[list[int]]) -> None:
    ids = np.array([one for part in parts for one in part], np.int64)
    slow: list[list[int]] = []
    for number, token in enumerate(ids.tolist()):
        if number == 0 or ids[number - 1] == END:
            slow.append([])
        slow[-1].append(token)
    slow = [document for document in slow if document != [END]]
    splitter = build._Splitter(BYTES)
    found: list[list[int]] = [[]]
    keys = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        piece = sources_module.Piece("d", "d", np.array(part, np.int64), ends=last)
        for key, piece_ids, _, ends in splitter.split(piece):
            found[-1] += piece_ids.tolist()
            if ends:
                found.append([])
                keys.append(key)
    assert found[-1] in ([], *slow[-1:])
    assert [document for document in found if document] == slow
    assert len(set(keys)) == len(keys)


def test_the_cache_is_used_again(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_corpora(section(rows), BYTES, tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "write_parts", lambda *_, **__: pytest.fail("made again"))
        for data in (section(rows), section(rows, sequence=16, shuffle=False, cache="elsewhere")):
            assert documents(open_corpora(data, BYTES, tmp_path / "c").train) == documents(
                first.train
            )
    folders = {first.folder}
    for data, tokenizer in [
        (section(rows, held_out=0.4), BYTES),
        (section(rows, bad_lines="skip"), BYTES),
        (section(rows, format="jsonl", field="text"), BYTES),
        (section(rows), WideTokenizer()),
    ]:
        folders.add(open_corpora(data, tokenizer, tmp_path / "c").folder)
    stat = rows.stat()
    os.utime(rows, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    folders.add(open_corpora(section(rows), BYTES, tmp_path / "c").folder)
    assert len(folders) == 6


def test_a_file_that_ends_in_no_text_does_not_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "BLOCK_BYTES", 4)
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xff\xff\n\n")
    (tmp_path / "b.txt").write_bytes(b"three\nfour")
    data = section(tmp_path, bad_lines="skip", held_out=0.0, sequence=4)
    found = open_corpora(data, BYTES, tmp_path / "c")
    first, second = documents(found.train)
    assert bytes(first[:-1]) == b"one\ntwo\n"[: len(first) - 1]
    assert bytes(second[:-1]) == b"three\nfour"
    assert "byte 0xff at offset 8" in found.left_out


def test_one_document_gives_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("abcdefghij" * 20)
    found = open_corpora(section(path, held_out=0.1), BYTES, tmp_path / "c")
    assert found.held_out is not None
    joined = [*found.train.tokens.tolist(), *found.held_out.tokens.tolist()]
    assert joined == [*path.read_bytes(), END]
    assert len(found.held_out.tokens) == 21
    assert found.train.ends.tolist() == [180]
    assert found.held_out.ends.tolist() == [21]


def test_few_documents_are_held_out_whole(tmp_path: Path) -> None:
    texts = [letter * 30 for letter in "abcd"]
    path = write_rows(tmp_path / "rows.jsonl", texts)
    found = open_corpora(section(path, held_out=1e-9), BYTES, tmp_path / "c")
    assert documents(found.train) == [[*text.encode(), END] for text in texts[:3]]
    assert documents(found.held_out) == [[*texts[3].encode(), END]]


def test_nothing_held_out(rows: Path, tmp_path: Path) -> None:
    found = open_corpora(section(rows, held_out=0.0), BYTES, tmp_path / "c")
    assert found.held_out is None
    assert found.train.documents == 100


@given(cuts=st.tuples(st.integers(0, 39), st.integers(1, 40)).filter(lambda ab: ab[0] < ab[1]))
def test_parts_keep_their_documents(cuts: tuple[int, int]) -> None:
    whole = Corpus(np.arange(40, dtype=np.uint16), np.array([7, 8, 30, 40]), np.ones(40, np.uint8))
    part = whole.part(*cuts)
    expected = [[t for t in document if cuts[0] <= t < cuts[1]] for document in documents(whole)]
    assert documents(part) == [document for document in expected if document]
    assert part.mask is not None
    assert len(part.mask) == len(part.tokens)


TALK = [
    {"role": "user", "content": "ab"},
    {"role": "assistant", "content": "cde"},
]


def test_conversations_train_on_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text((json.dumps({"talk": TALK}) + "\n") * 9)
    found = open_corpora(section(path, chat="talk", held_out=0.0), BYTES, tmp_path / "c")
    ids, mask = BYTES.chat(TALK)
    assert found.train.mask is not None
    assert found.train.tokens.tolist() == [*ids.tolist()] * 9, "the answer's end is the document's"
    assert found.train.mask.tolist() == [*mask.tolist()] * 9
    rows = Batches(
        found.train, sequence=len(ids), batch=2, seed=1, shuffle=False, boundaries=True
    ).rows(0, 0, 2)
    trained = rows.targets_BT[rows.targets_BT != IGNORED].tolist()
    assert trained == [*b"cde", END] * 2


class Refusing(ByteTokenizer):
    """Takes no conversation of three messages."""

    fingerprint = "refusing"

    def chat(self, messages: Any) -> Any:
        if len(messages) == 3:
            raise ValueError("three is a crowd")
        return super().chat(messages)


def test_conversations_that_the_template_refuses(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"t": TALK}) + "\n" + json.dumps({"t": [*TALK, TALK[0]]}) + "\n")
    data = section(path, chat="t", held_out=0.0)
    with pytest.raises(UsageError, match="jsonl:2: three is a crowd; correct it, or set"):
        open_corpora(data, Refusing(), tmp_path / "c")
    found = open_corpora(replace(data, bad_lines="skip"), Refusing(), tmp_path / "c")
    assert found.train.documents == 1
    assert "three is a crowd" in found.left_out


def test_conversations_through_a_folder_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from offramp.train.data.folder import FolderTokenizer

    BYTES.save(tmp_path / "saved")
    path = tmp_path / "d.jsonl"
    path.write_text((json.dumps({"talk": TALK}) + "\n") * 9)
    data = section(path, chat="talk", held_out=0.0)
    found = open_corpora(data, FolderTokenizer(tmp_path / "saved"), tmp_path / "c")
    plain = open_corpora(data, BYTES, tmp_path / "c")
    assert found.folder != plain.folder
    assert found.train.tokens.tolist() == plain.train.tokens.tolist()
    assert found.train.mask is not None
    assert plain.train.mask is not None
    assert found.train.mask.tolist() == plain.train.mask.tolist()


def short_data(folder: Path) -> Iterator[tuple[DataSection, str]]:
    empty, tiny, small = (folder / name for name in ("empty.txt", "tiny.txt", "small.txt"))
    empty.write_text("")
    tiny.write_text("abc")
    small.write_text("a" * 15)
    np.array([1, 2, 300], np.uint16).tofile(folder / "d.bin")
    np.save(folder / "d.npy", np.array([1, 2, -1] * 9))
    bad = folder / "bad.jsonl"
    bad.write_text("{\n{")
    yield section(empty), "no text in 1 files; left out: 1 empty documents; expected at least one"
    one_good = folder / "one.jsonl"
    one_good.write_text('{\n{"text": "abc"}')
    left = "4 tokens, and one sequence takes 9; left out: 1 bad lines (the first: "
    yield section(one_good, bad_lines="skip"), left
    yield section(bad, bad_lines="skip"), "no text in 1 files; left out: 2 bad lines (the first: "
    yield section(tiny), "4 tokens, and one sequence takes 9; give more text or a smaller data.seq"
    yield section(small), "16 tokens, and a sequence to train on and one to evaluate take 18"
    yield section(folder / "d.bin"), "token 300 at index 2, and the tokenizer has 257; expected"
    yield section(folder / "d.npy"), "token -1 at index 2, and the tokenizer has 257; expected"


def test_too_little_and_wrong_data_is_one_clear_line(tmp_path: Path) -> None:
    for data, reason in short_data(tmp_path):
        with pytest.raises(UsageError) as caught:
            open_corpora(data, BYTES, tmp_path / "c")
        assert reason in str(caught.value), data
        assert "\n" not in str(caught.value), data
    enough = section(tmp_path / "small.txt", held_out=0.0)
    assert len(open_corpora(enough, BYTES, tmp_path / "c").train.tokens) == 16
