"""Steps of a program: from one end of the optimizer's step to the next, warm-up left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offramp.tape import kinds as k
from offramp.tape.play import Floats, Played
from offramp.tape.tape import Tape, TapeError


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of tapes that are played together.

    `ends[rank][i]` is the record that ends step `i` (from 0). Those from `first` on are measured.
    `is_stable` says that two of them in a row call the same. `is_whole`: there is no step without
    warm-up, so everything up to the last end (or the tape's) counts as one.
    """

    ends: list[list[int]]
    first: int
    is_stable: bool
    is_whole: bool

    @property
    def found(self) -> int:
        """How many steps ended, warm-up included."""
        return len(self.ends[0])

    @property
    def measured(self) -> int:
        """How many steps the figures are of."""
        return 1 if self.is_whole else self.found - self.first

    def bounds(self, played: Sequence[Played]) -> Floats:
        """The times between the measured steps, `measured + 1` of them, in seconds.

        A step of the job ends when all that was queued on the device has ended, on every rank.
        """
        whole = max(each.end_s for each in played)
        if not self.found:
            return np.array([0.0, whole])
        times = np.zeros(self.found)
        for each, ends in zip(played, self.ends, strict=True):
            at = {mark.record: mark.device_s for mark in each.marks}
            times = np.maximum(times, [at[record] for record in ends])
        return np.array([0.0, times[-1]]) if self.is_whole else times[self.first - 1 :]

    def records(self, place: int) -> tuple[int, int | None]:
        """The first record and the one after the last of the measured steps of one tape."""
        ends = self.ends[place]
        if not ends:
            return 0, None
        return (0 if self.is_whole else ends[self.first - 1] + 1), ends[-1] + 1


def find_steps(tapes: Sequence[Tape]) -> Steps:
    """The steps of `tapes`, which are played together.

    Left out as warm-up: the first, and those before two in a row call the same operators and
    collectives in the same order; where none do, only the first.
    """
    if not tapes:
        raise TapeError("there is no tape to find steps in")
    found = [step_ends(tape) for tape in tapes]
    count = min(map(len, found))
    ends = [each[:count] for each in found]
    if count < 2:
        return Steps(ends, 0, is_stable=False, is_whole=True)
    patterns = [_patterns(tape, each) for tape, each in zip(tapes, ends, strict=True)]
    steps = list(zip(*patterns, strict=True))
    same = [i for i in range(1, count - 1) if steps[i] == steps[i + 1]]
    return Steps(ends, same[0] if same else 1, is_stable=bool(same), is_whole=False)


def step_ends(tape: Tape) -> list[int]:
    """The records that end steps; several optimizers that step in a row end one step together.

    An optimizer that steps before anything was trained, to make its state, ends none. Without any
    optimizer's, steps are backward passes.
    """
    records = tape.records
    ends = _marked(tape, k.OPTIMIZER_MARK)
    if not len(ends):
        return [int(end) for end in _marked(tape, k.BACKWARD_MARK)]
    called = records["kind"] == k.OP
    passes = called & np.isin(records["phase"], (k.FORWARD, k.BACKWARD))
    if not passes.any():  # phases are not known: whatever is not the optimizer's
        passes = called & (records["phase"] != k.OPTIMIZER)
    worked = np.concatenate(([0], np.cumsum(passes)))[ends].tolist()
    following = [*worked, None][1:]
    found = zip(ends.tolist(), worked, following, strict=True)
    return [end for end, before, later in found if before and before != later]


def _marked(tape: Tape, title: str) -> npt.NDArray[np.intp]:
    """The records that end what has this name."""
    named = [i for i, name in enumerate(tape.names) if name == title]
    records = tape.records
    marks = (records["kind"] == k.MARK) & np.isin(records["what"], named) & (records["a"] == k.END)
    return np.flatnonzero(marks)


def _patterns(tape: Tape, ends: list[int]) -> list[str]:
    """What each step calls, as a digest."""
    known: dict[str, int] = {}
    shapes = [known.setdefault(_shape(text), len(known)) for text in tape.signatures]
    same = np.array([*shapes, 0], np.int64)
    called = np.isin(tape.records["kind"], (k.OP, k.COLLECTIVE))
    digests = []
    begin = 0
    for end in ends:
        part = tape.records[begin:end][called[begin:end]]
        columns: list[npt.NDArray[np.generic]] = [part["kind"], part["phase"], same[part["what"]]]
        data = b"".join(column.tobytes() for column in columns)
        digests.append(hashlib.sha256(data).hexdigest())
        begin = end + 1
    return digests


def _shape(text: str) -> str:
    """A signature without real numbers: a learning rate that moves makes no other step."""
    try:
        data = json.loads(text)
        values = data.get("values", {}).items()
        data["values"] = {name: value for name, value in values if not isinstance(value, float)}
    except (ValueError, AttributeError, TypeError):
        return text
    return json.dumps(data, sort_keys=True)
