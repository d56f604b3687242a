"""What recomputing the decoder blocks costs, ours and torch's: full, and selective with matrices and attention kept.

    python benchmarks/recompute.py [--rounds 30] [--samples 2] [sizes as options]

Our programs and the model under `torch.utils.checkpoint` take turns. Each is compared, round by round, with the same
program that keeps its activations: what is left is the work that is done twice, and the bookkeeping.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from common import peers
from common.checkpointing import selective
from common.jobs import device, on_ranks
from common.llama import Block, Llama, Size, batch_of
from common.measure import Spread, in_turn, ratios
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import galvatron
from galvatron.ir.strategy import Strategy

SMALL = Size(vocabulary=64, width=32, hidden=48, heads=2, layers=8, sequence=8)
"""Nothing but bookkeeping."""

MEDIUM = Size(vocabulary=1024, width=256, hidden=704, heads=4, layers=4, sequence=256)
KINDS = ("none", "full", "selective")
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Row:
    """CPU seconds of steps with one kind of recomputation, each over those of the same program without any."""

    kind: str
    size: str
    own: Spread
    torch: Spread
    own_over_torch: Spread


class Checkpointed(nn.Module):
    """A block under `torch.utils.checkpoint`."""

    def __init__(self, block: nn.Module, kind: str) -> None:
        super().__init__()
        self.block = block
        self.options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if kind == "selective":
            self.options["context_fn"] = selective

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return checkpoint(self.block, x, cos, sin, **self.options)


def torch_step(model: Llama, kind: str) -> peers.Step:
    """The model as it is written, with its blocks recomputed by torch."""
    if kind != "none":
        model.layers = nn.ModuleList(Checkpointed(block, kind) for block in model.layers if isinstance(block, Block))
    return peers.eager(model)


def own_step(model: Llama, kind: str, batch: dict[str, Tensor]) -> Callable[..., Tensor]:
    """The compiled program, with its blocks recomputed; embedding and head are not."""
    options = {"cluster": "a100-80g:1x1", "optimizer": peers.adamw}
    program = galvatron.compile(copy.deepcopy(model), batch, plan="dp1", **options)
    if kind == "none":
        return program.train_step
    (first, *blocks, last) = program.plan.stages[0]
    stage = (first, *(replace(Strategy.parse("dp1"), recompute=kind) for _ in blocks), last)
    return galvatron.compile(model, batch, plan=replace(program.plan, stages=(stage,)), **options).train_step


def measure(name: str, size: Size, samples: int, rounds: int) -> list[Row]:
    """A row per kind, on the only rank."""
    batch = {key: value.to(device()) for key, value in batch_of(size, samples, 0).items()}
    torch.manual_seed(0)
    model = Llama(size)
    steps: dict[str, Callable[..., Tensor]] = {}
    for kind in KINDS:
        steps[f"own {kind}"] = own_step(copy.deepcopy(model), kind, batch)
        steps[f"torch {kind}"] = torch_step(copy.deepcopy(model), kind)
    losses = [float(step(batch)) for step in steps.values()]
    assert max(losses) - min(losses) < TOLERANCE * losses[0], f"losses {losses}"
    times = in_turn({key: partial(step, batch) for key, step in steps.items()}, rounds, warm=3)
    cpu_s = {key: found.cpu_s for key, found in times.items()}
    return [
        Row(
            kind,
            name,
            ratios(cpu_s[f"own {kind}"], cpu_s["own none"]),
            ratios(cpu_s[f"torch {kind}"], cpu_s["torch none"]),
            ratios(cpu_s[f"own {kind}"], cpu_s[f"torch {kind}"]),
        )
        for kind in KINDS
    ]


def print_rows(rows: list[Row]) -> None:
    table = Table(title="CPU time of a step: median ratio (quartiles)")
    for heading in ("blocks", "recompute", "ours / ours without", "torch / torch without", "ours / torch"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(row.size, row.kind, str(row.own), str(row.torch), str(row.own_over_torch))
    Console(width=max(120, Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--samples", type=int, default=2)
    for field in fields(Size):
        size = getattr(MEDIUM, field.name)
        parser.add_argument(f"--{field.name}", type=int, default=size, help="of the medium model")
    arguments = parser.parse_args()
    medium = Size(**{field.name: getattr(arguments, field.name) for field in fields(Size)})
    rows: list[Row] = []
    for name, size in (("small", SMALL), ("medium", medium)):
        before = conditions()
        found = on_ranks(measure, 1, name, size, arguments.samples, arguments.rounds)
        facts = {"sizes": asdict(size), "samples": arguments.samples, "rounds": arguments.rounds}
        save("recompute", [entry(row, before, **facts) for row in found], key=("size", "kind"))
        rows += found
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
