"""Which chips a cluster's ranks have, and whom a mixed one must be played by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp import chips
from offramp.chips.cluster import Cluster
from offramp.launch.fleet import Fleet

NETWORK = """
[network]
name = "RoCE"
per = "chip"
bandwidth = { value = 200, unit = "Gbit/s", tier = "vendor", source = "offer" }
"""
H100, ZHENWU = "nvidia-h100", "zhenwu-810e"
groups = st.lists(
    st.tuples(st.sampled_from([H100, ZHENWU]), st.integers(1, 5), st.sampled_from([2, 8])),
    min_size=1,
    max_size=4,
)


def cluster(path: Path, *nodes: tuple[str, int, int]) -> Cluster:
    text = 'title = "some"\n[sources]\noffer = "an offer"\n' + NETWORK
    for chip, count, per_node in nodes:
        text += f'[[nodes]]\nchip = "{chip}"\ncount = {count}\nchips_per_node = {per_node}\n'
    path.write_text(text)
    return Cluster.read(path)


def fleet_of(whole: Cluster) -> Fleet:
    name = whole.groups[0].chip
    return Fleet.of(whole, chips.load(name), name)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet") / "cluster.toml"


@given(groups)
def test_every_rank_has_the_chip_of_its_nodes(
    file: Path, nodes: list[tuple[str, int, int]]
) -> None:
    fleet = fleet_of(cluster(file, *nodes))
    each = [(chip, per) for chip, count, per in nodes for _ in range(count * per)]
    kinds = [(fleet.kind(rank).chip.name, fleet.kind(rank).per_node) for rank in range(len(each))]
    assert kinds == each
    assert sum(fleet.counts()) == len(each)
    assert fleet.is_mixed == (len(set(each)) > 1)
    firsts = {each.index(kind) for kind in set(each)}
    assert fleet.firsts() == firsts
    assert sum(fleet.stands_for(sorted(firsts))) == pytest.approx(len(each))


def test_others_of_a_group_are_played_by_the_first_of_their_kind(file: Path) -> None:
    fleet = fleet_of(cluster(file, (H100, 2, 8), (ZHENWU, 1, 8)))
    shard, replicas = range(12), (4, 16)
    assert fleet.companions(0, [shard, (0, 12)]) == set()
    assert fleet.companions(16, [range(12, 24), replicas]) == {12, 4}
    assert fleet.companions(0, [range(24)]) == {16}
    assert fleet_of(cluster(file, (H100, 3, 8))).companions(0, [range(24)]) == set()


def test_rates_and_power_are_means_over_all_chips(file: Path) -> None:
    fleet = fleet_of(cluster(file, (H100, 3, 8), (ZHENWU, 1, 8)))
    one, other = (chips.load(name) for name in (H100, ZHENWU))
    rates = [chip.matrix_rates["bfloat16"].value for chip in (one, other)]
    assert fleet.peak_flops() == pytest.approx((3 * rates[0] + rates[1]) / 4)
    power, facts = fleet.power(), [chip.facts["power"] for chip in (one, other)]
    assert power is not None
    assert power.value == pytest.approx((3 * facts[0].value + facts[1].value) / 4)
    assert "24 H100 SXM and 8 Zhenwu 810E" in power.note


def test_a_chip_without_a_known_power_leaves_the_mean_unknown(file: Path) -> None:
    names = chips.names()
    unknown = [name for name in names if "power" not in chips.load(name).facts]
    if not unknown:
        pytest.skip("every chip of the catalogue has a power")
    fleet = fleet_of(cluster(file, (H100, 1, 8), (unknown[0], 1, 2)))
    assert fleet.power() is None


def test_a_chip_of_a_file_is_that_of_all_nodes_that_are_alike() -> None:
    """Its name may be in no catalogue."""
    mine = replace(chips.load(H100), name="mine")
    whole = Cluster.of(H100, 2)
    fleet = Fleet.of(
        replace(whole, groups=(replace(whole.groups[0], chip="mine"),)), mine, "a.toml"
    )
    assert {(fleet.kind(rank).chip.name, fleet.kind(rank).chip_name) for rank in range(16)} == {
        ("mine", "a.toml")
    }
