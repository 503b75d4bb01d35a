"""Hugging Face's `Trainer`, with the settings that its documentation gives for a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from contenders.gate import Gate, Task


class Rows(Dataset[dict[str, Tensor]]):
    """One sequence an item; targets are shifted here, so that each of the tokens has one."""

    def __init__(self, task: Task) -> None:
        self._stream, self._length = task.stream(), task.sequence

    def __len__(self) -> int:
        return (len(self._stream) - 1) // self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = index * self._length
        row = torch.from_numpy(self._stream[start : start + self._length + 1].astype("int64"))
        return {"input_ids": row[:-1], "labels": row[1:], "shift_labels": row[1:]}


class OwnTrainer(Trainer):
    """Keeps each step's loss, which `Trainer` itself shows only in its log."""

    last_loss: Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss


class Steps(TrainerCallback):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.trainer: OwnTrainer | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.gate.ready()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        self.gate.step(self.trainer.last_loss)


def train(task: Task, gate: Gate) -> None:
    """Train until the gate closes."""
    arguments = TrainingArguments(
        output_dir=task.scratch,
        use_cpu=True,
        bf16=task.precision == "bf16",
        torch_compile=task.compile,
        per_device_train_batch_size=task.batch,
        max_steps=1_000_000,
        learning_rate=task.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=task.weight_decay,
        adam_beta1=task.betas[0],
        adam_beta2=task.betas[1],
        adam_epsilon=task.eps,
        max_grad_norm=task.clip,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,  # rows are slices of memory: a worker would take a core's time
        dataloader_pin_memory=False,
        dataloader_drop_last=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        use_cache=False,
    )
    model = AutoModelForCausalLM.from_pretrained(task.folder, dtype=torch.float32)
    steps = Steps(gate)
    steps.trainer = OwnTrainer(
        model=model, args=arguments, train_dataset=Rows(task), callbacks=[steps]
    )
    steps.trainer.train()
