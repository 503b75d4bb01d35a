"""What is measured: every probe, by the operator whose curve it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.calibrate.convolutions import convolutions
from offramp.calibrate.probe import ROUND_BYTES, Axes, Place, Probe, filled, going_round
from offramp.calibrate.timing import Call
from offramp.costs.features import WHOLE

_BYTES = (1 << 12, 1 << 15, 1 << 18, 3 << 19, 3 << 21, 1 << 25)
_RUNS = (1, 8, 32, 128, int(WHOLE))


@dataclass(frozen=True)
class Pointwise:
    """An operator over elements: `operands` tensors are read or written, the result among them."""

    name: str
    inputs: int
    operands: int
    work: Callable[..., Any]
    runs: tuple[int, ...] = _RUNS


def _pointwise_table() -> list[Pointwise]:
    aten = torch.ops.aten
    return [
        Pointwise("mul.1", 1, 2, lambda x: torch.mul(x, 1.5)),
        Pointwise("mul.2", 2, 3, torch.mul),
        Pointwise("add.2", 2, 3, torch.add),
        Pointwise("add_.2", 2, 3, lambda x, y: x.add_(y)),
        Pointwise("mul_.1", 1, 2, lambda x: x.mul_(1.0)),
        Pointwise("div.1", 1, 2, lambda x: torch.div(x, 1.5)),
        Pointwise("div.2", 2, 3, torch.div),
        Pointwise("pow", 1, 2, lambda x: torch.pow(x, 2), _RUNS[-1:]),
        Pointwise("pow.general", 1, 2, lambda x: torch.pow(x, 1.7), _RUNS[-1:]),
        Pointwise("exp", 1, 2, torch.exp, _RUNS[-1:]),
        Pointwise("sigmoid", 1, 2, torch.sigmoid, _RUNS[-1:]),
        Pointwise("tanh", 1, 2, torch.tanh, _RUNS[-1:]),
        Pointwise("sqrt", 1, 2, torch.sqrt, _RUNS[-1:]),
        Pointwise("rsqrt", 1, 2, torch.rsqrt, _RUNS[-1:]),
        Pointwise("relu", 1, 2, torch.relu, _RUNS[-1:]),
        Pointwise("threshold_backward", 2, 3, lambda x, y: aten.threshold_backward(x, y, 0)),
        Pointwise("silu", 1, 2, torch.nn.functional.silu, _RUNS[2:]),
        Pointwise("silu_backward", 2, 3, aten.silu_backward, _RUNS[2:]),
        Pointwise("gelu", 1, 2, torch.nn.functional.gelu, _RUNS[2:]),
        Pointwise("gelu_backward", 2, 3, aten.gelu_backward, _RUNS[2:]),
        Pointwise("clone", 1, 2, lambda x: x.clone(memory_format=torch.contiguous_format)),
        Pointwise("copy_", 2, 2, lambda x, y: y.copy_(x)),
        Pointwise("fill_", 1, 1, lambda x: x.fill_(1.5), _RUNS[-1:]),
        Pointwise("zero_", 1, 1, lambda x: x.zero_(), _RUNS[-1:]),
        Pointwise("cat", 2, 4, lambda x, y: torch.cat((x, y), -1)),
    ]


def _pointwise(item: Pointwise, dtype: torch.dtype, device: torch.device) -> Probe:
    def build(place: Place) -> Call:
        run = place["run"]
        elements = max(1, place["bytes"] // (item.operands * dtype.itemsize))

        def make() -> tuple[Tensor, ...]:
            first = _laid(elements, run, dtype, device)
            return first, *(torch.full_like(first, 0.5) for _ in range(item.inputs - 1))

        return going_round(make, place["bytes"], lambda given: item.work(*given))

    return Probe(item.name, dtype, (("bytes", _BYTES), ("run", item.runs)), build)


def _laid(elements: int, run: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Elements of which so many lie one behind another; one: transposed."""
    if run >= WHOLE:
        return filled((elements), dtype, device)
    if run == 1:
        rows = max(2, int(elements**0.5))
        return filled((rows, max(2, elements // rows)), dtype, device).t()
    rows = max(2, elements // run)
    return filled((rows, 2 * run), dtype, device)[:, :run]


def _rows_table() -> list[tuple[str, int, Callable[[Tensor], Callable[[Tensor], Any]]]]:
    """Name, tensors of full size, and what makes the work for tensors like a given one."""
    aten = torch.ops.aten

    def norm(x: Tensor) -> Callable[[Tensor], Any]:
        weight = torch.ones_like(x[0])
        return lambda x: torch.native_layer_norm(x, x.shape[-1:], weight, weight, 1e-5)

    def norm_backward(x: Tensor) -> Callable[[Tensor], Any]:
        weight, wanted = torch.ones_like(x[0]), [True, True, True]
        _, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, weight, 1e-5)
        size = x.shape[-1:]
        back = aten.native_layer_norm_backward
        return lambda x: back(x, x, size, mean, rstd, weight, weight, wanted)

    return [
        ("_softmax", 2, lambda x: lambda x: torch.softmax(x, -1)),
        ("_log_softmax", 2, lambda x: lambda x: torch.log_softmax(x, -1)),
        (
            "_softmax_backward_data",
            3,
            lambda x: lambda x: aten._softmax_backward_data(x, x, -1, x.dtype),
        ),
        (
            "_log_softmax_backward_data",
            3,
            lambda x: lambda x: aten._log_softmax_backward_data(x, x, -1, x.dtype),
        ),
        ("native_layer_norm", 2, norm),
        ("native_layer_norm_backward", 3, norm_backward),
        ("sum", 1, lambda x: lambda x: x.sum(1)),
        ("sum.outer", 1, lambda x: lambda x: x.sum(0)),
        ("linalg_vector_norm", 1, lambda x: lambda x: torch.linalg.vector_norm(x, dim=1)),
    ]


def _rows(dtype: torch.dtype, device: torch.device) -> Iterator[Probe]:
    axes: Axes = (("bytes", _BYTES[1:]), ("row", (16, 64, 256, 1024, 8192)))
    for name, operands, prepare in _rows_table():

        def build(place: Place, operands: int = operands, prepare: Any = prepare) -> Call:
            row = place["row"]
            count = max(1, place["bytes"] // (operands * dtype.itemsize * row))

            def make() -> Tensor:
                return filled((count, row), dtype, device)

            return going_round(make, place["bytes"], prepare(make()))

        yield Probe(name, dtype, axes, build)


def _products(dtype: torch.dtype, device: torch.device) -> Iterator[Probe]:
    inner = (16, 64, 192, 512, 1536)
    axes: Axes = (("m", (1, 16, 128, 512, 2048)), ("n", inner), ("k", inner))
    for name in ("product.nn", "product.nt", "product.tn", "addmm.nt"):
        yield Probe(name, dtype, axes, _product_call(name, dtype, device))
    small = (16, 64, 256)
    axes = (("batch", (2, 16)), ("m", small), ("n", small), ("k", small))
    for name in ("bmm.nn", "bmm.nt", "bmm.tn"):
        yield Probe(name, dtype, axes, _product_call(name, dtype, device))


def _product_call(name: str, dtype: torch.dtype, device: torch.device) -> Callable[[Place], Call]:
    kind, _, layout = name.partition(".")

    def matrix(rows: int, columns: int, lies: str, batch: tuple[int, ...]) -> Tensor:
        sizes = (*batch, columns, rows) if lies == "t" else (*batch, rows, columns)
        made = filled((sizes), dtype, device)
        return made.transpose(-1, -2) if lies == "t" else made

    def build(place: Place) -> Call:
        m, n, k = place["m"], place["n"], place["k"]
        batch = (place["batch"],) if "batch" in place else ()
        second = matrix(k, n, layout[1], batch)
        bias = filled((n), dtype, device)
        size = (m * k + m * n) * dtype.itemsize * (batch[0] if batch else 1)
        work = (
            (lambda a: torch.addmm(bias, a, second))
            if kind == "addmm"
            else (lambda a: torch.matmul(a, second))
        )
        return going_round(
            lambda: matrix(m, k, layout[0], batch), max(size, ROUND_BYTES // 8), work
        )

    return build


def _attention(dtype: torch.dtype, device: torch.device) -> Iterator[Probe]:
    attend = torch.nn.functional.scaled_dot_product_attention
    axes: Axes = (
        ("heads", (4, 16)),
        ("length", (32, 128, 512)),
        ("width", (32, 64, 128)),
    )
    for way in ("forward", "backward"):
        for causal in (False, True):

            def build(place: Place, way: str = way, causal: bool = causal) -> Call:
                sizes = (place["heads"] // 4, place["length"], 4, place["width"])
                size = 8 * place["heads"] * place["length"] * place["width"] * dtype.itemsize

                def make() -> Any:
                    q, k, v = (
                        filled((sizes), dtype, device).transpose(1, 2).requires_grad_()
                        for _ in range(3)
                    )
                    out = attend(q, k, v, is_causal=causal) if way == "backward" else None
                    return q, k, v, out, filled((sizes), dtype, device).transpose(1, 2)

                def work(given: Any) -> Any:
                    q, k, v, out, gradient = given
                    if out is not None:
                        return torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)
                    with torch.no_grad():
                        return attend(q, k, v, is_causal=causal)

                return going_round(make, max(size, ROUND_BYTES // 4), work)

            yield Probe(f"attention.{way}{'.causal' if causal else ''}", dtype, axes, build)


def _lists_table() -> list[tuple[str, int, int, Callable[..., Any]]]:
    """Name, lists given, tensors read or written for each element, work on the lists."""
    aten = torch.ops.aten

    def adam(name: str) -> Callable[..., Any]:
        steps: dict[int, list[Tensor]] = {}

        def work(p: list[Tensor], g: list[Tensor], a: list[Tensor], b: list[Tensor]) -> None:
            count = steps.setdefault(len(p), [torch.ones((), device=p[0].device) for _ in p])
            getattr(aten, name)(
                *(p, g, a, b, [], count),
                lr=1e-6,
                beta1=0.9,
                beta2=0.99,
                weight_decay=0.1,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )

        return work

    return [
        ("_foreach_mul_", 1, 2, lambda x: torch._foreach_mul_(x, 1.0)),
        ("_foreach_add_", 2, 3, lambda x, y: torch._foreach_add_(x, y, alpha=1e-6)),
        ("_foreach_norm", 1, 1, torch._foreach_norm),
        ("_foreach_sqrt", 1, 2, torch._foreach_sqrt),
        ("_foreach_addcdiv_", 3, 4, lambda x, y, z: torch._foreach_addcdiv_(x, y, z, value=1e-6)),
        ("_fused_adamw_", 4, 7, adam("_fused_adamw_")),
        ("_fused_adam_", 4, 7, adam("_fused_adam_")),
    ]


def _lists(device: torch.device) -> Iterator[Probe]:
    axes: Axes = (("bytes", _BYTES[1:]), ("count", (1, 8, 64)))
    dtype = torch.float32
    for name, lists, operands, work in _lists_table():

        def build(
            place: Place, lists: int = lists, operands: int = operands, work: Any = work
        ) -> Call:
            count = place["count"]
            each = max(1, place["bytes"] // (operands * dtype.itemsize * count))

            def make() -> list[list[Tensor]]:
                return [[filled(each, dtype, device) for _ in range(count)] for _ in range(lists)]

            return going_round(make, place["bytes"], lambda given: work(*given))

        yield Probe(name, dtype, axes, build)


def _lookups(dtype: torch.dtype, device: torch.device) -> Iterator[Probe]:
    aten = torch.ops.aten
    rows, widths = (64, 1024, 8192), (64, 768)

    def indices(count: int, below: int) -> Tensor:
        return torch.randint(0, below, (count,), device=device)

    def embedding(place: Place) -> Call:
        table = filled((16384, place["width"]), dtype, device)
        size = place["rows"] * (8 + place["width"] * dtype.itemsize)
        return going_round(
            lambda: indices(place["rows"], 16384), size, lambda i: aten.embedding(table, i)
        )

    def embedding_backward(place: Place) -> Call:
        count, width, table = place["rows"], place["width"], place["table"]

        def make() -> tuple[Tensor, Tensor]:
            return filled((count, width), dtype, device), indices(count, table)

        back = aten.embedding_dense_backward
        size = (count + table) * width * dtype.itemsize
        return going_round(make, size, lambda given: back(*given, table, -1, False))

    def loss(place: Place, backward: bool = False) -> Call:
        count, classes = place["rows"], place["classes"]

        def make() -> tuple[Tensor, Tensor]:
            return filled((count, classes), dtype, device), indices(count, classes)

        weight = torch.ones((), device=device).to(dtype)
        forward, back = aten.nll_loss_forward, aten.nll_loss_backward
        size = 2 * count * classes * dtype.itemsize
        if backward:
            return going_round(
                make, size, lambda given: back(weight, *given, None, 1, -100, weight)
            )
        return going_round(make, size, lambda given: forward(*given, None, 1, -100))

    yield Probe("embedding", dtype, (("rows", rows), ("width", widths)), embedding)
    table: Axes = (("rows", rows), ("width", widths), ("table", (256, 4096, 32768)))
    yield Probe("embedding_dense_backward", dtype, table, embedding_backward)
    classes: Axes = (("rows", rows), ("classes", (16, 256, 4096)))
    yield Probe("nll_loss_forward", dtype, classes, loss)
    yield Probe("nll_loss_backward", dtype, classes, lambda place: loss(place, True))


def _conversions(device: torch.device) -> Iterator[Probe]:
    for source, target in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):

        def build(place: Place, source: Any = source, target: Any = target) -> Call:
            elements = max(1, place["bytes"] // (source.itemsize + target.itemsize))

            def make() -> tuple[Tensor, Tensor]:
                first = filled(elements, source, device)
                return first, torch.empty_like(first, dtype=target)

            return going_round(make, place["bytes"], lambda given: given[1].copy_(given[0]))

        yield Conversion("copy_", target, (("bytes", _BYTES), ("run", _RUNS[-1:])), build, source)


@dataclass(frozen=True)
class Conversion(Probe):
    """A copy into another format."""

    source: torch.dtype = torch.float32

    @property
    def dtype_name(self) -> str:
        return f"{str(self.source).removeprefix('torch.')}>{super().dtype_name}"


def all_probes(device: torch.device) -> Iterator[tuple[str, Probe]]:
    """Every probe with the title of its group."""
    for dtype in (torch.float32, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        groups: list[tuple[str, Iterator[Probe]]] = [
            ("matrix products", _products(dtype, device)),
            ("convolutions", convolutions(dtype, device)),
            ("attention", _attention(dtype, device)),
            ("pointwise", (_pointwise(item, dtype, device) for item in _pointwise_table())),
            ("rows", _rows(dtype, device)),
            ("lookups and losses", _lookups(dtype, device)),
        ]
        for title, probes in groups:
            for probe in probes:
                yield f"{title}, {short}", probe
    for probe in (*_lists(device), *_conversions(device)):
        yield "optimizers and conversions", probe
