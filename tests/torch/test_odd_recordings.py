"""Programs and files that are not as they should be: what is recorded of them, what is said."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recording_here import record
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.compare import run
from offramp.compare.judge import judge
from offramp.compare.verdict import DIFFERENT, SAME, UNKNOWN
from offramp.errors import UsageError
from offramp.record.recording import Recording, read

STEPS = 9
Change = Callable[[nn.Sequential], Any]


class Doubling(nn.Module):
    """Takes its input as a keyword."""

    def forward(self, *, x: Tensor) -> Tensor:
        return 2 * x


def train(
    change: Change | None = None, *, steps: int = STEPS, batch: int = 4, has_optimizer: bool = True
) -> None:
    """Sequences of another length in each step."""
    torch.manual_seed(0)
    layers = [nn.Embedding(17, 8), nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 17)]
    model = nn.Sequential(*layers)
    if change is not None:
        change(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        ids_BT = torch.randint(0, 17, (batch, 5 + 3 * step % 7), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(ids_BT).flatten(0, 1), ids_BT.flatten()).backward()
        if has_optimizer:
            optimizer.step()


def recorded(path: Path, work: Callable[[], Any] = train, **part: Any) -> Recording:
    return record(path, work, **{"first": STEPS, **part})[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, Recording]:
    """The program, and with noise."""
    folder = tmp_path_factory.mktemp("base")
    return recorded(folder / "a.rec"), recorded(folder / "n.rec", perturb=1)


def test_lengths_that_change_each_step(base: Any, tmp_path: Path) -> None:
    a, noise = base
    shapes = [step.rows.column("shape").tolist() for step in a.steps]
    assert all(x != y for x, y in itertools.pairwise(shapes))
    same = judge(a, recorded(tmp_path / "b.rec"), [noise])
    assert (same.verdict, same.steps) == (SAME, STEPS)

    def slip(model: nn.Sequential) -> None:
        inner, calls = model[2].forward, itertools.count()
        model[2].forward = lambda x: inner(x) * (1.02 if next(calls) >= 5 else 1.0)

    other = judge(a, recorded(tmp_path / "c.rec", lambda: train(slip)), [noise])
    assert (other.verdict, other.kind) == (DIFFERENT, "scaled by 1.02")
    assert other.place is not None
    assert (other.place.step, other.place.module) == (5, "2")


def test_another_batch_is_no_chips_fault(base: Any, tmp_path: Path) -> None:
    found = judge(base[0], recorded(tmp_path / "b.rec", lambda: train(batch=8)), [base[1]])
    assert (found.verdict, found.kind) == (DIFFERENT, "not the chip: data")


def test_fewer_steps_are_compared_and_told(base: Any, tmp_path: Path) -> None:
    found = judge(base[0], recorded(tmp_path / "b.rec", lambda: train(steps=5)), [base[1]])
    assert (found.verdict, found.steps) == (SAME, 5)
    assert found.notes == ("9 and 5 steps; compared are the 5 of both",)


def test_a_program_whose_optimizer_makes_no_step(base: Any, tmp_path: Path) -> None:
    one = recorded(tmp_path / "b.rec", lambda: train(has_optimizer=False))
    assert [len(step.losses) for step in one.steps] == [STEPS]
    found = judge(one, one)
    assert found.verdict == SAME
    assert "first: no optimizer made a step" in found.notes[0]


def test_a_program_that_ends_within_a_step_leaves_the_whole_ones(tmp_path: Path) -> None:
    def stop(model: nn.Sequential) -> None:
        inner, calls = model[3].forward, itertools.count()

        def forward(x: Tensor) -> Tensor:
            if next(calls) == 6:
                raise KeyError("planted")
            return inner(x)

        model[3].forward = forward

    def work() -> None:
        with pytest.raises(KeyError, match="planted"):
            train(stop)

    found = recorded(tmp_path / "b.rec", work)
    assert [step.number for step in found.steps] == list(range(6))
    assert all(len(step.losses) == len(step.settings) == 1 for step in found.steps)


def test_a_forward_pass_that_fails_does_not_end_the_recording(tmp_path: Path) -> None:
    def attempt(model: nn.Sequential) -> None:
        inner = model[0].forward

        def forward(ids: Tensor) -> Tensor:
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                model[1](torch.ones(1, 3))
            return inner(ids)

        model[0].forward = forward

    found = recorded(tmp_path / "b.rec", lambda: train(attempt), first=2)
    assert (found.ended, found.notes, len(found.steps)) == (True, (), STEPS)


def test_keywords_of_the_model_are_data(tmp_path: Path) -> None:
    def work(number: int) -> None:
        weight, model = nn.Parameter(torch.ones(3)), Doubling()
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for step in range(3):
            counted = model(x=torch.tensor([1, 2, number if step == 1 else 3]))
            (weight * counted).sum().backward()
            optimizer.step()

    one, other = (recorded(tmp_path / f"{n}.rec", lambda n=n: work(n)) for n in (3, 4))
    apart = [a.data != b.data for a, b in zip(one.steps, other.steps, strict=True)]
    assert apart == [False, True, False]


@pytest.mark.parametrize("kept", [30, 0.3, 0.6])
def test_a_file_that_was_cut_or_damaged(base: Any, tmp_path: Path, kept: float) -> None:
    whole = bytearray(base[0].path.read_bytes())
    count = int(kept if kept > 1 else kept * len(whole))
    cut, damaged = tmp_path / "cut.rec", tmp_path / "damaged.rec"
    cut.write_bytes(whole[:count])
    whole[count] ^= 0xFF
    damaged.write_bytes(whole)
    for path, word in ((cut, "cut off"), (damaged, "damaged")):
        if kept == 30:
            with pytest.raises(UsageError, match=f"holds nothing whole .{word} after 20 of"):
                read(path)
            continue
        found = judge(base[0], read(path), [base[1]])
        assert found.verdict == SAME
        assert 0 < found.steps < STEPS
        assert any(word in note and "whole steps were read" in note for note in found.notes)


def test_what_is_no_noise_of_the_program_is_refused(base: Any, tmp_path: Path) -> None:
    a, noise = base
    with pytest.raises(UsageError, match="was recorded without noise; record noise of the first"):
        run.judged([a], [a], [[a]], 0.005)
    other = recorded(tmp_path / "n.rec", lambda: train(lambda m: m.append(nn.Tanh())), perturb=1)
    with pytest.raises(UsageError, match=r"of another program than .*modules only in the second"):
        run.judged([a], [a], [[other]], 0.005)
    assert run.judged([a], [a], [[noise]], 0.005).verdict.verdict == SAME


def of_rank(recording: Recording, rank: int, world: int = 3) -> Recording:
    return replace(recording, config={**recording.config, "rank": rank, "world": world})


def test_ranks_meet_their_own_and_the_first_to_part_is_told(base: Any, tmp_path: Path) -> None:
    a, noise = base

    def slip(model: nn.Sequential, at: int, module: int) -> None:
        inner, calls = model[module].forward, itertools.count()
        model[module].forward = lambda x: inner(x) * (1.02 if next(calls) >= at else 1.0)

    late, early = (
        recorded(tmp_path / f"{at}.rec", lambda at=at: train(lambda m: slip(m, at, 2)))
        for at in (6, 3)
    )
    first, noisy = ([of_rank(one, rank) for rank in range(3)] for one in (a, noise))
    second = [of_rank(one, rank) for rank, one in enumerate((a, late, early))]
    found = run.judged(first, second, [noisy], 0.005)
    assert (found.rank, found.ranks) == (2, 3)
    assert found.verdict.place is not None
    assert found.verdict.place.step == 3
    # Without the file of rank 1, rank 2 is still judged against rank 2.
    found = run.judged(first, [second[0], second[2]], [noisy], 0.005)
    assert (found.rank, found.ranks, found.verdict.verdict) == (2, 2, DIFFERENT)
    assert found.verdict.missing == ("rank 1 in both recordings",)
    found = run.judged(first, first[::2], [noisy], 0.005)
    assert (found.verdict.verdict, found.ranks) == (UNKNOWN, 2)
    assert found.verdict.kind == "recordings of 3 and of 2 ranks"


def test_what_is_to_be_known_of_other_ranks_is_told(base: Any) -> None:
    first = [of_rank(base[0], rank, 2) for rank in range(2)]
    noisy = [of_rank(base[1], rank, 2) for rank in range(2)]
    second = [first[0], replace(first[1], ended=False)]
    found = run.judged(first, second, [noisy], 0.005)
    assert (found.verdict.verdict, found.rank) == (SAME, 0)
    assert found.verdict.notes == ("rank 1: second: the program did not come to its end",)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks for it
def test_layers_compiled_one_by_one_compile_as_often_as_without_a_recorder(tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).tanh()

    def work() -> int:
        counter = CompileCounter()
        layers = nn.Sequential(*(Layer() for _ in range(12)))
        for layer in layers[:-2]:
            layer.compile(backend=counter, fullgraph=True)
        wrapped = [torch.compile(layer, backend=counter, fullgraph=True) for layer in layers[-2:]]
        optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            x = layers[:-2](torch.randn(4, 8))
            for layer in wrapped:
                x = layer(x)
            x.square().mean().backward()
            optimizer.step()
        return counter.frame_count

    alone, counts = work(), []
    found = recorded(tmp_path / "a.rec", lambda: counts.append(work()))
    assert (counts, found.notes, len(found.steps)) == ([alone], (), 3)


def test_what_is_compiled_is_one_piece_as_without_a_recorder(tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()

    def work() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            compiled(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()

    found = recorded(tmp_path / "a.rec", work, first=2, every=4)
    assert (found.notes, len(found.steps), found.detailed) == ((), 6, (0, 1, 4))
    assert counter.frame_count == 1
