"""Reading documents: the same ones from every format, and one clear line for each bad input."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.errors import UsageError
from offramp.train.data import sources as sources_module
from offramp.train.data.sources import Piece, Sources
from offramp.train.job import DataSection

DOCUMENTS = ["def f():\n    return 1\n", "Größe 你好 🙂\r\nline\u2028same line", "x" * 500, "\ttab"]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def section(*source: Path | str, **keys: Any) -> DataSection:
    return DataSection(source=tuple(str(one) for one in source), **keys)


def read(data: DataSection) -> list[Piece]:
    sources = Sources(data)
    return list(sources.pieces(sources.tally()))


def contents(data: DataSection) -> list[Any]:
    return [piece.content for piece in read(data)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_texts(folder: Path) -> Path:
    folder.mkdir()
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    return folder


def write_parquet(path: Path, rows: list[Any], name: str = "text") -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({name: rows, "other": list(range(len(rows)))}), path)
    return path


def write_dataset(path: Path, rows: list[Any], name: str = "text") -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({name: rows, "other": list(range(len(rows)))}).save_to_disk(path)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda p: write_texts(p / "texts"),
    "jsonl": lambda p: write_jsonl(p / "d.jsonl", [{"text": t} for t in DOCUMENTS]),
    "gz": lambda p: write_jsonl(p / "d.ndjson.gz", [{"n": 1, "text": t} for t in DOCUMENTS]),
    "parquet": lambda p: write_parquet(p / "d.parquet", DOCUMENTS),
    "datasets": lambda p: write_dataset(p / "saved", DOCUMENTS),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_documents(kind: str, tmp_path: Path) -> None:
    data = section(WRITERS[kind](tmp_path))
    pieces = read(data)
    assert [piece.content for piece in pieces] == DOCUMENTS
    assert all(piece.ends for piece in pieces)
    assert len({piece.key for piece in pieces}) == len(DOCUMENTS)
    assert list(Sources(data).texts()) == DOCUMENTS
    assert all(str(tmp_path) not in piece.key for piece in pieces), "keys move with the data"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets"])
def test_every_format_gives_the_same_conversations(kind: str, tmp_path: Path) -> None:
    rows = [TALK, [*TALK, {"role": "user", "content": "?"}]]
    write = {
        "jsonl": lambda: write_jsonl(tmp_path / "d.jsonl", [{"talk": row} for row in rows]),
        "parquet": lambda: write_parquet(tmp_path / "d.parquet", rows, "talk"),
        "datasets": lambda: write_dataset(tmp_path / "saved", rows, "talk"),
    }[kind]
    data = section(write(), chat="talk")
    assert contents(data) == rows
    assert list(Sources(data).texts()) == ["Hi", "Hello.", "Hi", "Hello.", "?"]


@pytest.mark.parametrize("suffix", [".bin", ".npy"])
def test_token_files(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "BLOCK_TOKENS", 7)
    ids = np.arange(40, dtype=np.uint16)
    path = tmp_path / f"d{suffix}"
    np.save(path, ids.astype(np.int64)) if suffix == ".npy" else ids.tofile(path)
    pieces = read(section(path))
    assert np.concatenate([piece.content for piece in pieces]).tolist() == list(range(40))
    assert [piece.ends for piece in pieces] == [False] * 5 + [True]
    assert len(read(section(tmp_path, format="tokens"))) == 6


def test_token_file_with_a_header(tmp_path: Path) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 500
    path = tmp_path / "d.bin"
    path.write_bytes(header.tobytes() + np.arange(500, dtype="<u2").tobytes())
    (piece,) = read(section(path))
    assert piece.content.tolist() == list(range(500))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("a\n\ré你🙂"), max_size=60), block=st.integers(1, 12))
def test_long_files_come_in_parts(
    text: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "BLOCK_BYTES", block)
    path = tmp_path / "long.txt"
    path.write_bytes(text.encode())
    pieces = read(section(path))
    assert "".join(piece.content for piece in pieces) == text
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len({piece.key for piece in pieces}) == 1


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes("\ufeffabc".encode())
    assert contents(section(tmp_path / "d.txt")) == ["abc"]


def test_standard_library_is_there_and_stable() -> None:
    sources = Sources(section("stdlib"))
    keys = [file.key for file in sources.files]
    assert {"ast.py", "json/decoder.py", "asyncio/base_events.py"} <= set(keys)
    assert not [key for key in keys if {"site-packages", "test", "tests"} & {*key.split("/")}]
    assert keys == sorted(keys)
    assert keys == [file.key for file in Sources(section("stdlib")).files]
    assert sum(len(text) for text in sources.texts()) > 3_000_000


def test_folders_leave_out_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b/2.md", "a.py", "c.txt", ".git/x.txt", ".hidden.txt", "model.bin", "p.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "zero.txt").write_bytes(b"a\0b")
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "row"}])
    sources = Sources(section(tmp_path))
    assert [file.key for file in sources.files] == ["a.py", "b/2.md", "c.txt", "rows.jsonl"]
    assert str(sources.tally()) == "1 binary files, 2 hidden files or folders, 2 other files"
    assert [file.key for file in Sources(section(tmp_path, format="text")).files] == [
        "a.py",
        "b/2.md",
        "c.txt",
        "model.bin",
        "p.png",
        "rows.jsonl",
    ]


BAD_LINES = {
    '{"text": ': "not JSON at column 9; expected one object a line",
    '["text"]': "not an object with a field 'text', but list",
    '{"txt": "a", "n": 1}': r"no field 'text' \(data.field\); the fields are txt, n; did you mean",
    '{"text": 5}': "the field 'text' is int, not text",
    '{"text": "a\\ud800"}': "character 2 is half a surrogate pair",
    "[" * 100_000: "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:12])
def test_bad_lines_stop_or_are_counted(line: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(f'{{"text": "one"}}\n\n{line}\n{{"text": "two"}}')
    with pytest.raises(UsageError, match=rf"d\.jsonl:3: {BAD_LINES[line]}") as caught:
        read(section(path))
    assert str(caught.value).endswith("correct the line, or set data.bad_lines to 'skip'")
    sources = Sources(section(path, bad_lines="skip"))
    tally = sources.tally()
    assert [piece.content for piece in sources.pieces(tally)] == ["one", "two"]
    assert str(tally).startswith("1 bad lines (the first: ")
    assert f"{path}:3" in str(tally)


BAD_TALKS = {
    "no list": ("text", "talk: expected a list of {role, content}, not 'text'"),
    "empty": ([], "expected a list of {role, content}, not []"),
    "no table": (["a"], "message 1 is 'a'"),
    "other names": ([{"roles": "user", "value": "x"}], "no text 'role'; did you mean 'roles'?"),
    "no content": ([{"role": "user", "content": None}], "message 1 has no text 'content'"),
    "no answer": (TALK[:1], "no message has the role 'assistant'"),
}


@pytest.mark.parametrize("case", BAD_TALKS)
def test_bad_conversations(case: str, tmp_path: Path) -> None:
    value, reason = BAD_TALKS[case]
    path = write_jsonl(tmp_path / "d.jsonl", [{"talk": TALK}, {"talk": value}])
    with pytest.raises(UsageError) as caught:
        read(section(path, chat="talk"))
    assert f"{path}:2: talk: " in str(caught.value)
    assert reason in str(caught.value)
    assert contents(section(path, chat="talk", bad_lines="skip")) == [TALK]


def test_undecodable_text_names_the_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes("é\n".encode() * 10 + b"ab\xe9cd\n" + b"more\n" * 9)
    for block in (1, 2, 5, 1000):
        monkeypatch.setattr(sources_module, "BLOCK_BYTES", block)
        with pytest.raises(UsageError, match="not text: byte 0xe9 at offset 32 is not UTF-8; con"):
            read(section(path))
        skipped = read(section(path, bad_lines="skip"))
        assert not skipped or skipped[-1].ends
    path.write_bytes(b"ok\xe9")
    with pytest.raises(UsageError, match="byte 0xe9 at offset 2"):
        read(section(path))


def damaged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


NPY_2D = np.zeros((2, 2), np.int64)


def refusals(folder: Path) -> dict[str, tuple[DataSection, str]]:
    text = damaged(folder / "story.txt", b"once upon a time\n")
    np.save(folder / "two.npy", NPY_2D)
    np.save(folder / "real.npy", np.zeros(3))
    (folder / "empty").mkdir()
    whole = gzip.compress(b'{"text": "abc"}\n' * 99)
    rows = write_jsonl(folder / "rows.jsonl", [{"body": "a"}])
    return {
        "absent": (section(folder / "stori.txt"), "no such file or folder; did you mean 'story.t"),
        "empty folder": (section(folder / "empty"), "no file to train on; expected text, JSON"),
        "zero bytes": (section(damaged(folder / "a.dat", b"\0\1")), "not text (it holds zero byt"),
        "json": (section(damaged(folder / "a.json", b"[]")), "set data.format to 'jsonl' where"),
        "arrow": (section(damaged(folder / "a.arrow", b"")), "give the folder"),
        "text as jsonl": (section(text, format="jsonl"), ":1: not JSON at column 1; expected one"),
        "text as datasets": (section(text, format="datasets"), "is a file, not a folder"),
        "text as chat": (section(text, chat="messages"), "text, which has no field 'messages'"),
        "not gzip": (section(damaged(folder / "b.jsonl.gz", b"abc")), "not a whole gzip file"),
        "cut gzip": (section(damaged(folder / "c.jsonl.gz", whole[:30])), "not a whole gzip file"),
        "odd bytes": (section(damaged(folder / "a.bin", b"123")), "3 bytes; expected 16-bit"),
        "two axes": (section(folder / "two.npy"), "int64 of shape (2, 2); expected a 1-D array"),
        "not whole": (section(folder / "real.npy"), "float64 of shape (3,); expected a 1-D array"),
        "not npy": (section(damaged(folder / "b.npy", b"abc")), "not a NumPy array"),
        "other field": (section(rows, field="bodi"), "the fields are body; did you mean 'body'?"),
        "folder as parquet": (section(folder, format="parquet"), "no file to train on; left out"),
    }


def test_refusals_are_one_clear_line(tmp_path: Path) -> None:
    for case, (data, reason) in refusals(tmp_path).items():
        with pytest.raises(UsageError) as caught:
            read(data)
        assert reason in str(caught.value), case
        assert "\n" not in str(caught.value), case


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = write_parquet(tmp_path / "d.parquet", ["a", None, "b"])
    with pytest.raises(UsageError, match="row 2: the field 'text' is NoneType, not text; correct"):
        read(section(table))
    assert contents(section(table, bad_lines="skip")) == ["a", "b"]
    with pytest.raises(UsageError, match=r"no field 'tex' .*the fields are text, other; did you"):
        read(section(table, field="tex"))
    with pytest.raises(UsageError, match="not a Parquet file"):
        read(section(damaged(tmp_path / "e.parquet", b"PAR1 no")))
    saved = write_dataset(tmp_path / "saved", ["a"])
    with pytest.raises(UsageError, match=r"no field 'tex' .*did you mean 'text'"):
        read(section(saved, field="tex"))
    both = tmp_path / "both"
    datasets.DatasetDict(train=datasets.load_from_disk(saved)).save_to_disk(both)
    with pytest.raises(UsageError, match="has the splits train; give the folder of one, such as"):
        read(section(both))
    assert contents(section(both / "train")) == ["a"]
    (saved / "state.json").write_text("{")
    with pytest.raises(UsageError, match="not a datasets folder") as caught:
        read(section(saved))
    assert "\n" not in str(caught.value)


def test_tokens_teach_no_tokenizer(tmp_path: Path) -> None:
    np.zeros(9, np.uint16).tofile(tmp_path / "d.bin")
    with pytest.raises(UsageError, match="no tokenizer can be learned"):
        list(Sources(section(tmp_path / "d.bin")).texts())


def test_identity_follows_the_files(tmp_path: Path) -> None:
    data = section(write_texts(tmp_path / "texts"))
    before = Sources(data).identity()
    assert before == Sources(replace(data, shuffle=False)).identity()
    (tmp_path / "texts" / "0.txt").write_text("changed")
    assert before != Sources(data).identity()
