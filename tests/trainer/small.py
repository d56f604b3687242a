"""A language model and its data, small enough to be trained by a test, under `GalvatronTrainer` and under `Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from galvatron import GalvatronArguments, GalvatronTrainer

WORDS, LENGTH = 32, 8


class Sentences(Dataset[dict[str, Tensor]]):
    """Samples of which unequally many labels count."""

    def __init__(self, count: int, seed: int = 0) -> None:
        ids = torch.randint(0, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
        ignored = torch.arange(LENGTH) < (torch.arange(count) % 5)[:, None]
        self.ids, self.labels = ids, ids.masked_fill(ignored, -100)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config).double()


def hits(found: Any) -> dict[str, float]:
    """For `compute_metrics`: of all samples."""
    right = found.predictions.argmax(-1) == found.label_ids
    return {"hits": float(right.mean()), "rows": len(right)}


class Told(TrainerCallback):
    """Keeps what was logged, and stops a run after a step."""

    def __init__(self, stop: int | None = None) -> None:
        self.logs: list[dict[str, float]] = []
        self._stop = stop

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        self.logs.append({k: v for k, v in logs.items() if k in KEPT or k.startswith("eval_h")})

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_training_stop |= state.global_step == self._stop


KEPT = ("loss", "grad_norm", "learning_rate", "epoch", "eval_loss", "eval_rows", "num_input_tokens_seen", "total_flos")


def arguments(kind: type[TrainingArguments], folder: Path, ranks: int, **more: Any) -> TrainingArguments:
    """Of a run over an epoch of four steps and half of the next, the last step of each short, with evaluations."""
    chosen: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4 // ranks,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 4 // ranks,
        "num_train_epochs": 1.5,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "no",
        "include_num_input_tokens_seen": True,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    return kind(**chosen | more)


def usual() -> dict[str, Any]:
    """Of both trainers."""
    return {"train_dataset": Sentences(27), "eval_dataset": Sentences(9, seed=1), "compute_metrics": hits}


def trainer(folder: Path, plan: str, ranks: int = 1, stop: int | None = None, **more: Any) -> GalvatronTrainer:
    return GalvatronTrainer(
        new_model(),
        arguments(GalvatronArguments, folder, ranks, **more.pop("args", {})),
        plan=plan,
        **{**usual(), "callbacks": [Told(stop)], **more},
    )


def plain_trainer(folder: Path, **more: Any) -> Trainer:
    return Trainer(
        new_model(),
        arguments(TrainingArguments, folder, 1, **more.pop("args", {})),
        **{**usual(), "callbacks": [Told()], **more},
    )


def logs_of(trained: Trainer) -> list[dict[str, float]]:
    return next(callback.logs for callback in trained.callback_handler.callbacks if isinstance(callback, Told))


def trained(made: Trainer, resume: str | bool | None = None) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """What a run has logged, and the values of its model afterwards."""
    made.train(resume)
    assert made.model is not None
    return logs_of(made), made.model.state_dict()
