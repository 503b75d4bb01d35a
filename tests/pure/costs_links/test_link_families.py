"""Families of links: every file, strictness, and published figures that they were not made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.chips import ChipFileError, names
from offramp.chips.cluster import Cluster, Fact, Group, Network
from offramp.costs.collective import Collective, Links
from offramp.costs.link_family import DATA, find, read, read_folder

FILES = sorted(DATA.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_in_order(path: Path) -> None:
    family = read(path)
    assert 0.04 <= family.ring.slow <= family.ring.value <= family.ring.fast <= 1
    assert ("switch" in family.algorithms) == (family.switch is not None)
    assert family.protocols[-1].share == 1, "the last protocol has the full bandwidth"
    for protocol in family.protocols:
        for latency in (protocol.base, protocol.step, protocol.tree_step):
            assert 0 <= latency.fast <= latency.value <= latency.slow < 1e-3


def test_links_find_their_family() -> None:
    assert [family.name for family in read_folder(DATA) if not family.patterns] == ["general"]
    expected = {
        "NVLink2": "nvlink2",
        "NVLink3, reduced": "nvlink3",
        "NVLink4": "nvlink4",
        "NVLink bridge": "nvlink-bridge",
        "PCIe 4.0 x16": "pcie",
        "Infinity Fabric": "xgmi",
        "HCCS / UB": "hccs",
        "ICI, 3D torus": "ici",
        "24 x 200 GbE RoCE": "gaudi-ethernet",
        "ICN, 7 links": "general",
        "XPU-Link on OAM": "general",
        "InfiniBand NDR": "infiniband",
        "RoCE": "roce",
        "EFA": "efa",
        "gloo": "host",
        "measured gloo": "measured",
    }
    assert {name: find(name).name for name in expected} == expected


@pytest.mark.parametrize("chip", names())
def test_every_chip_has_costs(chip: str) -> None:
    links = Links(Cluster.of(chip, 4, 2))
    for name in ("all_reduce", "all_gather", "all_to_all", "broadcast"):
        cost = links.cost(Collective(name, 1 << 26), range(8))
        assert 1e-5 < cost.low <= cost.seconds <= cost.high < 1


def bus(cluster: Cluster, ranks: int, size: int = 8 << 30) -> float:
    """Bus bandwidth of an all-reduce in GB/s, as nccl-tests count it."""
    cost = Links(cluster).cost(Collective("all_reduce", size), range(ranks))
    return 2 * (ranks - 1) / ranks * size / cost.seconds / 1e9


def ports(chip: str, nodes: int, count: int, rate: float) -> Cluster:
    """Nodes of eight with `count` InfiniBand ports each."""
    group = Cluster.of(chip, nodes).groups[0]
    network = Network("InfiniBand", Fact(count * rate / 8, "B/s", "vendor", "the issue"))
    filled = Group(chip, nodes, 8, group.link, group.host, network)
    return Cluster("published", (filled,), network)


def test_published_bandwidth_that_no_constant_was_taken_from() -> None:
    # NVIDIA/nccl issue 1374: the switch's share is from another chip of the family
    assert bus(Cluster.of("nvidia-h800"), 8) == pytest.approx(215, rel=0.02)
    # NVIDIA/nccl-tests issue 119: three nodes, four ports of 200 Gbit/s; 84.8 on average over
    # sizes up to 128 MiB, 96 at peak
    assert bus(ports("nvidia-a100", 3, 4, 25e9), 24, 128 << 20) == pytest.approx(96, rel=0.10)
    # NVIDIA/nccl issue 2409, citing nccl-tests issue 309: two nodes, eight ports of 400 Gbit/s
    assert bus(ports("nvidia-h100", 2, 8, 50e9), 16) == pytest.approx(470, rel=0.03)


def test_published_bandwidth_that_constants_rest_on_comes_out_again() -> None:
    assert bus(Cluster.of("nvidia-h100"), 8) == pytest.approx(480, rel=0.01)
    assert bus(Cluster.of("nvidia-a100"), 8) == pytest.approx(232.5, rel=0.01)
    assert bus(Cluster.of("nvidia-v100"), 8) == pytest.approx(135.5, rel=0.01)
    assert bus(Cluster.of("nvidia-b200"), 8) == pytest.approx(830, rel=0.01)
    gaudi = Links(Cluster.of("intel-gaudi-3")).cost(Collective("all_reduce", 256 << 20), range(8))
    assert gaudi.seconds == pytest.approx(0.915792e-3, rel=0.04)


GOOD = (DATA / "nvlink4.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"switch"]', '"star"]', "algorithms: 'star' is not one of ring, tree, switch"),
        ("[[protocol]]", "[[protocols]]", "protocol: missing; expected at least one [[protocol]]"),
        ("share = 0.25", "share = 25", "protocol[0].share: 25 is not a share above 0 and up to 1"),
        ("value = 370, high = 375", "value = 370, high = 475", "at most the nominal bandwidth"),
        ("[switch]", "[switches]", "switch: missing; expected a table; is 'switches' meant?"),
        ("tree_share", "tree_shar", "tree_shar: unknown key; did you mean 'tree_share'"),
        ("names =", "names", "cannot be read"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "family.toml"
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ChipFileError) as caught:
        read(path)
    assert words in str(caught.value)
