"""As with CUDA's Philox: an operator's draws are a function of the generator's seed and offset."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from agree import agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

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
    "kaiming": lambda d: torch.nn.Linear(6, 5, device=d).weight,
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_first_draws_of_a_seed_are_those_of_the_cpu(name: str) -> None:
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


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), offset=st.integers(0, 2**40).map(lambda n: 4 * n))
def test_a_state_is_a_seed_and_an_offset(seed: int, offset: int) -> None:
    words = torch.tensor([seed, offset], dtype=torch.int64)
    first = torch.Generator("cuda")
    first.set_state(words.view(torch.uint8))
    assert first.initial_seed() == seed
    drawn = torch.rand(40, device="cuda", generator=first)
    assert torch.equal(first.get_state().view(torch.int64), words + torch.tensor([0, 4]))
    second = torch.Generator("cuda").manual_seed(seed)
    second.set_offset(offset)
    assert torch.equal(torch.rand(40, device="cuda", generator=second), drawn)
    assert not torch.equal(torch.rand(40, device="cuda", generator=second), drawn)


def test_draws_at_successive_offsets_are_independent() -> None:
    torch.manual_seed(0)
    rows = torch.stack([torch.randn(4096, device="cuda") for _ in range(64)]).cpu()
    assert abs(rows.mean()) < 5 / rows.numel() ** 0.5
    assert abs(rows.var() - 1) < 5 * (2 / rows.numel()) ** 0.5
    correlation = torch.corrcoef(rows) - torch.eye(64)
    assert correlation.abs().max() < 5.5 / 4096**0.5  # 2,016 pairs: expected maximum 3.5


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match="RNG state is wrong size: 5056 bytes, expected 16"):
        torch.cuda.set_rng_state(torch.get_rng_state())


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


def test_only_operators_that_draw_move_the_offset() -> None:
    torch.manual_seed(2)
    q = torch.ones(1, 1, 4, 8, device="cuda")
    torch.nn.functional.scaled_dot_product_attention(q, q, q)
    torch.nn.functional.dropout(q, 0.5, training=False)
    torch.rand(0, device="cuda")
    assert torch.cuda.get_rng_state().view(torch.int64).tolist() == [2, 0]
    torch.nn.functional.dropout(q, 0.5)
    torch.nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    assert torch.cuda.get_rng_state().view(torch.int64).tolist() == [2, 8]


def test_a_sequence_of_draws_can_be_exchanged() -> None:
    """As CUDA's: what was taken is the sequence itself, and goes on with it."""
    mine = torch.Generator("cuda").manual_seed(3)
    taken = mine.graphsafe_get_state()
    torch.rand(2, device="cuda", generator=mine)
    assert taken.get_offset() == mine.get_offset() == 4
    other = torch.Generator("cuda").manual_seed(9)
    expected = torch.rand(5, device="cuda", generator=other.clone_state())
    mine.graphsafe_set_state(other)
    assert torch.equal(torch.rand(5, device="cuda", generator=mine), expected)
    assert (mine.initial_seed(), other.get_offset(), taken.get_offset()) == (9, 4, 4)
    with pytest.raises(RuntimeError, match="expected a generator of"):
        mine.graphsafe_set_state(torch.Generator())


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_compiled_graph_draws_again_what_it_drew() -> None:
    """Dropout that is computed again in the backward pass drops the same."""

    def dropped(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x.sin(), 0.5).exp()

    @torch.compile(backend="aot_eager_decomp_partition")
    def step(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(dropped, x, use_reentrant=False)

    for _ in range(2):
        x = torch.rand(1000, device="cuda").add_(0.1).requires_grad_()
        y = step(x)
        y.sum().backward()
        kept = y != 1
        assert 400 < kept.sum() < 600
        torch.testing.assert_close(x.grad, torch.where(kept, 2 * x.cos() * y, 0.0))
