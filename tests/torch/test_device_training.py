"""Parts of training programs give the CPU's values, bit for bit where the kernels are the same."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from agree import agree
from torch import nn
from torch.func import grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("chip")

OPTIMIZERS: dict[str, Any] = {
    "adam": lambda p, **kw: torch.optim.Adam(p, lr=0.1, weight_decay=0.01, **kw),
    "adamw": lambda p, **kw: torch.optim.AdamW(p, lr=0.1, amsgrad=True, **kw),
    "sgd": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **kw),
    "adagrad": lambda p, **kw: torch.optim.Adagrad(p, lr=0.1, **kw),
}
OTHERS = ("Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "ASGD", "Adafactor", "Muon")


def small_model(device: str) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).to(device)


def steps(device: str, make: Any, model: nn.Module | None = None) -> list[torch.Tensor]:
    model = model or small_model(device)
    optimizer = make(model.parameters())
    x, y = torch.randn(5, 6).to(device), torch.tensor([0, 1, 2, 1, 0], device=device)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("how", ["foreach", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, how: str) -> None:
    agree(lambda d: steps(d, lambda p: OPTIMIZERS[name](p, **{how: True})))


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_as_they_choose(name: str) -> None:
    def program(device: str) -> Any:
        if name == "Muon":
            model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
            return steps(device, torch.optim.Muon, model.to(device))
        return steps(device, getattr(torch.optim, name))

    agree(program, exact=False)  # foreach on the chip, one by one on the CPU


def test_lbfgs() -> None:
    def program(device: str) -> Any:
        x = torch.tensor([3.0, -2.0], device=device, requires_grad=True)
        optimizer = torch.optim.LBFGS([x], line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = ((x - 1) ** 4).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return x.detach()

    agree(program)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_networks(kind: Any, packed: bool) -> None:
    def program(device: str) -> Any:
        net = kind(4, 6, num_layers=2, bidirectional=True).to(device)
        x = torch.randn(5, 3, 4).to(device).requires_grad_()
        if packed:
            given = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 2]))
            out, _ = nn.utils.rnn.pad_packed_sequence(net(given)[0])
        else:
            out = net(x)[0]
        out.square().sum().backward()
        return out, x.grad, [p.grad for p in net.parameters()]

    agree(program, exact=False)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_recurrent_cells(kind: Any) -> None:
    def program(device: str) -> Any:
        cell = kind(4, 6).to(device)
        out = cell(torch.randn(3, 4).to(device))
        out = out if isinstance(out, tuple) else (out,)
        sum(t.square().sum() for t in out).backward()  # type: ignore[union-attr]
        return out, [p.grad for p in cell.parameters()]

    agree(program, exact=False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_keep_their_layout(layout: torch.memory_format, dtype: torch.dtype) -> None:
    def program(device: str) -> Any:
        net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        net.append(nn.Conv2d(8, 8, 3, groups=8)).append(nn.ConvTranspose2d(8, 2, 2))
        net = net.to(device, dtype).to(memory_format=layout)
        x = torch.randn(2, 4, 9, 9).to(device, dtype).to(memory_format=layout).requires_grad_()
        out = net(x)
        out.float().square().mean().backward()
        return out, x.grad, [p.grad for p in net.parameters()], net[1].running_var

    out = agree(program)[0]
    assert out.is_contiguous(memory_format=layout)


def test_double_backward() -> None:
    def program(device: str) -> Any:
        x = torch.randn(4, 3).to(device).requires_grad_()
        w = torch.randn(3, 2).to(device).requires_grad_()
        (first,) = torch.autograd.grad((x @ w).tanh().pow(3).sum(), x, create_graph=True)
        first.norm().backward()
        return x.grad, w.grad

    agree(program)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_function_transforms() -> None:
    def program(device: str) -> Any:
        w, x = torch.randn(3, 3).to(device), torch.randn(5, 3).to(device)
        loss = lambda w, x: (w @ x).sin().sum()  # noqa: E731
        return (
            vmap(grad(loss), in_dims=(None, 0))(w, x),
            jacrev(lambda x: (w @ x).exp())(x[0]),
            torch.func.hessian(lambda x: (w @ x).square().sum())(x[0]),
            torch.func.jacfwd(lambda x: w @ x.sin())(x[0]),
            vmap(torch.linalg.inv)(w.expand(2, 3, 3) + 3 * torch.eye(3, device=device)),
        )

    agree(program)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_forward_mode() -> None:
    def program(device: str) -> Any:
        x, t = torch.randn(3, 4).to(device), torch.randn(3, 4).to(device)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, t)
            out = torch.nn.functional.layer_norm(dual, (4,)).softmax(-1)
            return tuple(torch.autograd.forward_ad.unpack_dual(out))

    agree(program)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_replays_the_same_dropout(reentrant: bool) -> None:
    def program(device: str) -> Any:
        model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2)).to(device)
        x = torch.ones(4, 6, device=device, requires_grad=True)
        torch.manual_seed(1)
        plain = model(x)
        wanted = torch.autograd.grad(plain.sum(), list(model.parameters()))
        torch.manual_seed(1)
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        for p, g in zip(model.parameters(), wanted, strict=True):
            assert torch.equal(p.grad, g)  # type: ignore[arg-type]
        return plain.shape

    agree(program)


def test_backward_from_several_threads() -> None:
    w = torch.ones(3, device="cuda", requires_grad=True)
    results: list[torch.Tensor] = []

    def work(scale: float) -> None:
        (g,) = torch.autograd.grad((w * scale).sum(), w)
        results.append(g)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(g[0].item() for g in results) == [0, 1, 2, 3]


def test_a_graph_over_two_chips() -> None:
    x = torch.ones(3, device="cuda:0", requires_grad=True)
    y = (x * 2).to("cuda:1") * torch.arange(3.0, device="cuda:1")
    loss = y.sum() + x.sum().to("cuda:1")
    loss.backward()
    assert loss.device == torch.device("cuda", 1)
    assert x.grad.device == torch.device("cuda", 0)
    assert x.grad.tolist() == [1, 3, 5]


def test_profiler_names_operators() -> None:
    x = torch.ones(4, 4, device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (x @ x).relu()
    names = {event.key for event in profile.key_averages()}
    assert {"aten::mm", "aten::relu"} <= names


def test_linear_algebra_and_fourier_transforms() -> None:
    def program(device: str) -> Any:
        a = torch.randn(4, 4).to(device)
        c = torch.complex(a, a.flip(0))
        return (
            torch.linalg.svd(a),
            torch.linalg.solve(a, a[0]),
            torch.linalg.eigvals(a),
            torch.fft.fft2(c),
            torch.fft.irfft(torch.fft.rfft(a)),
            (c.conj() * c.mT.conj()).imag,
            torch.view_as_real(c.conj().resolve_conj()),
            torch.stft(a.flatten(), 8, window=torch.hann_window(8, device=device),
                       return_complex=True),
        )  # fmt: skip

    agree(program)


def test_ctc_loss_with_lengths_on_either_device() -> None:
    def program(device: str) -> Any:
        logits = torch.randn(12, 2, 5).to(device).log_softmax(-1).requires_grad_()
        targets = torch.randint(1, 5, (2, 4)).to(device)
        lengths = torch.tensor([12, 10]), torch.tensor([4, 3])
        loss = nn.functional.ctc_loss(logits, targets, *lengths)
        on_chip = nn.functional.ctc_loss(logits, targets, *(t.to(device) for t in lengths))
        loss.backward()
        return loss, on_chip, logits.grad

    agree(program)


def test_autograd_computes_with_the_threads_of_the_main_thread() -> None:
    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            result = grad + 1
            seen.append((threading.current_thread() is main, torch.get_num_threads()))
            return result

    main, seen, before = threading.current_thread(), [], torch.get_num_threads()
    try:
        for count in (3, 1, 2):
            torch.set_num_threads(count)
            other = threading.Thread(target=torch.set_num_threads, args=(5,))  # a loader's pinning
            other.start()
            other.join()
            Look.apply(torch.ones(3, device="cuda", requires_grad=True)).sum().backward()
    finally:
        torch.set_num_threads(before)
    assert seen == [(False, 3), (False, 1), (False, 2)]
