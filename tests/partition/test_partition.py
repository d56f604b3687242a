"""Sharded classes of real models: all ranks in lockstep against the class on one device, and patterns one expects."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from galvatron.debugging.simulation import Tensors, combine, distribute, dual_layout, run_ranks, world
from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Graph, Value
from galvatron.ir.interpreter import run_graph
from galvatron.ir.layout import BROADCAST, PARTIAL, Shard
from galvatron.ir.network import Level
from galvatron.ir.plan import Ties
from galvatron.ir.program import Layer, LayerClass, LayerKind
from galvatron.ir.strategy import AxisRole, Strategy
from galvatron.ir.types import BATCH as BATCH_SYMBOL
from galvatron.ir.types import TORCH_DTYPE_NAMES, TensorType, evaluate
from galvatron.partition import Partitioner
from galvatron.partition.boundary import ROLES
from galvatron.partition.modes import pieces
from galvatron.passes.frontend.cluster_layers import ClusterLayers
from galvatron.passes.frontend.normalize import Normalize
from tests.models import shared

BATCH = 4
# The models are tiny: only without latency do they weigh bytes against work like large ones.
CLUSTER = replace(Cluster.parse("a100-80g:1x8"), levels=(Level("node", 8, 250e9, 0.0),))
STRATEGIES = ("dp2", "tp2", "dp2-tp2", "tp2-dp2", "tp2+sp", "dp2-tp2+sp", "ulysses2")


@cache
def partitioner(family: str, **options: Any) -> Partitioner:
    program = shared(family, **options).captured.program
    return Partitioner(ClusterLayers().run(Normalize().run(program)), CLUSTER)


def whole(split: Partitioner) -> Ties:
    """Every tie kept whole."""
    return tuple((tie.name, None) for tie in split.ties)


def classes(family: str, **options: Any) -> list[LayerClass]:
    program = partitioner(family, **options).program
    once = {layer.cls for layer in program.layers if layer.kind is LayerKind.STEP}
    return [c for c in program.classes if c.name not in once]


def test_borders_look_once_at_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    split = partitioner("llama")
    read: list[str] = []

    def counted(layer: Layer, name: str) -> Any:
        if name == "cls":
            read.append(object.__getattribute__(layer, "name"))
        return object.__getattribute__(layer, name)

    fresh = Partitioner(replace(split.program), CLUSTER)
    assert fresh._gradients
    monkeypatch.setattr(Layer, "__getattribute__", counted)
    assert fresh.borders.keys() == fresh.program.class_of.keys()
    assert read == [layer.name for layer in fresh.program.layers]


def random_tensor(value: Value, indices: int = 2) -> torch.Tensor:
    shape = [evaluate(size, BATCH) for size in value.type.shape]
    dtype = getattr(torch, TORCH_DTYPE_NAMES[value.type.dtype])
    if value.type.dtype == "bool":
        return torch.ones(shape, dtype=dtype)  # a mask that leaves no query without a key
    if value.type.is_floating:
        return torch.randn(shape, dtype=dtype)
    return torch.randint(0, indices, shape, dtype=dtype) if shape else torch.tensor(3, dtype=dtype)


def leaf(tensor: torch.Tensor, differentiable: bool) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(differentiable and tensor.is_floating_point())


def backward(outputs: Tensors, gradients: Tensors) -> None:
    flowing = [n for n in gradients if outputs[n].requires_grad]
    if flowing:
        torch.autograd.backward([outputs[n] for n in flowing], [gradients[n] for n in flowing])


def gradient_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def check_class(whole: Graph, local: LayerClass, differentiable: frozenset[str], dp: int, indices: int = 2) -> None:
    """Outputs and gradients of the local graph, put together, are those of the whole graph."""
    mesh, graph, b = local.mesh, local.graph, BATCH // dp
    formals = [v.name for v in (*whole.inputs, *whole.state)]
    values = {n: random_tensor(whole.values[n], indices) for n in formals}
    leaves = {n: leaf(t, n in differentiable) for n, t in values.items()}
    expected = run_graph(whole, leaves, batch=BATCH)
    gradients = {n: torch.randn_like(t) for n, t in expected.items() if t.requires_grad and n in differentiable}
    backward(expected, gradients)

    layouts = {n: v.layout for n, v in graph.values.items() if v.layout is not None}
    parts = {n: distribute(values[n], layouts[n], mesh, b) for n in formals}
    ranks = [{n: leaf(parts[n][r], n in differentiable) for n in formals} for r in world(mesh)]
    made = run_ranks(graph, mesh, ranks, batch=b, global_batch=BATCH)
    # An output may have another name in the local graph: the last conversion's.
    local_name = dict(zip(whole.outputs, graph.outputs, strict=True))
    for name, tensor in expected.items():
        outputs = [r[local_name[name]].detach() for r in made]
        total = combine(outputs, layouts[local_name[name]], mesh, tuple(tensor.shape), b)
        torch.testing.assert_close(total, tensor.detach(), rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    split = {n: distribute(g, dual_layout(layouts[local_name[n]]), mesh, b, zeros=True) for n, g in gradients.items()}
    # One backward over all ranks: a collective's gradient needs every rank's.
    flowing = [(r, n) for r in world(mesh) for n in split if made[r][local_name[n]].requires_grad]
    torch.autograd.backward([made[r][local_name[n]] for r, n in flowing], [split[n][r] for r, n in flowing])
    for name, tensor in leaves.items():
        if tensor.requires_grad:
            own = [gradient_of(r[name]) for r in ranks]
            total = combine(own, dual_layout(layouts[name]), mesh, tuple(tensor.shape), b, zeros=True)
            torch.testing.assert_close(
                total, gradient_of(tensor), rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"gradient of {n}: {m}"
            )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_local_graphs_compute_what_the_class_computes(family: str, strategy: str) -> None:
    torch.manual_seed(0)
    split = partitioner(family)
    for cls in classes(family):
        parsed = Strategy.parse(strategy)
        local = split.shard(cls.name, parsed, whole(split))
        check_class(cls.graph, local, split.borders[cls.name].differentiable, parsed.degree("dp"))


def padded(local: LayerClass) -> set[str]:
    """The state that a class keeps padded."""
    layouts = [(v.name, v.layout or ()) for v in local.graph.state]
    return {name for name, layout in layouts if any(isinstance(p, Shard) and p.padded for p in layout)}


@pytest.mark.one_in(7)
@pytest.mark.parametrize(
    ("family", "vocabulary", "strategy"),
    [
        ("llama", 97, "tp2"),
        ("llama", 101, "tp3"),
        ("llama", 97, "dp2-tp2"),
        ("llama", 101, "tp2+sp"),
        ("gpt2", 97, "tp4+sp"),
        ("gpt2", 101, "tp2-dp2"),
        ("bert", 97, "tp2"),
    ],
)
def test_a_vocabulary_that_does_not_divide_is_padded(family: str, vocabulary: int, strategy: str) -> None:
    """Embedding and head, or BERT's decoder and its bias (the embedding's width is sharded, being no residual stream),
    are kept in slices that are rounded up; classes with them compute what they compute whole."""
    torch.manual_seed(0)
    options = {"vocab_size": vocabulary, "tie_word_embeddings": False}
    split, parsed = partitioner(family, **options), Strategy.parse(strategy)
    found: list[str] = []
    for cls in classes(family, **options):
        local = split.shard(cls.name, parsed, whole(split))
        kept = padded(local)
        assert all(vocabulary in cls.graph.values[name].type.shape for name in kept)
        if kept:
            check_class(cls.graph, local, split.borders[cls.name].differentiable, parsed.degree("dp"), vocabulary)
            found += kept
    assert len(found) == 2, found


@pytest.mark.slow
def test_what_cannot_stay_padded_is_whole() -> None:
    """An activation between two products would count filler."""
    split = partitioner("llama", intermediate_size=49)
    for cls in classes("llama", intermediate_size=49):
        local = split.shard(cls.name, Strategy.parse("tp2"), ())
        assert "padded=True" not in str([v.layout for v in local.graph.values.values()])


def block(family: str) -> str:
    """The class of the repeated layers."""
    program = partitioner(family).program
    return Counter(layer.cls for layer in program.layers).most_common(1)[0][0]


def collectives(graph: Graph) -> Counter[str]:
    return Counter(op.target.removeprefix("comm.") for op in graph.ops if op.target.startswith("comm."))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_block_needs_no_communication_under_data_parallelism(family: str) -> None:
    local = partitioner(family).shard(block(family), Strategy.parse("dp2"), ())
    assert not collectives(local.graph)
    assert all(v.layout == (BROADCAST,) for v in local.graph.state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_pattern_of_megatron(family: str) -> None:
    """One all-reduce forward and one backward (the adjoint of a copy) for attention, and one of each for the MLP.

    Shoeybi et al., "Megatron-LM", 2019, figure 3.
    """
    local = partitioner(family).shard(block(family), Strategy.parse("tp2"), ())
    moved = collectives(local.graph)
    assert moved.pop("first", 0) <= 2  # a bias that is added once: no communication
    assert moved == {"copy": 2, "all_reduce": 2}
    assert {op.kwarg("grad") for op in local.graph.ops if op.target == "comm.all_reduce"} == {"identity"}


def test_the_pattern_of_megatron_with_sequence_parallelism() -> None:
    """Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022, figure 5."""
    local = partitioner("llama").shard(block("llama"), Strategy.parse("tp2+sp"), ())
    assert collectives(local.graph) == {"all_gather": 2, "reduce_scatter": 2}


def test_a_fused_projection_is_sharded_by_heads() -> None:
    """GPT-2's query, key and value come from one matrix: each rank has its heads' columns of all three."""
    local = partitioner("gpt2").shard(block("gpt2"), Strategy.parse("tp2"), ())
    layouts = [(v.type.shape, v.layout) for v in local.graph.state]
    assert ((32, 48), (Shard(1, outer=3),)) in layouts
    assert ((48,), (Shard(0, outer=3),)) in layouts


def test_the_bias_of_a_row_split_layer_is_added_once() -> None:
    """Where a sharded dimension is summed, the bias is a partial sum too, or is added after the reduction."""
    local = partitioner("gpt2").shard(block("gpt2"), Strategy.parse("tp2"), ()).graph
    products = [op for op in local.ops if op.target in ("aten.addmm.default", "aten.linear.default")]
    summed = [op for op in products if op.result.layout == (PARTIAL,)]
    assert len(summed) == 2
    for op in summed:
        bias = op.operands[0 if op.target == "aten.addmm.default" else 2]
        assert local.values[bias].layout == (PARTIAL,)
        assert local.producers[bias].target == "comm.first"


@pytest.mark.parametrize("name", ROLES)
def test_a_strategy_cuts_sequences_into_the_pieces_of_its_roles(name: str) -> None:
    role, strategy = ROLES[name], Strategy((AxisRole(name, 4),))
    split = role.stream(TensorType("f32", (BATCH_SYMBOL, 32, 8)))
    (axis,) = strategy.mesh
    cuts_sequence = split is not None and split.size != BATCH_SYMBOL
    assert strategy.sequence_pieces == (pieces(axis.size, role.folded) if cuts_sequence else 1)
