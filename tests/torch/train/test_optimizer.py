"""Learning rates against their formulas, optimizers against a loop written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offramp.train.job import OptimizerSection, ScheduleSection
from offramp.train.optimizer import Optimizers, learning_rate

NAMES = ("cosine", "linear", "wsd", "constant")


@given(
    st.sampled_from(NAMES),
    st.integers(0, 20),
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_rate_rises_to_one_and_falls_to_the_floor(
    name: str, warmup: int, total: int, decay: float, floor: float
) -> None:
    section = ScheduleSection(name=name, warmup=warmup, decay=decay, floor=floor)
    rates = [learning_rate(section, step, total) for step in range(total)]
    assert all(min(floor, 1 / max(1, warmup)) - 1e-9 <= rate <= 1 + 1e-9 for rate in rates)
    rising = rates[: min(warmup, total)]
    assert rising == sorted(rising)
    falling = rates[warmup:]
    assert falling == sorted(falling, reverse=True)
    if total > warmup and name in ("cosine", "linear"):
        assert rates[-1] == pytest.approx(floor)
    if name == "constant":
        assert set(falling) <= {1.0}


def test_the_middle_of_each_schedule() -> None:
    half = {"warmup": 0, "floor": 0.2}
    assert learning_rate(ScheduleSection("cosine", **half), 49, 100) == pytest.approx(0.6)
    assert learning_rate(ScheduleSection("linear", **half), 24, 100) == pytest.approx(0.8)
    wsd = ScheduleSection("wsd", decay=0.2, **half)
    assert learning_rate(wsd, 79, 100) == 1.0
    assert learning_rate(wsd, 89, 100) == pytest.approx(0.6)
    assert learning_rate(ScheduleSection("cosine", warmup=4), 0, None) == 0.25
    assert learning_rate(ScheduleSection("cosine", warmup=4), 9, None) == 1.0


def adamw_by_hand(p, grads, rates, section, decay):
    """Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101, algorithm 2), in float64."""
    p, m, v = p.double().clone(), 0.0, 0.0
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        lr = section.lr * rate
        g = grad.double()
        m = section.beta1 * m + (1 - section.beta1) * g
        v = section.beta2 * v + (1 - section.beta2) * g * g
        p -= lr * decay * p
        root = (v / (1 - section.beta2**t)).sqrt() + section.eps
        p -= lr * (m / (1 - section.beta1**t)) / root
    return p


def test_adamw_is_the_published_rule_and_spares_plain_weights() -> None:
    torch.manual_seed(0)
    section = OptimizerSection(lr=0.01)
    named = {name: nn.Parameter(torch.randn(4, 3)) for name in ("matrix", "norm")}
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizers = Optimizers(named, section, plain=["norm"])
    rates = [0.5, 1.0, 0.1]
    grads = {name: [torch.randn(4, 3) for _ in rates] for name in named}
    for step, rate in enumerate(rates):
        for name, p in named.items():
            p.grad = grads[name][step]
        optimizers.step(rate)
    for name, decay in (("matrix", section.weight_decay), ("norm", 0.0)):
        exact = adamw_by_hand(before[name], grads[name], rates, section, decay)
        torch.testing.assert_close(named[name].double(), exact, rtol=1e-5, atol=1e-6)


def test_muon_moves_matrices_along_orthogonal_directions() -> None:
    """Newton-Schulz brings singular values of the update to about 1 (Jordan et al., 2024)."""
    torch.manual_seed(0)
    named = {"matrix": nn.Parameter(torch.zeros(8, 8)), "norm": nn.Parameter(torch.zeros(8))}
    section = OptimizerSection(name="muon", weight_decay=0.0)
    optimizers = Optimizers(named, section, matrices=["matrix"], plain=["norm"])
    for p in named.values():
        p.grad = torch.randn_like(p)
    optimizers.step(1.0)
    values = torch.linalg.svdvals(named["matrix"].detach()) / section.muon_lr
    assert 0.3 < values.min() <= values.max() < 1.6
    torch.testing.assert_close(
        named["norm"].detach(), -section.lr * named["norm"].grad.sign(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_copy_of_the_state_goes_on_alike(name: str) -> None:
    def fresh() -> tuple[dict[str, nn.Parameter], Optimizers]:
        torch.manual_seed(1)
        named = {"matrix": nn.Parameter(torch.randn(6, 4)), "norm": nn.Parameter(torch.randn(4))}
        section = OptimizerSection(name=name)
        return named, Optimizers(named, section, matrices=["matrix"], plain=["norm"])

    def step(named: dict[str, nn.Parameter], optimizers: Optimizers, number: int) -> None:
        torch.manual_seed(number)
        for p in named.values():
            p.grad = torch.randn_like(p)
        optimizers.step(1.0)

    one, first = fresh()
    for number in range(3):
        step(one, first, number)
    two, second = fresh()
    with torch.no_grad():
        for key, tensor in second.tensors().items():
            tensor.copy_(first.tensors()[key])
        for key, p in two.items():
            p.copy_(one[key])
    second.resume(3)
    step(one, first, 9)
    step(two, second, 9)
    for key in one:
        assert torch.equal(one[key], two[key])
    assert math.isfinite(float(one["matrix"].detach().sum()))
