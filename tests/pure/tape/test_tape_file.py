"""The file: what is written is read, whatever byte the writer died at."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.tape import Group, Tape, TapeError, TapeWriter, kinds, pack, write

HEADER = {"chip": "test", "rank": 3, "world": 8}
ROW = st.tuples(
    st.integers(0, 15),
    st.integers(0, 5),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.just(0),
    st.integers(0, 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
CHUNKS = st.lists(st.lists(ROW, max_size=5), max_size=5)
WITH_FILES = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)


def written(path: Path, chunks: list[list[tuple[int, ...]]]) -> list[int]:
    """A tape of these chunks of records; returns the file's size after each."""
    with TapeWriter(path, HEADER) as writer:
        writer.add_signatures(['{"op":"aten::mm"}'])
        writer.add_names(["", "model.layers.0"])
        writer.add_groups([Group((0, 4), "dp"), Group((3,))])
        sizes = [path.stat().st_size]
        for chunk in chunks:
            writer.add_records(pack(chunk))
            sizes.append(path.stat().st_size)  # on its way without a close
    return sizes


@WITH_FILES
@given(CHUNKS)
def test_what_is_written_is_read(tmp_path: Path, chunks: list[list[tuple[int, ...]]]) -> None:
    written(tmp_path / "t", chunks)
    tape = Tape.read(tmp_path / "t")
    assert tape.header == HEADER
    assert tape.rank == 3
    assert tape.signatures == ['{"op":"aten::mm"}']
    assert tape.names == ["", "model.layers.0"]
    assert tape.groups == [Group((0, 4), "dp"), Group((3,), "")]
    assert tape.records.tolist() == [row for chunk in chunks for row in chunk]
    assert not tape.truncated


@WITH_FILES
@given(CHUNKS, st.data())
def test_a_kill_at_any_byte_loses_the_last_chunk_only(
    tmp_path: Path, chunks: list[list[tuple[int, ...]]], data: st.DataObject
) -> None:
    path = tmp_path / "t"
    sizes = written(path, chunks)
    length = data.draw(st.integers(sizes[0], sizes[-1]))
    path.write_bytes(path.read_bytes()[:length])
    tape = Tape.read(path)
    whole = sum(size <= length for size in sizes) - 1
    assert tape.records.tolist() == [row for chunk in chunks[:whole] for row in chunk]
    assert tape.truncated == (length not in sizes)


def test_every_prefix_reads_or_says_that_it_has_no_header(tmp_path: Path) -> None:
    path = tmp_path / "t"
    written(path, [[(0, 1, 0, 7, 0, 1, 0, 0)]])
    data = path.read_bytes()
    header_end = data.index(b"}") + 1
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if length < header_end:
            with pytest.raises(TapeError, match=r"has no header|is not a tape"):
                Tape.read(path)
        else:
            assert Tape.read(path).header == HEADER


def test_the_file_appears_with_its_header(tmp_path: Path) -> None:
    writer = TapeWriter(tmp_path / "t", HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert Tape.read(tmp_path / "t").header == HEADER
    writer.close()


def test_a_name_that_is_taken_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(OSError, match="t"):
        TapeWriter(tmp_path / "t", HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_whole_tape_is_written_at_once(tmp_path: Path) -> None:
    tape = Tape(HEADER, ["s"], ["", "m"], [Group((0, 3))], pack([(0, 1, 0, 0, 0, 1, 0, 0)]))
    write(tmp_path / "t", tape)
    again = Tape.read(tmp_path / "t")
    assert np.array_equal(again.records, tape.records)
    assert (again.signatures, again.names, again.groups) == (["s"], ["", "m"], [Group((0, 3))])


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack("<cQ", kind, len(payload)) + payload


START = b"offramp-tape 1\n" + chunk(b"H", b'{"rank":0}')


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is not a tape"),
        (b"PK\x03\x04 something else\n", "is not a tape"),
        (b"offramp-tape 2\n", "format 2; this offramp reads format 1"),
        (b"offramp-tape 1\n", "has no header"),
        (b"offramp-tape 1\n" + chunk(b"S", b"[]"), "header is the first chunk"),
        (START + chunk(b"H", b'{"rank":0}'), "header is the first chunk"),
        (START + chunk(b"X", b""), "b'X'.*unknown type"),
        (START + chunk(b"S", b"{"), "chunk b'S' that ends at byte"),
        (START + chunk(b"S", b"{}"), "another content"),
        (START + chunk(b"S", b"[3]"), "not a text"),
        (START + chunk(b"N", b'["a"]'), 'first name is ""'),
        (START + chunk(b"G", b'[{"ranks":[0]}]'), "'name'"),
        (START + chunk(b"R", b"no zlib"), "chunk b'R'"),
        (START + chunk(b"R", zlib.compress(b"x" * 31)), "chunk b'R'"),
    ],
)
def test_damage_is_told(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(TapeError, match=match):
        Tape.read(path)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ((16, 0, 0, 0, 0, 0, 0, 0), "record 0 has kind 16"),
        ((1, 6, 0, 0, 0, 0, 0, 0), "phase 6"),
        ((1, 0, 0, 0, 0, 9, 0, 0), "module 9, but there are 1 names"),
        ((kinds.OP, 0, 0, 0, 2, 0, 0, 0), "what 2, but there are 0 signatures"),
        ((kinds.COLLECTIVE, 0, 0, 0, 0, 0, 0, 0), "what 0, but there are 0 signatures"),
        ((kinds.MARK, 0, 0, 0, 5, 0, 0, 0), "what 5, but there are 1 names"),
    ],
)
def test_records_that_name_nothing_are_told(
    tmp_path: Path, row: tuple[int, ...], match: str
) -> None:
    write(tmp_path / "t", Tape({"rank": 0}, [], [""], [], pack([row])))
    with pytest.raises(TapeError, match=match):
        Tape.read(tmp_path / "t")


def test_a_record_is_32_bytes_as_the_format_says() -> None:
    row = (1, 2, 3, 4, 5, 6, 7, 8)
    assert pack([row]).tobytes() == struct.pack("<BBHIIIQQ", *row)
