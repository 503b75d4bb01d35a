"""The played rank: a rehearsal in this process, from `import torch` to its last step."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from offramp.chips.cluster import Cluster
from offramp.launch.chip_time import ChipTime
from offramp.launch.letters import Letters
from offramp.launch.prices import ClusterPrices
from offramp.launch.record import write_json
from offramp.launch.session import Session
from offramp.tape.prices import PriceList
from offramp.tape.tape import Group, Tape, TapeWriter

VARIABLE = "OFFRAMP_REHEARSE"


@dataclass(frozen=True)
class Part:
    """What one process plays.

    rank, world     its place; every other rank is taken to do as it does
    tape            the file to write
    steps           optimizer steps after which the program is ended; 0: it ends by itself
    known_bytes     tensors up to this size are computed where their values are known
    kept            the share of elements that a mask of unknown values keeps
    nodes, per_node, cluster   what the chip's clock is for, as in `rehearse.plan`
    leads_time      whether Python's own clocks read the chip's
    letters         the folder for messages to other played ranks; empty: there are none
    """

    rank: int
    world: int
    tape: str
    steps: int = 4
    known_bytes: int = 1 << 20
    kept: float = 1.0
    nodes: int = 1
    per_node: int = 1
    cluster: str = ""
    leads_time: bool = False
    letters: str = ""

    def env(self) -> dict[str, str]:
        """The variable that makes a process play this part."""
        return {VARIABLE: json.dumps(asdict(self))}


class Enough(SystemExit):
    """Ends the program after its last step, through its own `finally` clauses."""


def take_part(env: Any = os.environ) -> Part | None:
    """The part that this process is to play, if any; processes that it starts play none."""
    given = env.pop(VARIABLE, None)
    return Part(**json.loads(given)) if given else None


class Player:
    """Rehearses in this process and keeps its tape."""

    def __init__(self, session: Session, part: Part) -> None:
        from offramp.device import rehearsal

        self._part, self._device = part, session.device
        self._steps = 0
        rehearsal.begin(session.device, known_bytes=part.known_bytes, kept=part.kept)
        session.identity.install_part(self._change_names)
        self._writer = TapeWriter(Path(part.tape), self._header())
        self._session = session
        self._recording = rehearsal.Recording(session.device, self._stepped)
        if part.letters:
            self._core.share_letters(part.letters)
        self._core.follow_clock(lambda event: self._time.event_s(event))
        if part.leads_time:
            self._time.lead_time(self._core.note_host)
        atexit.register(self.finish)

    def _change_names(self, patches: Any) -> None:
        from offramp.device import fused, rehearsal
        from offramp.identity import rehearsed

        rehearsed.install(self._core, fused.backend, rehearsal.declare, patches)

    @property
    def _core(self) -> Any:
        return self._device.native

    @cached_property
    def _time(self) -> ChipTime:
        """The chip's clock, from the first question for it on: most programs ask none."""
        self._save()
        prices = PriceList(ClusterPrices(self._device.chip, _cluster(self._session, self._part)))
        made = ChipTime(prices, self._part.rank, self._save)
        past = Tape.read(self._part.tape)
        made.take(past.signatures, past.groups, past.records.tobytes())
        return made

    def _header(self) -> Mapping[str, Any]:
        import torch

        chip = self._device.chip
        return {
            "chip": chip.name,
            "rank": self._part.rank,
            "world": self._part.world,
            "torch": torch.__version__,
            "capacity_bytes": self._device.memory_bytes,
            "shape_only": True,
            "virtual": True,
        }

    def _stepped(self, steps: int) -> None:
        self._steps = steps
        self._save()
        if self._part.steps and steps >= self._part.steps:
            raise Enough(0)

    def _save(self) -> None:
        reel, writer = self._recording.take(), self._writer
        if reel.signatures:
            writer.add_signatures(reel.signatures)
        if reel.names:
            writer.add_names(reel.names)
        groups = [Group(tuple(g["ranks"]), g["name"]) for g in reel.groups]
        if groups:
            writer.add_groups(groups)
        if reel.records:
            writer.add_records(reel.records)
        if "_time" in vars(self):
            self._time.take(reel.signatures, groups, reel.records)

    def finish(self) -> None:
        """Write what is left of the tape, and what had to be declared."""
        from offramp.device.rehearsal import declared_answers

        self._save()
        self._writer.close()
        note = {
            "steps": self._steps,
            "declared": declared_answers(self._device),
            "refused": {
                name: {"reason": reason, "count": count}
                for name, (reason, count) in self._device.operators_refused().items()
            },
        }
        write_json(Path(self._part.tape).with_suffix(".json"), note)
        if self._part.letters:
            Letters(Path(self._part.letters)).end(self._part.rank)


def _cluster(session: Session, part: Part) -> Cluster:
    if part.cluster:
        return Cluster.read(Path(part.cluster))
    if part.nodes * part.per_node >= part.world:
        return Cluster.of(session.choice.name, part.nodes, part.per_node)
    room = session.choice.chip.chips_per_node or 1  # nothing was said: full nodes
    return Cluster.of(session.choice.name, -(-part.world // room), room)


def begin(session: Session) -> None:
    """Play this process's part, where it has one."""
    part = take_part()
    if part is not None:
        Player(session, part)
        sys.stdout.flush()
