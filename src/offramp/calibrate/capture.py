"""The operators that a piece of PyTorch calls, as `offramp.costs` reads them from a tape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.costs.operation import Argument, Operation
from offramp.costs.operation import Tensor as Shape
from offramp.costs.operation import Tensors as Shapes


def operations(work: Callable[[], Any]) -> list[Operation]:
    """Every operator that `work` calls, in order, backward passes included."""
    listener = _Listener()
    with listener:
        work()
    return listener.found


class _Listener(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found.append(_describe(func, args, kwargs or {}, result))
        return result


def _describe(func: Any, args: Any, kwargs: Any, result: Any) -> Operation:
    inputs: list[Argument] = []
    values: dict[str, Any] = {}
    for place, argument in enumerate(func._schema.arguments):
        given = place < len(args)
        value = args[place] if given else kwargs.get(argument.name, argument.default_value)
        kind = str(argument.type)
        if isinstance(value, Tensor):
            inputs.append(_shape(value))
        elif isinstance(value, list | tuple) and "Tensor" in kind:
            inputs.append(_shapes([t for t in value if isinstance(t, Tensor)]))
        elif value is None and kind in ("Optional[Tensor]", "Tensor?"):
            inputs.append(None)
        elif isinstance(value, bool | int | float | str):
            values[argument.name] = value
        elif isinstance(value, list | tuple):
            values[argument.name] = list(value)
    name = str(func._schema.name) + _overload(func)
    return Operation(name, tuple(inputs), _outputs(func, args, result), values)


def _outputs(func: Any, args: Any, result: Any) -> tuple[Shape | Shapes, ...]:
    """What the call wrote: its results, or where it returns none the arguments it changes."""
    results = [result] if isinstance(result, Tensor) else list(result or [])
    if not results:
        arguments = zip(func._schema.arguments, args, strict=False)
        results = [a for s, a in arguments if s.alias_info is not None and s.alias_info.is_write]
    elif len(func._schema.returns) == 1 and isinstance(result, list | tuple):
        results = [results]
    shapes = (
        _shapes(list(r)) if isinstance(r, list | tuple) else _shape(r)
        for r in results
        if r is not None
    )
    return tuple(shapes)


def _overload(func: Any) -> str:
    name = func._schema.overload_name
    return f".{name}" if name else ""


def _shape(tensor: Tensor) -> Shape:
    return Shape(_dtype(tensor), tuple(tensor.shape), tuple(tensor.stride()))


def _shapes(tensors: list[Tensor]) -> Shapes:
    numel = sum(t.numel() for t in tensors)
    size = sum(t.numel() * t.element_size() for t in tensors)
    return Shapes(len(tensors), numel, _dtype(tensors[0]) if tensors else "", size)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
