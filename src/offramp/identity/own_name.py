"""CUDA's names on a device that PyTorch files under its maker's own name (`npu`, `musa`, ...).

The native part leads operators, guards and hooks of CUDA to the device, and lets `torch.device`
show one of the two names: the one that the program uses. Here is what decides that, and what
Python holds of `cuda` beyond device objects. Nothing asks whether the device is virtual.
See docs/own-name-chips.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch

from offramp.identity import own_module, own_package
from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

# The native core's Spelling.
PLAIN, UNDECIDED, CUDA, OWN = range(4)
# Driver functions that put something on a device, or choose one.
_PLACING = ("init", "setDevice", "exchangeDevice", "maybeExchangeDevice", "setStream")


class Naming:
    """Which of its two names the device has in this process; decided once, by the first use."""

    def __init__(self, runtime: Runtime) -> None:
        self.kind = runtime.kind
        self._runtime = runtime
        self._native = runtime.native

    def use_own(self) -> None:
        """The program says that it is written for the device's own name."""
        self._native.spell(OWN)

    def decide_own(self) -> None:
        self._native.decide(OWN)

    def decide_cuda(self) -> None:
        self._native.decide(CUDA)

    def decide_by(self, frame: FrameType | None) -> None:
        """A device was given that shows no name: a string or a number. Ask the calling code."""
        if self._native.spelling() == UNDECIDED:
            own = _mentions(self.kind, frame) and not _mentions("cuda", frame)
            self.decide_own() if own else self.decide_cuda()

    @property
    def undecided(self) -> bool:
        return bool(self._native.spelling() == UNDECIDED)

    @property
    def is_own(self) -> bool:
        return bool(self._native.spelling() == OWN)

    def device(self, given: Any = None) -> torch.device:
        """The device, as PyTorch files it, of an index, a name or a device object."""
        index = self.index(given)
        if index is not None and not isinstance(index, int):
            raise RuntimeError(f"Invalid device, must be cuda or {self.kind} device")
        chosen: torch.device = self._native.private_device(
            self._runtime.current_device() if index is None else index
        )
        return chosen

    def led(self, given: Any) -> torch.device:
        """Any device; called `cuda`, it is the device as PyTorch files it."""
        wanted = torch.device(given)
        if wanted.type not in ("cuda", self.kind):
            return wanted
        self.decide_cuda()
        return self.device(wanted)

    def index(self, given: Any) -> Any:
        """The index that a device or its name means; anything else as it is."""
        if isinstance(given, str):
            if given.partition(":")[0] not in ("cuda", self.kind):
                return given
            number = given.partition(":")[2]
            return int(number) if number else self._runtime.current_device()
        if isinstance(given, torch.device) and given.type in ("cuda", self.kind):
            return self._runtime.current_device() if given.index is None else given.index
        return given


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Make CUDA's and the device's own names lead to `runtime`; nothing where they are one."""
    if runtime.kind == "cuda":
        return
    naming = Naming(runtime)
    runtime.native.lead_cuda()
    runtime.native.spell(UNDECIDED)
    patches.on_undo(lambda: runtime.native.spell(PLAIN))
    _decide_by_driver(naming, patches)
    _install_devices(naming, patches)
    _install_storage(naming, patches)
    _install_autocast(runtime.kind, patches)
    _install_types(runtime.kind, naming, patches)
    _install_kernels(patches)
    own_module.install(naming, runtime, counts, patches)
    own_package.install(naming, counts, patches)


def _decide_by_driver(naming: Naming, patches: Patches) -> None:
    def deciding(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            naming.decide_cuda()
            return function(*args, **kwargs)

        return call

    for name in _PLACING:
        full = f"_cuda_{name}"
        patches.set(torch._C, full, deciding(getattr(torch._C, full)))


def _install_devices(naming: Naming, patches: Patches) -> None:
    """Functions that take or give devices: `torch.accelerator`, and indices in `torch.cuda`."""
    accelerator = torch._C._accelerator_getAccelerator

    def get_accelerator() -> torch.device | None:
        return torch.device("cuda") if naming.undecided else accelerator()

    patches.set(torch._C, "_accelerator_getAccelerator", get_accelerator)
    before = torch.cuda._utils._get_device_index

    def get_device_index(device: Any, optional: bool = False, allow_cpu: bool = False) -> int:
        index: int = before(naming.index(device), optional, allow_cpu)
        return index

    for name, module in list(sys.modules.items()):
        if name.startswith("torch.cuda") and vars(module).get("_get_device_index") is before:
            patches.set(module, "_get_device_index", get_device_index)


def _install_storage(naming: Naming, patches: Patches) -> None:
    """A storage is made by its allocator, without passing an operator."""
    make = torch.UntypedStorage.__new__

    def new(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is not None:
            kwargs["device"] = naming.led(device)
        return make(cls, *args, **kwargs)

    patches.set(torch.UntypedStorage, "__new__", staticmethod(new))


def _install_autocast(kind: str, patches: Patches) -> None:
    """PyTorch keeps autocast's state by device type, as a string: CUDA's is the device's."""

    def led(function: Callable[..., Any], takes: int) -> Callable[..., Any]:
        def call(*args: Any, device_type: str | None = None, **kwargs: Any) -> Any:
            if device_type is not None:
                args = (device_type, *args)
            if len(args) < takes:  # the old form, which means CUDA
                args = ("cuda", *args)
            name = kind if args[0] == "cuda" else args[0]
            return function(name, *args[1:], **kwargs)

        return call

    for name, takes in (("is", 1), ("set", 2)):
        full = f"{name}_autocast_enabled"
        patches.set(torch, full, led(getattr(torch, full), takes))
    for name, takes in (("get", 1), ("set", 2)):
        function = led(getattr(torch, f"{name}_autocast_dtype"), takes)
        patches.set(torch, f"{name}_autocast_dtype", function)
        patches.set(torch, f"{name}_autocast_gpu_dtype", function)
    available = led(torch._C._is_autocast_available, 1)
    patches.set(torch._C, "_is_autocast_available", available)


def _install_types(kind: str, naming: Naming, patches: Patches) -> None:
    """`tensor.type()`, whose answer names the device in a string."""
    before = torch.Tensor.type

    def type(self: Any, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is None:
            name = before(self)
            return name if naming.is_own else name.replace(f"torch.{kind}.", "torch.cuda.", 1)
        return before(self, dtype, non_blocking, **kwargs)

    patches.set(torch.Tensor, "type", type)
    pinned = torch.Tensor.is_pinned

    def is_pinned(self: Any, device: Any = None) -> bool:
        return pinned(self) if device is None else pinned(self, naming.led(device))

    patches.set(torch.Tensor, "is_pinned", is_pinned)


def _install_kernels(patches: Patches) -> None:
    """A program's own operator with a kernel for CUDA runs it on the device too."""
    before = torch.library.Library.impl
    own: list[torch.library.Library] = []

    def impl(self: Any, op_name: Any, fn: Any, dispatch_key: str = "", **kwargs: Any) -> None:
        before(self, op_name, fn, dispatch_key, **kwargs)
        key = dispatch_key or self.dispatch_key
        if key in ("CUDA", "AutogradCUDA") and not _is_torch_own(fn):
            # A library may be bound to its key, so this is another one, kept as long.
            own.append(torch.library.Library(self.ns, "IMPL"))
            before(own[-1], op_name, fn, key.replace("CUDA", "PrivateUse1"), **kwargs)

    patches.set(torch.library.Library, "impl", impl)


def _is_torch_own(function: Any) -> bool:
    """Whether a kernel is PyTorch's, for CUDA itself; one that it makes of a program's is not."""
    module = getattr(function, "__module__", None) or ""
    return module.startswith("torch.") and not module.startswith("torch._library")


def _mentions(kind: str, frame: FrameType | None) -> bool:
    """Whether the running code, or the command line, has `kind` as a device's name."""

    def named(values: Iterable[Any]) -> bool:
        return any(type(v) is str and v.partition(":")[0] == kind for v in values)

    if named(part for argument in sys.argv for part in argument.split("=")):
        return True
    while frame is not None:
        values = list(frame.f_locals.values())
        if not frame.f_globals.get("__name__", "").startswith("torch."):
            values += frame.f_code.co_consts
        if named(values):
            return True
        for value in values:
            if type(value) in (tuple, list) and named(value):
                return True
            held = value if type(value) is dict else getattr(value, "__dict__", None)
            if type(held) is dict and len(held) < 1000 and named(list(held.values())):
                return True
        frame = frame.f_back
    return False
