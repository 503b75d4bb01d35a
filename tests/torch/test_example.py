"""The example on the plain CPU: its model, its data order, its checkpoints and its ranks."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("--device=cpu", "--layers=2", "--heads=2", "--width=64", "--context=64")
EXACT = (*SMALL, "--no-compile", "--dtype=float32")
BRIEF = ("--log-every=1", "--eval-batches=1", "--sample=0")


@pytest.fixture(scope="module")
def gpt() -> ModuleType:
    return import_example("gpt")


@pytest.fixture(scope="module")
def train_gpt() -> ModuleType:
    return import_example("train_gpt")


def import_example(name: str) -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


def train(*flags: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*launcher, str(EXAMPLES / "train_gpt.py"), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def succeed(out_dir: Path, *flags: str, ranks: int = 1) -> str:
    done = train(*flags, f"--out-dir={out_dir}", ranks=ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(out_dir: Path) -> dict[int, float]:
    lines = (out_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def leaves(value: object, path: str = "") -> dict[str, object]:
    """Every leaf of nested dicts and lists, by its path."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return {path: value}
    return {
        name: leaf for key, part in items for name, leaf in leaves(part, f"{path}/{key}").items()
    }


class Formula:
    """The model's loss on one sequence, position by position, rotations as complex numbers."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = {name: value.double() for name, value in model.state_dict().items()}
        self.heads, self.layers = model.config.heads, model.config.layers
        self.head_width = model.config.width // self.heads

    def norm(self, x_D: Tensor, name: str) -> Tensor:
        mean_square = (x_D * x_D).mean() + torch.finfo(torch.float32).eps
        return x_D / mean_square**0.5 * self.weights[name]

    def turned(self, x_K: Tensor, position: int) -> Tensor:
        half = self.head_width // 2
        speeds = [10_000 ** (-2 * pair / self.head_width) for pair in range(half)]
        turns = torch.tensor(
            [complex(math.cos(position * s), math.sin(position * s)) for s in speeds]
        )
        return torch.complex(x_K[:half], x_K[half:]) * turns

    def attend(self, q_TD: list[Tensor], k_TD: list[Tensor], v_TD: list[Tensor], at: int) -> Tensor:
        mixed = []
        for start in range(0, self.heads * self.head_width, self.head_width):
            head = slice(start, start + self.head_width)
            query = self.turned(q_TD[at][head], at)
            keys = [self.turned(k_TD[past][head], past) for past in range(at + 1)]
            scores = [(query * key.conj()).real.sum() / self.head_width**0.5 for key in keys]
            shares = [math.exp(score) for score in scores]
            values = [v_TD[past][head] * share for past, share in enumerate(shares)]
            mixed.append(sum(values) / sum(shares))
        return torch.cat(mixed)

    def block(self, stream: list[Tensor], name: str) -> list[Tensor]:
        normed = [self.norm(x_D, f"{name}.norm_attention.weight") for x_D in stream]
        qkv = [self.weights[f"{name}.attention.qkv.weight"] @ x_D for x_D in normed]
        q_TD, k_TD, v_TD = zip(*(x.chunk(3) for x in qkv), strict=True)
        results = []
        for at, x_D in enumerate(stream):
            attended = self.attend(q_TD, k_TD, v_TD, at)
            middle = x_D + self.weights[f"{name}.attention.out.weight"] @ attended
            inner = self.norm(middle, f"{name}.norm_feed_forward.weight")
            gate, up = (self.weights[f"{name}.feed_forward.gate_up.weight"] @ inner).chunk(2)
            hidden = gate / (1 + torch.exp(-gate)) * up
            results.append(middle + self.weights[f"{name}.feed_forward.out.weight"] @ hidden)
        return results

    def loss(self, tokens: list[int], targets: list[int]) -> float:
        embedding = self.weights["embedding.weight"]
        stream = [embedding[token] for token in tokens]
        for layer in range(self.layers):
            stream = self.block(stream, f"blocks.{layer}")
        total = 0.0
        for x_D, target in zip(stream, targets, strict=True):
            logits_V = embedding @ self.norm(x_D, "norm.weight")
            total += math.log(logits_V.exp().sum()) - logits_V[target].item()
        return total / len(tokens)


def test_model_follows_its_formula(gpt: ModuleType) -> None:
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(layers=2, heads=2, width=32, context=8))
    for parameter in model.parameters():  # weights at which every part matters
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    tokens, targets = torch.randint(256, (2, 8)).tolist()
    loss = model(torch.tensor([tokens]), torch.tensor([targets])).item()
    assert loss == pytest.approx(Formula(model).loss(tokens, targets), rel=1e-5)


def test_model_does_not_see_the_future(gpt: ModuleType) -> None:
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig(layers=2, heads=2, width=32, context=8))
    tokens = torch.randint(255, (1, 8))
    changed = tokens.clone()
    changed[0, 5] += 1
    difference = (model(tokens) - model(changed)).abs().amax(dim=(0, 2))
    assert torch.all(difference[:5] == 0)
    assert torch.all(difference[5:] > 0)


def test_flops_per_token_agree_with_the_operators(gpt: ModuleType) -> None:
    model = gpt.GPT(gpt.GPTConfig(layers=2, heads=2, width=64, context=32))
    tokens = torch.randint(256, (3, 32))
    plain_attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with plain_attention, FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    # The norms' vectors are in the parameter count and in no matrix product: hence 1 %.
    counted = counter.get_total_flops() / tokens.numel()
    assert model.flops_per_token() == pytest.approx(counted, rel=0.01)


def loader(module: ModuleType, rank: int, world: int, batch: int):
    tokens = torch.arange(4 * 10 + 1, dtype=torch.uint8)
    args = argparse.Namespace(context=4, batch_size=batch, seed=3)
    return module.Loader(tokens, args, module.Ranks(rank, world, torch.device("cpu")))


def test_an_epoch_visits_every_window_once(train_gpt: ModuleType) -> None:
    one = loader(train_gpt, rank=0, world=1, batch=2)
    epochs = []
    for _ in range(2):
        batches = [one.next_batch() for _ in range(5)]
        assert all(torch.equal(x_BT + 1, targets_BT) for x_BT, targets_BT in batches)
        epochs.append([int(row[0]) for x_BT, _ in batches for row in x_BT])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 40, 4))
    assert epochs[0] != epochs[1]


def test_ranks_share_the_batch_of_one_process(train_gpt: ModuleType) -> None:
    whole = loader(train_gpt, rank=0, world=1, batch=4)
    shares = [loader(train_gpt, rank=rank, world=2, batch=2) for rank in (0, 1)]
    for _ in range(2):
        together = torch.cat([share.next_batch()[0] for share in shares])
        assert sorted(together.tolist()) == sorted(whole.next_batch()[0].tolist())


def test_learning_rate_warms_up_and_falls_to_a_tenth(train_gpt: ModuleType) -> None:
    args = argparse.Namespace(lr=2.0, warmup=4, steps=104)
    rates = [train_gpt.learning_rate(step, args) for step in range(105)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[54] == pytest.approx(1.1)
    assert rates[104] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--dtype=int3", "invalid choice: 'int3'"),
        ("--width=100", "--width 100 is not a multiple of twice --heads"),
    ],
)
def test_a_bad_flag_exits_2(
    train_gpt: ModuleType,
    flag: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", "--device=cpu", "--heads=3", flag])
    with pytest.raises(SystemExit) as stopped:
        train_gpt.main()
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_no_cuda_device_exits_2_instead_of_training_on_the_cpu() -> None:
    done = train()
    assert done.returncode == 2
    assert "no CUDA device found; --device cpu" in done.stderr


def test_resume_gives_the_run_without_a_break_bit_for_bit(tmp_path: Path) -> None:
    flags = (*EXACT, *BRIEF, "--steps=8", "--dropout=0.1", "--accumulate=2", "--warmup=2")
    flags = (*flags, "--batch-size=4", "--sample=20")
    whole = succeed(tmp_path / "whole", *flags)
    first = succeed(tmp_path / "broken", *flags, "--stop-step=5")
    second = succeed(tmp_path / "broken", *flags, "--resume")
    assert "saved step 5" in first
    assert "at step 5" in second
    assert whole.splitlines()[-1] == second.splitlines()[-1]
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    paths = [tmp_path / run / "checkpoint.pt" for run in ("whole", "broken")]
    expected, resumed = (leaves(torch.load(path)) for path in paths)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed[name]), name
        else:
            assert value == resumed[name], name


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    flags = (*EXACT, *BRIEF, "--steps=1", "--batch-size=2")
    succeed(tmp_path, *flags)
    done = train(*flags, "--layers=3", "--resume", f"--out-dir={tmp_path}")
    assert done.returncode == 1
    assert "holds another model" in done.stderr


@pytest.mark.programs
def test_loss_falls_and_text_is_sampled(tmp_path: Path) -> None:
    flags = ("--steps=120", "--warmup=10", "--sample=64")
    text = succeed(tmp_path, *EXACT, *BRIEF, *flags)
    course = losses(tmp_path)
    assert list(course) == list(range(1, 121))
    assert course[1] == pytest.approx(math.log(256), abs=0.3)  # about a guess
    assert sum(course[step] for step in range(111, 121)) / 10 < 2.8
    assert "\ndef " in text
    assert "MFU unknown" in text


@pytest.mark.programs
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_follows_float32_to_its_rounding(dtype: str, tmp_path: Path) -> None:
    flags = (*EXACT, *BRIEF, "--steps=10", "--batch-size=4")
    succeed(tmp_path / "float32", *flags)
    succeed(tmp_path / dtype, *flags, f"--dtype={dtype}")
    exact, rounded = losses(tmp_path / "float32"), losses(tmp_path / dtype)
    assert rounded != exact
    assert list(rounded.values()) == pytest.approx(list(exact.values()), rel=2e-2)


@pytest.mark.programs
def test_compiled_model_trains_alike(tmp_path: Path) -> None:
    flags = (*SMALL, *BRIEF, "--dtype=float32", "--steps=5", "--batch-size=4")
    succeed(tmp_path / "eager", *flags, "--no-compile")
    succeed(tmp_path / "compiled", *flags)
    eager, compiled = losses(tmp_path / "eager"), losses(tmp_path / "compiled")
    assert list(compiled.values()) == pytest.approx(list(eager.values()), rel=1e-4)


@pytest.mark.programs
@pytest.mark.ranks
def test_two_ranks_equal_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    flags = (*EXACT, *BRIEF, "--steps=6", "--accumulate=2")
    succeed(tmp_path / "one", *flags, "--batch-size=8")
    succeed(tmp_path / "two", *flags, "--batch-size=4", ranks=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
    weights = [torch.load(tmp_path / run / "checkpoint.pt")["model"] for run in ("one", "two")]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


@pytest.mark.programs
def test_mfu_is_achieved_over_peak(tmp_path: Path, gpt: ModuleType) -> None:
    text = succeed(tmp_path, *EXACT, *BRIEF, "--steps=2", "--peak-tflops=0.5")
    line = next(line for line in text.splitlines() if "MFU" in line)
    tokens_per_s = float(line.split(" tokens/s")[0].split("| ")[-1].replace(",", ""))
    model = gpt.GPT(gpt.GPTConfig(layers=2, heads=2, width=64, context=64))
    percent = 100 * tokens_per_s * model.flops_per_token() / 0.5e12
    assert float(line.split("MFU ")[1].rstrip(" %")) == pytest.approx(percent, rel=0.01)
