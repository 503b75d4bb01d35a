"""One seed gives one stream on every virtual chip: the CPU's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from agree import agree

pytestmark = pytest.mark.usefixtures("chip")

DRAWS: dict[str, Callable[[str], torch.Tensor]] = {
    "rand": lambda d: torch.rand(5, device=d),
    "randn": lambda d: torch.randn(33, device=d),
    "randint": lambda d: torch.randint(1000, (7,), device=d),
    "randperm": lambda d: torch.randperm(50, device=d),
    "rand_like": lambda d: torch.rand_like(torch.zeros(4, 4, device=d)),
    "normal_": lambda d: torch.empty(20, device=d).normal_(2, 3),
    "uniform_": lambda d: torch.empty(20, device=d).uniform_(-1, 1),
    "bernoulli_": lambda d: torch.empty(40, device=d).bernoulli_(0.3),
    "bernoulli": lambda d: torch.bernoulli(torch.full((40,), 0.5, device=d)),
    "exponential_": lambda d: torch.empty(9, device=d).exponential_(),
    "cauchy_": lambda d: torch.empty(9, device=d).cauchy_(),
    "multinomial": lambda d: torch.multinomial(torch.ones(10, device=d), 40, replacement=True),
    "poisson": lambda d: torch.poisson(torch.full((9,), 4.0, device=d)),
    "dropout2d": lambda d: torch.nn.functional.dropout2d(torch.ones(4, 8, 3, 3, device=d), 0.5),
    "rrelu": lambda d: torch.nn.functional.rrelu(-torch.ones(20, device=d), training=True),
    "truncated": lambda d: torch.nn.init.trunc_normal_(torch.empty(20, device=d)),
    "kaiming": lambda d: torch.nn.Linear(6, 5, device=d).weight,
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_the_cpu(name: str) -> None:
    agree(DRAWS[name])


def test_dropout_drops_the_same_as_the_native_operator_of_the_cpu() -> None:
    values = torch.randn(100)
    torch.manual_seed(3)
    expected = torch.native_dropout(values, 0.4, True)[0]
    torch.manual_seed(3)
    assert torch.equal(torch.nn.functional.dropout(values.cuda(), 0.4).cpu(), expected)


def test_generators_of_a_chip_are_their_own() -> None:
    mine = torch.Generator("cuda").manual_seed(5)
    assert mine.device == torch.device("cuda", 0)
    host = torch.Generator().manual_seed(5)
    first = torch.randn(4, device="cuda", generator=mine)
    assert torch.equal(first.cpu(), torch.randn(4, generator=host))
    state = mine.get_state()
    second = torch.randn(4, device="cuda", generator=mine)
    mine.set_state(state)
    assert torch.equal(torch.randn(4, device="cuda", generator=mine), second)
    again = mine.clone_state()
    assert torch.equal(
        torch.rand(3, device="cuda", generator=again), torch.rand(3, device="cuda", generator=mine)
    )
    assert mine.initial_seed() == 5


def test_chips_and_the_cpu_draw_from_separate_streams() -> None:
    torch.manual_seed(11)
    on_first = torch.rand(3, device="cuda:0")
    on_second = torch.rand(3, device="cuda:1")
    on_host = torch.rand(3)
    assert torch.equal(on_first.cpu(), on_second.cpu())
    assert torch.equal(on_first.cpu(), on_host)
    assert not torch.equal(torch.rand(3, device="cuda:0"), on_first)


def test_a_generator_of_another_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
