"""Rehearses many rows, several at a time; what is done stays done."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from offramp.costs import training
from offramp.costs.training import Factors
from offramp.errors import OfframpError, UsageError
from offramp.launch.files import write_text
from offramp.launch.warm import Warm
from offramp.validate.fit import Seen, fitted, logarithms, text, unseen
from offramp.validate.mapping import Case, UnmappedError, case_of
from offramp.validate.predict import Prediction, Predictor, played_counts, program_of
from offramp.validate.rows import Row
from offramp.validate.score import Scored

ROUNDS = 2

Told = Callable[[str], None]


def work_of(case: Case) -> int:
    """What playing a case takes, roughly: a process for each stage, layers for each micro-batch."""
    stages = case.job["layout.pp"]
    layers = case.config["num_hidden_layers"] // stages
    return sum(stages * (100 + layers * count) for count in played_counts(case))


def cases_of(rows: Iterable[Row]) -> tuple[list[Case], dict[str, str]]:
    """The rows that a job stands for, and why the others have none, by their ids."""
    cases, left_out = [], {}
    for row in rows:
        try:
            cases.append(case_of(row))
        except UnmappedError as error:
            left_out[row.id] = str(error)
    return cases, left_out


def sampled(cases: Sequence[Case], most: int, seed: int = 1) -> list[Case]:
    """At most so many cases of each source, chosen by a seed; all where `most` is 0."""
    of_source: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        of_source[case.row.source_title].append(case)
    chosen: list[Case] = []
    for source in sorted(of_source):
        several = of_source[source]
        if most and len(several) > most:
            several = random.Random(f"{seed} {source}").sample(several, most)
        chosen += several
    return chosen


def kept(cases: Iterable[Case], tapes: Path) -> list[Case]:
    """The cases whose tapes are all there."""
    known = Predictor(tapes, None)
    return [case for case in cases if known.has(case)]


class Results:
    """Predictions by row, one JSON line each, in a file to which each is added when it is made.

    Lines of rows that were tried and failed have an `error` instead.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    told = json.loads(line)
                    if "error" in told or "plain_s" in told:  # else an earlier version's
                        self.found[told["id"]] = told
                except (ValueError, KeyError, TypeError) as error:
                    raise UsageError(f"{path}, line {at}: not a result of validate") from error

    def add(self, row: Row, **told: Any) -> None:
        """Note what was found for a row, in memory and in the file."""
        with self._lock:
            self.found[row.id] = {"id": row.id, **told}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.found[row.id]) + "\n")

    def forget(self, cases: Iterable[Case]) -> None:
        """Drop what was found for these cases, in memory and in the file; others stay."""
        with self._lock:
            for case in cases:
                self.found.pop(case.row.id, None)
            text = "".join(json.dumps(told) + "\n" for told in self.found.values())
            write_text(self._path, text)


def predict_all(cases: Sequence[Case], results: Results, tapes: Path, told: Told) -> None:
    """Predict every case that has no result yet, as many at a time as this machine has cores."""
    waiting = [case for case in cases if case.row.id not in results.found]
    waiting.sort(key=work_of)  # what takes little first, so that much is known early
    done = len(cases) - len(waiting)
    # Rows that share what is played, such as a run's time and its memory, go one after the other.
    together: dict[str, list[Case]] = defaultdict(list)
    for case in waiting:
        together[program_of(case)].append(case)
    here = threading.local()

    def some(several: Sequence[Case]) -> None:
        nonlocal done
        if not hasattr(here, "predictor"):
            here.predictor = Predictor(tapes, stack.enter_context(Warm()))
        for case in several:
            try:
                results.add(case.row, **asdict(here.predictor.of(case)))
            except OfframpError as error:
                results.add(case.row, error=str(error))
            done += 1
            told(f"{done} of {len(cases)} rows: {case.row.id}")

    pool = ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1))
    with contextlib.ExitStack() as stack:
        try:
            for future in [pool.submit(some, several) for several in together.values()]:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def see_all(cases: Sequence[Case], tapes: Path, at: Factors, told: Told) -> list[Seen]:
    """What a fit sees of every counted time whose tapes are kept, near the factors `at`."""
    times = [case for case in cases if not case.unknown and case.row.step_s is not None]
    look = partial(_see, tapes, logarithms(at))
    seen: list[Seen] = []
    with ProcessPoolExecutor() as pool:
        for number, found in enumerate(pool.map(look, times), 1):
            told(f"{number} of {len(times)} rows looked at")
            seen += [found] if found is not None else []
    return seen


def _see(tapes: Path, at: Mapping[str, float], case: Case) -> Seen | None:
    return Predictor(tapes, None).seen(case, at)


def fit(cases: Sequence[Case], tapes: Path, told: Told) -> str:
    """Fit the factors of training to all counted times that are played; the text of their file.

    Slopes are taken at what is known, and once more at what they lead to. Raises UsageError where
    nothing is played.
    """
    at = training.factors()
    for _ in range(ROUNDS):
        seen = see_all(cases, tapes, at, told)
        if not seen:
            raise UsageError(f"--fit: {tapes} has no tape of a run that counts; play some first")
        at = fitted(seen, logarithms(at))
    sources = len({row.source for row in seen})
    said = f"{len(seen)} steps of {sources} sources, as offramp validate has them"
    return text(at, unseen(seen, logarithms(at)), said)


def scored(cases: Iterable[Case], results: Results) -> tuple[list[Scored], dict[str, str]]:
    """Measured against predicted, and what kept rows from being rehearsed, by their ids."""
    rows, failed = [], {}
    for case in cases:
        told = results.found.get(case.row.id)
        if told is None:
            continue
        if "error" in told:
            failed[case.row.id] = told["error"]
            continue
        rows.append(_scored(case, Prediction(**{k: v for k, v in told.items() if k != "id"})))
    return rows, failed


def _scored(case: Case, found: Prediction) -> Scored:
    row = case.row
    memory = row.memory_bytes
    if memory is not None:
        plain = found.allocated_bytes if row.memory_is_allocated else found.reserved_bytes
        spans = (memory, plain, plain, plain)
    else:
        assert row.step_s is not None
        spans, plain = (row.step_s, found.seconds, found.low, found.high), found.plain_s
    return Scored(
        row.id,
        row.source_title,
        row.chip,
        row.model,
        row.job,
        memory is not None,
        *spans,
        found.fits,
        not case.unknown,
        case.unknown,
        plain,
        {} if memory is not None else found.shares,
    )
