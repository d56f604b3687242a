"""One rank of the demonstration, started by torchrun: compile, check against eager, train."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import galvatron
from galvatron.cli.tables import plan_table
from galvatron.demo.text import VOCABULARY, SourceText
from galvatron.ir.files import write_text
from galvatron.profiler.local import local_cluster
from galvatron.units import format_bytes, format_seconds

STEPS, BATCH, LENGTH = 40, 16, 128
BUDGET_SHARE = 0.7
"""The memory budget, as a share of what plain data parallelism needs at the least."""


def build_model() -> nn.Module:
    """A Llama of 8 blocks and 6.6M parameters with random weights, the same on every rank."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def main(output: Path) -> None:
    """Runs one rank and, on rank 0, prints what happens and writes `summary.json`."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    chief = dist.get_rank() == 0
    console = Console(stderr=True, quiet=not chief)
    text, model = SourceText(LENGTH), build_model()
    batch = text.batch(BATCH)

    console.rule("capture and search")
    cluster = local_cluster()
    program = galvatron.capture(model, batch)
    budget = int(BUDGET_SHARE * _plain_data_parallel_bytes(program, cluster))
    console.print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters in {len(program.layers)} layers of "
        f"{len(program.classes)} classes; budget {format_bytes(budget)} per rank, too little for plain data parallelism"
    )
    compiled = galvatron.compile(
        model,
        batch,
        cluster=cluster,
        memory=budget,
        optimizer=lambda ps: torch.optim.AdamW(ps, lr=1e-3),
        max_grad_norm=1.0,
    )
    if chief:
        compiled.save_artifacts(output)
        Console().print(plan_table(compiled.plan, compiled.program))

    console.rule("first step against single-process eager")
    loss = float(compiled.forward_backward(batch))
    gradients = compiled.full_gradients(rank0_only=True)
    eager_loss, error = _against_eager(model, batch, gradients) if chief else (0.0, 0.0)
    console.print(f"loss {loss:.6f}, eager {eager_loss:.6f}; largest gradient error {error:.1e} (relative, per tensor)")

    losses, times = _train(compiled, text, output)
    if chief:
        plan = compiled.plan
        summary = {
            "loss_first": loss,
            "loss_last": losses[-1],
            "eager_loss_first": eager_loss,
            "grad_max_rel_err": error,
            "predicted_step_s": plan.step_time_s,
            "measured_step_s": statistics.median(times[2:]),
            "predicted_peak_bytes": list(plan.peak_bytes or ()),
            "budget_bytes": budget,
            "plan": json.loads(plan.to_json()),
            "world_size": dist.get_world_size(),
        }
        write_text(output / "summary.json", json.dumps(summary, indent=2) + "\n")
        Console().print(
            f"loss {loss:.3f} → {losses[-1]:.3f} in {STEPS} steps; step time: predicted "
            f"{format_seconds(plan.step_time_s or 0.0)}, measured {format_seconds(summary['measured_step_s'])}\n"
            f"artifacts: {output}/program.gir, plan.json, stage_*.py, summary.json, figures.jsonl"
        )
    dist.barrier()
    dist.destroy_process_group()


def _plain_data_parallel_bytes(program: Any, cluster: Any) -> int:
    """The least memory that plain data parallelism needs per rank, over all numbers of micro-batches."""
    ranks = cluster.world_size
    plans = (f"pp1/m{m}/gpipe/dp{ranks}" for m in (1, 2, 4) if BATCH % (m * ranks) == 0)
    return min(max(galvatron.estimate(program, plan, cluster, global_batch_size=BATCH).peak_bytes) for plan in plans)


def _against_eager(
    model: nn.Module, batch: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> tuple[float, float]:
    """The loss of the unmodified model on the whole batch, and the largest norm-wise relative error of a gradient."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    errors = [
        float((gradients[name] - p.grad).norm() / p.grad.norm().clamp_min(1e-12))
        for name, p in model.named_parameters()
        if p.grad is not None
    ]
    model.zero_grad()
    return float(loss.detach()), max(errors)


def _train(compiled: galvatron.CompiledModel, text: SourceText, output: Path) -> tuple[list[float], list[float]]:
    """Trains for `STEPS` steps, of which `figures.jsonl` tells; losses and seconds per step."""
    losses: list[float] = []
    times: list[float] = []
    with galvatron.Figures(compiled, output, total=STEPS) as figures:
        for step in range(1, STEPS + 1):
            begin = time.perf_counter()
            losses.append(float(compiled.train_step(text.batch(BATCH))))
            times.append(time.perf_counter() - begin)
            figures.add(step)
    return losses, times


if __name__ == "__main__":
    main(Path(sys.argv[1]))
