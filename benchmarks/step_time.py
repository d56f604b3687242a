"""Step time of compiled programs against hand-written parallel PyTorch: the same model, ranks, data and strategy.

    python benchmarks/step_time.py [--quick] [--rounds 11] [--rows dp2 tp2 ...]

Two gloo ranks with one thread each. A step is forward, backward and a fused AdamW update. The peers:

- dp2: `DistributedDataParallel`
- tp2, tp2+sp: `parallelize_module` with DTensor, laid out as torchtitan does, the loss on sharded logits
- pp2: `PipelineStage` under `Schedule1F1B`, the model cut by hand at the same layer

Both run on one job, step by step in turn, after their losses have agreed for some steps. A ratio below 1 means that the
compiled program is faster.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from common import Spread, busy, in_turn, on_ranks, ratios, save
from common.llama import Llama, Size, loss_of
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

import galvatron
from galvatron import runtime as rt
from galvatron.ir.cluster import Cluster, Device, Link

Batch = dict[str, Tensor]
Step = Callable[[Batch], Tensor]
"""One training step on the global batch; returns this rank's loss, whole."""

PEERS = {
    "dp2": "DistributedDataParallel",
    "tp2": "parallelize_module",
    "tp2+sp": "parallelize_module + SequenceParallel",
    "pp2/m4/1f1b/dp1": "PipelineStage + Schedule1F1B",
}
CORE = Device("core", 8 * 2**30, (("f32", 5e10),), memory_bytes_per_s=1e10, kernel_launch_s=5e-6)
LOOPBACK = Link(1e9, 5e-5)
MACHINE = Cluster("cores:1x2", CORE, 1, 2, LOOPBACK, LOOPBACK)
"""Roughly a machine of today, and always the same, so that all runs time the same programs."""
AGREEMENT_STEPS = 3
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """One plan against its peer: ratios of ours to the peer's, seconds of a step of each, and what each sends."""

    plan: str
    peer: str
    wall_ratio: Spread
    cpu_ratio: Spread
    own_s: Spread
    peer_s: Spread
    own_messages: str
    peer_messages: str
    loss_difference: float


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


def compiled(model: nn.Module, batch: Batch, plan: str) -> galvatron.CompiledModel:
    """The compiled program under a plan."""
    return galvatron.compile(model, batch, plan=plan, cluster=MACHINE, optimizer=adamw)


def data_parallel_step(model: nn.Module) -> Step:
    parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = adamw(model.parameters())

    def step(batch: Batch) -> Tensor:
        loss = parallel(**{k: v.chunk(dist.get_world_size())[dist.get_rank()] for k, v in batch.items()})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # What a training loop logs: the loss on the whole batch.
        total = loss.detach() / dist.get_world_size()
        dist.all_reduce(total)
        return total

    return step


def tensor_parallel_step(model: nn.Module, *, sequence_parallel: bool) -> Step:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    parallelize(model, mesh, sequence_parallel)
    sharded = [p for p in model.parameters() if isinstance(p, DTensor)]
    whole = [p for p in model.parameters() if not isinstance(p, DTensor)]
    optimizers = [adamw(parameters) for parameters in (sharded, whole) if parameters]

    def step(batch: Batch) -> Tensor:
        with loss_parallel():
            loss = model(**batch)
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loss = loss.detach()
        return loss.full_tensor() if isinstance(loss, DTensor) else loss

    return step


def parallelize(model: nn.Module, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Megatron's layout as torchtitan's `apply_tp` writes it."""
    stream = Shard(1) if sequence_parallel else Replicate()
    norm = {"norm": SequenceParallel()} if sequence_parallel else {}
    parallelize_module(
        model,
        mesh,
        {
            "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=stream),
            "output": ColwiseParallel(input_layouts=stream, output_layouts=Shard(-1), use_local_output=False),
            **norm,
        },
    )
    # The input of a sub-block becomes a DTensor once, so that its gradient is reduced once, not once per matrix.
    inputs = {
        "attention": PrepareModuleInput(
            input_layouts=(stream, None, None), desired_input_layouts=(Replicate(), None, None)
        ),
        "feed_forward": PrepareModuleInput(input_layouts=(stream,), desired_input_layouts=(Replicate(),)),
    }
    norms = {"attention_norm": SequenceParallel(), "ffn_norm": SequenceParallel()} if sequence_parallel else {}
    layers = model.get_submodule("layers")
    for layer in layers.children():
        parallelize_module(
            layer,
            mesh,
            {
                **norms,
                **inputs,
                "attention.wq": ColwiseParallel(),
                "attention.wk": ColwiseParallel(),
                "attention.wv": ColwiseParallel(),
                "attention.wo": RowwiseParallel(output_layouts=stream),
                "feed_forward.w1": ColwiseParallel(),
                "feed_forward.w3": ColwiseParallel(),
                "feed_forward.w2": RowwiseParallel(output_layouts=stream),
            },
        )


class FirstStage(nn.Module):
    """The embedding and the first layers of a model."""

    def __init__(self, model: Llama, cut: int) -> None:
        super().__init__()
        self.embedding, self.layers = model.embedding, model.layers[:cut]
        self.register_buffer("cos", model.cos)
        self.register_buffer("sin", model.sin)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return x


class LastStage(nn.Module):
    """The other layers and the head."""

    def __init__(self, model: Llama, cut: int) -> None:
        super().__init__()
        self.layers, self.norm, self.output = model.layers[cut:], model.norm, model.output
        self.register_buffer("cos", model.cos)
        self.register_buffer("sin", model.sin)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.output(self.norm(x))


def pipeline_step(model: Llama, micro_batches: int, cut: int) -> Step:
    rank = dist.get_rank()
    body = (FirstStage, LastStage)[rank](model, cut)
    stage = PipelineStage(body, rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, micro_batches, loss_of)
    optimizer = adamw(body.parameters())

    def step(batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        if rank == 0:
            schedule.step(batch["tokens"])
        else:
            schedule.step(target=batch["labels"], losses=losses, return_outputs=False)
        optimizer.step()
        optimizer.zero_grad()
        total = torch.stack(losses).mean().detach() if losses else torch.zeros(())
        dist.all_reduce(total)
        return total

    return step


def peer_step(model: Llama, plan: str, cut: int) -> Step:
    if plan == "dp2":
        return data_parallel_step(model)
    if plan.startswith("pp2"):
        return pipeline_step(model, 4, cut)
    return tensor_parallel_step(model, sequence_parallel=plan.endswith("+sp"))


def batch_of(size: Size, samples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, size.vocabulary, (samples, size.sequence + 1), generator=generator)
    return {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


def compare(plan: str, size: Size, samples: int, rounds: int) -> Row:
    """One row, on every rank of a job.

    Raises:
        AssertionError: the losses of the contestants do not agree.
    """
    torch.manual_seed(0)
    model = Llama(size)
    batches = [batch_of(size, samples, seed) for seed in range(AGREEMENT_STEPS)]
    program = compiled(copy.deepcopy(model), batches[0], plan)
    cut = len(program.plan.stages[0]) - 1  # the embedding is a layer too
    steps: dict[str, Step] = {"own": program.train_step, "peer": peer_step(model, plan, cut)}
    difference = max(relative_difference([float(step(batch)) for step in steps.values()]) for batch in batches)
    assert difference < TOLERANCE, f"{plan}: the losses differ by {difference:.1e}"
    messages = {name: sent_by(partial(step, batches[0])) for name, step in steps.items()}
    times = in_turn({name: partial(step, batches[0]) for name, step in steps.items()}, rounds)
    own, peer = times["own"], times["peer"]
    return Row(
        plan=plan,
        peer=PEERS[plan],
        wall_ratio=ratios(own.wall_s, peer.wall_s),
        cpu_ratio=ratios(own.cpu_s, peer.cpu_s),
        own_s=Spread.of(own.wall_s),
        peer_s=Spread.of(peer.wall_s),
        own_messages=messages["own"],
        peer_messages=messages["peer"],
        loss_difference=difference,
    )


def relative_difference(losses: list[float]) -> float:
    return abs(losses[0] - losses[1]) / abs(losses[1])


def sent_by(step: Callable[[], Any]) -> str:
    """What rank 0 sends in one step: `24 all_reduce, 25.2 MiB`, by kind."""
    with rt.CommunicationCounter() as counter:
        step()
    kinds = dict.fromkeys(channel.kind for channel in sorted(counter.messages))
    total = {k: [0, 0] for k in kinds}
    for channel, count in counter.messages.items():
        total[channel.kind][0] += count
        total[channel.kind][1] += counter.sent_bytes[channel]
    return ", ".join(f"{count} {kind} {size / 2**20:.1f} MiB" for kind, (count, size) in total.items())


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Step time, ours / peer: median (least, quartiles)")
    for heading in ("plan", "wall", "CPU", "ours", "peer's"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seconds = (f"{spread.median:.3f} s" for spread in (row.own_s, row.peer_s))
        table.add_row(row.plan, str(row.wall_ratio), str(row.cpu_ratio), *seconds)
    Console().print(table)
    for row in rows:
        print(f"{row.plan}: we send {row.own_messages}; {row.peer} sends {row.peer_messages}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Step time of compiled programs against hand-written parallel PyTorch."
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: does it run at all")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rows", nargs="+", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()
    size = Size(512, 64, 128, 4, 2, 32) if arguments.quick else replace(Size(), sequence=128)
    rounds = 3 if arguments.quick else arguments.rounds
    rows: list[Row] = []
    for plan in arguments.rows:
        print(f"{plan} against {PEERS[plan]} ...", file=sys.stderr, flush=True)
        rows.append(on_ranks(compare, 2, plan, size, arguments.samples, rounds))
    print_rows(rows)
    parameters = sum(p.numel() for p in Llama(size).parameters())
    if not arguments.quick:
        save("step_time", rows, parameters=parameters, samples=arguments.samples, sequence=size.sequence, rounds=rounds)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
