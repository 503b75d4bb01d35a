"""Runs one operator of PyTorch's OpInfo database on the virtual chip and on the CPU, and compares.

What is compared: values, formats, shapes, strides, which inputs a result shares memory with, what
became of the inputs, gradients, the in-place and `out=` variants, and the kind of error where the
CPU refuses a sample.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

CHIP = torch.device("cuda", 0)
SEED = 20251


class DifferenceError(AssertionError):
    """The virtual chip did something else than the CPU."""


@dataclass
class Outcome:
    """What became of one operator in one format: `verdict` is passed, refused, failed or none.

    `none` means that the CPU itself runs no sample of it.
    """

    samples: int = 0
    variants: int = 0
    rounded: int = 0  # comparisons that were equal to rounding, not to the bit
    failures: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.failures:
            return "failed"
        if self.refusals:
            return "refused"
        return "passed" if self.variants else "none"

    @property
    def reason(self) -> str:
        return next(iter(self.failures or self.refusals), "")


def to_chip(tree: Any) -> Any:
    """The same arguments on the chip: memory layout, shared memory and lazy bits are kept."""
    storages: dict[int, torch.UntypedStorage] = {}

    def move(leaf: Any) -> Any:
        if isinstance(leaf, torch.device) and leaf.type == "cpu":
            return CHIP
        if isinstance(leaf, str) and leaf == "cpu":
            return "cuda"
        if not isinstance(leaf, torch.Tensor) or leaf.device.type != "cpu":
            return leaf
        moved = leaf.detach().to(CHIP) if is_special(leaf) else strided(leaf)
        moved.requires_grad_(leaf.requires_grad)
        return torch.nn.Parameter(moved) if isinstance(leaf, torch.nn.Parameter) else moved

    def strided(leaf: torch.Tensor) -> torch.Tensor:
        memory = leaf.untyped_storage()
        if memory._cdata not in storages:
            storages[memory._cdata] = torch.UntypedStorage(memory.nbytes(), device=CHIP)
            storages[memory._cdata].copy_(memory)
        moved = torch.empty(0, dtype=leaf.dtype, device=CHIP)
        with torch.no_grad():
            moved.set_(storages[memory._cdata], leaf.storage_offset(), leaf.size(), leaf.stride())
        if leaf.is_conj():
            moved = moved.conj()
        return torch._neg_view(moved) if leaf.is_neg() else moved

    return tree_map(move, tree)


def copied(tree: Any) -> Any:
    """The arguments again, in fresh memory of the CPU, laid out alike."""
    storages: dict[int, torch.UntypedStorage] = {}

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if is_special(leaf):
            again = leaf.detach().clone()
        else:
            memory = leaf.untyped_storage()
            again = torch.empty(0, dtype=leaf.dtype)
            if memory._cdata not in storages:
                storages[memory._cdata] = memory.clone()
            with torch.no_grad():
                again.set_(
                    storages[memory._cdata], leaf.storage_offset(), leaf.size(), leaf.stride()
                )
            if leaf.is_conj():
                again = again.conj()
            if leaf.is_neg():
                again = torch._neg_view(again)
        again.requires_grad_(leaf.requires_grad)
        return torch.nn.Parameter(again) if isinstance(leaf, torch.nn.Parameter) else again

    return tree_map(copy, tree)


def is_special(tensor: torch.Tensor) -> bool:
    """Has it no single strided memory (sparse, nested)?"""
    return tensor.layout is not torch.strided or tensor.is_nested


def tensors_of(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def compare(chip: Any, host: Any, outcome: Outcome, what: str, *, values: bool = True) -> None:
    """Raise DifferenceError unless the two trees hold the same."""
    ours, shape = tree_flatten(chip)
    theirs, expected = tree_flatten(host)
    if len(ours) != len(theirs) or str(shape) != str(expected):
        raise DifferenceError(f"{what}: structure {shape} instead of {expected}")
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(other, torch.Tensor):
            compare_tensors(mine, other, outcome, what, values)
        elif isinstance(other, float) and other != other:
            if mine == mine:
                raise DifferenceError(f"{what}: {mine} instead of nan")
        elif isinstance(other, torch.device):
            if mine.type != CHIP.type:
                raise DifferenceError(f"{what}: {mine} instead of {CHIP}")
        elif mine != other and values:
            raise DifferenceError(f"{what}: {mine!r} instead of {other!r}")


def compare_tensors(
    chip: Any, host: torch.Tensor, outcome: Outcome, what: str, values: bool
) -> None:
    if not isinstance(chip, torch.Tensor) or chip.device.type != CHIP.type:
        raise DifferenceError(f"{what}: not on the chip but {getattr(chip, 'device', type(chip))}")
    for name in ("dtype", "layout", "requires_grad", "is_nested"):
        if getattr(chip, name) != getattr(host, name):
            raise DifferenceError(
                f"{what}: {name} {getattr(chip, name)} instead of {getattr(host, name)}"
            )
    if host.is_nested:
        compare(list(chip.unbind()), list(host.unbind()), outcome, what, values=values)
        return
    if chip.shape != host.shape:
        raise DifferenceError(f"{what}: shape {tuple(chip.shape)} instead of {tuple(host.shape)}")
    if host.layout is torch.strided and chip.stride() != host.stride():
        raise DifferenceError(f"{what}: strides {chip.stride()} instead of {host.stride()}")
    if not values:
        return
    mine, other = chip.detach().cpu(), host.detach()
    if host.layout is not torch.strided:
        mine, other = mine.to_dense(), other.to_dense()
    if same_bits(mine, other):
        return
    outcome.rounded += 1
    try:
        torch.testing.assert_close(mine, other, equal_nan=True)
    except AssertionError as error:
        raise DifferenceError(f"{what}: {' '.join(str(error).split())}") from None


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.resolve_conj().resolve_neg()
        return torch.empty(plain.numel(), dtype=plain.dtype).copy_(plain.reshape(-1))

    return torch.equal(bits(a).view(torch.uint8), bits(b).view(torch.uint8))


def sharing(results: Any, inputs: Any) -> list[int]:
    """For each result tensor the position of the first input with the same memory, or -1."""
    owners: dict[int, int] = {}
    for position, tensor in enumerate(tensors_of(inputs)):
        if not is_special(tensor):
            owners.setdefault(tensor.untyped_storage()._cdata, position)
    return [
        owners.get(tensor.untyped_storage()._cdata, -1)
        for tensor in tensors_of(results)
        if not is_special(tensor)
    ]


@dataclass
class Examiner:
    """Compares operators on the chip whose default generator is `generator`."""

    generator: torch.Generator
    uninitialized: frozenset[str] = frozenset()  # their values are nobody's promise
    on_the_host: frozenset[str] = frozenset()  # their further arguments stay on the CPU

    def examine(self, op: Any, dtype: torch.dtype, limit: int) -> Outcome:
        """Compare the first `limit` samples of one operator in one format."""
        outcome = Outcome()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            differentiable = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
            for sample in self.samples(op, dtype, differentiable, limit):
                outcome.samples += 1
                for check in (self.forward, self.in_place, self.with_out):
                    try:
                        check(op, sample, differentiable, outcome)
                    except DifferenceError as difference:
                        outcome.failures.append(f"{difference} [sample {outcome.samples - 1}]")
        return outcome

    def samples(self, op: Any, dtype: torch.dtype, grad: bool, limit: int) -> Iterator[Any]:
        torch.manual_seed(SEED)
        if op.name.startswith("_foreach"):
            made = op.sample_inputs_func(op, "cpu", dtype, grad)
        else:
            made = op.sample_inputs("cpu", dtype, requires_grad=grad)
        try:
            yield from itertools.islice(made, limit)
        except (RuntimeError, ValueError, NotImplementedError):
            return  # the database itself cannot make the sample on this machine's CPU

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any, chip: bool) -> Any:
        """The result, or the exception that it raised."""
        torch.manual_seed(SEED)
        self.generator.manual_seed(SEED)
        made: AbstractContextManager[Any] = nullcontext()
        if chip and not tensors_of((args, kwargs)) and "device" not in kwargs:
            made = CHIP
        try:
            with made:
                return function(*args, **kwargs)
        except Exception as error:
            return error

    def both(
        self,
        function: Callable[..., Any],
        sample: tuple[Any, Any],
        outcome: Outcome,
        what: str,
        *,
        host_arguments: bool = False,
    ) -> tuple[Any, Any, Any, Any] | None:
        """Results and arguments of host and chip; None when neither or a refusing chip ran."""
        host_args, host_kwargs = copied(sample)
        chip_args, chip_kwargs = to_chip(sample)
        if host_arguments:
            chip_args = (chip_args[0], *copied(sample[0][1:]))
        host = self.call(function, host_args, host_kwargs, chip=False)
        chip = self.call(function, chip_args, chip_kwargs, chip=True)
        if isinstance(host, Exception):
            if not isinstance(chip, Exception):
                raise DifferenceError(f"{what}: no error where the CPU has {brief(host)}")
            if not isinstance(chip, type(host)) and not isinstance(host, NotImplementedError):
                raise DifferenceError(f"{what}: {brief(chip)} where the CPU has {brief(host)}")
            return None
        if isinstance(chip, NotImplementedError) and "(virtual)" in str(chip):
            outcome.refusals.append(brief(chip))
            return None
        if isinstance(chip, Exception):
            raise DifferenceError(f"{what}: {brief(chip)}")
        return chip, host, (chip_args, chip_kwargs), (host_args, host_kwargs)

    def forward(self, op: Any, sample: Any, differentiable: bool, outcome: Outcome) -> None:
        arguments = ((sample.input, *sample.args), sample.kwargs)
        ran = self.both(
            op.op, arguments, outcome, "forward", host_arguments=op.name in self.on_the_host
        )
        if ran is None:
            return
        chip, host, chip_inputs, host_inputs = ran
        outcome.variants += 1
        defined = op.name not in self.uninitialized
        compare(chip, host, outcome, "forward", values=defined)
        if op.name not in self.on_the_host:
            after = tensors_of(chip_inputs), tensors_of(host_inputs)
            compare(*after, outcome, "input after", values=defined)
        if sharing(chip, chip_inputs) != sharing(host, host_inputs):
            raise DifferenceError("forward: results share memory with other inputs than on the CPU")
        if differentiable and defined:
            finish = sample.output_process_fn_grad or (lambda result: result)
            self.gradient(finish(chip), chip_inputs, finish(host), host_inputs, outcome)

    def gradient(
        self, chip: Any, chip_inputs: Any, host: Any, host_inputs: Any, outcome: Outcome
    ) -> None:
        def gradients(results: Any, inputs: Any, seeds: list[torch.Tensor]) -> Any:
            outputs = [t for t in tensors_of(results) if t.requires_grad]
            leaves = [t for t in tensors_of(inputs) if t.requires_grad]
            return self.call(
                torch.autograd.grad,
                (outputs, leaves, seeds),
                {"allow_unused": True},
                chip=False,
            )

        wanted = [t for t in tensors_of(host) if t.requires_grad]
        if not wanted or any(is_special(t) for t in wanted):
            return
        torch.manual_seed(SEED + 1)
        seeds = [torch.randn(t.shape, dtype=t.dtype).expand_as(t) for t in wanted]
        expected = gradients(host, host_inputs, seeds)
        if isinstance(expected, Exception):
            return  # the CPU has no gradient here
        found = gradients(chip, chip_inputs, [t.to(CHIP) for t in seeds])
        if isinstance(found, NotImplementedError) and "(virtual)" in str(found):
            outcome.refusals.append(brief(found))
            return
        if isinstance(found, Exception):
            raise DifferenceError(f"gradient: {brief(found)}")
        outcome.variants += 1
        compare(list(found), list(expected), outcome, "gradient")

    def in_place(self, op: Any, sample: Any, differentiable: bool, outcome: Outcome) -> None:
        function = op.get_inplace()
        if function is None or sample.broadcasts_input:
            return

        def changed(first: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(first, torch.Tensor) and first.requires_grad:
                first = first.clone()
            return first, function(first, *args, **kwargs)

        arguments = ((sample.input, *sample.args), sample.kwargs)
        if op.name.startswith("_foreach"):
            arguments = tree_map(without_gradient, arguments)
        ran = self.both(changed, arguments, outcome, "in place")
        if ran is None:
            return
        chip, host = ran[:2]
        outcome.variants += 1
        compare(chip, host, outcome, "in place", values=op.name not in self.uninitialized)
        if isinstance(chip[1], torch.Tensor) and (chip[0] is chip[1]) != (host[0] is host[1]):
            raise DifferenceError("in place: another tensor object came back")

    def with_out(self, op: Any, sample: Any, differentiable: bool, outcome: Outcome) -> None:
        if not op.supports_out or op.name.startswith("_foreach"):
            return
        arguments = tree_map(without_gradient, ((sample.input, *sample.args), sample.kwargs))
        plain = self.call(op.op, *copied(arguments), chip=False)
        results = list(plain) if isinstance(plain, tuple | list) else [plain]
        if not all(isinstance(t, torch.Tensor) and not is_special(t) for t in results):
            return
        for name, make in OUT.items():

            def written(*args: Any, make: Callable[..., Any] = make, **kwargs: Any) -> Any:
                where = (
                    CHIP
                    if any(t.device == CHIP for t in tensors_of((args, kwargs)))
                    or (torch.get_default_device() == CHIP)
                    else "cpu"
                )
                if "device" in kwargs:
                    where = kwargs["device"]
                given = [make(t, where) for t in results]
                out = tuple(given) if isinstance(plain, tuple | list) else given[0]
                back = op.op(*args, **kwargs, out=out)
                return given, back

            ran = self.both(written, arguments, outcome, f"out= ({name})")
            if ran is None:
                continue
            outcome.variants += 1
            compare(
                ran[0], ran[1], outcome, f"out= ({name})", values=op.name not in self.uninitialized
            )


def without_gradient(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


# How an `out=` tensor may look like: as the result, empty (it is resized), or with gaps.
OUT: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "alike": lambda t, where: torch.zeros_like(t, device=where),
    "resized": lambda t, where: torch.empty(0, dtype=t.dtype, device=where),
    "strided": lambda t, where: torch.zeros((*t.shape, 2), dtype=t.dtype, device=where).select(
        -1, 1
    ),
}


def brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:240]}"
