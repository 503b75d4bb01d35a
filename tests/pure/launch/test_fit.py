"""The search for what fits: against memory in closed form, with few rehearsals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import OfframpError, UsageError
from offramp.launch.fit import Change, Ladder, Search, values_of

CAPACITY = 1000


def summary(peak: int) -> dict[str, Any]:
    memory = {"allocated_bytes": peak, "reserved_bytes": peak, "capacity_bytes": CAPACITY}
    return {
        "fits": peak <= CAPACITY,
        "shortfall_bytes": max(0, peak - CAPACITY),
        "given_back": 0,
        "memory": memory,
        "world": 8,
        "step_s": {"low": 1.0, "mid": 2.0, "high": 4.0},
    }


def change(name: str, size: int = 0) -> Change:
    return Change(("train", f"{size}"), f"{name}={size}")


def linear(fixed: int, each: int, played: list[int]) -> Callable[[Change], dict[str, Any]]:
    """A program that holds `fixed` bytes, and `each` for every sequence."""

    def play(one: Change) -> dict[str, Any]:
        played.append(int(one.command[-1]))
        return summary(fixed + each * played[-1])

    return play


@given(
    st.integers(0, 1200),
    st.integers(1, 300),
    st.lists(st.integers(1, 64), min_size=1, max_size=24, unique=True),
)
def test_the_first_rung_that_fits_is_found_by_halving(
    fixed: int, each: int, sizes: list[int]
) -> None:
    sizes.sort(reverse=True)
    played: list[int] = []
    rungs = tuple(change("batch", size) for size in sizes)
    search = Search(linear(fixed, each, played), most=100).run([Ladder("batch", rungs)])
    fitting = [size for size in sizes if fixed + each * size <= CAPACITY]
    found = [one.change.said for one in search.tried if one.fits]
    assert found[:1] == [f"batch={size}" for size in fitting[:1]]
    assert len(played) == len(set(played)) <= math.ceil(math.log2(len(sizes) + 1))
    said = [int(one.change.command[-1]) for one in search.tried]
    assert said == sorted(said, reverse=True)


def test_ladders_that_depend_on_what_fitted() -> None:
    ladders = [
        Ladder("first", (change("a", 3),)),
        Ladder("if some", (change("b", 1),), when="some"),
        Ladder("if none", (change("c", 2),), when="none"),
        Ladder("then", (change("d", 1),), when="some"),
    ]
    none = Search(linear(0, 500, [])).run(ladders)
    assert [(one.title, one.fits) for one in none.tried] == [
        *(("first", False), ("if none", True), ("then", True)),
    ]
    some = Search(linear(0, 100, [])).run(ladders)
    assert [one.title for one in some.tried] == ["first", "if some", "then"]


def test_what_cannot_be_played_is_told_and_the_search_goes_on() -> None:
    def play(one: Change) -> dict[str, Any]:
        if one.said == "a=2":
            raise OfframpError("no such layout")
        return summary(10)

    told: list[str] = []
    rungs = (change("a", 3), change("a", 2), change("a", 1))
    search = Search(play, told.append).run([Ladder("a", rungs)])
    assert [(one.change.said, one.problem) for one in search.tried] == [
        *(("a=2", "no such layout"), ("a=1", "")),
    ]
    assert told == ["trying a=2 (1 of at most 12)", "trying a=1 (2 of at most 12)"]


def test_a_search_ends_at_its_limit_and_plays_nothing_twice() -> None:
    played: list[int] = []
    rungs = tuple(change("a", size) for size in (9, 8, 7, 6))
    twice = [Ladder("a", rungs, every=True), Ladder("again", rungs[:2], every=True)]
    assert not Search(linear(0, 1, played)).run(twice).is_cut
    assert played == [9, 8, 7, 6]
    search = Search(linear(0, 1, []), most=2).run(twice)
    assert (len(search.tried), search.is_cut) == (2, True)
    assert search.plain()["is_cut"]


def test_an_outcome_is_plain_data() -> None:
    tried = Search(linear(0, 2000, [])).run([Ladder("a", (change("a", 1),))]).plain()["tried"]
    assert tried == [
        {
            "kind": "a",
            "change": "a=1",
            "command": ["train", "1"],
            "fits": False,
            "problem": "",
            "world": 8,
            "peak_bytes": 2000,
            "reserved_bytes": 2000,
            "capacity_bytes": 1000,
            "shortfall_bytes": 1000,
            "given_back": 0,
            "step_s": {"low": 1.0, "mid": 2.0, "high": 4.0},
        }
    ]


@pytest.mark.parametrize(
    ("command", "flag", "first"),
    [
        ("python a.py", "--batch-size=4,2", "python a.py --batch-size=4"),
        ("python a.py --batch-size 8 --x", "--batch-size=4,2", "python a.py --batch-size 4 --x"),
        ("python a.py --batch-size=8 --x", "--batch-size=4,2", "python a.py --batch-size=4 --x"),
        ("python a.py batch=8", "batch=4,2", "python a.py batch=4"),
        ("python a.py batch 8", "batch=4,2", "python a.py batch 8 batch=4"),
        ("python a.py -b 8", "-b = 4, 2", "python a.py -b 4"),
    ],
)
def test_a_flag_gets_each_value(command: str, flag: str, first: str) -> None:
    ladder = values_of(command.split(), flag)
    assert ladder.every
    assert " ".join(ladder.rungs[0].command) == first
    assert [rung.said.partition("=")[2] for rung in ladder.rungs] == ["4", "2"]


@pytest.mark.parametrize("text", ["", "--b", "=1,2", "--b=", "--b=1,", "--b=1,1"])
def test_a_flag_without_values_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--vary"):
        values_of(["python", "a.py"], text)
