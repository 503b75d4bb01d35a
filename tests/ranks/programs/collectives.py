"""Every collective, by operation, format and reduction.

Values are small whole numbers, exact in every format whatever the order of a sum. Where Gloo lacks
what NCCL has (averages, premultiplied and boolean sums, uneven lists), the plain run computes it
from what Gloo has, in the way that NCCL's documentation defines it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

Op = dist.ReduceOp
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WHOLES = (torch.int8, torch.uint8, torch.int32, torch.int64)
REDUCED = FLOATS + WHOLES
MOVED = (*REDUCED, torch.bool, torch.complex64, torch.complex128)
REDUCTIONS = {"sum": Op.SUM, "product": Op.PRODUCT, "min": Op.MIN, "max": Op.MAX}
SHAPES = ((4,), (3, 5), (0,), (1,), (1023,))


class Data:
    """Inputs that both runs share."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.plain = place.kind == "cpu"

    def make(
        self, dtype: torch.dtype, *shape: int, salt: int = 0, rank: int | None = None
    ) -> torch.Tensor:
        """Whole numbers 1 to 3 that depend on the rank."""
        rank = self.place.rank if rank is None else rank
        count = torch.Size(shape).numel()
        values = (torch.arange(count) * 7 + rank * 5 + salt * 3) % 3 + 1
        if dtype == torch.bool:
            values = values % 2
        return values.reshape(shape).to(dtype).to(self.place.device)

    def zeros(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.place.device)


Case = Callable[[Data], Any]


def cases(world: int) -> Iterator[tuple[str, Case]]:
    """Name and function of every case."""
    for dtype in REDUCED:
        for name, op in REDUCTIONS.items():
            yield f"all_reduce-{name}-{dtype}", lambda d, t=dtype, o=op: all_reduce(d, t, o)
            yield f"reduce-{name}-{dtype}", lambda d, t=dtype, o=op: reduce(d, t, o)
            yield f"reduce_scatter-{name}-{dtype}", lambda d, t=dtype, o=op: scattered(d, t, o)
    for dtype in FLOATS:
        yield f"average-{dtype}", lambda d, t=dtype: average(d, t)
        yield f"premultiplied-{dtype}", lambda d, t=dtype: premultiplied(d, t)
    for dtype in (torch.complex64, torch.complex128):
        yield f"all_reduce-sum-{dtype}", lambda d, t=dtype: all_reduce(d, t, Op.SUM)
        yield f"reduce_scatter-sum-{dtype}", lambda d, t=dtype: scattered(d, t, Op.SUM)
    yield "boolean", boolean
    for dtype in MOVED:
        for function in (broadcast, all_gather, all_gather_single, gather, scatter, all_to_all):
            yield f"{function.__name__}-{dtype}", lambda d, t=dtype, f=function: f(d, t)
        for function in (all_to_all_single, all_to_all_splits, point_to_point):
            yield f"{function.__name__}-{dtype}", lambda d, t=dtype, f=function: f(d, t)
    for shape in SHAPES:
        yield f"shape-{shape}", lambda d, s=shape: shaped(d, s)
    for function in (
        random_splits,
        float8,
        uneven_lists,
        coalesced,
        batched,
        dense_layouts,
        objects,
        order,
        groups,
    ):
        yield function.__name__, function
    yield "handles", handles


def every(place: Any) -> dict[str, Any]:
    """Results by case."""
    data = Data(place)
    return {name: case(data) for name, case in cases(place.world)}


def all_reduce(d: Data, dtype: torch.dtype, op: Any) -> torch.Tensor:
    x = d.make(dtype, 3, 4)
    dist.all_reduce(x, op=op)
    return x


def reduce(d: Data, dtype: torch.dtype, op: Any) -> Any:
    x = d.make(dtype, 7)
    dist.reduce(x, dst=1, op=op)
    return x if d.place.rank == 1 else None


def scattered(d: Data, dtype: torch.dtype, op: Any) -> Any:
    world = d.place.world
    whole, one = d.make(dtype, world * 3, 2), d.zeros(dtype, 3, 2)
    dist.reduce_scatter_single(one, whole, op=op)
    other = d.zeros(dtype, 3, 2)
    dist.reduce_scatter(other, list(whole.chunk(world)), op=op)
    return one, other


def average(d: Data, dtype: torch.dtype) -> Any:
    world = d.place.world
    x, whole, one = d.make(dtype, 6), d.make(dtype, world * 2), d.zeros(dtype, 2)
    op = Op.SUM if d.plain else Op.AVG
    dist.all_reduce(x, op=op)
    dist.reduce_scatter_single(one, whole, op=op)
    return (x / world, one / world) if d.plain else (x, one)


def premultiplied(d: Data, dtype: torch.dtype) -> Any:
    x = d.make(dtype, 6)
    if d.plain:
        x *= 0.5
        dist.all_reduce(x)
    else:
        dist.all_reduce(x, op=dist._make_nccl_premul_sum(0.5))
    return x


def boolean(d: Data) -> Any:
    results = {}
    for name, op, plain in (("or", Op.SUM, Op.MAX), ("and", Op.PRODUCT, Op.MIN)):
        x = d.make(torch.bool, 9)
        if d.plain:
            x = x.to(torch.uint8)
        dist.all_reduce(x, op=plain if d.plain else op)
        results[name] = x.to(torch.bool)
    return results


def broadcast(d: Data, dtype: torch.dtype) -> torch.Tensor:
    x = d.make(dtype, 2, 3)
    dist.broadcast(x, src=1)
    return x


def all_gather(d: Data, dtype: torch.dtype) -> Any:
    parts = [d.zeros(dtype, 2, 3) for _ in range(d.place.world)]
    dist.all_gather(parts, d.make(dtype, 2, 3))
    return parts


def all_gather_single(d: Data, dtype: torch.dtype) -> Any:
    whole = d.zeros(dtype, d.place.world * 2, 3)
    dist.all_gather_single(whole, d.make(dtype, 2, 3))
    return whole


def gather(d: Data, dtype: torch.dtype) -> Any:
    parts = [d.zeros(dtype, 5) for _ in range(d.place.world)]
    if d.plain and dtype.is_complex:  # Gloo's gather has no complex formats
        dist.all_gather(parts, d.make(dtype, 5))
    else:
        dist.gather(d.make(dtype, 5), parts if d.place.rank == 0 else None, dst=0)
    return parts if d.place.rank == 0 else None


def scatter(d: Data, dtype: torch.dtype) -> Any:
    x = d.zeros(dtype, 5)
    parts = [d.make(dtype, 5, salt=i) for i in range(d.place.world)]
    dist.scatter(x, parts if d.place.rank == 1 else None, src=1)
    return x


def all_to_all(d: Data, dtype: torch.dtype) -> Any:
    """Rank r sends r + s + 1 elements to rank s."""
    rank, world = d.place.rank, d.place.world
    sent = [d.make(dtype, rank + other + 1, salt=other) for other in range(world)]
    got = [d.zeros(dtype, rank + other + 1) for other in range(world)]
    if d.plain:  # Gloo's lists are even, its splits need not be
        lengths, whole = [x.numel() for x in sent], torch.cat(got)
        dist.all_to_all_single(whole, torch.cat(sent), lengths, lengths)
        return list(whole.split(lengths))
    dist.all_to_all(got, sent)
    return got


def all_to_all_single(d: Data, dtype: torch.dtype) -> Any:
    out = d.zeros(dtype, d.place.world * 2, 3)
    dist.all_to_all_single(out, d.make(dtype, d.place.world * 2, 3))
    return out


def all_to_all_splits(d: Data, dtype: torch.dtype) -> Any:
    """Rank r sends (r + 2 s) % 3 rows to rank s: some of them none."""
    rank, world = d.place.rank, d.place.world
    leave = [(rank + 2 * other) % 3 for other in range(world)]
    arrive = [(other + 2 * rank) % 3 for other in range(world)]
    out = d.zeros(dtype, sum(arrive), 2)
    dist.all_to_all_single(out, d.make(dtype, sum(leave), 2), arrive, leave)
    return out


def random_splits(d: Data) -> Any:
    """Twenty random ways to cut what each rank sends, empty parts among them."""
    rank, world = d.place.rank, d.place.world
    draw = torch.Generator().manual_seed(world)
    results = []
    for _ in range(20):
        splits = torch.randint(0, 5, (world, world), generator=draw) % 4  # [from, to]
        sent = [d.make(torch.float32, int(row.sum()), 3, rank=r) for r, row in enumerate(splits)]
        arrive, leave = splits[:, rank].tolist(), splits[rank].tolist()
        pieces = [x.split(row.tolist())[rank] for x, row in zip(sent, splits, strict=True)]
        out = torch.cat(pieces)
        if not d.plain:
            out = d.zeros(torch.float32, sum(arrive), 3)
            dist.all_to_all_single(out, sent[rank], arrive, leave)
        results.append(out)
    return results


def float8(d: Data) -> Any:
    """Eight-bit floats travel as they are, and are added in a wider format."""
    rank, world = d.place.rank, d.place.world
    results = []
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        each = [d.make(dtype, 12, rank=other) for other in range(world)]
        summed = torch.stack([x.float() for x in each]).sum(0).to(dtype)
        parts = each
        if not d.plain:
            summed = each[rank].clone()
            dist.all_reduce(summed)
            parts = [torch.zeros_like(x) for x in each]
            dist.all_gather(parts, each[rank])
        results.append([summed.float(), *(x.float() for x in parts)])
    return results


def point_to_point(d: Data, dtype: torch.dtype) -> Any:
    x = d.make(dtype, 4)
    if d.place.rank == 0:
        dist.send(x, 1)
        dist.recv(x, 1)
    elif d.place.rank == 1:
        got = torch.empty_like(x)
        dist.recv(got, 0)
        dist.send(x, 0)
        x = got
    return x


def shaped(d: Data, shape: tuple[int, ...]) -> Any:
    x = d.make(torch.float32, *shape)
    whole = d.zeros(torch.float32, d.place.world * shape[0], *shape[1:])
    dist.all_gather_single(whole, x)
    part = torch.zeros_like(x)
    dist.reduce_scatter_single(part, whole)
    dist.all_reduce(x)
    return x, whole, part


def uneven_lists(d: Data) -> Any:
    """Parts of other lengths on other ranks, which NCCL's lists allow and Gloo's do not."""
    rank, world = d.place.rank, d.place.world
    x = d.make(torch.float32, rank + 1)
    expected = [d.make(torch.float32, other + 1, rank=other) for other in range(world)]
    inputs = [d.make(torch.float32, other + 1) for other in range(world)]
    summed = sum(d.make(torch.float32, rank + 1, rank=other) for other in range(world))
    if d.plain:
        return expected, expected if rank == 0 else None, summed
    parts = [d.zeros(torch.float32, other + 1) for other in range(world)]
    dist.all_gather(parts, x)
    gathered = [d.zeros(torch.float32, other + 1) for other in range(world)]
    dist.gather(x, gathered if rank == 0 else None, dst=0)
    one = d.zeros(torch.float32, rank + 1)
    dist.reduce_scatter(one, inputs)
    return parts, gathered if rank == 0 else None, one


def coalesced(d: Data) -> Any:
    """Several calls in one, by the coalescing manager's fast path."""
    world = d.place.world
    sums = [d.make(torch.float32, n) for n in (1, 5, 64)]
    with dist._coalescing_manager(async_ops=True) as joined:
        for x in sums:
            dist.all_reduce(x)
    joined.wait()
    wholes = [d.zeros(torch.float32, world * n) for n in (2, 3)]
    with dist._coalescing_manager(async_ops=True) as joined:
        for n, whole in zip((2, 3), wholes, strict=True):
            dist.all_gather_single(whole, d.make(torch.float32, n))
    joined.wait()
    parts = [d.zeros(torch.float32, n) for n in (2, 3)]
    with dist._coalescing_manager(async_ops=True) as joined:
        for n, part in zip((2, 3), parts, strict=True):
            dist.reduce_scatter_single(part, d.make(torch.float32, world * n))
    joined.wait()
    return sums, wholes, parts


def batched(d: Data) -> Any:
    """A ring of sends and receives, in one batch."""
    rank, world = d.place.rank, d.place.world
    sent = [d.make(torch.float32, 3, salt=i) for i in range(2)]
    got = [torch.zeros_like(x) for x in sent]
    after, before = (rank + 1) % world, (rank - 1) % world
    ops = [dist.P2POp(dist.isend, x, after) for x in sent]
    ops += [dist.P2POp(dist.irecv, x, before) for x in got]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return got


def dense_layouts(d: Data) -> Any:
    """Tensors whose memory is dense, in another order than their sizes say; and slices."""
    x = d.make(torch.float32, 4, 6).t()
    if d.plain:
        x = x.t()
        dist.all_reduce(x)
        x = x.t()
    else:
        dist.all_reduce(x)
    base = d.make(torch.float32, 6, 4)
    dist.all_reduce(base[2:4])
    last = d.make(torch.float32, 2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    if d.plain:
        flat = last.permute(0, 2, 3, 1)
        dist.broadcast(flat, 0)
    else:
        dist.broadcast(last, 0)
    return x.contiguous(), base, last.contiguous()


def objects(d: Data) -> Any:
    rank, world = d.place.rank, d.place.world
    mine = {"rank": rank, "words": ["a"] * (rank + 1), "tensor": d.make(torch.float32, 2).cpu()}
    everyone = [None] * world
    dist.all_gather_object(everyone, mine)
    told = [mine, rank] if rank == 0 else [None, None]
    dist.broadcast_object_list(told, src=0)
    collected = [None] * world if rank == 0 else None
    dist.gather_object(mine, collected, dst=0)
    given = [None]
    dist.scatter_object_list(given, [f"for {i}" for i in range(world)] if rank == 0 else None)
    return everyone, told, collected, given


def order(d: Data) -> Any:
    """Calls of one group run in their order, although only the last is waited for."""
    x = d.make(torch.float32, 50_000)
    works = [dist.all_reduce(x, async_op=True) for _ in range(5)]
    if d.plain:  # Gloo promises no order
        x = d.make(torch.float32, 50_000)
        for work in works:
            work.wait()
        x = d.make(torch.float32, 50_000)
        for _ in range(5):
            dist.all_reduce(x)
    else:
        works[-1].wait()
    return x


def groups(d: Data) -> Any:
    """Sub-groups of one and two ranks, and one made by a mesh."""
    rank, world = d.place.rank, d.place.world
    alone = [dist.new_group([r]) for r in range(world)][rank]
    pair = dist.new_group([0, 1])
    x, y = d.make(torch.float32, 3), d.make(torch.float32, 3)
    dist.all_reduce(x, group=alone)
    if rank < 2:
        dist.all_reduce(y, group=pair)
    return x, y, dist.get_world_size(alone), dist.get_process_group_ranks(alone)


def handles(d: Data) -> Any:
    """Futures, polling, results, and callbacks that start further collectives."""
    x = d.make(torch.float32, 8)
    work = dist.all_reduce(x, async_op=True)
    total = work.get_future().then(lambda done: done.value()[0].sum()).wait()
    y = d.make(torch.float32, 8)

    def again(done: Any) -> Any:
        return dist.all_reduce(done.value()[0], async_op=True).get_future().wait()[0]

    twice = dist.all_reduce(y, async_op=True).get_future().then(again).wait()
    z = d.make(torch.float32, 8)
    polled = dist.all_reduce(z, async_op=True)
    while not polled.is_completed():
        pass
    return x, total, twice, z
