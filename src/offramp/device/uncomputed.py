"""Numbers that a rehearsal hands to the program: they count as 1 and print as what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

TEXT = "not computed"


class Uncomputed(float):
    """A number that was not computed. What is computed from it was not, either."""

    def __repr__(self) -> str:
        return TEXT

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return TEXT

    def __round__(self, digits: Any = None) -> Any:
        return self


def _passing_on(name: str) -> Callable[..., Any]:
    plain = getattr(float, name)

    def operator(self: Uncomputed, *others: Any) -> Any:
        value = plain(self, *others)
        return Uncomputed(value) if isinstance(value, float) else value

    return operator


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _side in ("", "r"):
        setattr(Uncomputed, f"__{_side}{_name}__", _passing_on(f"__{_side}{_name}__"))
for _name in ("neg", "pos", "abs"):
    setattr(Uncomputed, f"__{_name}__", _passing_on(f"__{_name}__"))


def install(is_known: Callable[[int], bool], kind: str) -> None:
    """Let `Tensor.item` give such numbers for values of the device `kind` that are not there.

    is_known   whether the storage at an address (`UntypedStorage._cdata`) holds values
    """
    plain = torch.Tensor.item

    def item(self: torch.Tensor) -> Any:
        value = plain(self)
        if type(value) is not float or self.device.type != kind:
            return value
        return value if is_known(self.untyped_storage()._cdata) else Uncomputed(value)

    torch.Tensor.item = item  # type: ignore[method-assign, assignment]
