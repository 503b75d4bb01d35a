"""The folder of a corpus: kills, races, damage and disks that cannot be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from corpora import documents, section

from offramp.errors import UsageError
from offramp.train.data import build
from offramp.train.data.corpus import Corpora, data_cache, open_corpora
from offramp.train.data.tokenizer import ByteTokenizer
from offramp.train.job import DataSection

BYTES = ByteTokenizer()
END = BYTES.end


@pytest.mark.parametrize("damage", ["cut", "absent", "no json", "file"])
def test_a_damaged_cache_is_made_again(damage: str, rows: Path, tmp_path: Path) -> None:
    first = open_corpora(section(rows), BYTES, tmp_path / "c")
    expected = documents(first.train)
    tokens = first.folder / "train" / "tokens.bin"
    if damage == "cut":
        os.truncate(tokens, 10)
    elif damage == "absent":
        tokens.unlink()
    elif damage == "no json":
        (first.folder / "corpus.json").write_text("{")
    else:
        (first.folder / "train").rename(tmp_path / "moved")
        (first.folder / "train").write_text("")
    assert documents(open_corpora(section(rows), BYTES, tmp_path / "c").train) == expected


SLOW = """
    import sys, time
    from pathlib import Path
    from offramp.train.data import corpus
    from offramp.train.data.tokenizer import ByteTokenizer
    from offramp.train.job import DataSection

    class Slow(ByteTokenizer):
        def encode_batch(self, texts):
            for text in texts:
                print("text", flush=True)
                time.sleep(float(sys.argv[3]))
            return super().encode_batch(texts)

    data = DataSection(source=(sys.argv[1],), sequence=8, held_out=0.3)
    found = corpus.open_corpora(data, Slow(), Path(sys.argv[2]))
    print("train", found.train.tokens.sum(), flush=True)
"""


def start(rows: Path, cache: Path, pause_s: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(SLOW)
    command = [sys.executable, "-c", code, str(rows), str(cache), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_nothing_in_the_way(rows: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    process = start(rows, cache, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "text\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(cache.glob(".*.partial")), "it was killed in the middle"
    found = open_corpora(section(rows), BYTES, cache)
    assert len(documents(found.train) + documents(found.held_out)) == 100
    assert not list(cache.glob(".*.partial"))


def test_of_two_processes_one_builds(rows: Path, tmp_path: Path) -> None:
    both = [start(rows, tmp_path / "c", 0.005) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert sorted(len(lines) for lines in outputs) == [1, 101]


def test_without_locks_the_first_rename_wins(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both build: the one that comes second finds the folder there and takes it."""

    def refuse(*_: Any) -> None:
        raise OSError(37, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    inner: list[Corpora] = []

    def meanwhile(documents: int, tokens: int) -> None:
        if not inner:
            inner.append(open_corpora(section(rows), BYTES, tmp_path / "c"))

    outer = open_corpora(section(rows), BYTES, tmp_path / "c", meanwhile)
    assert documents(outer.train) == documents(inner[0].train)
    assert [path.name for path in (tmp_path / "c").iterdir() if path.is_dir()] == [
        outer.folder.name
    ]


def test_an_error_while_building_leaves_no_folder(rows: Path, tmp_path: Path) -> None:
    with rows.open("a") as file:
        file.write("{\n")
    with pytest.raises(UsageError, match="jsonl:101: not JSON"):
        open_corpora(section(rows), BYTES, tmp_path / "c")
    assert not [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
    found = open_corpora(section(rows, bad_lines="skip"), BYTES, tmp_path / "c")
    again = open_corpora(section(rows, bad_lines="skip"), BYTES, tmp_path / "c")
    assert found.left_out == again.left_out
    assert found.left_out.startswith("1 bad lines")


def test_data_that_changes_while_it_is_read(rows: Path, tmp_path: Path) -> None:
    def change(documents: int, tokens: int) -> None:
        with rows.open("a") as file:
            file.write('{"text": "more"}\n')

    with pytest.raises(UsageError, match="changed while it was read; start again"):
        open_corpora(section(rows), BYTES, tmp_path / "c", change)


@pytest.mark.parametrize(("number", "reason"), [(28, "disk is full"), (30, "cannot be written")])
def test_a_cache_that_cannot_be_written(
    number: int, reason: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(build.PartWriter, "_write", refuse)
    with pytest.raises(UsageError, match=f"{reason}, and .* another folder with data.cache"):
        open_corpora(section(rows), BYTES, tmp_path / "c")
    assert not list((tmp_path / "c").glob(".*.partial"))


def test_a_cache_that_is_a_file(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("")
    with pytest.raises(UsageError, match="give another folder with"):
        open_corpora(section(rows), BYTES, tmp_path / "c")


def test_the_cache_folder_is_the_sections_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    assert data_cache(DataSection()) == tmp_path / "data"
    assert data_cache(DataSection(cache="/big/disk")) == Path("/big/disk")
