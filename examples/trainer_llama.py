"""Trains a language model with the `Trainer` of transformers, on any number of GPUs, or on the CPU.

    torchrun --nproc-per-node 8 --max-restarts 3 examples/trainer_llama.py --model MODEL --tokens TOKENS \
        --output_dir OUT --bf16 --per_device_train_batch_size 8 --gradient_accumulation_steps 4 --eval_strategy steps

MODEL and TOKENS are those of `train_llama.py`; all arguments of `transformers.TrainingArguments` are there. Of OUT the
run makes `checkpoint-500` and so on, each with a model for `from_pretrained`, and at the end `model`. Whatever ends it,
started again it goes on from the last checkpoint that is complete.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from train_llama import Tokens
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser

import galvatron
from galvatron.trainer import last_checkpoint


@dataclass
class Run:
    """What is trained.

    Attributes:
        length: tokens of a sample.
        plan: such as pp2/m8/1f1b/dp2-tp2; without it the fastest is searched.
    """

    model: Path
    tokens: Path
    length: int = 2048
    plan: str | None = None


def main(arguments: list[str]) -> None:
    kinds: Any = Run, galvatron.GalvatronArguments
    run, training = HfArgumentParser(kinds).parse_args_into_dataclasses(arguments)
    samples = Tokens(run.tokens, run.length)
    train_count = len(samples) - max(1, len(samples) // 20)
    with torch.device("meta"):  # no rank ever has all of it
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(run.model))
    trainer = galvatron.GalvatronTrainer(
        model,
        training,
        train_dataset=Subset(samples, range(train_count)),
        eval_dataset=Subset(samples, range(train_count, len(samples))),
        weights=run.model if any(run.model.glob("*.safetensors")) else None,
        plan=run.plan,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(training.output_dir))
    trainer.save_model(str(Path(training.output_dir) / "model"))


if __name__ == "__main__":
    main(sys.argv[1:])
