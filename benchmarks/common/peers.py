"""Training steps of `common.llama` as people parallelise them by hand: DDP, FSDP2, DTensor, pipelines.

Each is written for speed: fused AdamW, no broadcast of constant buffers, gradients in the buckets that are reduced,
micro-batches scaled in their loss. Every builder takes over the model it is given, which is on the CPU and whole, and
returns a step on the *global* batch that gives this rank the loss of the whole batch, as a training loop logs it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
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
from torch.nn.parallel import DistributedDataParallel

from common.jobs import device
from common.llama import Batch, Experts, Llama, Size, loss_of
from galvatron.ir.planned import balanced

Step = Callable[[Batch], Tensor]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


def eager(model: Llama) -> Step:
    """The model on one device."""
    return _step(model.to(device()), ranks=1)


def data_parallel(model: Llama) -> Step:
    """`DistributedDataParallel` over all ranks."""
    return _step(_replicated(model.to(device()), None), ranks=dist.get_world_size())


def fully_sharded(model: Llama, *, reshard_after_forward: bool, mesh: DeviceMesh | None = None) -> Step:
    """FSDP2, each decoder block and the rest of the model.

    Args:
        reshard_after_forward: whether a block is gathered again for its backward (ZeRO-3) or kept (ZeRO-2).
        mesh: of two dimensions for hybrid sharding, replicas outside and shards inside; None shards over all ranks.
    """
    target = mesh or init_device_mesh(device().type, (dist.get_world_size(),))
    return _step(_sharded(model.to(device()), target, reshard_after_forward), ranks=dist.get_world_size())


def tensor_parallel(model: Llama, *, sequence_parallel: bool) -> Step:
    """`parallelize_module` over all ranks, laid out as torchtitan does; the loss is of sharded logits."""
    mesh = init_device_mesh(device().type, (dist.get_world_size(),), mesh_dim_names=("tp",))
    _parallelize(model.to(device()), mesh, sequence_parallel)
    sharded = [p for p in model.parameters() if isinstance(p, DTensor)]
    whole = [p for p in model.parameters() if not isinstance(p, DTensor)]
    optimizers = [adamw(parameters) for parameters in (sharded, whole) if parameters]

    def step(batch: Batch) -> Tensor:
        with loss_parallel():
            loss = model(**_on_device(batch))
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loss = loss.detach()
        return loss.full_tensor() if isinstance(loss, DTensor) else loss

    return step


def pipeline(model: Llama, cuts: Sequence[int], micro_batches: int, *, sharded: bool = False) -> Step:
    """`PipelineStage` under `Schedule1F1B`, every stage on an equal number of consecutive ranks.

    Args:
        cuts: before which decoder blocks the stages after the first begin.
        micro_batches: more than stages when these are wrapped in DDP, which otherwise meets its parameters twice before
            it can rebuild its buckets, and fails (torch 2.13).
        sharded: stages on several ranks are wrapped in FSDP2, instead of DDP. As `PipelineStage` drives it, it gathers
            parameters and scatters gradients once per step and holds both whole in between, which is ZeRO-1.
    """
    stages, world = len(cuts) + 1, dist.get_world_size()
    mesh = init_device_mesh(device().type, (stages, world // stages), mesh_dim_names=("pp", "dp"))
    index, replica, replicas = mesh.get_local_rank("pp"), mesh.get_local_rank("dp"), mesh["dp"].size()
    body: nn.Module = _StageOfLlama(model, [0, *cuts, len(model.layers)], index).to(device())
    if replicas > 1:
        body = _sharded(body, mesh["dp"], False) if sharded else _replicated(body, mesh.get_group("dp"))
    stage = PipelineStage(body, index, stages, device(), group=mesh.get_group("pp"))

    def share_of_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return loss_of(logits, labels) / micro_batches

    schedule = Schedule1F1B(stage, micro_batches, share_of_loss, scale_grads=False)
    optimizer = adamw(body.parameters())

    def step(batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        own = _on_device(_share(batch, replica, replicas))
        tokens = (own["tokens"],) if index == 0 else ()
        target = own["labels"] if index == stages - 1 else None
        schedule.step(*tokens, target=target, losses=losses, return_outputs=False)
        optimizer.step()
        optimizer.zero_grad()
        total = torch.stack(losses).sum().detach() / replicas if losses else torch.zeros((), device=device())
        dist.all_reduce(total)
        return total

    return step


def expert_parallel(model: Llama) -> Step:
    """Experts shared out over all ranks, rows sent by `all_to_all`; all else in `DistributedDataParallel`."""
    model.to(device())
    for block in model.layers:
        experts = block.get_submodule("feed_forward")
        assert isinstance(experts, Experts)
        block.register_module("feed_forward", _SharedExperts(experts))
    own = [name for name, _ in model.named_parameters() if name.endswith(("w13", "w2"))]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own)
    return _step(_replicated(model, None), ranks=dist.get_world_size())


class _SharedExperts(nn.Module):
    """This rank's experts, written as torchtitan does: rows are sorted by expert and sent, those that come are sorted
    by this rank's experts, each of which multiplies its own."""

    def __init__(self, whole: Experts) -> None:
        super().__init__()
        self.ranks, rank = dist.get_world_size(), dist.get_rank()
        assert dist.group.WORLD is not None
        self.group = dist.group.WORLD
        self.router, self.chosen, self.experts = whole.router, whole.chosen, len(whole.w13)
        self.w13, self.w2 = (nn.Parameter(w.detach().chunk(self.ranks)[rank].clone()) for w in (whole.w13, whole.w2))
        for weight in (self.w13, self.w2):  # of the mean over all ranks' tokens, as the others are
            weight.register_hook(lambda gradient: gradient / self.ranks)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights, ids = self.router(rows).softmax(-1).topk(self.chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        order = ids.flatten().argsort(stable=True)
        made = self._computed(rows[order // self.chosen], ids.flatten().bincount(minlength=self.experts))
        back = torch.zeros_like(made).index_copy(0, order, made)
        return (back.unflatten(0, (-1, self.chosen)) * weights.unsqueeze(-1)).sum(1).view_as(x)

    def _computed(self, rows: Tensor, counts: Tensor) -> Tensor:
        come = torch.empty_like(counts)
        dist.all_to_all_single(come, counts)
        by_expert = come.view(self.ranks, -1)
        sent, received = counts.view(self.ranks, -1).sum(1).tolist(), by_expert.sum(1).tolist()
        there = all_to_all_single_autograd(rows, received, sent, self.group)
        experts = torch.arange(len(self.w2), device=rows.device).repeat(self.ranks)
        order = experts.repeat_interleave(by_expert.flatten()).argsort(stable=True)
        parts = there[order].split(by_expert.sum(0).tolist())
        made = [self._expert(expert, part) for expert, part in enumerate(parts)]
        unsorted = torch.zeros_like(there).index_copy(0, order, torch.cat(made))
        return all_to_all_single_autograd(unsorted, sent, received, self.group)

    def _expert(self, expert: int, rows: Tensor) -> Tensor:
        gate, up = (rows @ self.w13[expert].t()).chunk(2, -1)
        return (nn.functional.silu(gate) * up) @ self.w2[expert].t()


def balanced_cuts(size: Size, stages: int) -> list[int]:
    """Where to cut a model so that its stages compute about equally much."""
    block = 4 * size.width**2 + 3 * size.width * size.hidden
    sizes = balanced([block] * (size.layers - 1) + [block + size.width * size.vocabulary], stages)
    return [sum(sizes[:stage]) for stage in range(1, stages)]


class _StageOfLlama(nn.Module):
    """The blocks between two borders, with the embedding before the first and the head after the last."""

    def __init__(self, model: Llama, borders: Sequence[int], index: int) -> None:
        super().__init__()
        self.embedding = model.embedding if index == 0 else None
        self.layers = model.layers[borders[index] : borders[index + 1]]
        last = index == len(borders) - 2
        self.norm, self.output = (model.norm, model.output) if last else (None, None)
        self.register_buffer("cos", model.cos)
        self.register_buffer("sin", model.sin)

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return x if self.norm is None or self.output is None else self.output(self.norm(x))


def _replicated(model: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    with warnings.catch_warnings():
        # Its successor is missing from torch 2.11.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            model, process_group=group, gradient_as_bucket_view=True, broadcast_buffers=False
        )


def _sharded(model: nn.Module, mesh: DeviceMesh, reshard_after_forward: bool) -> nn.Module:
    # The root is wrapped as FSDP2's documentation has it: its parameters are needed again at once, so they stay.
    for block in model.get_submodule("layers").children():
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


def _step(model: nn.Module, ranks: int) -> Step:
    """A step of a model that is called with this rank's share of the batch and averages gradients over the ranks."""
    optimizer = adamw(model.parameters())
    rank = dist.get_rank() if ranks > 1 else 0

    def step(batch: Batch) -> Tensor:
        loss = model(**_on_device(_share(batch, rank, ranks)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach() / ranks
        if ranks > 1:
            dist.all_reduce(total)
        return total

    return step


def _share(batch: Batch, index: int, count: int) -> Batch:
    return {name: value.chunk(count)[index] for name, value in batch.items()}


def _on_device(batch: Batch) -> Batch:
    return {name: value.to(device()) for name, value in batch.items()}


def _parallelize(model: nn.Module, mesh: DeviceMesh, sequence_parallel: bool) -> None:
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
    for layer in model.get_submodule("layers").children():
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
