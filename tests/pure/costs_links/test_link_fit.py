"""Measured links: the fit against closed forms written out here, and costs that rest on curves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.chips import ChipFileError
from offramp.chips.cluster import Cluster
from offramp.costs import training
from offramp.costs.collective import Collective, Links
from offramp.costs.link_fit import Point, fit
from offramp.costs.measured import COLLECTIVES_DTYPE, Curve, curve_text

SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 26)
MEASURED = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
CLUSTER = """
title = "measured"
[sources]
run = "a test"
[[nodes]]
chip = "nvidia-h100"
count = 1
chips_per_node = 8
[nodes.link]
name = "measured gloo"
topology = "switch"
bandwidth = {{ value = {bandwidth!r}, unit = "B/s", tier = "measured", source = "run" }}
latency = {{ value = {latency!r}, unit = "s", tier = "measured", source = "run" }}
"""


def ring(name: str, n: int, size: int, latency: float, bandwidth: float) -> float:
    """Seconds of a ring of n ranks; of an all-to-all whose up to 8 messages go out at once."""
    share = (n - 1) / n * size / bandwidth
    if name == "all_reduce":
        return 2 * (n - 1) * latency + 2 * share
    if name == "send":
        return latency + size / bandwidth
    return (latency if name == "all_to_all" else (n - 1) * latency) + share


def points(latency: float, bandwidth: float) -> Iterator[Point]:
    for name in MEASURED:
        for n in (2,) if name == "send" else (2, 4, 8):
            for size in SIZES:
                yield Point(name, n, size, ring(name, n, size, latency, bandwidth))


@settings(deadline=None)
@given(latency=st.floats(1e-7, 1e-3), bandwidth=st.floats(1e8, 1e12))
def test_a_link_is_found_again(latency: float, bandwidth: float) -> None:
    found = fit(list(points(latency, bandwidth)))
    assert math.isclose(found.latency.value, latency, rel_tol=1e-6)
    assert math.isclose(found.bandwidth.value, bandwidth, rel_tol=1e-6)
    assert found.worst == pytest.approx(1)


@settings(deadline=None)
@given(data=st.data())
def test_noise_moves_it_little_further_than_the_noise(data: st.DataObject) -> None:
    noise = st.floats(0.9, 1.1)
    noisy = [
        Point(p.name, p.ranks, p.bytes, p.seconds * data.draw(noise)) for p in points(2e-5, 1e9)
    ]
    found = fit(noisy)
    for p in noisy:
        back = ring(p.name, p.ranks, p.bytes, found.latency.value, found.bandwidth.value)
        assert 0.7 < back / p.seconds < 1.4
    for span in (found.latency, found.bandwidth):
        assert span.low <= span.value <= span.high


def test_seconds_that_do_not_grow_are_refused() -> None:
    with pytest.raises(ValueError, match="do not grow with bytes"):
        fit([Point("send", 2, size, 1e-3 / n) for n, size in enumerate(SIZES, 1)])


def test_costs_give_back_what_was_measured(tmp_path: Path) -> None:
    """A measured link keeps its whole bandwidth, also where factors of training apply to others."""
    latency, bandwidth = 3e-5, 2.5e9
    found = fit(list(points(latency, bandwidth)))
    path = tmp_path / "this.cluster.toml"
    path.write_text(CLUSTER.format(bandwidth=found.bandwidth.value, latency=found.latency.value))
    links = Links(Cluster.read(path), factors=training.factors())
    for p in points(latency, bandwidth):
        collective = Collective(p.name, p.bytes, peer=1 if p.name == "send" else -1)
        cost = links.cost(collective, range(p.ranks))
        assert cost.seconds == pytest.approx(p.seconds, rel=1e-5), p


def test_curves_go_before_the_link(tmp_path: Path) -> None:
    axes = (("ranks", (2.0, 4.0)), ("bytes", (1024.0, 1048576.0)))
    curve = Curve(axes, (1e-4, 2e-3, 3e-4, 4e-3), 0.5, 2.0)
    costs = 'title = "t"\n[sources]\nrun = "a test"\n\n'
    costs += curve_text("all_reduce", COLLECTIVES_DTYPE, curve, "run")
    (tmp_path / "this.costs.toml").write_text(costs)
    path = tmp_path / "this.cluster.toml"
    text = CLUSTER.format(bandwidth=1e9, latency=1e-5) + 'costs = "this.costs.toml"\n'
    path.write_text(text)
    links = Links(Cluster.read(path))
    small, large = Collective("all_reduce", 1024), Collective("all_reduce", 2 << 20)
    assert links.cost(small, (4, 5)).seconds == pytest.approx(1e-4)
    assert links.cost(large, (0, 1, 2, 3)).seconds == pytest.approx(8e-3, rel=1e-4)
    on_host = Collective("all_reduce", 1024, on_host=True)  # the same gloo
    assert links.cost(on_host, (0, 1)) == links.cost(small, (0, 1))
    cost = links.cost(small, (0, 1))
    assert (cost.low, cost.high) == pytest.approx((5e-5, 2e-4))
    assert cost.basis.startswith("measured: all_reduce of 2 ranks")
    for name, ranks in (("all_reduce", 8), ("all_gather", 2)):
        cost = links.cost(Collective(name, 1 << 20), range(ranks))
        assert cost.seconds == pytest.approx(ring(name, ranks, 1 << 20, 1e-5, 1e9))
        assert "measured gloo" in cost.basis


def test_costs_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "this.cluster.toml"
    path.write_text(CLUSTER.format(bandwidth=1e9, latency=1e-5) + 'costs = "gone.toml"\n')
    with pytest.raises(ChipFileError, match=r"nodes\[0\].link.costs: 'gone.toml' is not there"):
        Cluster.read(path)
