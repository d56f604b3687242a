"""Trains a language model on any number of GPUs, or on the CPU: resumes, evaluates, shows figures, exports.

    torchrun --nproc-per-node 8 --max-restarts 3 examples/train_llama.py MODEL TOKENS OUT

MODEL is a folder as `save_pretrained` writes it; with its `config.json` alone training begins from random weights.
TOKENS is a file of token ids, 32 bits each, one after another (`numpy.array(ids, "int32").tofile(TOKENS)`). Of OUT the
run makes `figures.jsonl`, `checkpoints/`, and after its last step, the 900th say, `model-900/`, for `from_pretrained`.
Whatever ends it, started again it goes on: on as many ranks with the next sample, bit for bit; on more or fewer under a
new plan. A run that has ended goes on with more `--epochs`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from transformers import AutoConfig, AutoModelForCausalLM

import galvatron


class Tokens(Dataset[dict[str, Tensor]]):
    """A file of token ids, cut into samples of equal length."""

    def __init__(self, path: Path, length: int) -> None:
        count = path.stat().st_size // 4
        ids = torch.from_file(str(path), size=count, dtype=torch.int32)  # mapped into memory, not read
        self.samples = ids[: count // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.samples[index].long()
        return {"input_ids": ids, "labels": ids}  # the model shifts labels itself


def warm_up_then_cosine(step: int, total: int) -> float:
    """The share of the learning rate at a step."""
    return min((step + 1) / (0.05 * total), 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total)))


def main(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    samples = Tokens(options.tokens, options.length)
    held_out_count = max(1, len(samples) // 20)
    train = Subset(samples, range(len(samples) - held_out_count))
    held_out = Subset(samples, range(len(train), len(samples)))

    with torch.device("meta"):  # no rank ever has all of it
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.model))
        shape = options.batch, options.length
        batch = {name: torch.empty(shape, dtype=torch.int64) for name in ("input_ids", "labels")}
    compiled = galvatron.compile(
        model,
        batch,
        weights=options.model if any(options.model.glob("*.safetensors")) else None,
        plan=options.plan,  # None searches the fastest one
        precision=options.precision,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=options.rate, weight_decay=0.1),
        max_grad_norm=1.0,
    )
    loader = compiled.dataloader(train, shuffle=True, workers=options.workers)
    held_out = compiled.dataloader(held_out, name="held out")
    total = options.epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(compiled.optimizer, lambda step: warm_up_then_cosine(step, total))

    found = compiled.load(options.out / "checkpoints", missing_ok=True)
    if found is not None:
        scheduler.load_state_dict(found.extra["scheduler"])
    step = 0 if found is None else found.step

    with galvatron.Figures(compiled, options.out, total=total) as figures:
        while step < total:
            for batch in loader:  # to the end of the epoch, from wherever the last run was
                compiled.train_step(batch)
                step, more = step + 1, {"learning_rate": scheduler.get_last_lr()[0]}
                scheduler.step()
                due = step % options.every == 0 or step == total
                if due:
                    more["perplexity"] = math.exp(compiled.evaluate(held_out))
                figures.add(step, **more)  # first: a run that goes on behind this step has its figures
                if due:
                    state = {"scheduler": scheduler.state_dict()}
                    compiled.save(options.out / "checkpoints", step=step, keep=3, extra=state, background=True)
    compiled.finish_saving()
    if not (options.out / f"model-{step}").exists():
        compiled.export(options.out / f"model-{step}")


def folder_of_model(text: str) -> Path:
    """A folder that has what a model is."""
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"there is no {text}/config.json")
    return Path(text)


def file_of_tokens(text: str) -> Path:
    """A file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text)


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", type=folder_of_model)
    parser.add_argument("tokens", metavar="TOKENS", type=file_of_tokens)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--plan", help="such as pp2/m8/1f1b/dp2-tp2; without it the fastest is searched")
    parser.add_argument("--precision", choices=["bf16", "fp16"])
    parser.add_argument("--batch", type=int, default=256, help="samples of a global batch")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sample")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=3e-4, help="the highest learning rate")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints and evaluations")
    parser.add_argument("--workers", type=int, default=2, help="processes of each rank that load samples")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(read_options())
