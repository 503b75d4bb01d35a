"""What a comparison found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from offramp.compare.curves import Curves
from offramp.compare.settings import Difference

SAME, PRECISION, DIFFERENT, UNKNOWN = "same", "different precision", "different", "unknown"


@dataclass(frozen=True)
class Place:
    """Where two runs part.

    step        the first step; -1: not known
    module      its name as the model has it; `loss`, `data` or `optimizer` beside modules
    pass_name   forward, backward, between backward and optimizer, optimizer, or start
    tensor      what of it is the first to differ, in words
    others      modules that it may be as well
    """

    step: int
    module: str
    pass_name: str
    tensor: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModuleRow:
    """One module in the step that is judged: errors over the noise floor, forward and backward."""

    name: str
    kind: str
    forward_error: float
    forward_times: float
    backward_error: float
    backward_times: float


@dataclass(frozen=True)
class Verdict:
    """The verdict and what it rests on.

    kind        what kind of difference, in words; empty: none
    error       relative, of the tensor at the place; times: over the noise floor
    judged      tensors and steps that were judged; worst: largest error over the floor
    floor       what the noise floor rests on, in words
    missing     what would be needed to say more
    """

    verdict: str
    kind: str = ""
    place: Place | None = None
    error: float = 0.0
    times: float = 0.0
    judged: int = 0
    steps: int = 0
    worst: float = 0.0
    floor: str = ""
    is_chip: bool = True
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    curves: Curves | None = None
    modules: tuple[ModuleRow, ...] = ()
    losses: Mapping[str, list[float]] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """The verdict as JSON has it."""
        return dict(_finite(asdict(self)))


def _finite(value: Any) -> Any:
    """JSON knows no infinity: a string stands for it."""
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
