"""Drawn values: their distributions, and that a part equals the same part of the whole."""

from __future__ import annotations

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import initialization

from offramp.errors import RefusedError
from offramp.train.models import draw
from offramp.train.models.recipe import Recipe, Recorder, Step

KEY = draw.key_of(1, "model.layers.0.mlp.weight")
COUNT = 200_000
NORMAL = (Step("normal_", 0, 1 << 40, (0.0, 1.0)),)


def distance(values: torch.Tensor, cumulative: torch.Tensor) -> float:
    """Kolmogorov-Smirnov distance between sorted values and their distribution."""
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return max((cumulative - steps[:-1]).max().item(), (steps[1:] - cumulative).max().item())


def test_normal_values_are_normal() -> None:
    values = draw.normal(KEY, 0, COUNT).sort().values
    cumulative = 0.5 * torch.erfc(-values / math.sqrt(2))
    assert distance(values, cumulative) < 1.95 / math.sqrt(COUNT)  # the 0.1 % point
    assert abs(values.mean()) < 4 / math.sqrt(COUNT)
    assert abs(values.std() - 1) < 4 / math.sqrt(2 * COUNT)


def test_uniform_values_are_uniform() -> None:
    values = draw.uniform(KEY, 0, COUNT).sort().values
    assert distance(values, values) < 1.95 / math.sqrt(COUNT)
    assert values[0] > 0
    assert values[-1] < 1


def test_neighbours_are_independent() -> None:
    values = draw.normal(KEY, 0, COUNT)
    for lag in (1, 2, 3, 8):
        product = (values[lag:] * values[:-lag]).mean()
        assert abs(product) < 4.5 / math.sqrt(COUNT)
        squares = ((values[lag:] ** 2 - 1) * (values[:-lag] ** 2 - 1)).mean() / 2
        assert abs(squares) < 4.5 / math.sqrt(COUNT)


def test_words_are_those_of_numpys_philox() -> None:
    whole = np.random.Philox(key=KEY).random_raw(64).view(np.uint32)
    assert (draw.words(KEY, 0, 128) == whole).all()
    assert (draw.words(KEY, 77, 20) == whole[77:97]).all()


@pytest.mark.parametrize("other", [draw.key_of(2, "a"), draw.key_of(1, "b"), draw.key_of(12, "")])
def test_seed_and_name_choose_the_stream(other: draw.Key) -> None:
    assert not torch.equal(draw.normal(draw.key_of(1, "a"), 0, 64), draw.normal(other, 0, 64))


def test_values_are_fixed_for_good() -> None:
    """A change here changes the weights of every run that is repeated from its job file."""
    values = draw.normal(draw.key_of(1, "lm_head.weight"), 10**12 + 1, 4)
    expected = [0.11913775181878308, 1.0731639384570473, 1.3737630603815902, -0.4980529631601785]
    assert values.tolist() == pytest.approx(expected, abs=1e-12)


@st.composite
def held(draw_: st.DrawFn) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """A shape and, for each dimension, a run, a strided set or all of its indices."""
    shape = tuple(draw_(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    indices = []
    for size in shape:
        first = draw_(st.integers(0, size))
        last = draw_(st.integers(first, size))
        every = draw_(st.sampled_from([1, 1, 2, 3]))
        whole = draw_(st.booleans())
        indices.append(np.arange(0, size) if whole else np.arange(first, last, every))
    return shape, indices


@given(held(), st.sampled_from([64, 1 << 18]), st.sampled_from([0, 4096]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_parts_equal_those_of_the_whole(
    case: tuple[tuple[int, ...], list[np.ndarray]], chunk: int, short: int, marked: bool
) -> None:
    shape, indices = case
    count = math.prod(shape)
    recipe: Recipe = (Step("normal_", 0, count, (0.5, 2.0)),)
    if marked:
        recipe = (*recipe, Step("fill_", count // 2, 3, (0.0,)))
    whole = draw.values(recipe, KEY, 0, count).view(shape).numpy()
    expected = torch.from_numpy(whole[np.ix_(*indices)].copy()).reshape(-1)
    made = torch.full_like(expected, math.nan)
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(draw, "CHUNK", chunk)
        patched.setattr(draw, "_SHORT", short)
        for place, values in draw.runs(recipe, KEY, shape, indices):
            made[place : place + len(values)] = values
    assert torch.equal(made, expected)


def record(fill: object, shape: tuple[int, ...] = (400, 300)) -> Recipe:
    recorder = Recorder()
    truncated = {"trunc_normal_": recorder.note_truncated}
    with patch.dict(initialization.TORCH_INIT_FUNCTIONS, truncated), recorder, torch.no_grad():
        tensor = torch.empty(shape, device="meta")
        fill(tensor)  # type: ignore[operator]
    return recorder.of(tensor)


def test_truncated_normals_are_repeated() -> None:
    recipe = record(lambda t: initialization.trunc_normal_(t, std=0.5, a=-1.0, b=1.0))
    ours = draw.values(recipe, KEY, 0, 120_000)
    theirs = torch.nn.init.trunc_normal_(
        torch.empty(120_000), std=0.5, a=-1.0, b=1.0, generator=torch.Generator().manual_seed(1)
    )
    assert ours.abs().max() <= 1
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.01)
    assert ours.quantile(0.9).item() == pytest.approx(theirs.quantile(0.9).item(), rel=0.02)


def test_rows_set_apart_are_repeated() -> None:
    def embed(tensor: torch.Tensor) -> None:
        tensor.normal_(1.0, 0.02)
        tensor[7].zero_()

    values = draw.values(record(embed), KEY, 0, 120_000).view(400, 300)
    assert (values[7] == 0).all()
    assert (values[6] > 0.5).all()
    assert (values[8] > 0.5).all()


def test_kaiming_bounds_are_repeated() -> None:
    recipe = record(lambda t: torch.nn.init.kaiming_uniform_(t, a=math.sqrt(5)))
    values = draw.values(recipe, KEY, 0, 120_000)
    assert values.max().item() == pytest.approx(1 / math.sqrt(300), rel=1e-3)
    assert values.min().item() == pytest.approx(-1 / math.sqrt(300), rel=1e-3)


@pytest.mark.parametrize("fill", [lambda t: t.exponential_(), lambda t: t.t().normal_()])
def test_what_cannot_be_repeated_is_refused(fill: object) -> None:
    with pytest.raises(RefusedError, match="cannot be drawn by element"):
        draw.values(record(fill), KEY, 0, 10)
