"""The recorder: its figures are those of the tensors themselves; the program is as without it."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording_here import record
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.utils.checkpoint import checkpoint

from offramp.record import rows, sampling
from offramp.record.perturbing import Perturbation
from offramp.record.recording import Recording, read


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.BatchNorm1d(8)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(8, 11)

    def forward(self, ids_B: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.embed(ids_B))))


def train(steps: int = 6, seed: int = 3) -> tuple[list[float], list[float], nn.Module]:
    """Losses, norms of gradients, the model."""
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses, norms = [], []
    for _ in range(steps):
        ids_B = torch.randint(0, 11, (16,))
        loss = nn.functional.cross_entropy(model(ids_B), ids_B)
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        optimizer.step()
        losses.append(loss.item())
        with torch.no_grad():
            model(ids_B)
    return losses, norms, model


def recorded(path: Path, work: Callable[[], Any] = train, **part: Any) -> tuple[Recording, Any]:
    return record(path, work, **part)


def test_losses_and_norms_are_the_programs_own(tmp_path: Path) -> None:
    found, (losses, norms, _) = recorded(tmp_path / "a.rec", first=2, every=4)
    assert found.ended
    assert not found.notes
    assert found.losses.tolist() == pytest.approx(losses, rel=1e-12)
    assert [s.gradient_norm for s in found.steps] == pytest.approx(norms, rel=1e-5)
    assert found.detailed == (0, 1, 4)
    assert len({step.data for step in found.steps}) == 6
    assert found.kinds["norm"] == "BatchNorm1d"
    assert found.steps[0].settings[0]["groups"][0]["momentum"] == 0.9


def test_the_program_is_as_without_a_recorder(tmp_path: Path) -> None:
    plain, recording = train(), recorded(tmp_path / "a.rec", first=9)[1]
    assert recording[0] == plain[0]
    for a, b in zip(recording[2].parameters(), plain[2].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_killed_program_leaves_its_whole_steps(tmp_path: Path) -> None:
    code = (
        "import os, signal, torch\n"
        "from offramp.record.part import Part\n"
        "from offramp.record.recorder import Recorder\n"
        f"Recorder(Part(out={str(tmp_path / 'a.rec')!r}))\n"
        "m = torch.nn.Linear(3, 1); o = torch.optim.SGD(m.parameters(), lr=0.1)\n"
        "for i in range(9):\n"
        "    m(torch.ones(2, 3)).sum().backward(); o.step()\n"
        "    if i == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -9
    found = read(tmp_path / "a.rec")
    assert not found.ended
    assert [step.number for step in found.steps] == [0, 1, 2, 3]


def test_rows_are_in_order_of_time_with_numpys_statistics(tmp_path: Path) -> None:
    inputs = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))

    def work() -> Tensor:
        layer = nn.Linear(8, 3, bias=False)
        layer.weight.data.copy_(weight)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        layer(inputs).square().sum().backward()
        optimizer.step()
        return layer.weight

    found, after = recorded(tmp_path / "a.rec", work, first=1, every=99)
    step = found.steps[0].rows
    assert step is not None
    said = [(rows.WORDS[w], found.names[n]) for w, n in step.table[:, :2].tolist()]
    assert said == [
        ("weight", "Linear.weight"),
        ("input", "Linear"),
        ("output", "Linear"),
        ("loss", "loss"),
        ("gradient", "Linear"),
        ("weight gradient", "Linear.weight"),
        ("gradient at the optimizer", "Linear.weight"),
        ("updated weight", "Linear.weight"),
    ]
    y = inputs.numpy() @ weight.numpy().T
    expected = [weight.numpy(), inputs.numpy(), y, (y**2).sum(), 2 * y, 2 * y.T @ inputs.numpy()]
    for place, values in enumerate([*expected, expected[-1], after.detach().numpy()]):
        stats = dict(zip(sampling.STATS, step.stats[place], strict=True))
        assert stats["elements"] == np.size(values)
        assert stats["norm"] == pytest.approx(np.linalg.norm(values), rel=1e-5)
        assert stats["mean"] == pytest.approx(np.mean(values), rel=1e-4, abs=1e-6)
        assert stats["max"] == pytest.approx(np.abs(values).max(), rel=1e-5)


def test_a_sketch_measures_distances() -> None:
    generator = np.random.default_rng(0)
    ratios = []
    for trial in range(200):
        a = generator.standard_normal(3000)
        b = a + 1e-7 * generator.standard_normal(3000) * (
            generator.random(3000) < 0.1 * (trial % 9)
        )
        if trial % 9 == 0:
            continue
        _, sketches = sampling.measure([a, b], [0.0, 0.0])
        ratios.append(((sketches[0] - sketches[1]) ** 2).sum() / ((a - b) ** 2).sum())
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)
    assert np.std(ratios) == pytest.approx((2 / sampling.WIDTH) ** 0.5, rel=0.3)


def test_a_sample_leaves_no_column_out() -> None:
    for count in (4097, 8192, 100_000, 12_345_678):
        step = sampling.stride(count, 4096)
        assert np.gcd(step, count) == 1
        assert count / step <= 4096
    columns = np.arange(0, 4096 * 512, sampling.stride(4096 * 512, 4096)) % 512
    assert len(set(columns.tolist())) == 512


def test_odd_numbers_are_counted() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), 1e-40, 1.0 + 2**-20, 0.0])
    stats = sampling.measure(sampling.on_host([values]), [torch.finfo(torch.float32).tiny])[0][0]
    told = dict(zip(sampling.STATS, stats, strict=True))
    assert told["nonfinite"] == pytest.approx(2 / 6)
    assert told["subnormal"] == pytest.approx(1 / 6)
    assert told["bf16_grid"] == pytest.approx(1 / 3)  # of 1, 1e-40 and 1 + 2^-20


def test_noise_is_of_rounding_size_and_repeats(tmp_path: Path) -> None:
    plain, _ = recorded(tmp_path / "a.rec")
    one, _ = recorded(tmp_path / "b.rec", perturb=1)
    again, _ = recorded(tmp_path / "c.rec", perturb=1)
    other, _ = recorded(tmp_path / "d.rec", perturb=2)
    assert one.losses.tolist() == again.losses.tolist() != other.losses.tolist()
    assert [s.data for s in one.steps] == [s.data for s in plain.steps]
    assert [s.random for s in one.steps] == [s.random for s in plain.steps]
    apart = abs(one.losses / plain.losses - 1)
    assert 0 < apart.max() < 1e-4


def test_noise_is_the_same_whatever_the_default_device(tmp_path: Path) -> None:
    x = torch.arange(1.0, 100.0)
    plain = Perturbation(4).output(x)
    with torch.device("meta"):
        moved = Perturbation(4).output(x)
    assert torch.equal(moved, plain)
    assert not torch.equal(moved, x)


def test_a_scaled_loss_is_told_unscaled(tmp_path: Path) -> None:
    told: list[float] = []

    def work() -> None:
        layer, scaler = nn.Linear(4, 1), torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(3):
            loss = layer(torch.ones(2, 4)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            told.append(loss.item())

    found, _ = recorded(tmp_path / "a.rec", work)
    assert found.losses.tolist() == pytest.approx(told)


def test_details_end_where_the_file_is_full(tmp_path: Path) -> None:
    found, _ = recorded(tmp_path / "a.rec", first=99, most_bytes=30_000)
    assert 1 <= len(found.detailed) < len(found.steps) == 6
    assert "no details after step" in found.notes[0]


def test_whole_tensors_of_a_module(tmp_path: Path) -> None:
    found, (_, _, model) = recorded(tmp_path / "a.rec", tensors="head", steps=(1, 2))
    steps = {key[0] for key in found.tensors}
    assert steps == {1, 2}
    at = {name: (1, name, rows.WEIGHT, 0, place) for place, name in enumerate(["head.weight"])}
    weight = found.tensors[at["head.weight"]]
    x, y = (found.tensors[(1, "head", what, 0, 0)] for what in (rows.INPUT, rows.OUTPUT))
    bias = found.tensors[(1, "head.bias", rows.WEIGHT, 0, 1)]
    assert np.allclose(x @ weight.T + bias, y, atol=1e-5)
    assert weight.shape == tuple(model.head.weight.shape)


def test_a_failing_recorder_is_never_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(sampling, "measure", fail)
    found, result = recorded(tmp_path / "a.rec")
    assert result[0] == plain[0]
    assert "ZeroDivisionError: planted" in found.notes[0]


class Twice(nn.Module):
    """Two layers that are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x_BC: Tensor) -> Tensor:
        inner = lambda x: self.two(self.one(x).tanh())  # noqa: E731
        return checkpoint(inner, x_BC, use_reentrant=False)


def test_a_step_that_the_program_ended_within_is_left_out(tmp_path: Path) -> None:
    """Two optimizers; the program fails between their steps in the third training step."""
    script = tmp_path / "two.py"
    script.write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
        "a, b = nn.Linear(4, 4), nn.Linear(4, 1)\n"
        "first = torch.optim.SGD(a.parameters(), 0.1)\n"
        "second = torch.optim.SGD(b.parameters(), 0.1)\n"
        "for step in range(4):\n"
        "    b(a(torch.randn(3, 4))).square().mean().backward()\n"
        "    first.step()\n"
        "    if step == 2: raise RuntimeError('out of disk')\n"
        "    second.step()\n"
    )
    out = tmp_path / "a.rec"
    command = ["record", "--out", str(out), "--", sys.executable, str(script)]
    done = subprocess.run(
        [sys.executable, "-m", "offramp", *command], capture_output=True, text=True, check=False
    )
    found = read(out)
    assert done.returncode == 1
    assert [step.number for step in found.steps] == [0, 1]
    (note,) = found.notes
    assert "ended within step 2, which is left out: 1 of 2 optimizers" in note
    assert "ended within step 2" in done.stderr


def test_models_stay_as_they_were_made(tmp_path: Path) -> None:
    """No hook is left on a module or on all: a model that is saved or copied knows no recorder."""
    plain = nn.Module.__call__

    def work() -> tuple[bool, bytes]:
        _, _, model = train(steps=5)
        copy.deepcopy(model)
        stream = io.BytesIO()
        torch.save(model, stream)
        return modules._has_any_global_hook(), stream.getvalue()

    _, (hooked, saved) = recorded(tmp_path / "a.rec", work, first=3)
    assert not hooked
    assert b"offramp" not in saved
    assert nn.Module.__call__ is plain


def test_a_failed_call_is_over(tmp_path: Path) -> None:
    """What a program goes on with after a failing module is recorded as if it had not been."""

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("too long")

    def work() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), Fails())
        with pytest.raises(ValueError, match="too long"):
            model(torch.ones(2, 3))
        train(steps=2)

    found, _ = recorded(tmp_path / "a.rec", work)
    alone, _ = recorded(tmp_path / "b.rec", lambda: train(steps=2))
    assert not found.notes
    assert found.losses.tolist() == alone.losses.tolist()


def test_recomputed_passes_are_left_alone(tmp_path: Path) -> None:
    def work() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(Twice(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.ones(2, 8)).mean().backward()
            optimizer.step()

    found, _ = recorded(tmp_path / "a.rec", work, tensors="0", steps=(0,))
    assert not found.notes
    rows_of_one = found.steps[0].rows
    assert rows_of_one is not None
    outputs = rows_of_one.table[rows_of_one.column("what") == rows.OUTPUT]
    assert [found.names[n] for n in outputs[:, 1]] == ["0.one", "0.two", "0", "1", "<Sequential>"]
    head = found.operators[(0, "0")].head
    forward = ["aten.t.default", "aten.addmm.default", "aten.tanh.default"]
    assert [told["name"] for told in head["operators"]] == [*forward, *forward[:2]]
    again = [told["name"] for told in head["backward"] if told["name"] == "aten.addmm.default"]
    assert again  # by the node that needs its result
