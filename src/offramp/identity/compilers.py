"""`torch.compile` on a chip: what is asked, what is done, and a record of the difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

NAME = "torch.compile"
# Backends that generate kernels for CUDA. TorchDynamo's graphs run by PyTorch's own operators
# instead; its guards, graph breaks and errors are those of a CUDA machine.
_GENERATES_KERNELS = frozenset({"inductor", "cudagraphs", "tensorrt", "torch_tensorrt", "tvm"})

stand_in: Any = "eager"  # the backend that is used in place of theirs


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Make `torch.compile` capture graphs and run them operator by operator."""
    original = torch.compile
    why = f"Triton has no code generator for {runtime.chip.name} here; the graph's operators run"

    def compile(model: Any = None, **asked: Any) -> Any:
        if model is None:
            return lambda function: compile(function, **asked)
        counts.met(NAME)
        backend = asked.get("backend", "inductor")
        if asked.get("disable") or backend not in _GENERATES_KERNELS:
            did = "eager" if asked.get("disable") or backend == "eager" else "its own backend's"
            counts.compiled[_spelled(asked), did, "as asked"] += 1
            return original(model, **asked)
        counts.compiled[_spelled(asked), "graph-captured", why] += 1
        kept = {key: asked[key] for key in ("fullgraph", "dynamic") if key in asked}
        if stand_in != "eager":  # it needs shapes that are numbers: one graph for each
            kept["dynamic"] = False
        return original(model, backend=stand_in, **kept)

    patches.set(torch, "compile", _like(original, compile))


def _spelled(asked: dict[str, Any]) -> str:
    backend = asked.get("backend", "inductor")
    name = backend if isinstance(backend, str) else getattr(backend, "__name__", "a callable")
    return f"{name}, mode={asked['mode']}" if asked.get("mode") else name


def _like(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    replacement.__doc__ = original.__doc__
    replacement.__module__ = original.__module__
    return replacement
