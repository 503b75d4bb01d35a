"""What differs between two runs and is not the chip: program, data, seeds, weights, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from offramp.record.recording import Recording

MOST_NAMES = 3


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    what      program, weights, data, seed, random numbers, optimizer, formats, switch,
              environment, version
    excludes  whether results must differ for it: the chip cannot be judged from there on
    step      from which step on; -1: from the start
    """

    what: str
    text: str
    excludes: bool
    step: int = -1


def differences(a: Recording, b: Recording) -> list[Difference]:
    """All that differs and is not the chip, what excludes a judgement first, by step."""
    found = [
        *_program(a, b),
        *_weights(a, b),
        *_configuration(a, b),
        *_steps(a, b),
    ]
    return sorted(found, key=lambda d: (not d.excludes, d.step))


def _program(a: Recording, b: Recording) -> Iterator[Difference]:
    for what, left, right in (
        ("modules", a.kinds, b.kinds),
        ("parameters", _shapes(a), _shapes(b)),
    ):
        for title, names in (
            ("only in the first", sorted(set(left) - set(right))),
            ("only in the second", sorted(set(right) - set(left))),
            ("not alike", sorted(n for n in set(left) & set(right) if left[n] != right[n])),
        ):
            if names:
                said = f"{what} {title}: {_listed(names)}"
                if title == "not alike":
                    said += f" ({left[names[0]]} and {right[names[0]]})"
                yield Difference("program", said, True)


def _shapes(recording: Recording) -> dict[str, str]:
    return {n: f"{w['format']} of {w['shape']}" for n, w in recording.weights.items()}


def _weights(a: Recording, b: Recording) -> Iterator[Difference]:
    both = [n for n in a.weights if n in b.weights]
    moved = [n for n in both if a.weights[n]["checksum"] != b.weights[n]["checksum"]]
    if moved:
        said = f"initial weights: {len(moved)} of {len(both)} differ: {_listed(moved)}"
        is_noise = any(one.config["part"]["perturb"] >= 0 for one in (a, b))
        if is_noise:
            said += " (one was recorded with noise)"
        yield Difference("weights", said, not is_noise)


def _configuration(a: Recording, b: Recording) -> Iterator[Difference]:
    left, right = a.config, b.config
    for what, section in (
        ("seed", "seeds"),
        ("formats", "formats"),
        ("switch", "switches"),
        ("environment", "environment"),
        ("version", "versions"),
    ):
        for name, one, other in _unequal(left.get(section, {}), right.get(section, {})):
            if name == "OFFRAMP_CHIP" or (section == "seeds" and name == "device"):
                continue
            if name == "autocast_format" and not (left[section]["autocast"] or one == "unset"):
                continue  # of no effect
            yield Difference(what, f"{name}: {one} and {other}", what == "formats")
    if left.get("world") != right.get("world"):
        yield Difference("program", f"ranks: {left.get('world')} and {right.get('world')}", True)
    if left.get("command") != right.get("command"):
        yield Difference("version", f"command: {_said(left)} and {_said(right)}", False)
    for one, other in zip(a.optimizers, b.optimizers, strict=False):
        if one["class"] != other["class"]:
            yield Difference("optimizer", f"{one['class']} and {other['class']}", True)


def _said(config: Mapping[str, Any]) -> str:
    return " ".join(config.get("command", ()))


def _steps(a: Recording, b: Recording) -> Iterator[Difference]:
    """The first step at which each of these differs."""
    seen: set[str] = set()
    for one, other in zip(a.steps, b.steps, strict=False):
        for what, differs, said in (
            ("data", one.data != other.data, "integer inputs of the model"),
            (
                "random numbers",
                one.random != other.random,
                "state of PyTorch's generator on the host",
            ),
            ("optimizer", one.settings != other.settings, _settings(one, other)),
        ):
            if differs and what not in seen:
                seen.add(what)
                yield Difference(what, said, True, one.number)


def _settings(one: Any, other: Any) -> str:
    for left, right in zip(one.settings, other.settings, strict=False):
        for group, peer in zip(left["groups"], right["groups"], strict=False):
            for name, x, y in _unequal(group, peer):
                return f"{name}: {x} and {y}"
    return "number of optimizers or of their groups"


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*a, *b}):
        one, other = a.get(name, "unset"), b.get(name, "unset")
        if one != other:
            yield name, one, other


def _listed(names: list[str]) -> str:
    left = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {left} more" if left > 0 else "")
