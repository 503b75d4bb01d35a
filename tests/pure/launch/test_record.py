"""Every process of a run leaves one record, however it starts and however it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import environment, records

from offramp.launch.record import joined, rows, since, tally, write_json

# A program of which each process counts ops in `counts` and leaves a record.
PRELUDE = """
import multiprocessing, os, signal, sys, time
from offramp.launch import record
counts = {"aten::mm": 5}
record.SAVE_EVERY_S = 0.2
record.write_at_exit(lambda: {"ops": dict(counts)}, chip="cpu")
def work(extra):
    if extra:
        counts["aten::add"] = extra
        counts["aten::mm"] += 1
"""
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    def start(text: str, **env: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(PRELUDE + text)
        return subprocess.run(
            [sys.executable, str(path), "--flag"],
            cwd=tmp_path,
            env=environment(**{"OFFRAMP_RUN_DIR": str(tmp_path), **env}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return start


def by_origin(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of the first process, and the others'."""
    first, *others = sorted(records(folder), key=lambda record: record["started_unix_s"])
    return first, others


def test_a_record_names_its_process(program: Program, tmp_path: Path) -> None:
    before = time.time()
    assert program("time.sleep(0.3)", RANK="3").returncode == 0
    (record,) = records(tmp_path)
    assert record["schema"] == 1
    assert record["rank"] == 3
    assert record["argv"] == [str(tmp_path / "program.py"), "--flag"]
    assert record["chip"] == "cpu"
    assert record["ops"] == {"aten::mm": 5}
    assert record["devices"] == record["names"] == record["refused"] == []
    assert before <= record["started_unix_s"] <= time.time()
    assert 0.3 <= record["wall_s"] < 20
    assert record["finished"] is True
    assert not list((tmp_path / "processes").glob(".*")), "no scratch file is left"


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(4)", 4), ("raise ValueError", 1), ("os.kill(os.getpid(), signal.SIGINT)", -2)],
)
def test_a_failing_process_leaves_its_last_record(
    program: Program, tmp_path: Path, end: str, status: int
) -> None:
    assert program(f"work(2)\n{end}").returncode == status
    (record,) = records(tmp_path)
    assert record["ops"] == {"aten::mm": 6, "aten::add": 2}
    assert record["finished"] is True


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGSEGV"])
def test_a_killed_process_leaves_what_it_saved_last(
    program: Program, tmp_path: Path, name: str
) -> None:
    program(f"work(2); time.sleep(0.6); os.kill(os.getpid(), signal.{name})")
    (record,) = records(tmp_path)
    assert record["ops"] == {"aten::mm": 6, "aten::add": 2}
    assert record["finished"] is False


def test_a_process_killed_at_once_is_known(program: Program, tmp_path: Path) -> None:
    program("os._exit(9)")
    (record,) = records(tmp_path)
    assert record["finished"] is False


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_leave_one_record_each(program: Program, tmp_path: Path, method: str) -> None:
    result = program(f"""
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    workers = [context.Process(target=work, args=(n,)) for n in (3, 4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    sys.exit(sum(worker.exitcode for worker in workers))
""")
    assert (result.returncode, result.stderr) == (0, "")
    first, others = by_origin(tmp_path)
    assert first["ops"] == {"aten::mm": 5}
    # A forked worker inherits five mm of its parent, which are not its own; others start afresh.
    inherited = 5 if method == "fork" else 0
    expected = [{"aten::mm": 6 - inherited, "aten::add": n} for n in (3, 4)]
    assert sorted((r["ops"] for r in others if "aten::add" in r["ops"]), key=str) == expected
    assert all(record["finished"] for record in others if "aten::add" in record["ops"])


def test_a_worker_that_raises_leaves_its_record(program: Program, tmp_path: Path) -> None:
    program("""
def fail():
    work(9)
    raise SystemExit(3)
worker = multiprocessing.get_context("fork").Process(target=fail)
worker.start()
worker.join()
""")
    assert sorted(record["ops"].get("aten::add", 0) for record in records(tmp_path)) == [0, 9]


def test_a_forked_worker_without_work_leaves_nothing(program: Program, tmp_path: Path) -> None:
    program("""
workers = [multiprocessing.get_context("fork").Process(target=work, args=(0,)) for _ in range(3)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
""")
    assert len(records(tmp_path)) == 1


def test_a_bare_fork_leaves_its_own_record(program: Program, tmp_path: Path) -> None:
    program("""
if os.fork() == 0:
    work(1)
    sys.exit(0)
os.wait()
""")
    first, (child,) = by_origin(tmp_path)
    assert first["pid"] != child["pid"]
    assert (first["ops"], child["ops"]) == ({"aten::mm": 5}, {"aten::mm": 1, "aten::add": 1})


def test_forking_while_records_are_saved_never_hangs(program: Program, tmp_path: Path) -> None:
    result = program("""
record.SAVE_EVERY_S = 0.0001
record.write_at_exit(lambda: {"ops": dict(counts)}, chip="cpu")
for _ in range(50):
    if os.fork() == 0:
        work(1)
        sys.exit(0)
    os.wait()
""")
    assert result.returncode == 0
    assert sum("aten::add" in record["ops"] for record in records(tmp_path)) == 100


def test_a_snapshot_that_fails_is_told_and_disturbs_nothing(
    program: Program, tmp_path: Path
) -> None:
    result = program("del counts")
    assert (result.returncode, result.stderr) == (0, "")
    (record,) = records(tmp_path)
    assert record["ops"] == {}
    assert "NameError" in record["problem"]


def test_a_folder_that_vanished_comes_back_and_a_file_in_its_place_is_told(
    program: Program, tmp_path: Path
) -> None:
    end = "import shutil; shutil.rmtree('processes')"
    assert program(end).returncode == 0
    assert len(records(tmp_path)) == 1
    result = program(f"{end}; open('processes', 'w')")
    assert result.returncode == 0
    assert result.stderr.startswith("offramp: no record of process")
    assert result.stderr.count("\n") == 1


def test_without_a_run_folder_nothing_is_recorded(program: Program, tmp_path: Path) -> None:
    result = program("import threading; sys.exit(threading.active_count())", OFFRAMP_RUN_DIR="")
    assert result.returncode == 1
    assert records(tmp_path) == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with path.open() as reader:
        write_json(path, {"b": list(range(1000))})
        assert json.load(reader) == {"a": 1}
    assert json.loads(path.read_text()) == {"b": list(range(1000))}


COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9))
LIST = st.lists(st.fixed_dictionaries({"name": st.sampled_from("xyz"), "count": st.integers(1, 9)}))


@given(LIST)
def test_rows_and_tally_are_inverse(given_rows: list[dict[str, Any]]) -> None:
    counts = Counter[str]()
    for row in given_rows:
        counts[row["name"]] += row["count"]
    added = rows(tally(given_rows))
    assert {row["name"]: row["count"] for row in added} == counts
    assert tally(added) == tally(given_rows)


@given(COUNTS, COUNTS, LIST, LIST)
def test_what_came_since_is_what_was_added(
    old: dict[str, int], new: dict[str, int], old_rows: list[Any], new_rows: list[Any]
) -> None:
    before = {"ops": old, "names": old_rows}
    now = joined(before, {"ops": new, "names": new_rows})  # type: ignore[typeddict-item, arg-type]
    left = since(now, before)
    assert left["ops"] == new
    assert tally(left["names"]) == tally(new_rows)
