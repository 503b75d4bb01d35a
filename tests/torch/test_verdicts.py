"""Verdicts on real recordings: what was done to a program is what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recording_here import record
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.compare import run
from offramp.compare.judge import judge
from offramp.compare.verdict import DIFFERENT, PRECISION, SAME, UNKNOWN, Verdict
from offramp.record.recording import Recording, read
from offramp.report import comparison, comparison_page
from offramp.report.lines import plain

STEPS = 10
Change = Callable[[nn.Module], Any]


def train(
    change: Change | None = None, seed: int = 5, lr: float = 0.05, steps: int = STEPS
) -> None:
    torch.manual_seed(seed)
    layers = [nn.Embedding(23, 24), nn.Linear(24, 48), nn.LayerNorm(48), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(48, 23))
    if change is not None:
        change(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        ids_B = torch.randint(0, 23, (32,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(ids_B), ids_B.flip(0)).backward()
        optimizer.step()


def recorded(path: Path, work: Callable[[], Any], **part: Any) -> Recording:
    return record(path, work, **{"first": STEPS, **part})[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, list[Recording]]:
    folder = tmp_path_factory.mktemp("base")
    noisy = [recorded(folder / f"{n}.rec", train, perturb=n) for n in (1, 2)]
    return recorded(folder / "a.rec", train), noisy


def verdict_on(base: Any, path: Path, work: Callable[[], Any], **part: Any) -> Verdict:
    return judge(base[0], recorded(path / "b.rec", work, **part), base[1])


def test_the_same_program_is_the_same(base: Any, tmp_path: Path) -> None:
    found = verdict_on(base, tmp_path, train)
    assert (found.verdict, found.worst) == (SAME, 0.0)
    assert found.curves is not None
    assert found.curves.within


def test_another_order_of_sums_is_the_same(base: Any, tmp_path: Path) -> None:
    def reorder(model: nn.Module) -> None:
        for layer in (model[1], model[4]):
            order = torch.randperm(layer.in_features, generator=torch.Generator().manual_seed(3))
            layer.forward = lambda x, m=layer, o=order: F.linear(x[..., o], m.weight[:, o], m.bias)

    found = verdict_on(base, tmp_path, lambda: train(reorder))
    assert found.verdict == SAME
    assert found.worst > 0


def test_noise_alone_is_the_same(base: Any, tmp_path: Path) -> None:
    found = verdict_on(base, tmp_path, train, perturb=3)
    assert found.verdict == SAME
    assert found.worst < 5


def test_narrow_products_are_named(base: Any, tmp_path: Path) -> None:
    def narrow(x: Tensor) -> Tensor:
        bits = (x.detach().contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)
        return x + (bits.view(torch.float32) - x).detach()

    def tf32(model: nn.Module) -> None:
        for layer in (model[1], model[4]):
            layer.forward = lambda x, m=layer: F.linear(narrow(x), narrow(m.weight), m.bias)

    found = verdict_on(base, tmp_path, lambda: train(tf32))
    assert found.verdict == PRECISION
    assert "10 bits of mantissa" in found.kind
    assert found.place is not None
    assert (found.place.step, found.place.module) == (0, "1")


@pytest.mark.parametrize(
    ("change", "module", "kind"),
    [
        (lambda m: setattr(m[2], "eps", 1e-3), "2", "scaled by 0.99"),
        (lambda m: setattr(m[3], "forward", lambda x: x * 0), "3", "all zero in the second"),
        (lambda m: setattr(m[3], "forward", lambda x: x * float("nan")), "3", "non-finite values"),
        (lambda m: setattr(m[3], "forward", lambda x: x.tanh().flip(-1)), "3", "in another order"),
    ],
    ids=["epsilon", "zeros", "nan", "reversed"],
)
def test_a_fault_is_found_where_it_is(
    base: Any, tmp_path: Path, change: Change, module: str, kind: str
) -> None:
    found = verdict_on(base, tmp_path, lambda: train(change))
    assert found.verdict == DIFFERENT
    assert found.is_chip
    assert found.place is not None
    assert (found.place.step, found.place.module, found.place.pass_name) == (0, module, "forward")
    assert kind in found.kind
    json.dumps(found.data(), allow_nan=False)


def test_what_is_not_the_chip_is_named(base: Any, tmp_path: Path) -> None:
    other = verdict_on(base, tmp_path, lambda: train(lr=0.06))
    assert (other.is_chip, other.kind) == (False, "not the chip: optimizer")
    assert "lr: 0.05 and 0.06" in other.differences[0].text
    seeded = judge(base[0], recorded(tmp_path / "c.rec", lambda: train(seed=6)), base[1])
    assert seeded.kind == "not the chip: weights"
    assert {"seed", "weights"} <= {d.what for d in seeded.differences}


def test_another_program_cannot_be_compared(base: Any, tmp_path: Path) -> None:
    found = verdict_on(base, tmp_path, lambda: train(lambda m: m.append(nn.Dropout(0.0))))
    assert (found.verdict, found.kind) == (UNKNOWN, "recordings of different programs")
    assert "only in the second: 5" in found.missing[0]


def test_a_program_without_a_loss(base: Any, tmp_path: Path) -> None:
    def no_loss() -> None:
        layer = nn.Linear(3, 3)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(3):
            torch.autograd.grad(layer(torch.ones(2, 3)).sum(), list(layer.parameters()))
            optimizer.step()

    one = recorded(tmp_path / "a.rec", no_loss)
    found = judge(one, recorded(tmp_path / "b.rec", no_loss))
    assert found.verdict == UNKNOWN
    assert "called `backward` on no number" in found.missing[0]


def test_shapes_may_change_over_time_but_not_between_runs(tmp_path: Path) -> None:
    def work(wide: int) -> None:
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for step in range(6):
            rows = 2 + step % 3 + (wide if step == 4 else 0)
            layer(torch.ones(rows, 4)).mean().backward()
            optimizer.step()

    a = recorded(tmp_path / "a.rec", lambda: work(0))
    noisy = [recorded(tmp_path / "n.rec", lambda: work(0), perturb=1)]
    same = judge(a, recorded(tmp_path / "b.rec", lambda: work(0)), noisy)
    assert same.verdict == SAME
    other = judge(a, recorded(tmp_path / "c.rec", lambda: work(3)), noisy)
    assert other.verdict == DIFFERENT
    assert other.place is not None
    assert (other.place.step, other.place.module) == (4, "data")


def test_a_truncated_recording_is_compared_as_far_as_it_goes(base: Any, tmp_path: Path) -> None:
    whole = base[0].path.read_bytes()
    (tmp_path / "cut.rec").write_bytes(whole[: len(whole) // 2])
    cut = read(tmp_path / "cut.rec")
    found = judge(base[0], cut, base[1])
    assert found.verdict == SAME
    assert 0 < found.steps < STEPS
    assert any("cut off after" in note for note in found.notes)


def test_a_late_fault_between_detailed_steps(tmp_path: Path) -> None:
    def slip(model: nn.Module) -> None:
        calls = []

        def forward(x: Tensor) -> Tensor:
            calls.append(1)
            return x.tanh() * (1.05 if len(calls) > 7 else 1.0)

        model[3].forward = forward

    part = {"first": 3, "every": 10}
    a = recorded(tmp_path / "a.rec", lambda: train(steps=25), **part)
    noisy = [recorded(tmp_path / "n.rec", lambda: train(steps=25), perturb=1, **part)]
    found = judge(a, recorded(tmp_path / "b.rec", lambda: train(slip, steps=25), **part), noisy)
    assert found.verdict == DIFFERENT
    assert found.place is not None
    assert (found.place.step, found.place.module) == (7, "3")
    assert "record with --every 1" in found.missing[0]


def test_without_noise_the_first_step_is_judged(base: Any, tmp_path: Path) -> None:
    same = judge(base[0], base[1][0])
    assert (same.verdict, same.steps) == (SAME, 1)
    assert "assumed" in same.floor
    change = lambda m: setattr(m[2], "eps", 1e-3)  # noqa: E731
    other = judge(base[0], recorded(tmp_path / "b.rec", lambda: train(change)))
    assert other.place is not None
    assert (other.verdict, other.place.module) == (DIFFERENT, "2")


def test_the_words_and_the_page(base: Any, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    recorded(tmp_path / "b.rec", lambda: train(lambda m: setattr(m[2], "eps", 1e-3)))
    noise = [one.path for one in base[1]]
    found = run.files(base[0].path, tmp_path / "b.rec", noise, 0.005)
    text = plain(comparison.title(found), comparison.lines(found))
    assert "different: scaled by 0.99" in text
    assert "step 0, 2 (LayerNorm), forward: output of 2" in text
    page = comparison_page.draw(found)
    assert page == comparison_page.draw(found)
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    drawn = {trace["name"]: trace for trace in figures["curves"]["data"] if trace["name"]}
    assert drawn["first"]["y"] == pytest.approx(base[0].losses.tolist(), rel=1e-6)
    assert set(drawn) == {"noise", "first", "second"}
    rows = figures["modules"]["data"][0]
    assert rows["x"][rows["y"].index("2")] > 8 > rows["x"][rows["y"].index("1")]


def test_other_noise_is_refused(base: Any, tmp_path: Path) -> None:
    from offramp.errors import UsageError

    (tmp_path / "x.rec").write_bytes(b"no")
    with pytest.raises(UsageError, match="is no recording"):
        run.files(base[0].path, base[0].path, [tmp_path / "x.rec"], 0.005)
