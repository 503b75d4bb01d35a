"""Batches against a slow reference, and the order of sequences against what a permutation is."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UsageError
from offramp.train.data.batches import IGNORED, Batches, Rows, epoch_keys, permuted
from offramp.train.data.corpus import Corpus


def corpus_of(lengths: list[int], mask_seed: int | None = None) -> Corpus:
    """Documents of the given lengths, whose tokens are all different."""
    total = sum(lengths)
    mask = None
    if mask_seed is not None:
        mask = np.random.default_rng(mask_seed).integers(0, 2, total).astype(np.uint8)
    return Corpus(
        np.arange(1, total + 1, dtype=np.uint32), np.cumsum(lengths, dtype=np.int64), mask
    )


def equal(left: Rows, right: Rows) -> bool:
    return all(np.array_equal(getattr(left, f.name), getattr(right, f.name)) for f in fields(Rows))


def slow_row(corpus: Corpus, index: int, length: int, boundaries: bool) -> list[list[int]]:
    """One sequence, token by token: what the definitions say, without arithmetic on arrays."""
    document_of = []
    for number, end in enumerate(corpus.ends.tolist()):
        document_of += [number] * (end - len(document_of))
    columns: list[list[int]] = []
    first = index * length
    for at in range(first, first + length):
        target = int(corpus.tokens[at + 1])
        if corpus.mask is not None and not corpus.mask[at + 1]:
            target = IGNORED
        position, document = at - first, 0
        if boundaries:
            if document_of[at + 1] != document_of[at]:
                target = IGNORED
            position = sum(document_of[i] == document_of[at] for i in range(first, at))
            document = document_of[at] - document_of[first]
        columns.append([int(corpus.tokens[at]), target, position, document])
    return [list(row) for row in zip(*columns, strict=True)]


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=30)


@given(size=st.integers(1, 700), seed=st.integers(0, 2**40), epoch=st.integers(0, 2**40))
def test_permutation_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    keys = epoch_keys(seed, epoch)
    assert sorted(permuted(place, size, keys) for place in range(size)) == list(range(size))


@given(size=st.integers(2**40, 2**60), place=st.integers(0, 2**40 - 1))
def test_permutation_of_a_huge_range_needs_no_table(size: int, place: int) -> None:
    keys = epoch_keys(3, 0)
    assert 0 <= permuted(place, size, keys) < size


def test_permutations_are_even_over_epochs() -> None:
    # Chi-square of where 12 places go in 6,000 epochs: 121 degrees of freedom, deviation 15.6.
    size, epochs = 12, 6000
    table = np.zeros((size, size))
    for epoch in range(epochs):
        keys = epoch_keys(5, epoch)
        for place in range(size):
            table[place, permuted(place, size, keys)] += 1
    expected = epochs / size
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert abs(chi_square - 121) < 5 * 15.6


def test_neighbours_do_not_stay_neighbours() -> None:
    size, keys = 10_000, epoch_keys(1, 0)
    order = np.array([permuted(place, size, keys) for place in range(size)])
    assert np.mean(np.abs(np.diff(order))) == pytest.approx(size / 3, rel=0.03)
    assert np.corrcoef(order, np.arange(size))[0, 1] == pytest.approx(0, abs=0.04)


@given(
    lengths=LENGTHS,
    length=st.integers(1, 12),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
    shuffle=st.booleans(),
)
def test_every_sequence_comes_once_an_epoch(
    lengths: list[int], length: int, batch: int, seed: int, shuffle: bool
) -> None:
    corpus = corpus_of([*lengths, length + 1])
    batches = Batches(
        corpus, sequence=length, batch=batch, seed=seed, shuffle=shuffle, boundaries=False
    )
    count = batches.sequences
    assert count == (len(corpus.tokens) - 1) // length
    steps = -(-3 * count // batch)
    firsts = np.concatenate([batches.rows(s, 0, batch).tokens_BT[:, 0] for s in range(steps)])
    for epoch in range(3):
        met = firsts[epoch * count : (epoch + 1) * count]
        assert sorted(met) == [1 + length * index for index in range(count)]
    assert [batches.epoch(step) for step in range(steps)] == [
        s * batch // count for s in range(steps)
    ]


@settings(max_examples=60)
@given(
    lengths=LENGTHS,
    length=st.integers(1, 12),
    boundaries=st.booleans(),
    mask_seed=st.none() | st.integers(0, 99),
)
def test_rows_are_what_the_definitions_say(
    lengths: list[int], length: int, boundaries: bool, mask_seed: int | None
) -> None:
    corpus = corpus_of([*lengths, length + 1], mask_seed)
    batches = Batches(
        corpus, sequence=length, batch=3, seed=1, shuffle=False, boundaries=boundaries
    )
    for index in range(batches.sequences):
        rows = batches.rows(index // 3, index % 3, 1)
        found = [
            table[0].tolist()
            for table in (rows.tokens_BT, rows.targets_BT, rows.positions_BT, rows.documents_BT)
        ]
        assert found == slow_row(corpus, index, length, boundaries)


@given(lengths=LENGTHS, batch=st.integers(1, 8), step=st.integers(0, 50), data=st.data())
def test_ranks_together_see_the_global_batch(
    lengths: list[int], batch: int, step: int, data: st.DataObject
) -> None:
    corpus = corpus_of([*lengths, 9], 0)
    batches = Batches(corpus, sequence=8, batch=batch, seed=4, shuffle=True, boundaries=True)
    whole = batches.rows(step, 0, batch)
    cuts = sorted({0, batch, *data.draw(st.lists(st.integers(0, batch), max_size=4))})
    parts = [batches.rows(step, a, b - a) for a, b in itertools.pairwise(cuts)]
    for f in fields(Rows):
        joined = np.concatenate([getattr(part, f.name) for part in parts])
        assert np.array_equal(joined, getattr(whole, f.name))
        assert joined.dtype == np.int64


@given(order=st.permutations(range(6)))
def test_rows_do_not_depend_on_what_was_asked_before(order: list[int]) -> None:
    corpus = corpus_of([7, 3, 40, 11])

    def fresh() -> Batches:
        return Batches(corpus, sequence=5, batch=4, seed=9, shuffle=True, boundaries=True)

    used = fresh()
    for step in order:
        assert equal(used.rows(step, 0, 4), fresh().rows(step, 0, 4))


def test_seeds_and_epochs_differ_in_order() -> None:
    corpus = corpus_of([400])

    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batches = Batches(corpus, sequence=4, batch=99, seed=seed, shuffle=True, boundaries=True)
        return tuple(batches.rows(epoch, 0, 99).tokens_BT[:, 0])

    orders = Counter(order(seed, epoch) for seed in range(5) for epoch in range(5))
    assert len(orders) == 25


def test_too_little_data_is_refused() -> None:
    with pytest.raises(UsageError, match="has 8 tokens, and one sequence takes 9"):
        Batches(corpus_of([8]), sequence=8, batch=1, seed=1, shuffle=True, boundaries=True)


@pytest.mark.parametrize(("step", "first", "count"), [(-1, 0, 1), (0, 3, 2), (0, -1, 1), (0, 0, 0)])
def test_rows_outside_of_the_batch_are_refused(step: int, first: int, count: int) -> None:
    batches = Batches(corpus_of([90]), sequence=8, batch=4, seed=1, shuffle=True, boundaries=True)
    with pytest.raises(ValueError, match="of a batch of 4"):
        batches.rows(step, first, count)
