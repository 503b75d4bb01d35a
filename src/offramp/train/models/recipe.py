"""What a model's own initialization does to each of its tensors, recorded without memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.train.models.build import Config, Model, build, need_transformers

# In-place operations that draw or set values; the numbers are the defaults of their arguments.
SETTERS: Mapping[str, tuple[float, ...]] = {
    "normal_": (0.0, 1.0),
    "uniform_": (0.0, 1.0),
    "trunc_normal_": (0.0, 1.0, -2.0, 2.0),
    "fill_": (),
}
# Those that go over values element by element.
ELEMENTWISE = ("erfinv_", "mul_", "add_", "sub_", "div_", "clamp_", "neg_", "exp_", "log_")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Step:
    """One operation on the elements start to start + count of a tensor, in memory order.

    values: its numbers, such as mean and deviation. An operation that is neither in SETTERS nor in
    ELEMENTWISE is UNKNOWN, with its name in `note`.
    """

    op: str
    start: int
    count: int
    values: tuple[float | None, ...] = ()
    note: str = ""


Recipe = tuple[Step, ...]


@dataclass(frozen=True)
class Recipes:
    """Recipes by name. names: each tied name to the one under which its values are drawn."""

    of: Mapping[str, Recipe]
    shapes: Mapping[str, tuple[int, ...]]
    names: Mapping[str, str]


def record(config: Config) -> Recipes:
    """The recipes of all parameters and persistent buffers of the model of a configuration.

    transformers' own initialization runs over a model on the meta device, and a dispatch mode
    notes what it does; values that a class sets when it is constructed are noted as well.
    """
    need_transformers()
    from transformers import initialization

    recorder = Recorder()
    # PyTorch skips truncated normals on the meta device and draws them by rejection elsewhere.
    truncated = {"trunc_normal_": recorder.note_truncated}
    with patch.dict(initialization.TORCH_INIT_FUNCTIONS, truncated), recorder:
        # Tied before, the head's values would go over those of the table (and its padding row).
        with initialization.no_tie_weights():
            twin = build(config)
        twin.initialize_weights()
        twin.tie_weights()
    return _collect(twin, recorder)


def _collect(twin: Model, recorder: Recorder) -> Recipes:
    kept = set(twin.state_dict())
    tensors = [*twin.named_parameters(remove_duplicate=False), *twin.named_buffers()]
    first: dict[int, str] = {}
    of: dict[str, Recipe] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    names: dict[str, str] = {}
    for name, tensor in tensors:
        if name not in kept:
            continue
        names[name] = first.setdefault(id(tensor), name)
        if names[name] == name:
            of[name] = _shortened(recorder.of(tensor), tensor.numel())
            shapes[name] = tuple(tensor.shape)
    return Recipes(of, shapes, names)


def _shortened(steps: Sequence[Step], count: int) -> Recipe:
    """Without what a later operation overwrites."""
    for place in range(len(steps) - 1, -1, -1):
        if steps[place].op in SETTERS and steps[place].count == count:
            return tuple(steps[place:])
    return tuple(steps)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class Recorder(TorchDispatchMode):
    """Notes, by storage, the operations that write tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: dict[int, list[Step]] = {}

    def of(self, tensor: torch.Tensor) -> Recipe:
        """The operations on the storage of a tensor, in order."""
        return tuple(self._steps.get(_storage(tensor), ()))

    def note_truncated(
        self,
        tensor: torch.Tensor,
        mean: float = 0.0,
        std: float = 1.0,
        a: float = -2.0,
        b: float = 2.0,
        generator: Any = None,
    ) -> torch.Tensor:
        """Stands for torch.nn.init.trunc_normal_."""
        self._note(_step("trunc_normal_", tensor, (mean, std, a, b)), tensor)
        return tensor

    def _note(self, step: Step, tensor: torch.Tensor) -> None:
        self._steps.setdefault(_storage(tensor), []).append(step)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        written = [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and isinstance(value, torch.Tensor)
        ]
        for tensor in written:
            self._note(_step(name, tensor, args[1:]), tensor)
        if not written:
            self._note_new(name, args, out)
        return out

    def _note_new(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        given = {_storage(value) for value in args if isinstance(value, torch.Tensor)}
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and _storage(tensor) not in given:
                # The allocator may give a new storage the address of one that is gone.
                self._steps[_storage(tensor)] = _made(name, tensor, args)


def _made(name: str, tensor: torch.Tensor, args: tuple[Any, ...]) -> list[Step]:
    if "empty" in name:
        return []
    value = 0.0 if "zeros" in name else 1.0 if "ones" in name else None
    if "full" in name and isinstance(args[-1], int | float):
        value = float(args[-1])
    if value is None:
        return [Step(UNKNOWN, 0, tensor.numel(), note=name)]
    return [Step("fill_", 0, tensor.numel(), (value,))]


def _step(name: str, tensor: torch.Tensor, rest: tuple[Any, ...]) -> Step:
    start, count = int(tensor.storage_offset()), int(tensor.numel())
    numbers = all(value is None or isinstance(value, int | float) for value in rest)
    name = "fill_" if name == "zero_" else name
    if not tensor.is_contiguous() or not numbers or name not in (*SETTERS, *ELEMENTWISE):
        return Step(UNKNOWN, start, count, note=name)
    values = tuple(None if value is None else float(value) for value in rest)
    if name == "fill_" and not values:
        values = (0.0,)
    return Step(name, start, count, (*values, *SETTERS.get(name, ())[len(values) :]))
