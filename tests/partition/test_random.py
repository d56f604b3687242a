"""Draws in sharded graphs: every mode of every random op on simulated ranks, and where sites and axes come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from galvatron.debugging.simulation import Tensors, combine, distribute, mesh_of, run_op
from galvatron.ir.factors import FactorTable
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Axis, Layout, Placement, Shard, local_shape
from galvatron.ir.local_arguments import localized_arguments
from galvatron.ir.random import drawn_axes, is_random, random_problem, with_site
from galvatron.ir.types import BATCH, TensorType
from galvatron.partition.localize import Localizer, MicroBatch, PlacedAxis
from galvatron.partition.modes import AxisState, Mode, Split
from tests.partition.offered import offered
from tests.partition.samples import Sample, sample

RANKS = 2
MESH = mesh_of(RANKS)
X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.01
HEADS = torch.rand(2, 4, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SAMPLES: dict[str, Sample] = {
    "dropout": sample("dropout.default", X, 0.5, True),
    "native_dropout": sample("native_dropout.default", X, 0.5, True),
    "bernoulli.p": sample("bernoulli.p", X, 0.5),
    "bernoulli": sample("bernoulli.default", X * 0.9),
    "bernoulli.Tensor": sample("bernoulli.Tensor", X, X[:, :1] * 0.9),
    "rand": sample("rand.default", (4, 6)),
    "randn": sample("randn.default", (4, 6)),
    "randint": sample("randint.default", 1000, (4, 6)),
    "randint.low": sample("randint.low", 3, 1000, (4, 6)),
    "normal.float_float": sample("normal.float_float", 0.0, 1.0, (4, 6)),
    "normal.Tensor_Tensor": sample("normal.Tensor_Tensor", X, X),
    "rand_like": sample("rand_like.default", X),
    "randn_like": sample("randn_like.default", X),
    "randint_like": sample("randint_like.default", X, 1000),
    "uniform": sample("uniform.default", X),
    "normal_functional": sample("normal_functional.default", X),
    "exponential": sample("exponential.default", X),
    "cauchy": sample("cauchy.default", X),
    "geometric": sample("geometric.default", X, 0.1),
    "log_normal": sample("log_normal.default", X),
    "poisson": sample("poisson.default", X * 100),
    "rrelu": sample("rrelu.default", X - 2, 0.1, 0.9, True),
    "attention": sample("scaled_dot_product_attention.default", HEADS, HEADS, HEADS, None, 0.5),
}


def layout_of(state: AxisState, value: Value) -> Layout:
    return (Shard(state.dim),) if isinstance(state, Split) else (state,)


def drawn(call: Sample, mode: Mode) -> tuple[list[Tensors], tuple[Value, ...]]:
    """What every rank draws in a mode, and the local results with their layouts."""
    values = call.graph.values
    layouts = {n: layout_of(s, values[n]) for n, s in zip(call.op.operands, mode.operands, strict=True)}
    parts = {n: distribute(x, layouts[n], MESH) for n, x in call.tensors.items()}
    results = tuple(
        Value(v.name, v.type.with_shape(local_shape(v.type.shape, layout_of(s, v), MESH)), layout_of(s, v))
        for v, s in zip(call.op.results, mode.results, strict=True)
    )
    local = localized_arguments(replace(call.op, results=results), lambda size: size)
    local = with_site(local, 0, drawn_axes(results[0], MESH), True)
    assert random_problem(local, MESH) == ""
    own = [{n: parts[n][rank] for n in parts} for rank in range(RANKS)]
    return run_op(local, call.graph, MESH, own, batch=1, global_batch=1), results


def modes_of(call: Sample) -> tuple[Mode, ...]:
    table = FactorTable(call.graph)
    return offered(call.graph, 0, table, MESH[0].size, frozenset(call.graph.values))


@pytest.mark.parametrize("name", SAMPLES)
def test_replicas_agree_and_slices_differ(name: str) -> None:
    call = SAMPLES[name]
    modes = modes_of(call)
    assert any(isinstance(m.results[0], Split) for m in modes), "draws can be sharded"
    whole, _ = drawn(call, modes[0])
    for mode in modes:
        ranks, results = drawn(call, mode)
        for value in results:
            made = [r[value.name] for r in ranks]
            assert all(tuple(m.shape) == value.type.shape for m in made)
            if value.layout in ((REPLICATE,), (BROADCAST,)):
                assert all(torch.equal(m, whole[0][value.name]) for m in made)
            elif value.layout != (PARTIAL,):
                assert not torch.equal(made[0], made[1])


def test_partial_sums_pass_dropout() -> None:
    """All ranks drop the same elements of their terms, so that the sum is that of dropping from the sum."""
    call = SAMPLES["dropout"]
    (mode,) = [m for m in modes_of(call) if m.results == (PARTIAL,)]
    (expected, _), _ = drawn(call, modes_of(call)[0])
    parts, results = drawn(call, mode)
    name = results[0].name
    total = combine([p[name] for p in parts], (PARTIAL,), MESH, tuple(X.shape))
    torch.testing.assert_close(total, expected[name])


def test_nothing_else_draws_on_partial_sums() -> None:
    for name, call in SAMPLES.items():
        assert name == "dropout" or not any(PARTIAL in (*m.operands, *m.results) for m in modes_of(call))


def test_sharded_attention_keeps_the_keys_whole() -> None:
    """Rows of the dropped probabilities are sharded as the result is, so its axes are those of the draws."""
    shared = {f.name for f in FactorTable(SAMPLES["attention"].graph).op_factors(0)}
    assert shared == {"b.0", "h", "q"}


def chain(*targets: tuple[Any, ...]) -> Graph:
    """Ops one after the other on x: f32[B, 8], each (target, *further arguments)."""
    x = Value("x", TensorType("f32", (BATCH, 8)))
    ops: list[Op] = []
    for number, (target, *rest) in enumerate(targets):
        source = ops[-1].result.name if ops else "x"
        args = () if target.startswith("aten.rand.") else (Ref(source),)
        shape = rest[0] if target.startswith("aten.rand.") else x.type.shape
        ops.append(Op(target, (*args, *rest), (), (Value(f"y{number}", TensorType("f32", shape)),)))
    return Graph((x,), (), tuple(ops), (ops[-1].result.name,))


def test_sites_count_the_draws_of_a_layer() -> None:
    dropout = ("aten.dropout.default", 0.1, True)
    graph = chain(dropout, ("aten.relu.default",), dropout, ("aten.rand.default", (8,)))
    dp, tp = Axis("dp", 2, 2), Axis("tp", 2, 1)

    def placed(placement: Placement) -> PlacedAxis:
        results = [(placement,)] * 3
        return PlacedAxis({"x": placement}, {"y3": REPLICATE}, [*results, ()], [*results, (REPLICATE,)], {})

    axes = [placed(Shard(0)), placed(REPLICATE)]
    local = Localizer(MicroBatch(graph, 2, frozenset()), (dp, tp), axes).run()
    draws = [op for op in local.ops if is_random(op)]
    assert [op.target for op in draws] == ["random.dropout.default"] * 2 + ["random.rand.default"]
    keys = [tuple(op.kwarg(k) for k in ("site", "axes", "per_step")) for op in draws]
    assert keys == [(0, ("dp",), False), (1, ("dp",), False), (2, (), True)]


def test_only_what_is_switched_on_draws() -> None:
    assert is_random(SAMPLES["attention"].op)
    off = sample("scaled_dot_product_attention.default", HEADS, HEADS, HEADS, None, 0.0)
    assert not is_random(off.op) and not is_random(sample("dropout.default", X, 0.5, False).op)
    assert not is_random(sample("scaled_dot_product_attention.default", HEADS, HEADS, HEADS).op)
    assert not is_random(sample("rrelu.default", X).op) and not is_random(sample("relu.default", X).op)
