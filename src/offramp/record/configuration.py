"""What a program ran with: versions, seeds, formats, switches of precision, its model's weights."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from offramp import __version__
from offramp.record import sampling
from offramp.record.part import Part

CHECKED_ELEMENTS = 1 << 20  # of a weight; above, so many of them evenly spread
# Variables of PyTorch and its libraries that change results; chips' own come with the part.
VARIABLES = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OFFRAMP_CHIP",
    "OFFRAMP_ARITH",
)


def configuration(part: Part, rank: int, world: int) -> dict[str, Any]:
    """What is known before the first step; plain values that JSON holds."""
    kind = torch.accelerator.current_accelerator()
    names = {*VARIABLES, *part.variables}
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "offramp": __version__,
        },
        "machine": {
            "host": platform.node(),
            "processor": platform.machine(),
            "device": _device_name(kind),
            "kind": kind.type if kind else "cpu",
        },
        "chip": os.environ.get("OFFRAMP_CHIP", "").partition(":")[0],
        "seeds": _seeds(),
        "formats": {"default": str(torch.get_default_dtype()).removeprefix("torch.")},
        "switches": switches(kind.type if kind else "cpu"),
        "environment": {n: os.environ[n] for n in sorted(names) if n in os.environ},
        "command": list(part.command) or list(sys.argv),
        "rank": rank,
        "world": world,
        "part": {
            "first": part.first,
            "every": part.every,
            "sample": part.sample,
            "perturb": part.perturb,
        },
    }


def switches(kind: str) -> dict[str, Any]:
    """PyTorch's switches of precision and determinism, those that this build has."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    asked = {
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "matmul_allow_tf32": lambda: cuda.allow_tf32,
        "convolution_allow_tf32": lambda: cudnn.allow_tf32,
        "fp16_reduced_precision_reduction": lambda: cuda.allow_fp16_reduced_precision_reduction,
        "bf16_reduced_precision_reduction": lambda: cuda.allow_bf16_reduced_precision_reduction,
        "cudnn_deterministic": lambda: cudnn.deterministic,
        "cudnn_benchmark": lambda: cudnn.benchmark,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
        "autocast": lambda: torch.is_autocast_enabled(kind),
        "autocast_format": lambda: str(torch.get_autocast_dtype(kind)).removeprefix("torch."),
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except (RuntimeError, AttributeError):  # a build without that library, or a mixed setting
            found[name] = None
    return found


def model(root: nn.Module, prefix: str) -> dict[str, Any]:
    """Modules with their classes, and weights with shape, format and checksum."""
    kinds = {prefix + path: type(module).__name__ for path, module in root.named_modules()}
    return {
        "root": prefix,
        "kinds": kinds,
        "parameters": [_weight(prefix + n, p) for n, p in root.named_parameters()],
        "buffers": [_weight(prefix + n, b) for n, b in root.named_buffers()],
    }


def _weight(name: str, tensor: Tensor) -> dict[str, Any]:
    local = sampling.plain(tensor)
    return {
        "name": name,
        "shape": list(tensor.shape),
        "format": str(tensor.dtype).removeprefix("torch."),
        "checksum": "" if local is None else digest([local], CHECKED_ELEMENTS),
    }


def optimizer(found: Any) -> dict[str, Any]:
    """The class and the settings of an optimizer's groups."""
    groups = [
        {name: _word(value) for name, value in group.items() if name != "params"}
        for group in found.param_groups
    ]
    return {"class": type(found).__name__, "groups": groups}


def digest(tensors: Iterable[Tensor], limit: int) -> str:
    """A checksum of the tensors' elements, or of at most `limit` of each, as they are stored."""
    whole = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.reshape(-1)[:: sampling.stride(tensor.numel(), limit)].contiguous().cpu()
        whole.update(flat.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _word(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else f"tensor of {value.numel()}"
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_word(item) for item in value]
    return type(value).__name__


def _seeds() -> Mapping[str, Any]:
    found: dict[str, Any] = {"torch": torch.initial_seed()}
    kind = torch.accelerator.current_accelerator()
    if kind is not None:
        module = torch.get_device_module(kind)
        if hasattr(module, "initial_seed"):
            found["device"] = module.initial_seed()
    return found


def _device_name(kind: torch.device | None) -> str:
    if kind is None:
        return platform.processor() or platform.machine()
    module = torch.get_device_module(kind)
    try:
        return str(module.get_device_name())
    except (AttributeError, RuntimeError):
        return kind.type
