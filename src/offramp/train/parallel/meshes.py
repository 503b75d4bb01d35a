"""The meshes of a layout: which ranks share out which weights.

Dense weights are sharded over dp_shard x cp; experts over what ep leaves of dp_shard x cp x tp, for
the ranks of a tensor parallel group see different tokens there.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh

from offramp.train.layout import Layout
from offramp.train.world import World


@dataclass(frozen=True, eq=False)
class Meshes:
    """Meshes of one root.

    dense    over which FSDP shards: (shard), or (replicate, shard)
    sparse   the same for experts, where they differ
    tp, ep   tensor and expert parallel, or None
    """

    dense: DeviceMesh
    sparse: DeviceMesh
    tp: DeviceMesh | None
    ep: DeviceMesh | None


def make(layout: Layout, world: World) -> Meshes:
    """The meshes of this rank."""
    root = world.mesh
    assert root is not None
    shard = root["dp_shard", "cp"]._flatten("fsdp")
    sparse, ep = shard, None
    if layout.tp > 1 or layout.ep > 1:
        inner = root["dp_shard", "cp", "tp"]._flatten("inner")
        room = inner.size() // layout.ep
        both = inner._unflatten(0, (room, layout.ep), ("efsdp", "ep"))
        sparse = both["efsdp"]
        ep = both["ep"] if layout.ep > 1 else None
    if layout.dp_replicate > 1:
        replicate = root["dp_replicate"]
        shard = DeviceMesh._concatenate([replicate, shard])
        sparse = DeviceMesh._concatenate([replicate, sparse])
    return Meshes(shard, sparse, root["tp"] if layout.tp > 1 else None, ep)
