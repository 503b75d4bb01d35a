"""Clusters: strict files, what they leave out, where ranks are, what joins them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.chips import ChipFileError, load, names
from offramp.chips.catalogue import DATA
from offramp.chips.cluster import TOPOLOGIES, Cluster, Link, Network, middle
from offramp.errors import UnknownNameError, UsageError

DOCS = Path(__file__).parents[3] / "docs" / "clusters.md"
HEAD = 'title = "t"\n[sources]\nown = "measured"\n'
FACT = '{{ value = {}, unit = "GB/s", tier = "measured", source = "own" }}'
NODES = '[[nodes]]\nchip = "nvidia-h100"\ncount = 2\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(HEAD + text, encoding="utf-8")
    return path


def test_nodes_of_one_chip_have_its_own_figures() -> None:
    cluster = Cluster.of("nvidia-h100", 4)
    (group,) = cluster.groups
    assert cluster.world_size == 32
    assert group.link.bandwidth.value == 450e9, "half of the 900 GB/s of both directions"
    assert (group.link.topology.value, group.link.reach) == ("switch", 8)
    assert group.network.bandwidth.value == 50e9
    assert group.network.bandwidth.tier == "vendor"
    assert cluster.title == "4 nodes of 8 H100 SXM"


def test_what_is_not_public_is_assumed_with_an_interval() -> None:
    (group,) = Cluster.of("kunlun-p800", 2).groups
    for fact in (group.link.bandwidth, group.network.bandwidth):
        low, high = fact.interval
        assert fact.tier == "assumed"
        assert high / low >= 4
        assert fact.note


@pytest.mark.parametrize("name", names())
def test_every_chip_makes_a_cluster(name: str) -> None:
    per_node = load(name).chips_per_node or 8
    cluster = Cluster.of(name, 2, per_node)
    (group,) = cluster.groups
    assert cluster.world_size == 2 * per_node
    assert group.link.topology.value in TOPOLOGIES
    assert group.link.links >= 1
    for what, fact in cluster.all_facts():
        assert fact.tier != "assumed" or fact.note, what
    for fact in (group.link.bandwidth, group.network.bandwidth, group.host.bandwidth):
        assert 0 < fact.interval[0] <= middle(fact) <= fact.interval[1] < 1e13


def test_links_between_cards_come_in_pairs_and_cards_without_use_the_host() -> None:
    pairs = Cluster.of("nvidia-h100-pcie", 2)
    assert pairs.path(2, 3) == pairs.groups[0].link
    assert pairs.path(1, 2) == pairs.groups[0].host
    assert pairs.path(7, 8) == pairs.groups[0].network
    plain = Cluster.of("nvidia-l40s")
    assert plain.groups[0].link.topology.value == "host"
    assert plain.groups[0].link.bandwidth.value == 32e9, "PCIe 4.0 x16, one direction"


def test_a_node_with_fewer_chips_leaves_links_of_a_mesh_unused() -> None:
    (whole,), (half,) = (Cluster.of("amd-mi300x", 1, count).groups for count in (8, 4))
    assert whole.link.links == half.link.links == 7
    assert whole.link.bandwidth == half.link.bandwidth
    assert (whole.link.reach, half.link.reach) == (8, 4)


def test_a_pod_joins_nodes_by_its_own_links() -> None:
    pod = Cluster.of("tpu-v5e", 64)
    spread = pod.spread(range(256))
    assert (spread.nodes, spread.domains, spread.network) == (32, (256,), None)
    assert isinstance(pod.path(255, 256), Network)


@pytest.mark.parametrize(
    ("chip", "nodes", "per_node", "error", "words"),
    [
        ("nvidia-h10", 1, None, UnknownNameError, "did you mean 'nvidia-h100'"),
        ("nvidia-h100", 0, None, UsageError, "0 is not a positive number of nodes"),
        ("nvidia-h100", 1, 16, UsageError, "16 chips a node; a node of nvidia-h100 has at most 8"),
        ("nvidia-h100", 1, 0, UsageError, "0 is not a positive number of chips per node"),
        ("metax-c500", 1, None, UsageError, "not known; say it with --per-node"),
    ],
)
def test_what_cannot_be_meant(
    chip: str, nodes: int, per_node: int | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        Cluster.of(chip, nodes, per_node)


LINK = f'[nodes.link]\ntopology = "mesh"\nbandwidth = {FACT.format(100)}\n'
NETWORK = f'[network]\nname = "RoCE"\nper = "rail"\nrails = 4\nbandwidth = {FACT.format(25)}\n'
OTHER = '[[nodes]]\nchip = "zhenwu-810e"\ncount = 1\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nodes: missing; expected at least one [[nodes]] with chip and count"),
        ('[[nodes]]\nchip = "nvidia-h100"\n', "nodes[0].count: missing; expected a whole number"),
        (NODES.replace("2", "0"), "nodes[0].count: 0 is not a positive number of nodes"),
        (NODES.replace("= 2", "= 2.5"), "nodes[0].count: 2.5 is not a whole number"),
        (NODES.replace("h100", "h10"), "nodes[0].chip: unknown chip 'nvidia-h10'; did you mean"),
        (NODES + "chips_per_node = 9\n", "chips_per_node: 9 chips a node; a node of nvidia-h100"),
        (NODES + "chip_per_node = 8\n", "unknown key; did you mean 'chips_per_node'?"),
        (NODES.replace("nvidia-h100", "metax-c500"), "chips_per_node: how many metax-c500 a node"),
        (NODES + '[nodes.link]\ntopology = "mesh"\n', "nodes[0].link.bandwidth: missing; expected"),
        (NODES + LINK.replace("mesh", "star"), "link.topology: 'star' is not one of switch, mesh"),
        (NODES + LINK.replace("GB/s", "GB"), "link.bandwidth.unit: 'GB' is not a unit of bytes/s"),
        (NODES + LINK.replace('"own"', '"owm"'), "'owm' is not in [sources]; did you mean 'own'?"),
        (
            NODES + LINK.replace("100", "0"),
            "nodes[0].link.bandwidth: zero; expected more, or leave",
        ),
        (NODES + LINK + "links = 0\n", "nodes[0].link.links: 0 is not a positive number"),
        (NODES + NETWORK.replace("rails = 4\n", ""), "network.rails: missing; expected a whole"),
        (NODES + NETWORK.replace('"rail"', '"chip"'), "network.rails: unknown key"),
        (NODES + NETWORK + "oversubscription = 0.5\n", "0.5 is not a number of at least 1"),
        (
            NODES + OTHER,
            "network: missing; expected the network that joins nodes[0] (nvidia-h100) and nodes[1]"
            " (zhenwu-810e)",
        ),
        (NODES + "x = \n", "not TOML"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ChipFileError) as caught:
        Cluster.read(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ChipFileError, match=r"cannot be read \(No such file"):
        Cluster.read(tmp_path / "c.toml")


def test_a_chip_file_beside_the_cluster_is_the_chip_of_its_nodes(tmp_path: Path) -> None:
    """A file of the name of a chip of the catalogue is still that file."""
    own = (DATA / "nvidia-h100.toml").read_text(encoding="utf-8")
    own = own.replace("power = { value = 700,", "power = { value = 500,")
    (tmp_path / "nvidia-h100.toml").write_text(own, encoding="utf-8")
    text = '[[nodes]]\nchip = "nvidia-h100.toml"\ncount = 1\n'
    (group,) = Cluster.read(write(tmp_path, text)).groups
    assert group.chip == "nvidia-h100"
    assert load(group.chip_file).facts["power"].value == 500
    (plain,) = Cluster.read(write(tmp_path, text.replace(".toml", ""))).groups
    assert plain.chip_file == ""


def test_ports_are_shared_by_the_chips_of_a_node(tmp_path: Path) -> None:
    per_rail = Cluster.read(write(tmp_path, NODES + NETWORK)).network
    assert per_rail.bandwidth.value == 4 * 25e9 / 8
    text = NETWORK.replace("rails = 4\n", "")
    per_node = Cluster.read(write(tmp_path, NODES + text.replace('"rail"', '"node"'))).network
    assert per_node.bandwidth.value == 25e9 / 8
    per_chip = Cluster.read(write(tmp_path, NODES + text.replace('"rail"', '"chip"'))).network
    assert per_chip.bandwidth.value == 25e9


def test_the_example_of_the_docs_is_a_mixed_cluster(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "mixed.toml"
    path.write_text(example, encoding="utf-8")
    cluster = Cluster.read(path)
    first, second = cluster.groups
    assert cluster.world_size == 16 * 8 + 8 * 8
    assert (first.chip, second.chip) == ("nvidia-h100", "zhenwu-810e")
    assert cluster.group_of(127) is first
    assert cluster.group_of(128) is second
    assert (cluster.node_of(127), cluster.node_of(128)) == (15, 16)
    assert isinstance(cluster.path(0, 7), Link)
    assert cluster.path(0, 8) == first.network
    crossing = cluster.path(0, 128)
    assert isinstance(crossing, Network)
    assert crossing.name == "RoCE"
    assert crossing.bandwidth.value == 4 * 25e9 / 8, "the slowest of the three networks"
    assert crossing.oversubscription == 2
    spread = cluster.spread((0, 1, 128))
    assert not spread.grid
    assert [link.name for link in spread.links] == ["NVLink4", "ICN"]


def test_a_rank_that_is_not_there() -> None:
    cluster = Cluster.of("nvidia-a100", 2)
    for call in (cluster.node_of, cluster.group_of, lambda rank: cluster.path(0, rank)):
        for rank in (-1, 16):
            with pytest.raises(UsageError, match=f"rank {rank} is not in the cluster; .* 0 to 15"):
                call(rank)
    with pytest.raises(UsageError, match="the ranks 1, 1 are not all different"):
        cluster.spread((1, 1))
    with pytest.raises(UsageError, match="no ranks"):
        cluster.spread(())
    assert cluster.path(3, 3) is None


@given(
    nodes=st.integers(1, 6),
    per_node=st.sampled_from((1, 2, 4, 8)),
    data=st.data(),
)
def test_ranks_are_counted_where_they_are(nodes: int, per_node: int, data: st.DataObject) -> None:
    cluster = Cluster.of("nvidia-h100", nodes, per_node)
    world = range(nodes * per_node)
    ranks = data.draw(st.sets(st.sampled_from(world), min_size=1))
    held: dict[int, list[int]] = {}
    for rank in sorted(ranks):
        held.setdefault(rank // per_node, []).append(rank % per_node)
        assert cluster.node_of(rank) == rank // per_node
    spread = cluster.spread(sorted(ranks))
    assert spread.nodes == len(held)
    assert spread.per_node == spread.domains == tuple(len(inside) for inside in held.values())
    assert spread.grid == (len({tuple(inside) for inside in held.values()}) == 1)
    assert (spread.network is None) == (len(held) == 1)
