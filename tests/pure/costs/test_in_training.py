"""What factors of training do to costs."""

from __future__ import annotations

import pytest

from offramp import chips
from offramp.chips.cluster import Cluster
from offramp.costs import Costs, Operation, Span, training
from offramp.costs.collective import Collective, Links

A100 = chips.load("nvidia-a100")


def mm(size: int) -> Operation:
    tensor = f'["bfloat16", [{size}, {size}], [{size}, 1]]'
    return Operation.parse(f'{{"op": "aten::mm", "in": [{tensor}, {tensor}], "out": [{tensor}]}}')


def add(count: int) -> Operation:
    tensor = f'["float32", [{count}], [1]]'
    said = f'{{"op": "aten::add.Tensor", "in": [{tensor}, {tensor}], "out": [{tensor}]}}'
    return Operation.parse(said)


def test_a_factor_multiplies_the_seconds_of_its_kind_alone() -> None:
    plain = Costs(A100)
    slow = Costs(A100, factors={"products": Span(1.25, 1.1, 1.4)})
    fixed = plain.constants["memory.kernel"].value
    before, after = plain.of(mm(8192)), slow.of(mm(8192))
    assert after.seconds - fixed == pytest.approx(1.25 * (before.seconds - fixed), rel=1e-6)
    assert after.high / before.high > 1.3
    assert slow.of(add(1 << 24)) == plain.of(add(1 << 24))
    assert slow.host == plain.host


def test_the_host_and_overlap() -> None:
    plain = Costs(A100)
    found = Costs(A100, factors={"host": Span.exact(2), "overlap": Span.exact(0.5)})
    assert found.host.operator.value == pytest.approx(2 * plain.host.operator.value)
    assert found.overlap_slowdown - 1 == pytest.approx((plain.overlap_slowdown - 1) / 2)
    assert found.overlap.low == 1.0


def test_transfers_of_many_bytes_go_with_the_bandwidth() -> None:
    """A ring of a gigabyte: inside a node its links decide, between two a network that is slow."""

    def seconds(ranks: int, **factors: float) -> float:
        spans = {name: Span.exact(value) for name, value in factors.items()}
        call = Collective("all_reduce", 1 << 30, "float32")
        return Links(Cluster.of("nvidia-a100", 2), factors=spans).cost(call, range(ranks)).seconds

    assert seconds(8, links=2) / seconds(8) == pytest.approx(2, rel=0.05)
    assert seconds(8, network=2) == seconds(8)
    assert seconds(16, network=20) / seconds(16, network=10) == pytest.approx(2, rel=0.05)
    assert seconds(16, latency=3) > seconds(16)


def values(factors: training.Factors) -> dict[str, float]:
    return {name: span.value for name, span in factors.items()}


def test_a_source_is_predicted_by_factors_of_its_own() -> None:
    whole, without = training.read(training.DATA)
    assert values(training.factors()) == values(whole)
    assert training.factors("a source that nobody has") == training.factors()
    for title, found in without.items():
        assert values(training.factors(title)) == values(found) != values(whole)
    assert all(span.low == span.value == span.high for span in training.factors().values())


def test_a_board_of_less_power_is_slower() -> None:
    """The A100 of 300 W reaches 252.9 TFLOP/s where that of 400 W reaches 271.2 (mamf)."""
    text = (chips.catalogue.DATA / "nvidia-a100.toml").read_text(encoding="utf-8")
    weaker = text.replace("power = { value = 400,", "power = { value = 300,")
    assert weaker != text
    ratio = _rate(weaker) / _rate(text)
    assert ratio == pytest.approx(252.9 / 271.2, rel=0.01)


def _rate(text: str) -> float:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nvidia-a100.toml"
        path.write_text(text, encoding="utf-8")
        return Costs(chips.load(str(path))).limits.rate("bfloat16").achieved.value
