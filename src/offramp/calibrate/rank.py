"""One rank of a measurement of collectives: `python -m offramp.calibrate.rank FOLDER DEVICE quick`.

Its place comes from RANK and WORLD_SIZE. A sample is several calls in a row between two barriers;
the slowest rank counts. Rank 0 writes a line to its output before each collective, and what it
found to `FOLDER/found.json`.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SIZES = tuple(1 << n for n in range(10, 29, 3))  # 1 KiB to 256 MiB
QUICK_SIZES = (1 << 10, 1 << 17, 1 << 24)
SAMPLES, QUICK_SAMPLES = 9, 3
SAMPLE_S = 5e-3  # a sample is at least so long
LONGEST_S = 0.25  # a larger size follows only where calls were shorter
PATIENCE = datetime.timedelta(seconds=60)  # for a rank that does not come
COMPUTE_SIZE, COMPUTE_CALLS = 256, 20  # products beside which collectives run
BESIDE_BYTES = 4 << 20

Call = Callable[[], Any]


class Rank:
    """This rank among `world` others on `device`."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.samples = QUICK_SAMPLES if quick else SAMPLES

    def all(self) -> dict[str, Any]:
        """Every collective in groups of 2, 4, ... ranks, then what concerns the host."""
        counts = [1 << n for n in range(1, self.world.bit_length()) if 1 << n < self.world]
        curves: dict[str, list[dict[str, Any]]] = {}
        for count in (*counts, self.world):
            group = dist.new_group(range(count), timeout=PATIENCE)
            for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"):
                self._tell(f"{name.replace('_', '-')} of {count} ranks")
                if self.rank < count and (name != "send" or count == 2):
                    curves.setdefault(name, []).extend(self._curve(name, group, count))
            dist.barrier()
        self._tell("compute beside collectives")
        return {"curves": curves, "call": self._calls(), "slowdown": self._slowdown()}

    def _tell(self, text: str) -> None:
        if self.rank == 0:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def _curve(self, name: str, group: Any, count: int) -> list[dict[str, Any]]:
        """Seconds of one collective by size; none where the backend does not have it."""
        found = []
        for size in QUICK_SIZES if self.quick else SIZES:
            try:
                call = self._call(name, group, count, size)
                call()
            except (RuntimeError, NotImplementedError) as error:
                if "not supported" in str(error) or "not implemented" in str(error).lower():
                    return []
                raise
            times = self._samples(call, group, 2 if name == "send" else 1)
            found.append({"ranks": count, "bytes": size, "seconds": times})
            if statistics.median(times) > LONGEST_S:
                break
        return found

    def _call(self, name: str, group: Any, count: int, size: int) -> Call:
        """One call of a collective of `size` bytes, counted as `offramp.costs` counts them."""
        numbers = size // 4 // count * count
        whole = torch.zeros(numbers, device=self.device)
        part, other = torch.zeros(numbers // count, device=self.device), torch.zeros_like(whole)
        if name == "send":
            return lambda: self._there_and_back(whole, group)
        return {
            "all_reduce": lambda: dist.all_reduce(whole, group=group),
            "all_gather": lambda: dist.all_gather_into_tensor(whole, part, group=group),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole, group=group),
            "all_to_all": lambda: dist.all_to_all_single(other, whole, group=group),
        }[name]

    def _there_and_back(self, tensor: torch.Tensor, group: Any) -> None:
        first, second = (dist.send, dist.recv) if self.rank == 0 else (dist.recv, dist.send)
        first(tensor, 1 - self.rank, group=group)
        second(tensor, 1 - self.rank, group=group)

    def _samples(self, call: Call, group: Any, times: int) -> list[float]:
        """Seconds of one call, sample by sample; `times`: transfers in a row that a call makes."""
        first = self._seconds(call, 1, group)
        calls = max(1, min(500, round(SAMPLE_S / max(first, 1e-7))))
        return [self._seconds(call, calls, group) / calls / times for _ in range(self.samples)]

    def _seconds(self, call: Call, count: int, group: Any = None) -> float:
        """Seconds of the slowest rank for `count` calls that all begin together."""
        dist.barrier(group)
        self._synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        self._synchronize()
        return self._slowest(time.perf_counter() - start, group)

    def _slowest(self, seconds: float, group: Any = None) -> float:
        taken = torch.tensor([seconds], dtype=torch.float32, device=self.device)
        dist.all_reduce(taken, dist.ReduceOp.MAX, group=group)
        return float(taken.item())

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _calls(self) -> list[float]:
        """Seconds of the host until a call of a collective returns, whose end is waited for."""
        tensor, times = torch.zeros(16, device=self.device), []
        for _ in range(10 * self.samples):
            dist.barrier()
            self._synchronize()
            start = time.perf_counter()
            work = dist.all_reduce(tensor, async_op=True)
            times.append(time.perf_counter() - start)
            work.wait()
        return times

    def _slowdown(self) -> list[float]:
        """Compute's time beside collectives over that without, each by the slowest rank."""
        matrix = torch.zeros(COMPUTE_SIZE, COMPUTE_SIZE, device=self.device)
        moved = torch.zeros(BESIDE_BYTES // 4, device=self.device)
        one = self._seconds(lambda: dist.all_reduce(moved), 3) / 3
        found = []
        for _ in range(self.samples):
            alone = self._slowest(self._compute(matrix))
            count = max(2, round(3 * alone / one))
            works = [dist.all_reduce(moved, async_op=True) for _ in range(count)]
            beside = self._compute(matrix)
            for work in works:
                work.wait()
            self._synchronize()
            found.append(self._slowest(beside) / alone)
        return found

    def _compute(self, matrix: torch.Tensor) -> float:
        """Seconds of some products, waiting for their stream and for no other."""
        start = time.perf_counter()
        for _ in range(COMPUTE_CALLS):
            torch.mm(matrix, matrix)
        if self.device.type != "cpu":
            torch.accelerator.current_stream(self.device).synchronize()
        return time.perf_counter() - start


def main(folder: Path, kind: str, quick: bool) -> None:
    """Measure with the others, and write what rank 0 found."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(kind if kind == "cpu" else f"{kind}:{rank}")
    if kind != "cpu":
        torch.accelerator.set_device_index(rank)
    backend = dist.get_default_backend_for_device(device)
    store = f"file://{(folder / 'store').absolute()}"
    dist.init_process_group(backend, store, rank=rank, world_size=world, timeout=PATIENCE)
    found = Rank(device, quick).all() | {"backend": backend}
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["quick"])
