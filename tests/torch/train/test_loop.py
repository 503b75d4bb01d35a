"""Whole runs in one process, against a loop that is written out here with plain PyTorch."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from offramp.train import folder, loop, reading, run
from offramp.train.events import Evaluated, Event, Saved, Stepped, Warned
from offramp.train.job import Job
from offramp.train.setup import Run, set_up
from offramp.train.world import World

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
HERE = World(0, 1, 0, torch.device("cpu"), None)
STEPS = 50
# Small enough for seconds; every family keeps what makes it different.
SMALL: dict[str, dict[str, Any]] = {
    "qwen3-nano": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48},
    "qwen3-moe-nano": {"hidden_size": 32, "num_hidden_layers": 2, "moe_intermediate_size": 24},
    "ernie-4.5-nano": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48},
    "ernie-4.5-moe-nano": {"hidden_size": 32, "num_hidden_layers": 2, "moe_intermediate_size": 24},
    "llama-nano": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48},
    "gpt2-nano": {"n_embd": 48, "n_layer": 2},
    "deepseek-v3-nano": {"hidden_size": 32, "num_hidden_layers": 2, "moe_intermediate_size": 24},
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    words = ["loss", "chip", "token", "layer", "of", "a", "the", "and", "\n", "rank", "step"]
    for number in range(40):
        text = " ".join(random.choice(words, int(random.integers(5, 80))))
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{number:02}.txt").write_text(text)
    return tmp_path / "data"


def small_job(texts: Path, **changes: Any) -> Job:
    return reading.change(
        Job(),
        {
            "chip.name": "cpu",
            "data.source": [str(texts)],
            "data.cache": str(texts.parent / "cache"),
            "data.sequence": 32,
            "data.shuffle": False,
            "train.steps": STEPS,
            "train.batch": 4,
            "train.precision": "fp32",
            "layout.micro_batch": 4,
            "schedule.warmup": 5,
            "model.balance": "none",
            "sample.prompts": [],
            "metrics.tensorboard": False,
            **changes,
        },
    )


def set_up_in(path: Path, job: Job) -> Run:
    return set_up(job, folder.create(reading.change(job, {"out": str(path)})), HERE, lambda e: None)


def by_hand(run_: Run, steps: int) -> list[float]:
    """The losses of the same job: eager attention, whole logits, AdamW, each document apart."""
    from transformers import AutoModelForCausalLM

    job = run_.job
    config = run_.parallel.parts[0].causal.config
    kind = type(run_.parallel.parts[0].causal)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.config._experts_implementation = "eager"
    assert type(model) is kind
    model.load_state_dict(run_.parallel.parts[0].causal.state_dict())
    model.train()
    ends = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    plain = [p for p in model.parameters() if p.ndim < 2 or any(p is e for e in ends)]
    decayed = [p for p in model.parameters() if not any(p is q for q in plain)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=1.0,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        foreach=False,
        fused=False,
    )
    stream = np.asarray(run_.corpora.train.tokens).astype(np.int64)
    end = run_.tokenizer.end
    width, count, losses = job.data.sequence, job.train.batch, []
    sequences = (len(stream) - 1) // width
    for step in range(steps):
        total, trained = torch.zeros(()), 0
        for row in range(count):
            start = (step * count + row) % sequences * width
            window = stream[start : start + width + 1]
            cuts = [0, *(t + 1 for t in range(width) if window[t] == end), width]
            for first, past in itertools.pairwise(cuts):
                if first == past:
                    continue
                tokens = torch.tensor(window[first:past])[None]
                targets = torch.tensor(window[first + 1 : past + 1])
                kept = targets[: -1 if window[past - 1] == end else None]
                logits = model(tokens, use_cache=False).logits[0, : len(kept)]
                total = total + cross_entropy(logits, kept, reduction="sum")
                trained += len(kept)
        loss = total / trained
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = (step - 5 + 1) / (STEPS - 5)
        rate = (step + 1) / 5 if step < 5 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = job.optimizer.lr * rate
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("preset", sorted(SMALL))
def test_the_losses_are_those_of_a_loop_by_hand(tmp_path: Path, texts: Path, preset: str) -> None:
    torch.set_num_threads(1)
    job = small_job(texts, **{"model.preset": preset, "model.config": SMALL[preset]})
    run_ = set_up_in(tmp_path / "run", job)
    exact = by_hand(run_, STEPS)
    own = []
    for _ in range(STEPS):
        own.append(loop.take_step(run_, STEPS)["loss"])
        run_.progress.step += 1
    assert own[0] == pytest.approx(exact[0], rel=1e-6)
    assert own == pytest.approx(exact, rel=2e-3)
    assert own[-1] < own[0] - 0.5
    run_.feed.close()
    run_.checkpoints.close()


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, texts: Path) -> None:
    config = SMALL["qwen3-nano"]
    losses = []
    for micro in (4, 2, 1):
        job = small_job(texts, **{"model.config": config, "layout.micro_batch": micro})
        run_ = set_up_in(tmp_path / str(micro), job)
        losses.append([])
        for _ in range(8):
            losses[-1].append(loop.take_step(run_, STEPS)["loss"])
            run_.progress.step += 1
        run_.feed.close()
        run_.checkpoints.close()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_formats_train_like_fp32(tmp_path: Path, texts: Path, precision: str) -> None:
    ends = {}
    for name in ("fp32", precision):
        changes = {"model.config": SMALL["qwen3-nano"], "train.precision": name}
        path = tmp_path / name
        assert run.train(*opened(path, small_job(texts, **changes)), lambda e: None) == 0
        ends[name] = json.loads((path / "summary.json").read_text())["loss"]
    assert ends[precision] == pytest.approx(ends["fp32"], rel=0.02)


def opened(path: Path, job: Job) -> tuple[Job, folder.RunFolder]:
    made = reading.change(job, {"out": str(path)})
    return made, folder.create(made)


def test_a_run_tells_writes_and_ends(tmp_path: Path, texts: Path) -> None:
    told: list[Event] = []
    job = small_job(
        texts,
        **{
            "model.config": SMALL["qwen3-nano"],
            "evaluate.every": 20,
            "checkpoint.every": 20,
            "checkpoint.keep": 0,
            "train.steps": 45,
            "sample.prompts": ["loss"],
            "sample.tokens": 5,
            "metrics.tensorboard": True,
        },
    )
    job, place = opened(tmp_path / "run", job)
    assert run.train(job, place, told.append) == 0
    assert [e.step for e in told if isinstance(e, Stepped)] == list(range(1, 46))
    assert [e.step for e in told if isinstance(e, Evaluated)] == [20, 40, 45]
    assert [e.step for e in told if isinstance(e, Saved)] == [20, 40, 45]
    assert not [e for e in told if isinstance(e, Warned)]
    records = [json.loads(line) for line in place.metrics.read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 10, 20, 30, 40, 45]
    assert sorted({r["kind"] for r in records}) == ["evaluation", "sample", "step"]
    summary = json.loads(place.summary.read_text())
    assert summary["ended"] == "done"
    assert summary["tokens"] == 45 * 4 * 32
    assert list((place.path / "tensorboard").iterdir())


def test_a_run_that_went_on_ends_at_the_same_weights(tmp_path: Path, texts: Path) -> None:
    """Stopped after 13 steps with a checkpoint at 10: the rest is taken again, to the bit."""
    changes = {"model.config": SMALL["qwen3-nano"], "checkpoint.every": 10, "data.shuffle": True}
    job = small_job(texts, **changes, **{"train.steps": 20})
    weights = {}
    for name in ("straight", "broken"):
        path = tmp_path / name
        if name == "broken":
            run_ = set_up_in(path, job)
            for _ in range(13):
                loop.take_step(run_, 20)
                run_.progress.step += 1
                if run_.progress.step == 10:
                    loop.save(run_)
            run_.checkpoints.wait()
            run_.feed.close()
            run_.checkpoints.close()
        assert run.train(*opened(path, job), lambda e: None) == 0
        after = set_up_in(path, job)
        weights[name] = after.tensors()
        assert after.progress.step == 20
        after.feed.close()
        after.checkpoints.close()
    for name, tensor in weights["straight"].items():
        assert torch.equal(tensor, weights["broken"][name]), name


def test_another_job_does_not_go_on_in_a_folder(tmp_path: Path, texts: Path) -> None:
    job = small_job(texts, **{"model.config": SMALL["qwen3-nano"]})
    opened(tmp_path / "run", job)
    opened(tmp_path / "run", reading.change(job, {"train.steps": 70, "layout.micro_batch": 2}))
    with pytest.raises(Exception, match=r"another job: optimizer\.lr was 0\.001, is 0\.1"):
        opened(tmp_path / "run", reading.change(job, {"optimizer.lr": 0.1}))


def test_fine_tuning_starts_from_the_weights_of_a_folder(tmp_path: Path, texts: Path) -> None:
    """The exported folder of one run is the beginning of another: whole, or with adapters."""
    from transformers import AutoModelForCausalLM

    config = SMALL["qwen3-nano"]
    first = small_job(texts, **{"model.config": config, "train.steps": 10})
    assert run.train(*opened(tmp_path / "first", first), lambda e: None) == 0
    base = tmp_path / "first" / "model"
    trained = AutoModelForCausalLM.from_pretrained(base)
    changes = {"model.folder": str(base), "train.steps": 6, "checkpoint.every": 3}
    whole = set_up_in(tmp_path / "whole", small_job(texts, **changes))
    assert by_hand(whole, 1)[0] == pytest.approx(loop.take_step(whole, 6)["loss"], rel=1e-6)
    whole.feed.close()
    whole.checkpoints.close()
    assert whole.tokenizer.vocabulary == trained.config.vocab_size

    job = small_job(texts, **changes, **{"lora.rank": 2, "optimizer.lr": 0.05})
    assert run.train(*opened(tmp_path / "adapted", job), lambda e: None) == 0
    names = {path.name for path in (tmp_path / "adapted" / "model").iterdir()}
    assert "adapter_model.safetensors" in names
    broken = set_up_in(tmp_path / "broken", job)
    for _ in range(3):
        loop.take_step(broken, 6)
        broken.progress.step += 1
    loop.save(broken, last=True)
    broken.feed.close()
    broken.checkpoints.close()
    assert run.train(*opened(tmp_path / "broken", job), lambda e: None) == 0
    one, other = (
        (tmp_path / name / "model" / "adapter_model.safetensors").read_bytes()
        for name in ("adapted", "broken")
    )
    assert one == other
