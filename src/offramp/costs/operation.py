"""One operator call by its signature: name, tensors' shapes and formats, other arguments."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from offramp.errors import UsageError

_ITEMSIZE: Mapping[str, int] = {
    "bool": 1,
    "float4_e2m1fn_x2": 1,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
}
_BITS = re.compile(r"[a-z]+?(\d+)(?:_|$)")


class OperationError(UsageError):
    """A signature that cannot be read; the message has what was given and what is expected."""


def itemsize(dtype: str) -> int:
    """Bytes of one element of a PyTorch dtype, as torch spells it. Raises OperationError."""
    if dtype in _ITEMSIZE:
        return _ITEMSIZE[dtype]
    match = _BITS.match(dtype)
    if match is None:
        raise OperationError(f"{dtype!r} is not a dtype; expected a name such as 'bfloat16'")
    return max(1, int(match.group(1)) // 8)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a call; `strides` are in elements."""

    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    @property
    def itemsize(self) -> int:
        return itemsize(self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of the elements that exist: a dimension of stride 0 counts once."""
        real = zip(self.sizes, self.strides, strict=True)
        return math.prod(s for s, step in real if step != 0 or s == 0) * self.itemsize


@dataclass(frozen=True, slots=True)
class Tensors:
    """A list of tensors, summed up; `dtype` is that of the first."""

    count: int
    numel: int
    dtype: str
    bytes: int


Argument: TypeAlias = Tensor | Tensors | None


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator call.

    `name` is `aten::mm` or `aten::_foreach_add_.List`. `inputs` are the tensor arguments in the
    order of the schema, None where not given; `outputs` are those written, in-place ones too;
    `values` are the other arguments by name.
    """

    name: str
    inputs: tuple[Argument, ...] = ()
    outputs: tuple[Tensor | Tensors, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def base(self) -> str:
        """The name without namespace `aten` and without overload: `_foreach_add_`."""
        return self.name.removeprefix("aten::").partition(".")[0]

    @property
    def overload(self) -> str:
        return self.name.partition(".")[2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The single tensors among the inputs, in order."""
        return tuple(item for item in self.inputs if isinstance(item, Tensor))

    def tensor(self, index: int) -> Tensor | None:
        """The input at `index`, if it is there and a single tensor."""
        item = self.inputs[index] if index < len(self.inputs) else None
        return item if isinstance(item, Tensor) else None

    @classmethod
    def parse(cls, text: str) -> Operation:
        """Read the JSON form: {"op": name, "in": [...], "out": [...], "values": {...}}.

        A tensor is [dtype, sizes, strides]; a list of them {count, numel, dtype, bytes}; null
        is an argument that was not given. Raises OperationError.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise OperationError(f"{text[:80]!r} is not JSON: {error}") from error
        if not isinstance(data, dict) or not isinstance(data.get("op"), str):
            raise OperationError(f"{text[:80]!r} has no operator; expected an object with 'op'")
        unknown = set(data) - {"op", "in", "out", "values"}
        if unknown:
            raise OperationError(f"{data['op']}: unknown keys {sorted(unknown)}")
        read = [[_argument(item, data["op"]) for item in data.get(k, [])] for k in ("in", "out")]
        written = tuple(item for item in read[1] if item is not None)
        return cls(data["op"], tuple(read[0]), written, data.get("values", {}))


def _argument(item: Any, op: str) -> Argument:
    if item is None:
        return None
    try:
        if isinstance(item, dict):
            return Tensors(item["count"], item["numel"], item["dtype"], item["bytes"])
        dtype, sizes, strides = item
        itemsize(dtype)
        if len(sizes) != len(strides):
            raise ValueError("sizes and strides differ in number")
        return Tensor(dtype, tuple(map(int, sizes)), tuple(map(int, strides)))
    except (KeyError, TypeError, ValueError) as error:
        expected = "expected [dtype, sizes, strides], {count, numel, dtype, bytes} or null"
        raise OperationError(
            f"{op}: cannot read the tensor {item!r} ({error}); {expected}"
        ) from error
