"""Several devices in one process: the functions that `torch.nn.parallel` has in C++ for CUDA.

DataParallel, `torch.nn.parallel.comm` and `torch.cuda.nccl` are PyTorch's own code above these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime

Tensors = Sequence[torch.Tensor]


def install(runtime: Runtime, patches: Patches) -> None:
    """Give `torch._C` what a CUDA build has for copies between the devices of one process."""
    for name, function in Copies(runtime).functions().items():
        patches.set(torch._C, name, function)


class Copies:
    """The functions, for devices of one kind."""

    def __init__(self, runtime: Runtime) -> None:
        self._device = runtime.device

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Name in `torch._C` to function."""
        return {
            "_broadcast": self.broadcast,
            "_broadcast_out": broadcast_out,
            "_broadcast_coalesced": self.broadcast_coalesced,
            "_scatter": self.scatter,
            "_scatter_out": scatter_out,
            "_gather": self.gather,
            "_gather_out": gather_out,
            "_nccl_all_reduce": all_reduce,
            "_nccl_reduce": reduce,
            "_nccl_broadcast": broadcast_in_place,
            "_nccl_all_gather": all_gather,
            "_nccl_reduce_scatter": reduce_scatter,
        }

    def broadcast(self, tensor: torch.Tensor, indices: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Copies of `tensor` on the devices `indices`; the first is `tensor` if it is there."""
        if tensor.device.type != "cpu" and tensor.get_device() != indices[0]:
            raise RuntimeError("Expected first device to be the tensor's device")
        return tuple(tensor.to(self._device(index)) for index in indices)

    def broadcast_coalesced(
        self, tensors: Tensors, indices: Sequence[int], buffer_size: int
    ) -> list[list[torch.Tensor]]:
        """A list a device, in the order of `tensors`; the first list holds `tensors` themselves."""
        if any(t.get_device() != indices[0] for t in tensors):
            raise RuntimeError("all tensors must be on devices[0]: " + str(indices[0]))
        return [
            list(tensors) if place == 0 else [t.detach().to(self._device(index)) for t in tensors]
            for place, index in enumerate(indices)
        ]

    def scatter(
        self,
        tensor: torch.Tensor,
        indices: Sequence[int],
        sizes: Sequence[int] | None = None,
        dim: int = 0,
        streams: object = None,
    ) -> tuple[torch.Tensor, ...]:
        """Parts of `tensor` along `dim`, one a device."""
        parts = tensor.split(list(sizes), dim) if sizes else tensor.chunk(len(indices), dim)
        return tuple(
            part.to(self._device(index)) for part, index in zip(parts, indices, strict=False)
        )

    def gather(self, tensors: Tensors, dim: int, destination: int | None = None) -> torch.Tensor:
        """`tensors` joined along `dim` on device `destination`, -1 for the CPU."""
        here = torch.device("cpu") if destination == -1 else self._device(destination)
        return torch.cat([tensor.to(here) for tensor in tensors], dim)


def broadcast_out(tensor: torch.Tensor, outputs: Tensors) -> tuple[torch.Tensor, ...]:
    for output in outputs:
        output.copy_(tensor)
    return tuple(outputs)


def scatter_out(
    tensor: torch.Tensor, outputs: Tensors, dim: int = 0, streams: object = None
) -> tuple[torch.Tensor, ...]:
    lengths = [output.size(dim) for output in outputs]
    if sum(lengths) != tensor.size(dim):
        raise RuntimeError(
            f"Total size for output tensors along scatter dim {dim} does not match the input's: "
            f"{sum(lengths)} and {tensor.size(dim)}"
        )
    for output, part in zip(outputs, tensor.split(lengths, dim), strict=True):
        output.copy_(part)
    return tuple(outputs)


def gather_out(tensors: Tensors, output: torch.Tensor, dim: int) -> torch.Tensor:
    return output.copy_(torch.cat([tensor.to(output.device) for tensor in tensors], dim))


# The numbers of NCCL's reductions, ncclRedOp_t in nccl.h.
_REDUCTIONS: dict[int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    0: torch.add,
    1: torch.mul,
    2: torch.maximum,
    3: torch.minimum,
}


def _reduced(inputs: Tensors, op: int) -> torch.Tensor:
    if op not in _REDUCTIONS and op != 4:
        raise RuntimeError(f"ncclRedOp_t {op} is not one of 0 to 4")
    total = inputs[0].clone()
    for tensor in inputs[1:]:
        total = _REDUCTIONS.get(op, torch.add)(total, tensor.to(total.device))
    return total / len(inputs) if op == 4 else total


def all_reduce(inputs: Tensors, outputs: Tensors, op: int, *rest: object) -> None:
    broadcast_out(_reduced(inputs, op), outputs)


def reduce(inputs: Tensors, output: torch.Tensor, root: int, op: int, *rest: object) -> None:
    output.copy_(_reduced(inputs, op))


def broadcast_in_place(inputs: Tensors, root: int, *rest: object) -> None:
    broadcast_out(inputs[root], inputs)


def all_gather(inputs: Tensors, outputs: Tensors, *rest: object) -> None:
    for output in outputs:
        output.copy_(torch.cat([x.flatten().to(output.device) for x in inputs]).view_as(output))


def reduce_scatter(inputs: Tensors, outputs: Tensors, op: int, *rest: object) -> None:
    parts = _reduced(inputs, op).flatten().chunk(len(outputs))
    for output, part in zip(outputs, parts, strict=True):
        output.copy_(part.view_as(output))
