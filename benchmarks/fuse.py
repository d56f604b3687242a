"""Step time with and without the pass `fuse`: one process with one thread, the same model and batch, steps in turn.

    python benchmarks/fuse.py [--models llama,gpt2] [--rounds 11]

A step is forward, backward and SGD. Eager PyTorch takes part for comparison.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common.jobs import on_ranks
from common.measure import Spread, in_turn, ratios
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table
from torch import nn

from galvatron import runtime as rt
from galvatron.codegen import load_module
from galvatron.ir.capture import capture_graph
from galvatron.offline import emit
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline

Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], Any]


@dataclass(frozen=True)
class Row:
    """One model: ratios to the program without `fuse`, and seconds of a step of each contestant.

    Attributes:
        loss_difference: relative, between fused and not fused, of the first step.
    """

    model: str
    parameters: int
    fused_wall_ratio: Spread
    fused_cpu_ratio: Spread
    eager_wall_ratio: Spread
    eager_cpu_ratio: Spread
    step_s: dict[str, Spread]
    loss_difference: float


def llama(transformers: Any) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2(transformers: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=8192, n_embd=384, n_layer=9, n_head=6, use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


MODELS = {"llama": llama, "gpt2": gpt2}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-4)


def compiled_step(model: nn.Module, batch: Batch, passes: tuple[str, ...]) -> Step:
    """A training step of the model compiled for one device with these passes before the planning."""
    captured = capture_graph(model, batch)
    program = Pipeline.of(passes).run(captured.program)
    (text,) = emit(program, "m1/gpipe/dp1", "a100-80g:1x1").values()
    stage = load_module("stage_0.py", text, None).Stage(rt.build_mesh(rt.initialize(), [[]]))
    state = rt.ModelState(model, constants=captured.constants)
    return rt.Executor([stage], schedule="gpipe", optimizer=sgd, model=state).train_step


def eager_step(model: nn.Module, device: torch.device) -> Step:
    """A training step of the model itself."""
    model.to(device)
    optimizer = sgd(model.parameters())

    def step(batch: Batch) -> torch.Tensor:
        loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(name: str, samples: int, sequence: int, rounds: int) -> Row:
    import transformers

    torch.manual_seed(0)
    model = MODELS[name](transformers)
    tokens = torch.randint(0, 8192, (samples, sequence))
    batch = {"input_ids": tokens, "labels": tokens}
    unfused = tuple(name for name in FRONT_END if name != "fuse")
    steps = {
        "fused": compiled_step(copy.deepcopy(model), batch, FRONT_END),
        "not fused": compiled_step(copy.deepcopy(model), batch, unfused),
        "eager": eager_step(model, rt.initialize().device),
    }
    losses = {contestant: float(step(batch)) for contestant, step in steps.items()}
    times = in_turn({contestant: partial(step, batch) for contestant, step in steps.items()}, rounds)
    base = times["not fused"]
    return Row(
        model=name,
        parameters=sum(p.numel() for p in model.parameters()),
        fused_wall_ratio=ratios(times["fused"].wall_s, base.wall_s),
        fused_cpu_ratio=ratios(times["fused"].cpu_s, base.cpu_s),
        eager_wall_ratio=ratios(times["eager"].wall_s, base.wall_s),
        eager_cpu_ratio=ratios(times["eager"].cpu_s, base.cpu_s),
        step_s={contestant: Spread.of(figures.wall_s) for contestant, figures in times.items()},
        loss_difference=abs(losses["fused"] - losses["not fused"]) / abs(losses["not fused"]),
    )


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Step time, ratio to the program without `fuse`: median (quartiles)")
    for heading in ("model", "fused, wall", "fused, CPU", "eager, wall", "not fused"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        figures = (row.fused_wall_ratio, row.fused_cpu_ratio, row.eager_wall_ratio)
        table.add_row(row.model, *map(str, figures), f"{row.step_s['not fused'].median:.3f} s")
    Console(width=max(120, Console().width)).print(table)


def names(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown model {unknown[0]!r}; there are {', '.join(MODELS)}")
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=names, default=list(MODELS), help=f"of {','.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--sequence", type=int, default=256)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.models:
        print(f"{name} ...", file=sys.stderr, flush=True)
        before = conditions("transformers")
        row = on_ranks(measure, 1, name, arguments.samples, arguments.sequence, arguments.rounds)
        rows.append(row)
        facts = {"samples": arguments.samples, "sequence": arguments.sequence, "rounds": arguments.rounds}
        save("fuse", [entry(row, before, **facts)], key=("model", "samples", "sequence"))
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
