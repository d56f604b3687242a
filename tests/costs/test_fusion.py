"""Layers under `torch.compile`: the cost model's picture of them, held to the compiler."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from common import llama
from torch import Tensor, nn

import galvatron
from galvatron.costs.events import CollectiveCall, Launch, Profile, launches
from galvatron.costs.fusion import padded, peak_bytes
from galvatron.costs.profile import profile_graph
from galvatron.costs.watch import ObservedEvent
from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import Axis
from galvatron.ir.ops.work import Work, product
from galvatron.ir.program import LayerClass, Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import parse_program, print_program
from galvatron.partition import Partitioner
from tests.costs import test_kernels as gpt

SIZE = llama.Size(vocabulary=128, width=64, hidden=176, heads=4, layers=3, sequence=32)
SAMPLES = 4
MODELS = ("gpt", "llama")


@cache
def program(name: str) -> Program:
    with torch.device("meta"):
        tokens = torch.zeros(SAMPLES, 32, dtype=torch.long)
        model, names = (gpt.GPT(), ("ids", "labels")) if name == "gpt" else (llama.Llama(SIZE), ("tokens", "labels"))
    return galvatron.capture(model, {key: tokens.clone() for key in names}, precision="bf16")


def partitioner(name: str) -> Partitioner:
    return Partitioner(program(name), Cluster.parse("a100-80g:1x2"))


def block(name: str) -> LayerClass:
    return program(name).class_of[program(name).planned_layers[1].cls]


def profiled(name: str, *, compiled: bool = True, kind: str = "cuda", recompute: str = "none") -> Profile:
    cls = block(name)
    differentiable = partitioner(name).borders[cls.name].differentiable
    return profile_graph(cls.graph, (), differentiable, recompute, kind=kind, compiled=compiled)


def own(events: Any) -> int:
    """The kernels that the compiler writes."""
    return sum(launch.work is None for launch in launches(events))


@pytest.mark.one_in(16)
@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("name", MODELS)
def test_products_stay_and_memory_is_touched_less(name: str, kind: str, recompute: str) -> None:
    before, after = (profiled(name, compiled=c, kind=kind, recompute=recompute) for c in (False, True))
    for eager, fused in ((before.forward, after.forward), (before.backward, after.backward)):
        products = [[e for e in launches(events) if e.work is not None] for events in (eager, fused)]
        assert products[0] == products[1]
        assert own(fused) < own(eager)
        assert sum(e.at(3).traffic_bytes for e in launches(fused)) < sum(e.at(3).traffic_bytes for e in launches(eager))
    assert after.saved_bytes(SAMPLES) <= before.saved_bytes(SAMPLES)


@pytest.mark.slow
def test_a_block_of_llama_is_five_kernels_between_products() -> None:
    """Norm, rotation, residual and norm, gated activation, residual."""
    assert own(profiled("llama").forward) == 5


def test_messages_are_between_kernels() -> None:
    sharded = partitioner("llama").shard(block("llama").name, Strategy.parse("tp2"), ())
    border = partitioner("llama").borders[block("llama").name]
    profile = profile_graph(sharded.graph, sharded.mesh, border.differentiable, kind="cuda", compiled=True)
    assert own(profile.forward) == 5 + 2  # a sum is of a copy
    sent = [event for event in profile.forward if isinstance(event, CollectiveCall)]
    assert [event.axis for event in sent] == [Axis("tp", 2, 1)] * 2
    for event in sent:
        after = profile.forward[profile.forward.index(event) + 1]
        assert isinstance(after, Launch) and after.work is None


def module(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 32, 64, dtype=torch.bfloat16, requires_grad=True) * 1
    if name == "gpt":
        return gpt.GPTBlock().bfloat16(), (x,)
    angles = torch.randn(32, SIZE.width // SIZE.heads, dtype=torch.bfloat16)
    return llama.Block(SIZE).bfloat16(), (x, angles.cos(), angles.sin())


def compiled_calls(name: str) -> tuple[int, int]:
    """How many kernels of its own the compiler calls in a forward and in a backward on the CPU, where all between two
    products is one function."""
    from torch._inductor.utils import run_fw_bw_and_get_code

    layer, operands = module(name)
    torch._dynamo.reset()
    function = torch.compile(layer)
    _, codes = run_fw_bw_and_get_code(lambda: function(*operands))
    forward, backward = (len(re.findall(r"^\s+cpp_fused\w*\(", code, re.MULTILINE)) for code in codes)
    return forward, backward


def compiled_bytes(name: str) -> int:
    """What a compiled layer keeps between forward and backward."""
    layer, operands = module(name)
    state = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers(), *operands[1:])}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in state:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch._dynamo.reset()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = torch.compile(layer)(*operands)
    assert result.requires_grad
    return sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_compiler_keeps_what_is_said(name: str) -> None:
    profile = profiled(name, kind="cpu")
    assert profile.saved_bytes(SAMPLES) == compiled_bytes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_compiler_writes_as_many_kernels(name: str) -> None:
    """To one in each pass; and sums that are gradients of weights, which are in other functions on the CPU."""
    profile = profiled(name, kind="cpu")
    forward, backward = compiled_calls(name)
    layer, _ = module(name)
    sums = sum(parameter.dim() == 1 for parameter in layer.parameters())
    assert abs(own(profile.forward) - forward) <= 1
    assert backward - 1 <= own(profile.backward) <= backward + 1 + sums


def kernel(reads: dict[int, float], writes: dict[int, float], work: Work | None = None) -> ObservedEvent:
    return ObservedEvent("add", "bf16", None, 0.0, work, reads=tuple(reads.items()), writes=tuple(writes.items()))


def test_a_value_is_alive_from_the_kernel_that_makes_it_to_the_last_that_reads_it():
    first, second, third = kernel({0: 1}, {1: 10}), kernel({1: 10}, {2: 20}), kernel({2: 20}, {3: 5})
    assert peak_bytes([first, second, third], {}, given={0}, lasting={3}) == 30
    assert peak_bytes([first, second, third], {}, given={0}, lasting={1, 3}) == 35
    # What is there at first is not counted, and what goes of it makes room.
    assert peak_bytes([first, second, third], {0: 8.0}, given=(), lasting={3}) == 22
    # Nobody has made it, so it has been given for this pass.
    assert peak_bytes([first], {}, given=(), lasting=()) == 11


def test_products_of_odd_sizes_are_padded():
    work = padded(kernel({}, {}, product(3, 7, 50257, 1024))).work
    assert work is not None and work.sizes == (3, 8, 50264, 1024)
    assert padded(kernel({}, {})) == kernel({}, {})


def test_estimates_know_that_layers_are_compiled():
    found = program("gpt")
    eager, compiled = (
        galvatron.estimate(found, "dp1", "h100-80g:1x1", global_batch_size=SAMPLES, inductor=inductor)
        for inductor in (False, True)
    )
    assert compiled.step_time_s < eager.step_time_s and compiled.peak_bytes < eager.peak_bytes
    text = print_program(replace(found, inductor=True))
    assert "\ninductor\n" in text
    assert parse_program(text).inductor and not parse_program(print_program(found)).inductor
