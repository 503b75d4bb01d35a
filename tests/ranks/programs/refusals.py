"""What a group refuses, and what it says when a rank is missing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def message(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def every(place: Any) -> dict[str, str]:
    x = torch.ones(4, device=place.device)
    late = dist.new_group([0, 1], timeout=timedelta(seconds=2))
    said = {
        "bitwise": message(lambda: dist.all_reduce(x.int(), op=dist.ReduceOp.BAND)),
        "short": message(lambda: dist.all_reduce(x.short())),
        "boolean average": message(lambda: dist.all_reduce(x.bool(), op=dist.ReduceOp.AVG)),
        "strided": message(lambda: dist.all_reduce(torch.ones(4, 4, device=place.device)[:, 1])),
        "host": message(lambda: dist.all_reduce(torch.ones(2))),
        "sizes": message(lambda: dist.all_gather_single(torch.empty_like(x), x)),
    }
    if place.rank == 0:
        said["late"] = message(lambda: dist.all_reduce(x, group=late))
        work = dist.all_reduce(x, group=late, async_op=True)
        said["late future"] = message(lambda: work.get_future().wait())
    dist.barrier()
    return said
