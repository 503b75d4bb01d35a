"""One comparison: recordings that are there, or made here, judged rank by rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from math import prod
from pathlib import Path

from offramp.compare import launching
from offramp.compare.judge import judge
from offramp.compare.kinds import multiplies
from offramp.compare.placing import BACKWARD, BETWEEN, EVERY, FORWARD
from offramp.compare.settings import differences
from offramp.compare.verdict import DIFFERENT, PRECISION, SAME, UNKNOWN, Place, Verdict
from offramp.errors import OfframpError, UsageError
from offramp.record.part import Part
from offramp.record.recording import Recording, read_ranks

HERE = "here"  # in place of a chip: what this machine has
MOST_REPLAYED = 2  # modules of each class that are replayed where none differs
STOPS = {"SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"}  # somebody wants no more of it
_ORDER = (DIFFERENT, PRECISION, UNKNOWN, SAME)


class NotRecordedError(OfframpError):
    """A program left no recording."""


@dataclass(frozen=True)
class Compared:
    """A verdict of all ranks: that of the rank where the runs part first.

    names  of the two recordings; rank: whose verdict it is; ranks: how many were judged
    """

    verdict: Verdict
    names: tuple[str, str]
    devices: tuple[str, str]
    rank: int
    ranks: int


def files(a: Path, b: Path, noisy: Sequence[Path], margin: float) -> Compared:
    """Compare two recordings. Raises UsageError where one cannot be read."""
    first, second = read_ranks(a), read_ranks(b)
    return judged(first, second, [read_ranks(path) for path in noisy], margin)


def judged(
    first: Sequence[Recording],
    second: Sequence[Recording],
    noisy: Sequence[Sequence[Recording]],
    margin: float,
) -> Compared:
    """Compare the recordings of all ranks of two runs, each with the same rank's.

    Raises UsageError where what is to be noise is not of the first's program, rank by rank.
    """
    for one in noisy:
        _check_noise(first, one)
    others = {recording.rank: recording for recording in second}
    noise = [{recording.rank: recording for recording in one} for one in noisy]
    found = []
    for a in first:
        if a.rank in others:
            of = [one[a.rank] for one in noise]
            found.append((judge(a, others[a.rank], of, margin), a.rank))
    verdict, rank = min(found, key=lambda f: (_ORDER.index(f[0].verdict), _step(f[0])))
    notes = [f"rank {of}: {note}" for one, of in found if of != rank for note in one.notes]
    verdict = replace(verdict, notes=(*verdict.notes, *notes))
    lone = sorted({recording.rank for recording in first} ^ set(others))
    if lone:
        said = f"recordings of {len(first)} and of {len(second)} ranks"
        missing = (*verdict.missing, f"rank {', '.join(map(str, lone))} in both recordings")
        verdict = replace(verdict, missing=missing)
        if verdict.verdict in (SAME, UNKNOWN):
            verdict = replace(verdict, verdict=UNKNOWN, kind=said)
    names = (str(first[0].path), str(second[0].path))
    return Compared(verdict, names, (_device(first[0]), _device(second[0])), rank, len(found))


def _check_noise(first: Sequence[Recording], noisy: Sequence[Recording]) -> None:
    path, of = noisy[0].path, first[0].path
    way_out = "record noise of the first recording's program with `offramp record --perturb SEED`"
    if [one.rank for one in noisy] != [one.rank for one in first]:
        raise UsageError(f"{path} is of {len(noisy)} ranks, {of} of {len(first)}; {way_out}")
    for one, base in zip(noisy, first, strict=True):
        if one.config["part"]["perturb"] < 0:
            raise UsageError(f"{one.path} was recorded without noise; {way_out}")
        other = [d.text for d in differences(base, one) if d.what == "program"]
        if other:
            raise UsageError(f"{one.path} is of another program than {of} ({other[0]}); {way_out}")


def _step(verdict: Verdict) -> int:
    return verdict.place.step if verdict.place else -1


def _device(recording: Recording) -> str:
    chip, device = recording.config["chip"], recording.config["machine"]["device"]
    return f"{device}, virtual" if chip else str(device)


def bisect(found: Compared, a: Path, b: Path) -> tuple[Compared, str]:
    """Which operator of the first module that differs is to blame, in words.

    And the comparison, whose verdict names the arithmetic where that explains the operator.
    """
    from offramp.compare import operators

    reason = not_replayed(found)
    if reason:
        return found, reason
    first, second = (_of_rank(path, found.rank) for path in (a, b))
    place = _of_a_module(found)
    if place is None:
        return _below_the_floor(found, first, second)
    named = operators.bisect(first, second, place.step, place.module, place.pass_name)
    if named.arithmetic:
        told = replace(found.verdict, verdict=PRECISION, kind=named.arithmetic)
        found = replace(found, verdict=told)
    return found, f"{named.operator}: {named.text}" if named.operator else named.text


def _of_rank(path: Path, rank: int) -> Recording:
    return next(one for one in read_ranks(path) if one.rank == rank)


def _below_the_floor(found: Compared, first: Recording, second: Recording) -> tuple[Compared, str]:
    """No module differs by more than noise before anything else does; an arithmetic that explains
    an operator's result in one run, on its own inputs, is another precision all the same.

    A verdict of a difference stays: there may be more than the arithmetic.
    """
    from offramp.compare import operators

    is_same = found.verdict.verdict == SAME
    none = "no module differs" if is_same else "the first difference is in no module's pass"
    both = [key for key in first.operators if key in second.operators]
    for step, module in both:
        named = operators.bisect(first, second, step, module)
        if named.arithmetic:
            text = f"{named.operator}: {named.text}"
            if not is_same:
                return found, f"{none}; within the noise, {module} differs all the same: {text}"
            place = Place(step, module, FORWARD, f"{named.operator}, within the noise floor")
            told = replace(found.verdict, verdict=PRECISION, kind=named.arithmetic, place=place)
            return replace(found, verdict=told), text
    if not both:
        return found, (
            f"{none}, and there is no module whose operators both recordings have; "
            "record both with --tensors MODULE --steps 0 to see whether one computes in another "
            "arithmetic within the noise floor"
        )
    modules = ", ".join(module for _, module in both)
    return found, f"{none}; replayed, so that no arithmetic stands out: {modules}"


def to_replay(found: Compared, a: Path) -> tuple[str, int]:
    """The modules whose operators tell more, as `--tensors` has them, and the step.

    Where none differs first, those of each class that sum the most products to a number.
    """
    place = _of_a_module(found)
    if place is not None:
        return place.module, place.step
    first = _of_rank(a, found.rank)
    depths: dict[str, dict[str, int]] = {}  # by class and module
    for name, weight in first.weights.items():
        module, shape = name.rpartition(".")[0], weight["shape"]
        kind = first.kinds.get(module, "")
        if multiplies(kind) and len(shape) > 1:
            known = depths.setdefault(kind, {})
            known[module] = max(known.get(module, 0), prod(shape[1:]))
    deepest = [
        m for known in depths.values() for m in nlargest(MOST_REPLAYED, known, known.__getitem__)
    ]
    return ",".join(deepest), 0


def not_replayed(found: Compared) -> str:
    """Why there is no operator to name; empty: there may be one."""
    place = found.verdict.place
    if found.verdict.verdict == SAME:
        return "" if found.verdict.worst else "nothing to replay: all are equal to the bit"
    if found.verdict.verdict == UNKNOWN or place is None or not found.verdict.is_chip:
        return "nothing to replay: no module differs"
    return "nothing is replayed: what was fed differs" if place.module == "data" else ""


def _of_a_module(found: Compared) -> Place | None:
    """Where the first difference is, if it is in the pass of a module."""
    place = found.verdict.place
    if place is None or place.pass_name not in (FORWARD, BACKWARD, BETWEEN):
        return None
    return None if place.module in ("", "loss", "data", EVERY) else place


def record(
    part: Part,
    chips: tuple[str, str],
    folder: Path,
    repeats: int,
    tell: Callable[[str], None],
    memory: str | None = None,
) -> tuple[Path, Path, list[Path]]:
    """Record a program on two chips, and `repeats` times on the first with noise.

    folder  gets a.rec, b.rec, noise-1.rec and so on

    Raises UsageError, and NotRecordedError where the program left nothing, or was stopped.
    """
    wanted = [("a.rec", chips[0], -1), ("b.rec", chips[1], -1)]
    wanted += [(f"noise-{seed}.rec", chips[0], seed) for seed in range(1, repeats + 1)]
    plans = []
    for name, chip, seed in wanted:
        one = replace(part, out=str(folder / name), perturb=seed)
        run = folder / f"{name}-run"  # of `offramp train`: each its own
        plans.append(launching.plan(one, None if chip == HERE else chip, memory, run))
    paths = [Path(plan.part.out) for plan in plans]
    for place, plan in enumerate(plans):
        _, chip, seed = wanted[place]
        noise = f", with noise {seed}" if seed >= 0 else ""
        tell(f"recording on {chip}{noise} ({place + 1} of {len(plans)})")
        ending = launching.execute(plan)
        if ending.signal in STOPS:
            raise NotRecordedError(f"stopped by {ending.signal} while {chip} was recorded")
        status = ending.exit_status
        if not paths[place].exists():
            raise NotRecordedError(
                f"the program left no recording on {chip} (exit status {status}); it must train "
                "with PyTorch's modules, `backward` and an optimizer"
            )
        if status:
            tell(f"the program ended with status {status}; what it recorded is compared")
    return paths[0], paths[1], paths[2:]
