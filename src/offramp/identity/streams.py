"""The bases of `torch.cuda.Stream` and `torch.cuda.Event`, over PyTorch's generic ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from offramp.identity.runtime import Runtime


class StreamBase(torch.Stream):
    """What `torch._C._CudaStreamBase` is in a CUDA build."""

    _priority: int
    _device: ClassVar[Callable[[int | None], torch.device]]

    def __new__(
        cls,
        priority: int = 0,
        stream_id: int = 0,
        device_index: int = 0,
        device_type: int = 0,
        stream_ptr: int | None = None,
    ) -> Any:
        if stream_ptr is not None:
            like = torch.accelerator.current_stream(torch.cuda.current_device())
            return super().__new__(
                cls,
                stream_id=stream_ptr,
                device_index=like.device_index,
                device_type=like.device_type,
            )
        if device_type:
            return super().__new__(
                cls, stream_id=stream_id, device_index=device_index, device_type=device_type
            )
        torch.cuda._lazy_init()
        made = super().__new__(cls, device=cls._device(None))
        made._priority = max(min(priority, 0), -5)
        return made

    @property
    def cuda_stream(self) -> int:
        return self.stream_id

    @property
    def priority(self) -> int:
        return getattr(self, "_priority", 0)

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """Lowest and highest, as CUDA numbers them."""
        return 0, -5


class EventBase(torch.Event):
    """What `torch._C._CudaEventBase` is in a CUDA build."""

    _device: ClassVar[Callable[[int | None], torch.device]]
    _elapsed_ms: ClassVar[Callable[[int, int], float]]

    def __new__(
        cls,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
    ) -> Any:
        torch.cuda._lazy_init()
        return super().__new__(
            cls,
            device=cls._device(None),
            enable_timing=enable_timing,
            blocking=blocking,
            interprocess=interprocess,
        )

    @property
    def cuda_event(self) -> int:
        return self.event_id

    def elapsed_time(self, end_event: torch.Event) -> float:
        """Milliseconds from this event to `end_event`; torch.Event's own takes no subclass."""
        return type(self)._elapsed_ms(self.event_id, end_event.event_id)


def stream_base(runtime: Runtime) -> type[StreamBase]:
    """A StreamBase of `runtime`'s devices."""
    return type("_CudaStreamBase", (StreamBase,), {"_device": staticmethod(runtime.device)})


def event_base(runtime: Runtime) -> type[EventBase]:
    """An EventBase of `runtime`'s devices and clock."""
    parts = {
        "_device": staticmethod(runtime.device),
        "_elapsed_ms": staticmethod(runtime.elapsed_ms),
    }
    return type("_CudaEventBase", (EventBase,), parts)
