"""The operator of a module to blame, told from what each was given and gave in two runs.

It is the first that was called otherwise: another operator, another setting, or a tensor from
elsewhere; or one whose result is far further from float64's on its own inputs in one run than in
the other. Of several of these the first is named that is not small beside the largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from offramp.compare import formats, origins, replay
from offramp.compare.placing import FORWARD
from offramp.record.frames import Frame
from offramp.record.recording import Recording
from offramp.record.rows import EPSILONS, FORMATS

ABOVE = 8.0  # times the other run's error, or `ROOM` of the format's spacing
ROOM = {"float64": 2.0, "float32": 2.0}  # sums in another order
POINTWISE_ROOM = 1 / 4  # no sums: functions that are off by a unit in the last place
NARROW_ROOM = 1 / 32  # sums are wider than the format, and what is beyond its rounding is measured
ALIASES = ("aten.detach.default", "aten.alias.default", "aten.lift_fresh.default")  # no values
BESIDE = 0.1  # of the largest error: what is smaller comes of rounding


@dataclass(frozen=True)
class Named:
    """What the replay found.

    operator    its name; empty: none stands out
    text        what is different about it, or why nothing could be said
    errors      of each operator: name, error in the first run, in the second
    arithmetic  that explains its result; empty: none is known to
    """

    operator: str
    text: str
    errors: tuple[tuple[str, float, float], ...] = ()
    arithmetic: str = ""


@dataclass(frozen=True)
class Call:
    """An operator's call: its place in the pass, the frame it is in, what was told of it."""

    number: int
    frame: Frame
    told: Mapping[str, Any]
    origins: origins.Origins

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self.told["name"])

    @property
    def words(self) -> str:
        """Which it is, beside its name."""
        node = self.told.get("node")
        return f"operator {self.number}" + (f" of the backward pass (in {node})" if node else "")


@dataclass(frozen=True)
class _Off:
    """An operator that stands out, and in which run: the larger and the smaller error there."""

    call: Call
    is_second: bool
    errors: tuple[float, float]
    flushed: bool


def bisect(a: Recording, b: Recording, step: int, module: str, pass_name: str = FORWARD) -> Named:
    """Replay a module's operators of one pass of both runs."""
    found = [one.operators.get((step, module)) for one in (a, b)]
    for which, frame in zip(("first", "second"), found, strict=True):
        key = "operators" if pass_name == FORWARD else "backward"
        if frame is None or not frame.head.get(key):
            return Named(
                "",
                f"the {which} recording has no operators of {module} in step {step}, "
                f"{pass_name}; record both with --tensors {module!r} --steps {step}",
            )
    left, right = ([*_calls(frame, pass_name)] for frame in found if frame is not None)
    return _named(left, right)


def _calls(frame: Frame, pass_name: str) -> Iterator[Call]:
    forward = list(frame.head["operators"])
    whole = [*forward, *frame.head.get("backward", ())]
    begin, end = (0, len(forward)) if pass_name == FORWARD else (len(forward), len(whole))
    known = origins.origins(frame, whole)
    for place in range(begin, end):
        if whole[place]["name"] not in ALIASES:
            yield Call(place - begin, frame, whole[place], known[place])


def _named(left: Sequence[Call], right: Sequence[Call]) -> Named:
    errors: list[tuple[str, float, float]] = []
    off: list[_Off] = []
    x, y = ([call.name for call in calls] for calls in (left, right))
    aligned = SequenceMatcher(a=x, b=y, autojunk=False).get_opcodes()
    for tag, i, i_end, j, j_end in aligned:
        if tag != "equal":
            return _standing(off, errors) or _otherwise(left[i:i_end], right[j:j_end], errors)
        for one, other in zip(left[i:i_end], right[j:j_end], strict=True):
            said = _unlike(one, other)
            if said:
                return _standing(off, errors) or Named(one.name, said, tuple(errors))
            off += _off(one, other, errors)
    return _standing(off, errors) or Named(
        "", "none of its operators stands out from float64 on its own inputs", tuple(errors)
    )


def _otherwise(
    left: Sequence[Call], right: Sequence[Call], errors: Sequence[tuple[str, float, float]]
) -> Named:
    """Operators that are not the same ones in both; one of them may have none."""
    if left and right:
        said = f"{left[0].words}: {left[0].name} in the first, {right[0].name} in the second"
        return Named(left[0].name, said, tuple(errors))
    which, one = ("first", left[0]) if left else ("second", right[0])
    return Named(one.name, f"{one.words} is called in the {which} only", tuple(errors))


def _unlike(one: Call, other: Call) -> str:
    """How two calls of an operator differ, but for the values of their tensors."""
    x, y = (_settings(call.told) for call in (one, other))
    differing = [(p, q) for p, q in zip(x, y, strict=False) if p != q]
    if differing or len(x) != len(y):
        p, q = differing[0] if differing else (len(x), len(y))
        return f"{one.words}: {one.name} was given {p} in the first, {q} in the second"
    elsewhere = origins.unlike(one.origins, other.origins)
    return f"{one.words}: {one.name} was given {elsewhere}" if elsewhere else ""


def _settings(told: Mapping[str, Any]) -> list[Any]:
    whole = replay.flat([told["args"], list(told["kwargs"].values())])
    return [v for v in whole if not (isinstance(v, Mapping) and {"<tensor>", "<device>"} & {*v})]


def _off(one: Call, other: Call, errors: list[tuple[str, float, float]]) -> Iterator[_Off]:
    """Whether an operator stands out in one of the runs; its errors are added to `errors`."""
    pairs = list(
        zip(*(replay.results(call.frame, call.told) for call in (one, other)), strict=False)
    )
    found = [(x.error, y.error) for x, y in pairs]
    largest = max(found, key=max, default=(0.0, 0.0))
    errors.append((one.name, *largest))
    for (x, y), (p, q) in zip(found, pairs, strict=True):
        flushed = {p.is_flushed, q.is_flushed} == {True, False}
        if flushed or max(x, y) > ABOVE * max(min(x, y), _room(p.format, one.name)):
            is_second = bool(q.is_flushed) if flushed else y > x
            yield _Off(other if is_second else one, is_second, (max(x, y), min(x, y)), flushed)
            return


def _room(form: str, name: str) -> float:
    if form not in FORMATS:
        return 0.1
    room = ROOM.get(form, NARROW_ROOM)
    if replay.is_pointwise(name):
        room = min(room, POINTWISE_ROOM)
    return room * EPSILONS[FORMATS.index(form)]


def _standing(off: Sequence[_Off], errors: Sequence[tuple[str, float, float]]) -> Named | None:
    largest = max((one.errors[0] for one in off), default=0.0)
    for one in off:
        if one.errors[0] >= BESIDE * largest:
            where = "second" if one.is_second else "first"
            said = (
                f"{one.call.words} is off by {one.errors[0]:.2g} of its size in the {where}, by "
                f"{one.errors[1]:.2g} in the other, from float64 on its own inputs"
            )
            if one.flushed:
                said = f"{one.call.words} gives zeros for subnormal numbers in the {where} only"
            more = formats.explain(one.call.frame, one.call.told)
            said = f"{said}; {more.text}" if more.text else said
            return Named(one.call.name, said, tuple(errors), more.arithmetic)
    return None
