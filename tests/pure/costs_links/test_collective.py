"""Collectives against closed forms, on clusters and families with round figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.chips.cluster import Cluster, Group, Link, Network
from offramp.chips.facts import Fact
from offramp.costs.algorithms import NAMES, PAIRED
from offramp.costs.collective import Collective, Links
from offramp.costs.cost import Cost
from offramp.errors import OfframpError, UsageError

B, PORT = 128e9, 16e9  # bytes/s of a chip on the link, and of its port
S = 1 << 30
FAST = 1e30
ALGORITHMS = ("ring", "tree", "switch", "hierarchical")
FAMILY = """
names = ["{pattern}"]
algorithms = [{algorithms}]
[sources]
own = "round figures"
[ring]
reached = {{ value = 1, unit = "GB/s", tier = "measured", source = "own" }}
nominal = {{ value = 1, unit = "GB/s", tier = "measured", source = "own" }}
[[protocol]]
name = "any"
base = {{ value = 0, unit = "s", tier = "measured", source = "own" }}
step = {{ value = 0, unit = "s", tier = "measured", source = "own" }}
tree_step = {{ value = 0, unit = "s", tier = "measured", source = "own" }}
tier = "measured"
source = "own"
"""
SWITCH = """[switch]
reached = { value = 1, unit = "GB/s", tier = "measured", source = "own" }
nominal = { value = 1, unit = "GB/s", tier = "measured", source = "own" }
latency = { value = 0, unit = "s", tier = "measured", source = "own" }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Families that reach all of the nominal bandwidth and take no time to start."""
    path = tmp_path_factory.mktemp("families")
    for name in ALGORITHMS:
        text = FAMILY.format(pattern=name, algorithms=f'"{name}"')
        extra = SWITCH if name == "switch" else ""
        (path / f"{name}.toml").write_text(text.replace("[[protocol]]", extra + "[[protocol]]"))
    both = FAMILY.format(pattern="both", algorithms='"ring", "tree"')
    (path / "both.toml").write_text(both)
    (path / "gloo.toml").write_text(FAMILY.format(pattern="gloo", algorithms='"ring"'))
    general = FAMILY.format(pattern="", algorithms='"ring"').replace('names = [""]', "names = []")
    (path / "general.toml").write_text(general)
    return path


def fact(
    value: float, unit: str = "B/s", low: float | None = None, high: float | None = None
) -> Fact:
    return Fact(value, unit, "measured", "own", low, high)


def cluster(
    nodes: int,
    per_node: int,
    name: str = "ring",
    *,
    rate: float = B,
    port: float = PORT,
    topology: tuple[str, int] = ("switch", 1),
    step: float = 0.0,
    far_step: float = 0.0,
) -> Cluster:
    """Nodes with one kind of link, of the family `name`; `topology` with links a chip."""
    form = Fact(topology[0], "text", "measured", "own")
    link = Link(name, form, fact(rate), per_node, topology[1], fact(step, "s"))
    network = Network("net", fact(port), 1.0, fact(far_step, "s"))
    return Cluster("c", (Group("chip", nodes, per_node, link, link, network),), network)


def seconds(folder: Path, where: Cluster, name: str, ranks: range, size: int = S) -> float:
    cost = Links(where, folder).cost(Collective(name, size), ranks)
    assert cost.low == cost.seconds == cost.high, "no figure has an interval"
    return cost.seconds


def same(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_rings_inside_a_node(folder: Path, n: int) -> None:
    node, step = cluster(1, 16), 1e-6
    assert same(seconds(folder, node, "all_reduce", range(n)), 2 * (n - 1) / n * S / B)
    for name in ("all_gather", "reduce_scatter"):
        assert same(seconds(folder, node, name, range(n)), (n - 1) / n * S / B)
    for name in ("broadcast", "reduce"):
        assert same(seconds(folder, node, name, range(n)), S / B)
    for name in ("gather", "scatter", "all_to_all"):
        assert same(seconds(folder, node, name, range(n)), (n - 1) / n * S / B)
    slow = cluster(1, 16, step=step)
    assert same(seconds(folder, slow, "all_reduce", range(n), 0), 2 * (n - 1) * step)
    assert same(seconds(folder, slow, "barrier", range(n)), 2 * (n - 1) * step)
    assert same(seconds(folder, slow, "all_gather", range(n), 0), (n - 1) * step)
    assert same(seconds(folder, slow, "all_to_all", range(n), 0), math.ceil((n - 1) / 8) * step)


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_costs_nothing(folder: Path, name: str) -> None:
    for on_host in (False, True):
        cost = Links(cluster(2, 8), folder).cost(Collective(name, S, on_host=on_host), [3])
        assert (cost.seconds, cost.low, cost.high, cost.bytes) == (0, 0, 0, 0)


def test_rings_over_nodes_go_at_the_pace_of_the_slower_level(folder: Path) -> None:
    n = 32
    ports = seconds(folder, cluster(4, 8), "all_reduce", range(n))
    assert same(ports, 2 * (n - 1) / n * S / B), "eight ports of 16 GB/s are as fast as the link"
    slow = seconds(folder, cluster(4, 8, port=PORT / 4), "all_reduce", range(n))
    assert same(slow, 2 * (n - 1) / n * S / (8 * PORT / 4))
    alone = seconds(folder, cluster(4, 8), "all_gather", range(0, n, 8))
    assert same(alone, 3 / 4 * S / PORT), "one rank a node has the share of one chip"
    lag = cluster(4, 8, step=1e-6, far_step=1e-5)
    steps = 2 * (n - 1) - 2 * 3
    assert same(seconds(folder, lag, "all_reduce", range(n), 0), steps * 1e-6 + 6 * 1e-5)


@pytest.mark.parametrize(("nodes", "k"), [(2, 8), (4, 8), (16, 4)])
def test_hierarchical_over_an_infinitely_fast_link_is_a_ring_of_nodes(
    folder: Path, nodes: int, k: int
) -> None:
    fast = cluster(nodes, k, "hierarchical", rate=FAST)
    ring = cluster(nodes, 1, "ring", port=k * PORT)
    for name in ("all_reduce", "all_gather", "reduce_scatter"):
        whole = seconds(folder, fast, name, range(nodes * k))
        assert same(whole, seconds(folder, ring, name, range(nodes)))
    whole = seconds(folder, cluster(nodes, k, "hierarchical"), "all_reduce", range(nodes * k))
    near, far = 2 * (k - 1) / k * S / B, 2 * (nodes - 1) / nodes * S / k / PORT
    assert same(whole, near + far)


def test_hierarchical_steps_are_one_inside_and_a_logarithm_between(folder: Path) -> None:
    lag = cluster(16, 8, "hierarchical", step=1e-6, far_step=1e-5)
    assert same(seconds(folder, lag, "all_reduce", range(128), 0), 2 * (1e-6 + 4 * 1e-5))
    assert same(seconds(folder, lag, "all_gather", range(128), 0), 1e-6 + 4 * 1e-5)


def test_trees_move_more_in_fewer_steps(folder: Path) -> None:
    for nodes, steps in ((2, 1), (4, 2), (5, 3), (512, 9)):
        lag = cluster(nodes, 1, "tree", far_step=1e-5)
        assert same(seconds(folder, lag, "all_reduce", range(nodes), 0), 2 * steps * 1e-5)
    assert same(seconds(folder, cluster(4, 1, "tree"), "all_reduce", range(4)), 2 * S / PORT)
    assert same(seconds(folder, cluster(2, 1, "tree"), "all_reduce", range(2)), S / PORT)


def test_the_cheaper_of_tree_and_ring_is_taken_on_either_side_of_where_they_meet(
    folder: Path,
) -> None:
    n, step = 64, 1e-5
    both = Links(cluster(n, 1, "both", far_step=step), folder)
    # ring: 2 (n-1) step + 2 (n-1)/n S/B; tree: 2 log2(n) step + 2 S/B
    meet = (2 * (n - 1) - 2 * 6) * step / (2 / n) * PORT
    for size, name in ((meet / 2, "tree"), (meet * 2, "ring")):
        cost = both.cost(Collective("all_reduce", int(size)), range(n))
        assert cost.basis.startswith(f"{name} (any) over 64 ranks on 64 nodes; net at 16 GB/s")
        alone = seconds(
            folder, cluster(n, 1, name, far_step=step), "all_reduce", range(n), int(size)
        )
        assert same(cost.seconds, alone)


def test_a_switch_that_adds_up_sends_the_data_once(folder: Path) -> None:
    for k in (4, 8):
        got = seconds(folder, cluster(1, k, "switch"), "all_reduce", range(k))
        assert same(got, (k + 1) / k * S / B)
    both = cluster(4, 8, "switch", port=PORT / 8)
    assert same(seconds(folder, both, "all_reduce", range(32)), 2 * S / PORT)


def test_links_of_a_mesh_are_shared(folder: Path) -> None:
    mesh = cluster(1, 8, topology=("mesh", 7))
    assert same(seconds(folder, mesh, "all_reduce", range(2)), S / (B / 7))
    assert same(seconds(folder, mesh, "all_reduce", range(4)), 2 * 3 / 4 * S / (B * 3 / 7))
    assert same(seconds(folder, mesh, "all_reduce", range(8)), 2 * 7 / 8 * S / B)
    assert same(seconds(folder, mesh, "all_to_all", range(8)), S / 8 / (B / 7))
    send = Links(mesh, folder).cost(Collective("send", S, peer=1), (0, 1))
    assert same(send.seconds, S / (B / 7))
    far = cluster(1, 16, topology=("mesh", 7))  # 8 of 15 others are two links away
    hops = (7 * 1 + 8 * 2) / 15
    assert same(seconds(folder, far, "all_to_all", range(16)), 15 / 16 * S / B * hops)


def test_a_torus_carries_what_passes_through(folder: Path) -> None:
    ring = cluster(1, 8, topology=("ring", 2))
    assert same(seconds(folder, ring, "all_reduce", range(8)), 2 * 7 / 8 * S / B)
    assert same(seconds(folder, ring, "all_to_all", range(8)), 7 / 8 * S / B * 8 / 4)
    torus = cluster(1, 64, topology=("torus", 4))
    assert same(seconds(folder, torus, "all_to_all", range(64)), 63 / 64 * S / B * 2 * 8 / 4)


def test_all_to_all_uses_link_and_port_at_the_same_time(folder: Path) -> None:
    got = seconds(folder, cluster(2, 8), "all_to_all", range(16))
    assert same(got, S * 8 / 16 / PORT)
    got = seconds(folder, cluster(2, 8, port=FAST), "all_to_all", range(16))
    assert same(got, S * 7 / 16 / B)


def test_a_send_knows_its_path(folder: Path) -> None:
    links = Links(cluster(4, 8, step=1e-6, far_step=1e-5), folder)
    near, far = S / B + 1e-6, S / PORT + 1e-5
    group = range(0, 32, 4)  # two of each node
    assert same(links.cost(Collective("send", S, peer=4), group, rank=0).seconds, near)
    assert same(links.cost(Collective("recv", S, peer=8), group, rank=4).seconds, far)
    assert same(links.cost(Collective("send", S, peer=8), (4, 8)).seconds, far)
    assert same(links.cost(Collective("recv", S, peer=4), group).seconds, far), "the dearer one"
    assert links.cost(Collective("send", S, peer=0), group, rank=0).seconds == 0
    with pytest.raises(UsageError, match="send with peer 5 in a group of 8 ranks; expected"):
        links.cost(Collective("send", S, peer=5), group)


def test_mixed_clusters_go_at_the_pace_of_the_slower_chips(folder: Path) -> None:
    fast, slow = cluster(2, 8).groups[0], cluster(2, 4, rate=B / 4).groups[0]
    mixed = Cluster("c", (fast, slow), replace(fast.network, bandwidth=fact(PORT / 2)))
    n = 24
    got = seconds(folder, mixed, "all_reduce", range(n))
    at_links, at_ports = B / 4, 4 * PORT / 2
    assert same(got, 2 * (n - 1) / n * S / min(at_links, at_ports))
    inside = seconds(folder, mixed, "all_reduce", range(16, 20))
    assert same(inside, 2 * 3 / 4 * S / (B / 4))


def test_trunks_that_carry_less_than_the_ports_slow_down_all_but_the_best_case(
    folder: Path,
) -> None:
    full = cluster(4, 1)
    network = replace(full.network, oversubscription=2.0)
    thin = Cluster("c", (replace(full.groups[0], network=network),), network)
    cost = Links(thin, folder).cost(Collective("all_gather", S), range(4))
    assert same(cost.seconds, 3 / 4 * S / (PORT / 2))
    assert same(cost.low, 3 / 4 * S / PORT)
    assert cost.high == cost.seconds


def test_intervals_are_those_of_the_figures(folder: Path) -> None:
    node = cluster(1, 8)
    link = replace(node.groups[0].link, bandwidth=fact(B, low=B / 2, high=B * 2))
    wide = Cluster("c", (replace(node.groups[0], link=link),), node.network)
    cost = Links(wide, folder).cost(Collective("all_gather", S), range(8))
    value = 7 / 8 * S / B
    assert (same(cost.low, value / 2), same(cost.high, value * 2)) == (True, True)
    assert same(cost.seconds, value)


def test_host_tensors_do_not_use_the_links(folder: Path) -> None:
    cost = Links(cluster(1, 8), folder).cost(Collective("all_reduce", S, on_host=True), range(4))
    assert same(cost.seconds, 2 * 3 / 4 * S / 1e9)
    assert cost.basis.startswith("gloo")


def test_a_cost_is_worked_out_once(folder: Path) -> None:
    links = Links(cluster(2, 8), folder)
    first = links.cost(Collective("all_reduce", S, "float32", group=1), range(16))
    again = links.cost(Collective("all_reduce", S, "bfloat16", group=2), list(range(16)))
    assert first is again
    assert first == Cost(
        first.seconds,
        first.low,
        first.high,
        "collective",
        "ring (any) over 16 ranks on 2 nodes; ring at 128 GB/s, net at 16 GB/s a chip;"
        " weakest: measured",
        0.0,
        2 * 15 / 16 * S,
    )


def test_json_is_read_strictly() -> None:
    data = {"collective": "all_gather", "bytes": 64, "dtype": "bfloat16", "group": 2, "peer": -1}
    text = json.dumps(data | {"on_host": False})
    assert Collective.parse(text) == Collective("all_gather", 64, "bfloat16", 2, -1, False)
    with pytest.raises(OfframpError, match=r"expected JSON with collective \(str\), bytes \(int\)"):
        Collective.parse(json.dumps(data))
    with pytest.raises(OfframpError, match="is not a collective"):
        Collective.parse("[]")
    for wrong in ('{"', text.replace("64", '"64"'), text.replace("{", '{"more": 1, ')):
        with pytest.raises(OfframpError, match="is not a collective"):
            Collective.parse(wrong)
    with pytest.raises(OfframpError, match="-64 is not a number of bytes"):
        Collective.parse(text.replace("64", "-64"))
    with pytest.raises(OfframpError, match="unknown collective 'allgather'; did you mean 'all_g"):
        Collective.parse(text.replace("all_gather", "allgather"))


CHIPS = ("nvidia-h100", "nvidia-a100", "amd-mi300x", "ascend-910b", "kunlun-p800", "zhenwu-810e")
ALL = {chip: Links(Cluster.of(chip, 8, 8)) for chip in CHIPS}


@given(
    chip=st.sampled_from(CHIPS),
    name=st.sampled_from([name for name in NAMES if name not in PAIRED]),
    ranks=st.sets(st.integers(0, 63), min_size=2, max_size=64),
    size=st.integers(1, 1 << 34),
    more=st.integers(1, 1 << 34),
)
def test_no_cost_is_below_what_the_links_allow(
    chip: str, name: str, ranks: set[int], size: int, more: int
) -> None:
    links, n = ALL[chip], len(ranks)
    cost = links.cost(Collective(name, size), sorted(ranks))
    larger = links.cost(Collective(name, size + more), sorted(ranks))
    assert 0 < cost.low <= cost.seconds <= cost.high
    assert larger.seconds >= cost.seconds
    assert larger.high >= cost.high
    if name == "barrier":
        assert larger == cost
        return
    group = links.cluster.groups[0]
    inside = len({rank // 8 for rank in ranks}) == 1
    fastest = group.link.bandwidth if inside else group.network.bandwidth
    chips = 1 if inside else 8  # ports of a node
    bound = (n - 1) / n * size / (fastest.interval[1] * chips)
    if name not in ("gather", "scatter", "all_to_all"):  # these send less over the network
        assert cost.low >= bound


@given(n=st.sampled_from((2, 4, 8)), size=st.integers(1, 1 << 34))
def test_more_bytes_reach_more_bandwidth(n: int, size: int) -> None:
    links = ALL["nvidia-h100"]
    small, large = (links.cost(Collective("all_gather", s), range(n)) for s in (size, 2 * size))
    assert large.seconds <= 2 * small.seconds
