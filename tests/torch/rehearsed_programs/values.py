"""What a rehearsal computes and what it does not: prints what it finds as JSON."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from offramp.device import opened
from offramp.device.rehearsal import declared_answers

CUDA = torch.device("cuda")
found: dict[str, Any] = {}
chip = opened()
assert chip is not None


def is_known(tensor: torch.Tensor) -> bool:
    return bool(chip.native.is_known(tensor.untyped_storage()._cdata))


def asked(what: str) -> int:
    return declared_answers(chip).get(what, 0)


def known_values(device: str) -> list[Any]:
    """A table of small computations with whole results."""
    position = torch.arange(12, device=device)
    causal = torch.ones(5, 5, dtype=torch.bool, device=device).tril()
    table = torch.tensor([[3, 1, 2], [9, 7, 8]], device=device)
    counts = torch.zeros(4, dtype=torch.int64, device=device)
    counts.index_add_(0, torch.tensor([1, 3, 3], device=device), torch.ones_like(counts[:3]))
    return [
        position.cumsum(0).tolist(),
        (position % 3 == 1).tolist(),
        position.view(3, 4).t().contiguous().tolist(),
        causal.tolist(),
        torch.zeros(5, 5, device=device).masked_fill(~causal, -7.0).tolist(),
        (position[:, None] >= position[None, :]).sum().item(),
        table.sort(1).indices.tolist(),
        table.topk(2).values.tolist(),
        table.argmax(1).tolist(),
        torch.where(table > 2, table, 0).tolist(),
        table.gather(1, torch.tensor([[0], [2]], device=device)).tolist(),
        counts.tolist(),
        torch.nonzero(table > 2).tolist(),
        table[table > 2].tolist(),
        table.unique().tolist(),
        torch.bincount(table.flatten()).tolist(),
        F.one_hot(table[0], 4).tolist(),
        torch.cat([table, table * 2]).tolist(),
        F.pad(table, (1, 0), value=5).tolist(),
        torch.searchsorted(torch.tensor([1, 4, 9], device=device), table).tolist(),
        (table.float() @ table.float().t()).tolist(),
        torch.repeat_interleave(table[0]).tolist(),
        [int(part.sum()) for part in table.split(1)],
        bool((table > 0).all()),
        torch.equal(table, table.clone()),
    ]


def unknown(*sizes: int) -> torch.Tensor:
    """Values that are not there: they come from a tensor too large to be computed."""
    large = torch.randn(1 << 20, device=CUDA)
    return large[: math.prod(sizes)].view(sizes) * 1.0


found["host"], found["chip"] = known_values("cpu"), known_values("cuda")
found["declared for known"] = declared_answers(chip)

# Which memory holds values.
states: dict[str, Any] = {}
small, large = torch.zeros(8, device=CUDA), torch.zeros(1 << 20, device=CUDA)
states["small zeros"], states["large zeros"] = is_known(small), is_known(large)
states["just as large as allowed"] = is_known(torch.zeros(1 << 18, device=CUDA))
states["one element more"] = is_known(torch.zeros((1 << 18) + 1, device=CUDA))
lost = unknown(4, 4)
states["from unknown"] = is_known(lost)
states["times zero"] = is_known(lost * 0)
states["from known and unknown"] = is_known(torch.ones(4, 4, device=CUDA) + lost)
target = torch.zeros(4, 4, device=CUDA)
target[0] = lost[0]
states["partly written with unknown"] = is_known(target)
target[0] = 1.0
states["that part made known again"] = is_known(target)
target.zero_()
states["all set to zero"] = is_known(target)
found["zeros again"] = target.tolist()
target.copy_(lost)
states["copied over with unknown"] = is_known(target)
target.copy_(torch.ones(4, 4))
states["copied over from the host"] = is_known(target)
target.add_(lost)
states["added to in place"] = is_known(target)
states["written through out="] = is_known(torch.add(small, 1, out=torch.empty(8, device=CUDA)))
found["states"] = states

# What the host asks.
lost = unknown(4, 4)
before = asked("values copied to the host")
copied = lost.cpu(), lost.tolist(), lost.to("cpu", torch.float64)
torch.ones(3, device=CUDA).cpu()
found["copies to the host"] = asked("values copied to the host") - before
found["copied"] = [copied[0].tolist(), copied[1], copied[2].dtype is torch.float64]
loss = lost.mean().item()
found["item"] = [
    repr(loss),
    f"{loss:.4f}",
    f"{loss / 3 + 1:>8.2f}",
    str(round(loss, 2)),
    f"{-loss}",
]
found["item of known"] = torch.tensor(2.5, device=CUDA).item()
found["mean of items"] = str(sum([loss, loss]) / 2)
found["item compares"] = [loss > 0, math.isfinite(loss), loss == loss]
found["questions"] = {
    "isnan.any": bool(torch.isnan(lost).any()),
    "isinf.any": bool(lost.isinf().any()),
    "isfinite.all": bool(torch.isfinite(lost).all()),
    "allclose": torch.allclose(lost, lost + 1),
    "equal": torch.equal(lost, lost + 1),
}
weight = torch.nn.Linear(1024, 1024, device=CUDA)
scaler, optimizer = torch.amp.GradScaler("cuda"), torch.optim.SGD(weight.parameters(), lr=0.1)
scales = []
for _ in range(3):
    with torch.autocast("cuda", dtype=torch.float16):
        scaled = scaler.scale(weight(unknown(64, 1024)).square().mean())
    scaled.backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(weight.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scales.append(scaler.get_scale())
found["scales"] = scales
found["norm"] = str(norm.item())

# What a program routes and keeps by values that are not there.
router = unknown(512, 8).softmax(1)
chosen = router.topk(2).indices
found["experts"] = torch.bincount(chosen.flatten(), minlength=8).tolist()
found["counted by histc"] = torch.histc(chosen.int(), bins=8, min=0, max=7).tolist()
found["experts by mask"] = [int((chosen == expert).sum()) for expert in range(8)]
found["distinct in each row"] = bool((chosen[:, 0] != chosen[:, 1]).all())
mask = unknown(10, 10) > 0
found["kept"] = {
    "nonzero": list(mask.nonzero().shape),
    "nonzero tuple": [len(part) for part in mask.nonzero(as_tuple=True)],
    "where": [len(part) for part in torch.where(mask)],
    "masked_select": list(unknown(10, 10).masked_select(mask).shape),
    "index": list(unknown(10, 10)[mask].shape),
    "rows": list(unknown(10, 6)[unknown(10) > 0].shape),
    "assigned": list(torch.zeros(10, 10, device=CUDA).masked_fill(mask, 1).shape),
    "known mask": list(unknown(10, 6)[torch.arange(10, device=CUDA) < 3].shape),
    "known mask selects": list(
        unknown(10, 6).masked_select((torch.arange(10, device=CUDA) < 3)[:, None]).shape
    ),
    "unique": list(unknown(6, 4).unique().shape),
}
zeros = torch.zeros(10, 10, device=CUDA)
zeros[mask] = 1.0
found["after a masked write"] = is_known(zeros)

# A TiB of parameters and a step of each.
spent = 0
for index in range(torch.cuda.device_count()):
    tensor = torch.nn.Parameter(torch.empty(1 << 36, dtype=torch.bfloat16, device=f"cuda:{index}"))
    torch.nn.init.normal_(tensor)
    (tensor.detach()[: 1 << 20] * 2).sum()
    with torch.no_grad():
        tensor.mul_(0.5)
    found.setdefault("kept alive", []).append(id(tensor))
    globals()[f"parameter{index}"] = tensor
    spent += torch.cuda.memory_allocated(index)
del found["kept alive"]
found["allocated bytes"] = spent
# What getrusage has as ru_maxrss is at least what the parent held when it started this process.
status = Path("/proc/self/status").read_text()
found["resident bytes"] = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps(found))
