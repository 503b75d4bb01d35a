"""Tensors of the chip sent to other processes, as `torch.multiprocessing` sends those of CUDA.

The receiver, on the same machine, sees the sender's memory. The sender keeps a storage until
every receiver has let go of it (`collect`, or the next send, looks), and must live
until it was received.
"""

from __future__ import annotations

import os
import struct
from types import ModuleType
from typing import Any

import torch

_HANDLE = struct.Struct("<qiq")  # process, file, offset
_COUNTERS = struct.Struct("<qi")  # process, file


class Sharing:
    """What this process has shared and not yet seen released."""

    def __init__(self, kind: str, core: ModuleType) -> None:
        self._kind = kind
        self._core = core
        self._kept: dict[int, Any] = {}  # counter to the storage that is kept for it
        self._next = 0

    def collect(self) -> None:
        """Let go of what no receiver holds any more."""
        for counter in [c for c in self._kept if self._core.read_counter(c) <= 0]:
            del self._kept[counter]

    def share(self, storage: Any) -> tuple[Any, ...]:
        """`UntypedStorage._share_cuda_`: what `_new_shared_cuda` takes in the other process."""
        self.collect()
        if not storage.nbytes():
            return storage.device.index, None, 0, 0, b"", 0, b"", False
        file, offset = self._core.share_storage(storage._cdata)
        counter = self._free_counter()
        self._core.set_counter(counter, 1)
        self._kept[counter] = storage
        handle = _HANDLE.pack(os.getpid(), file, offset)
        counters = _COUNTERS.pack(os.getpid(), self._core.counter_file())
        return storage.device.index, handle, storage.nbytes(), 0, counters, counter, b"", False

    def receive(self, device: int, handle: bytes, size: int, counters: bytes, counter: int) -> Any:
        """A storage of `size` bytes on the memory that another process shared."""
        process, file, start = _HANDLE.unpack(handle)
        share = self._core.Share(process, file, start, size, _COUNTERS.unpack(counters)[1], counter)
        place = torch.device(self._kind, device)
        storage = torch.empty(0, dtype=torch.uint8, device=place).untyped_storage()
        self._core.receive_storage(storage._cdata, share)
        return storage

    def release(self, counters: bytes, counter: int) -> None:
        """The sender need not keep the storage for this message: this process has it already."""
        process, file = _COUNTERS.unpack(counters)
        self._core.Share(process, 0, 0, 0, file, counter).release()

    def _free_counter(self) -> int:
        counters: int = self._core.COUNTERS
        for step in range(counters):
            counter = (self._next + step) % counters
            if counter not in self._kept:
                self._next = counter + 1
                return counter
        raise RuntimeError(
            f"{len(self._kept)} tensors are shared with other processes at a time and none was "
            "released; receive them, or send fewer"
        )


def install(kind: str, core: ModuleType) -> Sharing:
    """Teach `torch.UntypedStorage` to share memory of the device `kind`."""
    sharing = Sharing(kind, core)
    storage_class: Any = torch.UntypedStorage

    def new_shared(device: int, handle: bytes, size: int, offset: int, *rest: Any) -> Any:
        return sharing.receive(device, handle, size, *rest[:2])

    def release(counters: bytes, counter: int, *, device: Any = None) -> None:
        sharing.release(counters, counter)

    storage_class._share_cuda_ = lambda self, *args: sharing.share(self)
    storage_class._new_shared_cuda = staticmethod(new_shared)
    storage_class._release_ipc_counter_cuda = staticmethod(release)
    return sharing
