"""Checkpoints in a rehearsal stay in memory: they have no values, and files of real runs do."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch.utils._pytree import tree_map

from offramp.identity import imports
from offramp.identity.patches import Patches

SAID = "checkpoints that were not written"


def install(declare: Callable[[str], None], patches: Patches) -> None:
    """Keep what is saved to files, and give it back where it is loaded again.

    declare   is told each time that a file would have been written
    """
    keeper = _Keeper(declare)
    patches.set(torch, "save", keeper.saver(torch.save))
    patches.set(torch, "load", keeper.loader(torch.load))
    changes: dict[str, Callable[[Any], None]] = {
        "safetensors.torch": partial(keeper.change, patches, ("save_file", "save_model")),
    }
    distributed = "torch.distributed.checkpoint.state_dict_"
    changes[f"{distributed}saver"] = partial(keeper.change_distributed, patches, "save")
    changes[f"{distributed}loader"] = partial(keeper.change_distributed, patches, "load")
    imports.after(changes, patches)


@dataclass(frozen=True)
class _Empty:
    """A tensor of a chip, without its memory: a checkpoint holds none of the chip's."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, value: Any) -> Any:
        """Instead of a plain tensor of a chip; anything else stays as it is."""
        is_plain = type(value) in (torch.Tensor, torch.nn.Parameter)
        if not is_plain or not _is_chips(value) or value.layout is not torch.strided:
            return value
        return cls(value.shape, value.stride(), value.dtype, value.device)

    def tensor(self, place: Any) -> torch.Tensor:
        """A tensor like it, where `map_location` says if it names a device."""
        device = place if isinstance(place, str | torch.device) else self.device
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


class _Keeper:
    """What was saved, by the path it would have had."""

    def __init__(self, declare: Callable[[str], None]) -> None:
        self._declare = declare
        self._kept: dict[str, Any] = {}
        self._written: set[str] = set()  # by this program: it may replace them

    def _keep(self, path: Any, value: Any) -> None:
        self._kept[os.path.abspath(path)] = tree_map(_Empty.of, value)
        self._declare(SAID)

    def _has(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path) in self._kept

    def saver(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`torch.save`: objects with a chip's tensors, and what would replace a file, are kept."""

        @wraps(original)
        def save(obj: object, f: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(f, str | os.PathLike):
                return original(obj, f, *args, **kwargs)
            tensors = list(_tensors(obj))
            path = os.path.abspath(f)
            is_anothers = path not in self._written and os.path.exists(path)
            if any(map(_is_chips, tensors)) or (tensors and is_anothers):
                return self._keep(f, obj)
            self._written.add(path)
            return original(obj, f, *args, **kwargs)

        return save

    def loader(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`torch.load` of what was kept."""

        @wraps(original)
        def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
            if not self._has(f):
                return original(f, map_location, *args, **kwargs)
            kept = self._kept[os.path.abspath(f)]
            return tree_map(lambda x: x.tensor(map_location) if type(x) is _Empty else x, kept)

        return load

    def change(self, patches: Patches, names: tuple[str, ...], module: types.ModuleType) -> None:
        """Functions of a module that write their first argument to the file of their second."""

        def keep(value: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
            self._keep(filename, value)

        for name in names:
            patches.set(module, name, wraps(getattr(module, name))(keep))

    def change_distributed(self, patches: Patches, verb: str, module: Any) -> None:
        """`torch.distributed.checkpoint`: plans of ranks that are not there do not fit together."""

        def place(kwargs: Mapping[str, Any]) -> Any:
            storage = kwargs.get("storage_writer") or kwargs.get("storage_reader")
            return kwargs.get("checkpoint_id") or getattr(storage, "path", "checkpoint")

        if verb == "load":
            original = module.load

            @wraps(original)
            def load(state_dict: Any, **kwargs: Any) -> Any:
                return None if self._has(place(kwargs)) else original(state_dict, **kwargs)

            patches.set(module, "load", load)
            return

        @wraps(module.save)
        def save(state_dict: Any, **kwargs: Any) -> Any:
            self._keep(place(kwargs), None)
            return module.Metadata({})

        @wraps(module.async_save)
        def async_save(state_dict: Any, **kwargs: Any) -> Any:
            done: Future[Any] = Future()
            done.set_result(save(state_dict, **kwargs))
            return done

        patches.set(module, "save", save)
        patches.set(module, "async_save", async_save)


def _is_chips(tensor: torch.Tensor) -> bool:
    return tensor.device.type not in ("cpu", "meta")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in containers, modules and the attributes of other objects."""
    met: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in met:
            continue
        met.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, torch.nn.Module):
            waiting += one.state_dict().values()
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple | set):
            waiting += one
        elif hasattr(one, "__dict__") and not isinstance(one, type | types.ModuleType):
            waiting += vars(one).values()
