"""`torch.cuda.FloatTensor` and its like, which a PyTorch without CUDA refuses to construct."""

from __future__ import annotations

from typing import Any

import torch

from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
}


class LegacyType(type):
    """The type of such a class: what it makes, and what is an instance of it."""

    dtype: torch.dtype
    is_cuda = True
    layout = torch.strided

    def __call__(cls, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Sizes give a tensor of that shape, without values; a sequence gives its values."""
        kwargs.setdefault("device", "cuda")
        if len(args) == 1 and isinstance(args[0], torch.Tensor):
            return args[0].to(dtype=cls.dtype, **kwargs)
        if len(args) == 1 and not isinstance(args[0], int | torch.Size):
            return torch.tensor(args[0], dtype=cls.dtype, **kwargs)
        sizes = args[0] if args and isinstance(args[0], torch.Size) else args or (0,)
        return torch.empty(sizes, dtype=cls.dtype, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, torch.Tensor) and (
            instance.is_cuda and instance.dtype == cls.dtype
        )


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Make the classes construct tensors, and the functions that take one accept them."""
    for name, dtype in _DTYPES.items():
        full = f"{name}Tensor"
        made = LegacyType(full, (), {"dtype": dtype, "__module__": "torch.cuda"})
        patches.set(torch.cuda, full, made)
    as_type = torch.Tensor.type
    set_default = torch.set_default_tensor_type

    def type_(self: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(dtype, LegacyType):
            dtype = f"torch.cuda.{dtype.__name__}"
        return as_type(self, dtype, *args, **kwargs)

    def set_default_tensor_type(t: Any) -> None:
        if isinstance(t, str) and t.startswith("torch.cuda."):
            t = getattr(torch.cuda, t.rpartition(".")[2])
        if isinstance(t, LegacyType):
            torch.set_default_dtype(t.dtype)
            torch.set_default_device("cuda")
        else:
            torch.set_default_device(None)
            set_default(t)

    type_.__name__ = "type"
    patches.set(torch.Tensor, "type", type_)
    patches.set(torch, "set_default_tensor_type", set_default_tensor_type)
