"""What is really behind a PyTorch device: several makers answer to the name `cuda`.

Signs come from the chip files. Nothing here imports PyTorch: the caller gives the device's name,
and may replace how the machine is probed.
"""

from __future__ import annotations

import fnmatch
import glob
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from offramp.chips.catalogue import Chip, load, names
from offramp.chips.facts import Detection


def _find_spec(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _exists(pattern: str) -> bool:
    return bool(glob.glob(pattern))


@dataclass(frozen=True)
class Probes:
    """How to look at a machine. `exists` takes a glob pattern."""

    env: Mapping[str, str] = field(default_factory=lambda: os.environ)
    find_spec: Callable[[str], bool] = _find_spec
    exists: Callable[[str], bool] = _exists
    which: Callable[[str], str | None] = shutil.which

    def sees(self, sign: Detection, device_name: str | None) -> bool:
        """Whether the sign is there."""
        if sign.kind == "env":
            return bool(self.env.get(sign.value))
        if sign.kind == "module":
            return self.find_spec(sign.value)
        if sign.kind == "path":
            return self.exists(sign.value)
        if sign.kind == "command":
            return self.which(sign.value) is not None
        return device_name is not None and fnmatch.fnmatchcase(device_name, sign.value)


@dataclass(frozen=True)
class Identification:
    """`chip` is set only when the signs leave one; `candidates` are all that they allow.

    `vendors` are the makers that the signs speak for, also when the chip is not in the catalogue.
    """

    chip: str | None
    candidates: tuple[str, ...]
    vendors: tuple[str, ...]
    evidence: tuple[Detection, ...]
    why: str


def identify(device_name: str | None, probes: Probes | None = None) -> Identification:
    """Tell which chip is behind a device that PyTorch calls `device_name` (None: no device).

    The name decides, unless files or packages of another maker, whose chips pose as the same
    device type, say otherwise. Without a name that the catalogue has, the signs name the maker,
    and the chip only if it is the maker's one chip that such a name does not exclude.
    """
    machine = probes or Probes()
    signs: dict[str, tuple[Detection, ...]] = {}
    for name in names():
        rules = load(name).presentation.detect
        signs[name] = tuple(rule for rule in rules if machine.sees(rule, device_name))
    named = _best_named(signs)
    if named:
        return _judge_named(named, signs)
    found = {name: seen for name, seen in signs.items() if seen}
    fitting = [n for n in found if device_name is None or not _knows_its_name(load(n))]
    evidence = _evidence(found)
    vendors = tuple(sorted({load(name).vendor for name in found}))
    if not found:
        return Identification(None, (), (), (), "nothing here points to a chip of the catalogue")
    if len(fitting) == 1:
        return Identification(fitting[0], (fitting[0],), vendors, evidence, _say(evidence))
    why = f"{_say(evidence)}; this does not tell which of {' or '.join(vendors)}'s chips it is"
    return Identification(None, tuple(fitting), vendors, evidence, why)


def _judge_named(named: list[str], signs: Mapping[str, tuple[Detection, ...]]) -> Identification:
    kinds = {load(name).presentation.device_type for name in named}
    vendors = {load(name).vendor for name in named}
    doubts = {
        name: tuple(sign for sign in seen if sign.kind in ("module", "path"))
        for name, seen in signs.items()
        if load(name).vendor not in vendors and load(name).presentation.device_type in kinds
    }
    doubts = {name: seen for name, seen in doubts.items() if seen}
    own = _evidence({name: signs[name] for name in named})
    if doubts:
        other = _evidence(doubts)
        both = tuple(sorted(vendors | {load(name).vendor for name in doubts}))
        why = f"{_say(own)}, but {_say(other)}: one of them poses as the other"
        return Identification(None, (*named, *doubts), both, (*own, *other), why)
    chip = named[0] if len(named) == 1 else None
    return Identification(chip, tuple(named), tuple(sorted(vendors)), own, _say(own))


def _best_named(signs: Mapping[str, tuple[Detection, ...]]) -> list[str]:
    """The chips whose name rule matches the longest part of the device's name."""
    length = {
        name: max((len(sign.value) for sign in seen if sign.kind == "device_name"), default=0)
        for name, seen in signs.items()
    }
    best = max(length.values())
    return [name for name, size in length.items() if size == best > 0]


def _knows_its_name(chip: Chip) -> bool:
    return any(rule.kind == "device_name" for rule in chip.presentation.detect)


def _evidence(found: Mapping[str, tuple[Detection, ...]]) -> tuple[Detection, ...]:
    return tuple(dict.fromkeys(sign for seen in found.values() for sign in seen))


def _say(evidence: tuple[Detection, ...]) -> str:
    words = {
        "env": "{} is set",
        "device_name": "the device is called {}",
        "module": "the package {} is installed",
        "path": "{} exists",
        "command": "{} is on the path",
    }
    return ", ".join(words[sign.kind].format(sign.value) for sign in evidence)
