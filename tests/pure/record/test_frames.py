"""The file of a recording: what was written whole is read, wherever it is cut or damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from offramp.errors import UsageError
from offramp.record import part
from offramp.record.frames import MAGIC, Frame, FrameWriter, is_recording, pack, read_frames
from offramp.record.recording import read

HEADS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3)
ARRAYS = st.dictionaries(
    st.sampled_from(["rows", "stats", "a"]),
    hnp.arrays(st.sampled_from([np.float64, np.int64, np.uint8]), hnp.array_shapes(min_side=0)),
    max_size=3,
)
FRAMES = st.lists(st.builds(Frame, st.text(max_size=4), HEADS, ARRAYS), max_size=4)


def equal(a: Frame, b: Frame) -> bool:
    same = (a.kind, a.head, list(a.arrays)) == (b.kind, b.head, list(b.arrays))
    return same and all(
        np.array_equal(a.arrays[k], b.arrays[k], equal_nan=a.arrays[k].dtype.kind == "f")
        for k in a.arrays
    )


@settings(deadline=None, max_examples=60)
@given(FRAMES, st.integers(0, 10_000), st.booleans())
def test_whole_frames_are_read_wherever_the_file_ends(
    frames: list[Frame], cut: int, flips: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.rec"
        writer = FrameWriter(path)
        ends = [len(MAGIC)]
        for frame in frames:
            writer.write(frame)
            ends.append(writer.written_bytes)
        writer.close()
        whole = path.read_bytes()
        at = min(len(MAGIC) + cut, len(whole))
        if flips and at < len(whole):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        else:
            path.write_bytes(whole[:at])
        found, flaw = read_frames(path)
    kept = sum(end <= at for end in ends[1:])
    assert len(found) == kept
    assert all(equal(a, b) for a, b in zip(found, frames, strict=False))
    expected_whole = at == len(whole) if not flips or at == len(whole) else False
    assert bool(flaw) == (not expected_whole and at not in ends) or (flips and flaw)


def test_a_file_that_is_no_recording_is_named(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    assert not is_recording(other)
    with pytest.raises(UsageError, match="is no recording; expected a file that"):
        read_frames(other)
    with pytest.raises(UsageError, match="No such file"):
        read_frames(tmp_path / "absent.rec")
    empty = tmp_path / "empty.rec"
    FrameWriter(empty).close()
    with pytest.raises(UsageError, match="holds nothing whole"):
        read(empty)


def test_a_new_file_never_takes_the_place_of_another(tmp_path: Path) -> None:
    FrameWriter(tmp_path / "a.rec").close()
    with pytest.raises(FileExistsError):
        FrameWriter(tmp_path / "a.rec")


def test_a_frame_of_the_file_is_what_the_page_says() -> None:
    data = pack(Frame("note", {"text": "x"}))
    assert data[:4] == b"FRM1"
    assert int.from_bytes(data[4:8], "little") == len(data) - 12


def test_details_become_rarer_unless_each_nth_is_asked_for() -> None:
    found = [step for step in range(100_001) if part.Part(out="").is_detailed(step)]
    assert found[:6] == [0, 1, 2, 3, 25, 50]
    between = [step for step in found if 300 <= step < 900]
    assert between == [300, 325, 350, 375, *range(400, 800, 50), 800]
    for start in (100, 700, 50_000):  # a run twice as long has a few more
        assert 4 <= sum(start <= step < 2 * start for step in found) <= 16
    each = part.Part(out="", first=0, every=7)
    assert all(each.is_detailed(step) == (step % 7 == 0) for step in range(5000))


def test_a_part_goes_through_the_environment() -> None:
    asked = part.Part(out="a", steps=(1, 2), variables=("X",), command=("python", "t.py"))
    assert part.given(asked.env()) == asked
    assert part.given({}) is None
    assert part.path_of_rank("a.rec", 3) == Path("a.rec.rank3")
