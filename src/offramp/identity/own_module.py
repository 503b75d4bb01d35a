"""`torch.npu`, `torch.musa`, ...: the device's module, over the same code as `torch.cuda`."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from offramp.identity import tally
from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

if TYPE_CHECKING:
    from offramp.identity.own_name import Naming

# Asked before a program has chosen its device; they do not tell which name it is written for.
_PASSIVE = frozenset(
    {
        *("is_available", "device_count", "is_initialized", "is_bf16_supported"),
        *("manual_seed", "manual_seed_all", "seed", "seed_all", "get_allocator_backend"),
    }
)
_CUDA = "torch.cuda."


def install(naming: Naming, runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Put `torch.<kind>` in place, and the methods of tensors and modules that go with it."""
    kind = naming.kind
    module: Any = types.ModuleType(f"torch.{kind}", f"PyTorch's device module for `{kind}`.")
    _add_functions(module, naming, counts)
    _add_classes(module, naming)
    _add_streams(module, naming)
    _add_amp(module, kind)
    _add_private(module, naming, runtime)
    _add_ignored(module, kind, counts)
    module.memory = module.random = module.utils = module
    patches.set(torch, kind, module)
    patches.item(sys.modules, module.__name__, module)
    patches.item(sys.modules, module.amp.__name__, module.amp)
    _add_methods(naming, patches)


def _add_functions(module: Any, naming: Naming, counts: Tally) -> None:
    """Every plain function of the table, taking the device's own names as well."""
    for name, entry in tally.table().items():
        leaf = name.removeprefix(_CUDA)
        if entry.answer == "refused" or leaf == name or "." in leaf:
            continue
        function = getattr(torch.cuda, leaf, None)
        if isinstance(function, types.FunctionType):
            setattr(module, leaf, _led(module, leaf, function, naming, counts))


def _led(
    module: Any, leaf: str, counted: Callable[..., Any], naming: Naming, counts: Tally
) -> Callable[..., Any]:
    function = getattr(counted, "__wrapped__", counted)
    own = f"{module.__name__}.{leaf}"

    def call(*args: Any, **kwargs: Any) -> Any:
        if not tally.asked_by_torch(sys._getframe(1)):
            counts.met(own, like=_CUDA + leaf)
        if leaf not in _PASSIVE:
            naming.decide_own()
        named = {key: naming.index(value) for key, value in kwargs.items()}
        return function(*map(naming.index, args), **named)

    call.__name__ = call.__qualname__ = leaf
    call.__module__, call.__doc__ = module.__name__, function.__doc__
    return call


def _add_classes(module: Any, naming: Naming) -> None:
    class device(torch.cuda.device):  # noqa: N801 -- PyTorch's spelling
        """Context in which the given device is the current one."""

        def __init__(self, device: Any) -> None:
            naming.decide_own()
            super().__init__(naming.index(device))

    class device_of(device):  # noqa: N801
        """Context in which a tensor's device is the current one."""

        def __init__(self, obj: Any) -> None:
            super().__init__(obj.get_device())

    kind = naming.kind
    for made in (device, device_of):
        made.__module__ = module.__name__
        setattr(module, made.__name__, made)
    module.OutOfMemoryError = torch.OutOfMemoryError
    module.AcceleratorError = torch.AcceleratorError
    module.StreamContext = torch.cuda.StreamContext

    def read(name: str) -> Any:
        if name == "default_generators":
            module._lazy_init()
            return torch.cuda.default_generators
        raise AttributeError(f"module 'torch.{kind}' has no attribute {name!r}")

    module.__getattr__ = read


def _add_streams(module: Any, naming: Naming) -> None:
    kind = naming.kind

    class Stream(torch.cuda.Stream):
        """A queue of work of the device."""

        def __new__(cls, device: Any = None, priority: int = 0, **kwargs: Any) -> Any:
            naming.decide_own()
            return super().__new__(cls, naming.index(device), priority, **kwargs)

        def __repr__(self) -> str:
            return f"<torch.{kind}.Stream device={self.device} {kind}_stream={self.stream_id:#x}>"

    class Event(torch.cuda.Event):
        """A mark in a stream."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            naming.decide_own()
            return super().__new__(cls, *args, **kwargs)

        def __repr__(self) -> str:
            return f"<torch.{kind}.Event {self.event_id:#x}>"

    setattr(Stream, f"{kind}_stream", property(lambda self: self.stream_id))
    setattr(Event, f"{kind}_event", property(lambda self: self.event_id))
    for made in (Stream, Event):
        made.__module__ = module.__name__
        setattr(module, made.__name__, made)

    def own_stream(read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(read)
        def call(device: Any = None) -> Any:
            found = read(device)
            return Stream(
                stream_id=found.stream_id,
                device_index=found.device_index,
                device_type=found.device_type,
            )

        return call

    module.current_stream = own_stream(module.current_stream)
    module.default_stream = own_stream(module.default_stream)


def _add_amp(module: Any, kind: str) -> None:
    amp: Any = types.ModuleType(f"torch.{kind}.amp")
    amp.autocast_mode = amp.grad_scaler = amp

    class autocast(torch.amp.autocast_mode.autocast):  # noqa: N801
        """Mixed precision on the device."""

        def __init__(self, enabled: bool = True, dtype: Any = None, **kwargs: Any) -> None:
            super().__init__(kind, enabled=enabled, dtype=dtype, **kwargs)

    class GradScaler(torch.amp.GradScaler):
        """Loss scaling on the device."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(kwargs.pop("device", kind), *args, **kwargs)

    for made in (autocast, GradScaler):
        made.__module__ = amp.__name__
        setattr(amp, made.__name__, made)
    amp.custom_fwd = functools.partial(torch.amp.custom_fwd, device_type=kind)
    amp.custom_bwd = functools.partial(torch.amp.custom_bwd, device_type=kind)
    module.amp = amp


def _add_private(module: Any, naming: Naming, runtime: Runtime) -> None:
    """What PyTorch itself looks up on a device's module."""

    def lazy_init() -> None:
        naming.decide_by(sys._getframe(1))
        torch.cuda._lazy_init()

    module._lazy_init = lazy_init
    module._is_in_bad_fork = runtime.in_forked_child
    module._lazy_call = torch.cuda._lazy_call
    module._get_device_index = torch.cuda._utils._get_device_index
    module._exchange_device = torch._C._cuda_exchangeDevice
    module._maybe_exchange_device = torch._C._cuda_maybeExchangeDevice
    formats = (torch.float16, torch.bfloat16, torch.float32)
    absent = runtime.chip.absent_formats
    supported = [dtype for dtype in formats if str(dtype).removeprefix("torch.") not in absent]
    module.get_amp_supported_dtype = lambda: supported


def _add_ignored(module: Any, kind: str, counts: Tally) -> None:
    """Settings that only a maker's own kernels read."""

    def setting(name: str, why: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            counts.answered_by_default(f"torch.{kind}.{name}", "kept, without effect", why)

        return call

    for name, why in tally.settings(kind).items():
        setattr(module, name, setting(name, why))
    module.config = types.SimpleNamespace()


def _add_methods(naming: Naming, patches: Patches) -> None:
    """`tensor.npu()`, `module.npu()`, `tensor.is_npu` and their like."""
    kind = naming.kind

    def to_own(self: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        naming.decide_own()
        return self.to(naming.device(device), non_blocking=non_blocking, **kwargs)

    def to_cuda(self: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        naming.decide_cuda()
        return self.to(naming.device(device), non_blocking=non_blocking, **kwargs)

    def module_to_own(self: Any, device: Any = None) -> Any:
        return self._apply(lambda tensor: to_own(tensor, device))

    def storage_to_own(self: Any, device: Any = None, non_blocking: bool = False) -> Any:
        naming.decide_own()
        return torch._utils._to(self, naming.device(device), non_blocking)

    owners: list[tuple[Any, Callable[..., Any]]] = [
        (torch.Tensor, to_own),
        (torch.nn.Module, module_to_own),
        (torch.nn.utils.rnn.PackedSequence, to_own),
        (torch.storage._StorageBase, storage_to_own),
    ]
    for owner, method in owners:
        patches.set(owner, kind, method)
    patches.set(torch.Tensor, "cuda", to_cuda)  # PyTorch's own takes no index of another device
    data = property(lambda self: self.data.device.type == kind)
    own = property(lambda self: self.device.type == kind)
    patches.set(torch.Tensor, f"is_{kind}", own)
    patches.set(torch.storage._StorageBase, f"is_{kind}", own)
    patches.set(torch.nn.utils.rnn.PackedSequence, f"is_{kind}", data)
