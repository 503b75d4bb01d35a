"""The few methods of `torch.UntypedStorage` that PyTorch compiles for a fixed list of devices.

A build without CUDA refuses a storage of `cuda` in its constructor and in `resize_`, which FSDP
frees memory with. These do the same through the native core. Other devices pass through.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch


def install(kind: str, core: ModuleType) -> None:
    """Teach `torch.UntypedStorage` the device `kind`."""
    storage_class: Any = torch.UntypedStorage
    make, resize = storage_class.__new__, storage_class.resize_

    def new(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None or torch.device(device).type != kind:
            named = {} if device is None else {"device": device}
            return make(cls, *args, **named, **kwargs)
        host = make(cls, *args, **kwargs)
        memory = torch.empty(host.nbytes(), dtype=torch.uint8, device=device).untyped_storage()
        if args and not isinstance(args[0], int):
            memory.copy_(host)
        return memory

    def resize_(self: Any, size: int) -> Any:
        if self.device.type != kind:
            return resize(self, size)
        core.resize_storage(self._cdata, size)
        return self

    storage_class.__new__ = staticmethod(new)
    storage_class.resize_ = resize_
