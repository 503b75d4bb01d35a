"""Faults as chips, kernels, frameworks and people make them, and what a verdict should say of them.

`planted(name)` has, for one of the small programs, each fault with the verdicts that are right, the
step, and the modules that may be named. Where a fault is in all modules, the first to run is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from small import STEPS, Fault
from torch import Tensor, nn
from torch.nn import functional as F

DIFFERENT, PRECISION = "different", "different precision"
EARLY, LATE = 0, 3  # the steps at which faults begin


@dataclass(frozen=True)
class Planted:
    """A fault and the answers that are right. `modules` empty: any."""

    name: str
    fault: Fault
    verdicts: tuple[str, ...]
    step: int
    modules: tuple[str, ...]


def at(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path)


def rewire(path: str, made: Callable[[nn.Module, Any, tuple[Any, ...]], Any]) -> Fault:
    """Have `made(module, forward, inputs)` in place of a module's forward."""

    def prepare(model: nn.Module) -> None:
        module = at(model, path)
        forward = module.forward
        module.forward = lambda *inputs: made(module, forward, inputs)

    return Fault(prepare=prepare)


def setting(path: str, name: str, value: Any) -> Fault:
    return Fault(prepare=lambda model: setattr(at(model, path), name, value))


def narrow(x: Tensor, bits: int) -> Tensor:
    """Round float32 to `bits` of mantissa, to nearest and ties to even, as the bits lie."""
    drop = 23 - bits
    raw = x.detach().contiguous().view(torch.int32)
    half = (1 << (drop - 1)) - 1 + ((raw >> drop) & 1)
    return ((raw + half) >> drop << drop).view(torch.float32)


class NarrowProduct(torch.autograd.Function):
    """A linear layer whose products have factors of few bits, backward too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bits = bits
        return F.linear(narrow(x, bits), narrow(weight, bits))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = (narrow(t, ctx.bits) for t in ctx.saved_tensors)
        gradient = narrow(gradient, ctx.bits)
        flat = gradient.flatten(0, -2)
        return gradient @ weight, flat.T @ x.flatten(0, -2), None


def narrow_products(bits: int) -> Fault:
    """Every linear layer's, as a switch of a library sets it; convolutions' factors too."""

    def prepare(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.forward = lambda x, m=module: NarrowProduct.apply(x, m.weight, bits) + m.bias
            elif isinstance(module, nn.Conv2d):
                module.forward = lambda x, m=module: m._conv_forward(
                    x + (narrow(x, bits) - x).detach(),
                    m.weight + (narrow(m.weight, bits) - m.weight).detach(),
                    m.bias,
                )

    return Fault(prepare=prepare)


def narrow_sums(module: nn.Module, forward: Any, inputs: tuple[Any, ...]) -> Tensor:
    """A linear layer whose running sum is kept in float16, eight products at a time."""
    (x,) = inputs
    total = forward(x)
    with torch.no_grad():
        running = torch.zeros_like(total)
        for part in range(0, x.shape[-1], 8):
            weight = module.weight[:, part : part + 8]
            running = (running + F.linear(x[..., part : part + 8], weight)).half().float()
        moved = running + module.bias
    return total + (moved - total).detach()


class WrongBackward(torch.autograd.Function):
    """Passes gradients on where it should hold a tenth of them back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.where(gradient > 0, gradient, 0.9 * gradient)


class NarrowGradient(torch.autograd.Function):
    """A weight as it is; its gradient is rounded to bfloat16."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.bfloat16().float()


def stale(module: nn.Module, forward: Any, inputs: tuple[Any, ...]) -> Tensor:
    """From step `LATE` on the output of the call before comes again."""
    calls = module.__dict__.setdefault("_outputs", [])
    y = forward(*inputs)
    calls.append(y.detach().clone())
    per_step = module.__dict__.get("_per_step", 1)
    if len(calls) > LATE * per_step:
        return y + (calls[-2] - y).detach()
    return y


def stale_weight(module: nn.Module, forward: Any, inputs: tuple[Any, ...]) -> Tensor:
    """From step `LATE` on a linear layer computes with the weight that it had two calls ago."""
    kept = module.__dict__.setdefault("_weights", [])
    kept.append(module.weight.detach().clone())
    if len(kept) <= LATE * module.__dict__.get("_per_step", 1):
        return forward(*inputs)
    (x,) = inputs
    old = kept[-1 - module.__dict__.get("_per_step", 1)]
    return F.linear(x, module.weight + (old - module.weight).detach(), module.bias)


def on_gradient(path: str, change: Callable[[Tensor], Tensor], steps: range) -> Fault:
    def between(step: int, model: nn.Module) -> None:
        parameter = at(model, path).weight
        if step in steps:
            parameter.grad = change(parameter.grad)

    return Fault(between=between)


def on_all_gradients(factor: float) -> Fault:
    def between(step: int, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad *= factor

    return Fault(between=between, clips=True)


def on_update(change: Callable[[str, Tensor, Tensor], Tensor], path: str = "") -> Fault:
    """`change(name, old, new)` gives a parameter's value after the optimizer's step."""

    def after(step: int, model: nn.Module, before: dict[str, Tensor]) -> None:
        for name, parameter in model.named_parameters():
            if name.startswith(path):
                parameter.copy_(change(name, before[name], parameter))

    return Fault(after=after)


def unlike(path: str) -> Fault:
    """The initial weights of one layer, drawn again."""

    def prepare(model: nn.Module) -> None:
        weight = at(model, path).weight
        with torch.no_grad():
            weight.add_(
                0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
            )

    return Fault(prepare=prepare)


def swapped(batches: list[Any]) -> list[Any]:
    parts = len(batches) // STEPS
    i, j = LATE * parts, (LATE + 1) * parts
    batches[i], batches[j] = batches[j], batches[i]
    return batches


def noisy(gradient: Tensor) -> Tensor:
    """What one rank's own share looks like beside the mean of all."""
    draw = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(9))
    return gradient + 0.3 * gradient.abs() * draw


def one_nan(gradient: Tensor) -> Tensor:
    moved = gradient.clone()
    moved.view(-1)[3] = float("nan")
    return moved


def smoothed(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y, label_smoothing=0.01)


def per_step(fault: Fault, path: str, name: str) -> Fault:
    """Tell a module how often it is called in a step."""
    prepare = fault.prepare

    def told(model: nn.Module) -> None:
        prepare(model)
        at(model, path).__dict__["_per_step"] = 2 if name == "linear" else 1

    fault.prepare = told
    return fault


def transposed(module: Any, forward: Any, inputs: Any) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return F.conv2d(inputs[0], module.weight.transpose(0, 1), module.bias)
    return F.linear(inputs[0], module.weight.T, module.bias)


def rounded(module: Any, forward: Any, inputs: Any) -> Tensor:
    return F.linear(inputs[0], NarrowGradient.apply(module.weight), module.bias)


def unbiased(module: Any, forward: Any, inputs: Any) -> Tensor:
    x = inputs[0]
    count = x.numel() // x.shape[1] if isinstance(module, nn.BatchNorm2d) else x.shape[-1]
    return forward(x) * (1 - 1 / count) ** 0.5


def another_activation(module: Any, forward: Any, inputs: Any) -> Tensor:
    if isinstance(module, nn.ReLU):
        return F.leaky_relu(*inputs)
    return F.gelu(inputs[0], approximate="tanh")


@dataclass(frozen=True)
class Targets:
    """The modules of one program that faults are planted in."""

    name: str
    norm: str
    square: str  # a layer whose weight is square
    product: str  # a linear layer
    first: str  # the first product to run
    mixer: str  # what has a shift and a scale
    block: str = "blocks.1"
    act: str = "blocks.1.act"


TARGETS = {
    "transformer": Targets(
        "transformer",
        "blocks.1.between",
        "blocks.1.attention.k",
        "blocks.1.down",
        "blocks.0.attention.q",
        "blocks.1.attention",
    ),
    "convolutional": Targets(
        "convolutional", "blocks.1.norm", "blocks.1.mix", "head", "stem", "blocks.1"
    ),
    "linear": Targets(
        "linear", "blocks.1.norm", "blocks.1.gate", "blocks.1.down", "stem", "blocks.1"
    ),
}


def one(title: str, fault: Fault, step: int, *modules: str, precise: bool = False) -> Planted:
    return Planted(title, fault, (PRECISION,) if precise else (DIFFERENT,), step, modules)


def planted(name: str) -> Iterator[Planted]:
    """Every fault for one program, with what is right."""
    t = TARGETS[name]
    yield from in_modules(t)
    yield from in_gradients(t)
    yield from in_updates(t)
    yield from not_the_chip(t)


def in_modules(t: Targets) -> Iterator[Planted]:
    """Faults of the forward pass."""
    lost = rewire(t.product, lambda m, f, i: f(*i) - m.bias)
    shift = 1 if t.name == "transformer" else -1
    yield one("TF32 left on", narrow_products(10), 0, t.first, precise=True)
    yield one("bf16 products", narrow_products(7), 0, t.first, precise=True)
    yield one(
        "fp16 accumulation in one layer", rewire(t.product, narrow_sums), 0, t.product, precise=True
    )
    yield one("wrong epsilon in a norm", setting(t.norm, "eps", 3e-6), 0, t.norm)
    yield one("variance of n - 1 in a norm", rewire(t.norm, unbiased), 0, t.norm)
    yield one("stale buffer", per_step(rewire(t.act, stale), t.act, t.name), LATE, t.act)
    old = per_step(rewire(t.product, stale_weight), t.product, t.name)
    yield one("stale weight", old, LATE, t.product)
    yield one("transposed weight", rewire(t.square, transposed), 0, t.square)
    yield one("off-by-one mask", setting(t.mixer, "shift", shift), 0, t.mixer)
    yield one("wrong attention or gate scale", setting(t.mixer, "scale", 1.001), 0, t.mixer)
    yield one("way around left out", setting(t.block, "keeps", 0.99), 0, t.block)
    yield one("bias left out", lost, 0, t.product)
    yield one("another activation", rewire(t.act, another_activation), 0, t.act)
    yield one("label smoothing", Fault(loss=smoothed), 0, "loss")


def in_gradients(t: Targets) -> Iterator[Planted]:
    """Faults of the backward pass, and between it and the optimizer."""
    late, once = range(LATE, STEPS), range(LATE, LATE + 1)
    wrong = rewire(t.act, lambda m, f, i: f(WrongBackward.apply(i[0])))
    double = on_gradient(t.product, lambda g: 2 * g, late)
    flushed = on_gradient(t.square, lambda g: torch.where(g.abs() < 1e-4, 0.0, g), late)
    yield one("missing gradient scale", on_all_gradients(1 / 128), 0)
    yield one("SUM for AVG in one collective", double, LATE, t.product)
    yield one("skipped all-reduce on one rank", on_gradient(t.square, noisy, late), LATE, t.square)
    yield one("NaN in one gradient", on_gradient(t.square, one_nan, once), LATE, t.square)
    yield one("gradients not set to zero", Fault(keeps_gradients=(LATE,)), LATE)
    yield one("no gradient clipping", Fault(clips=False), 0)
    yield one("wrong derivative", wrong, 0, t.act, t.block)
    yield one("bf16 weight gradient", rewire(t.product, rounded), 0, t.product, precise=True)
    yield one("small gradients flushed", flushed, LATE, t.square)


def in_updates(t: Targets) -> Iterator[Planted]:
    """Faults of the optimizer's step."""
    narrow_master = on_update(lambda n, a, b: b.bfloat16().float())
    yield one("bf16 master weights", narrow_master, 0, "optimizer", precise=True)
    yield one("weight decay lost", on_update(lambda n, a, b: b + 3e-4 * a), 0, "optimizer")
    yield one("step 1 % too long", on_update(lambda n, a, b: b + 0.01 * (b - a)), 0, "optimizer")
    yield one("one layer not updated", on_update(lambda n, a, b: a, t.square), 0, "optimizer")


def not_the_chip(t: Targets) -> Iterator[Planted]:
    """What people change without knowing."""
    yield one("dropout seed off by one", Fault(seed=1), 0, "random numbers")
    yield one("two batches swapped", Fault(batches=swapped), LATE, "data", "loss")
    yield one("other order of data", Fault(batches=lambda b: b[::-1]), 0, "data", "loss")
    yield one("other initial weights", unlike(t.square), 0, "weights")
    yield one("another learning rate", Fault(settings={"lr": 3.03e-3}), 0, "optimizer")
