"""What a process leaves behind in the run folder, however it ends.

A process that ends by itself writes its last record at exit. One that is killed cannot: SIGKILL
leaves no time, and a Python handler for SIGTERM would run too late in a worker that waits in a
collective (and would keep it alive until torchrun's SIGKILL). So a record is also saved at the
start and every few seconds, marked unfinished.

[Note: forked processes] A forked child inherits the counters of its parent. The recorder takes
their values just before the fork and records only what the child added; a child that added nothing
leaves nothing. `multiprocessing` ends forked children with `os._exit`, which skips `atexit`, and
clears the finalizers that a child inherits, so the child registers its own. DataLoader workers
prepare batches on the host: a forked one leaves no record.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing import process, util
from pathlib import Path
from typing import Any, cast

from offramp.launch.schema import RECORDS_FOLDER, SCHEMA, Record, Snapshot

SAVE_EVERY_S = 5.0
COUNTED = ("ops", "dtypes")
LISTED = ("names", "refused", "defaults", "compiled", "missing_ops", "arithmetic")
Row = tuple[tuple[str, Any], ...]


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` to `path` so that a reader sees all of it or the file that was there before."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps(data, indent=1) + "\n")
    scratch.replace(path)


def tally(rows: list[dict[str, Any]]) -> dict[Row, int]:
    """Rows that differ only in `count`, added up; keyed by what is left of the row."""
    counts: dict[Row, int] = {}
    for row in rows:
        key = tuple((name, value) for name, value in row.items() if name != "count")
        counts[key] = counts.get(key, 0) + row.get("count", 1)
    return counts


def rows(counts: Mapping[Row, int]) -> list[dict[str, Any]]:
    """The inverse of `tally`, most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], repr(item[0])))
    return [{**dict(key), "count": count} for key, count in ordered]


def since(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """`now` without what `before` had already counted; peaks and formats stay as they are."""
    left = dict(now)
    for section in COUNTED:
        old = before.get(section, {})
        grown = {name: n - old.get(name, 0) for name, n in now.get(section, {}).items()}
        left[section] = {name: n for name, n in grown.items() if n > 0}
    for section in LISTED:
        past = tally(before.get(section, []))
        grown_rows = {key: n - past.get(key, 0) for key, n in tally(now.get(section, [])).items()}
        left[section] = rows({key: n for key, n in grown_rows.items() if n > 0})
    return left


def joined(*snapshots: Snapshot) -> Snapshot:
    """One snapshot of what several layers counted."""
    whole: dict[str, Any] = {}
    for snapshot in snapshots:
        for section, value in snapshot.items():
            if isinstance(value, dict):
                whole[section] = dict(Counter(whole.get(section, {})) + Counter(value))
            elif isinstance(value, list):
                whole[section] = [*whole.get(section, []), *value]
            else:
                whole[section] = value
    return cast(Snapshot, whole)


class Recorder:
    """Saves the record of this process: every few seconds, and for the last time at exit.

    `snapshot` must be cheap and safe to call from another thread and after a fork.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], folder: Path, chip: str) -> None:
        self.snapshot = snapshot
        self.folder = folder
        self.chip = chip
        self._baseline: Mapping[str, Any] | None = None  # set in a forked child
        self._rank: int | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._born()

    def _born(self) -> None:
        self.started_unix_s = time.time()
        self._started_s = time.monotonic()
        self.path = self.folder / f"{os.getpid()}-{time.time_ns()}.json"

    def start(self) -> Recorder:
        """Save for the first time, and arrange all later saves."""
        self.save(finished=False)
        _watch_forks()
        _recorders.add(self)
        atexit.register(self.finish)
        # `multiprocessing` runs this in each child after it has cleared the inherited finalizers.
        util.register_after_fork(self, _finish_with_the_worker)
        _finish_with_the_worker(self)
        threading.Thread(target=self._keep_saving, name="offramp-record", daemon=True).start()
        return self

    def finish(self) -> None:
        """Save for the last time and stop."""
        if self._stop.is_set():
            return
        self._stop.set()
        if not _is_forked_loader_worker(self._baseline):
            self.save(finished=True)

    def close(self) -> None:
        """`finish`, and leave nothing registered: for a device that is put away before exit."""
        self.finish()
        atexit.unregister(self.finish)
        _recorders.discard(self)

    def save(self, *, finished: bool) -> None:
        """Write the record; a record that cannot be written never disturbs the program."""
        with self._lock:
            if self._stop.is_set() and not finished:
                return
            record = self._record(finished)
            if self._baseline is not None and not (record["ops"] or record["names"]):
                return
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.path, record)
            except OSError as error:
                if finished:
                    sys.stderr.write(f"offramp: no record of process {os.getpid()}: {error}\n")

    def _record(self, finished: bool) -> Record:
        problem = None
        counted: Mapping[str, Any] = {}
        try:
            counted = self.snapshot()
        except Exception as error:
            problem = f"counting failed: {type(error).__name__}: {error}"
        if self._baseline is not None:
            counted = since(counted, self._baseline)
        own = _rank() if counted.get("rank") is None else counted["rank"]
        self._rank = self._rank if own is None else own
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "argv": list(getattr(sys, "argv", [])),
            "chip": self.chip,
            "torch": getattr(sys.modules.get("torch"), "__version__", None),
            "started_unix_s": self.started_unix_s,
            "saved_unix_s": time.time(),
            "wall_s": time.monotonic() - self._started_s,
            "finished": finished,
            "problem": problem,
            "devices": [],
            **{section: {} for section in COUNTED},
            **{section: [] for section in LISTED},
            "unknown_formats": [],
            **counted,
            "rank": self._rank,
        }
        record["torch"] = record["torch"] and str(record["torch"])
        return cast(Record, record)

    def _keep_saving(self) -> None:
        while not self._stop.wait(SAVE_EVERY_S):
            self.save(finished=False)

    def before_fork(self) -> None:
        """Hold still, and remember what the child will have inherited."""
        self._lock.acquire()
        with contextlib.suppress(Exception):
            self._inherited: Mapping[str, Any] = self.snapshot()

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Be the recorder of the child: see [Note: forked processes]."""
        self._baseline = getattr(self, "_inherited", {})
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._born()


def write_at_exit(
    snapshot: Callable[[], Snapshot], *, chip: str | None = None, run_dir: str | None = None
) -> Recorder | None:
    """Leave a record of this process in the run folder, however it ends.

    The chip and the folder default to `OFFRAMP_CHIP` and `OFFRAMP_RUN_DIR`. Without a folder
    nothing is recorded and the answer is None.
    """
    run_dir = run_dir or os.environ.get("OFFRAMP_RUN_DIR")
    if not run_dir:
        return None
    name = chip or os.environ.get("OFFRAMP_CHIP", "").partition(":")[0]
    return Recorder(snapshot, Path(run_dir) / RECORDS_FOLDER, name).start()


# Fork hooks cannot be unregistered: they are registered once, and follow this set.
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(
        before=lambda: _each(Recorder.before_fork),
        after_in_parent=lambda: _each(Recorder.after_fork_in_parent),
        after_in_child=lambda: _each(Recorder.after_fork_in_child),
    )


def _each(step: Callable[[Recorder], None]) -> None:
    for recorder in list(_recorders):
        step(recorder)


def _finish_with_the_worker(recorder: Recorder) -> None:
    util.Finalize(None, recorder.finish, exitpriority=-100)


def _is_forked_loader_worker(baseline: Mapping[str, Any] | None) -> bool:
    worker = sys.modules.get("torch.utils.data._utils.worker")
    target = getattr(process.current_process(), "_target", None)
    return baseline is not None and worker is not None and target is worker._worker_loop


def _rank() -> int | None:
    """The rank of this process while its process group stands, else the launcher's word."""
    distributed = sys.modules.get("torch.distributed")
    with contextlib.suppress(Exception):
        if distributed is not None and distributed.is_initialized():
            return int(distributed.get_rank())
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else None
