"""What a run tells while it goes on. Whoever shows it decides how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True)
class Began(Event):
    """The run is set up: `facts` are label and text, in reading order."""

    facts: tuple[tuple[str, str], ...]
    step: int


@dataclass(frozen=True)
class Prepared(Event):
    """Part of a long preparation is done."""

    what: str
    done: int
    total: int | None = None


@dataclass(frozen=True)
class Stepped(Event):
    """One optimizer step; `total` is None while it is not known."""

    step: int
    total: int | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated(Event):
    """The loss on held-out text, in nats a token."""

    step: int
    loss: float


@dataclass(frozen=True)
class Sampled(Event):
    """Texts that the model wrote: (prompt, continuation)."""

    step: int
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint is complete."""

    step: int
    path: str


@dataclass(frozen=True)
class Warned(Event):
    """Something that a person should know."""

    text: str


@dataclass(frozen=True)
class Ended(Event):
    """The run is over; `summary` is what run's summary.json holds."""

    summary: Mapping[str, Any]


Tell = Callable[[Event], None]
