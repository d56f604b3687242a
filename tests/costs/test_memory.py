"""Activation memory of one layer: what is alive on a rank between forward and backward, against what the costs say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from galvatron import runtime as rt
from galvatron.codegen import load_module
from galvatron.costs.sharded import ShardedCostModel
from galvatron.ir.graph import Value
from galvatron.ir.interpreter import empty_like_type
from galvatron.ir.strategy import Strategy
from galvatron.partition import Partitioner
from tests.live_storage import LiveStorages
from tests.parity import harness

BLOCKS = {"llama": "layers_0", "gpt2": "h_0"}
"""The first block of each model, which is the second layer."""


class SilentGroup:
    """A process group whose messages never leave: memory is as in a job, and no library's thread holds on to it."""

    def __getattr__(self, collective: str) -> Any:
        return lambda *tensors: self

    def wait(self) -> None:
        """Nothing was sent."""


def first_rank(job: harness.Job) -> rt.Stage:
    """The only stage of a job as its first rank has it, with parameters but without the other ranks."""
    group: Any = SilentGroup()
    axes = tuple(rt.Axis(size, stride, 0, group) for size, stride in job.axes[0])
    mesh = rt.Mesh(rt.World(0, 1, torch.device("cpu")), 0, (0,), (0,), None, axes)
    stage = load_module("stage_0.py", job.texts["stage_0.py"], job.cache_dir).Stage(mesh)
    for spec in stage.state_specs.values():
        stage.table(spec.name)[spec.name] = nn.Parameter(torch.zeros(spec.local_shape(), dtype=spec.dtype))
    return stage


def memory_of(layer: rt.Layer, inputs: tuple[Value, ...], differentiable: frozenset[str]) -> tuple[int, int]:
    """The bytes that a layer keeps from forward to backward, and the peak of either above them and its inputs."""
    root = torch.zeros((), dtype=torch.float64, requires_grad=True)
    made = {v.name: torch.zeros_like(empty_like_type(v.type, harness.BATCH_SIZE)) for v in inputs}
    with LiveStorages() as live:
        # Inputs with a gradient are held by the layer or by nobody.
        given = [root.expand_as(t).clone() if name in differentiable else t for name, t in made.items()]
        held = [ref(t.untyped_storage()) for t in given if t.requires_grad]
        input_bytes = live.bytes
        result = layer(*given)
        forward_peak_bytes = live.peak_bytes
        edge, shape = get_gradient_edge(result), result.shape
        del given, result
        kept_bytes = live.peak_bytes = live.bytes
        if not any(storage() is not None for storage in held):
            forward_peak_bytes -= input_bytes
        torch.autograd.backward([edge], [torch.zeros(shape, dtype=torch.float64)])
    return kept_bytes, max(forward_peak_bytes, live.peak_bytes) - kept_bytes


@pytest.mark.one_in(6)
@pytest.mark.parametrize("recompute", ["", "-recompute", "-recompute=selective", "-recompute=attention"])
@pytest.mark.parametrize("roles", ["dp1", "tp2", "tp2+sp", "ulysses2"])
@pytest.mark.parametrize("model", BLOCKS)
def test_a_block_takes_the_memory_that_its_cost_says(model: str, roles: str, recompute: str) -> None:
    strategy = Strategy.parse(roles + recompute)
    program = harness.costed(model)[0]
    planned = harness.planned(model, str(strategy), strategy.devices)
    assert planned.cluster is not None and planned.plan is not None
    cluster = replace(planned.cluster, device=replace(planned.cluster.device, kind="cpu"))
    block = program.planned_layers[1].cls
    partitioner = Partitioner(program, planned.cluster)
    inputs = partitioner.shard(block, strategy, planned.plan.ties).graph.inputs
    layer = first_rank(harness.job_of(model, planned)).layers[BLOCKS[model]]
    kept_bytes, extra_bytes = memory_of(layer, inputs, partitioner.borders[block].differentiable)
    cost = ShardedCostModel(program, cluster).layer(1, strategy, harness.BATCH_SIZE, planned.plan.ties)
    assert kept_bytes == pytest.approx(cost.saved_bytes, rel=0.02)
    assert extra_bytes == pytest.approx(cost.extra_bytes, rel=0.02)
