"""The rule table, numerically: every op in every mode, on ranks, against the op on whole tensors, and its gradients."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galvatron.debugging.simulation import Mesh, Tensors, combine, distribute, dual_layout, mesh_of, run_op
from galvatron.ir.factors import FactorTable
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.interpreter import run_graph
from galvatron.ir.layout import Layout, local_shape
from galvatron.ir.local_arguments import localized_arguments
from galvatron.ir.ops.table import OPERATORS
from galvatron.ir.spmd import along_axis
from galvatron.partition.modes import AxisState, Mode, Split
from tests.marks import needs_torch
from tests.partition import every_sample  # noqa: F401  # it fills CASES
from tests.partition.offered import offered
from tests.partition.samples import CASES, POINTWISE, Case, Draw, Sample, below, continuous, real, sample


def placed(state: AxisState, value: Value) -> Layout:
    """A state as a layout on a mesh of one axis."""
    return (state.placement(value.type.shape[state.dim]) if isinstance(state, Split) else state,)


def with_cuts(d: Draw, graph: Graph) -> Graph:
    """The graph with reshapes behind some values, which cut their dimensions into factors."""
    ops: list[Op] = []
    for value in graph.values.values():
        for dim, size in enumerate(value.type.shape):
            divisors = [n for n in range(2, int(size)) if int(size) % n == 0]
            if divisors and d.one_of(True, False):
                part = d.one_of(*divisors)
                shape = (*value.type.shape[:dim], int(size) // part, part, *value.type.shape[dim + 1 :])
                cut = Value(f"{value.name}_{dim}", value.type.with_shape(shape))
                ops.append(Op("aten.reshape.default", (Ref(value.name), shape), (), (cut,)))
    return replace(graph, ops=(*graph.ops, *ops))


def backward(op: Op, operands: Tensors, results: Tensors, gradients: Tensors) -> Tensors:
    """Gradients of the floating operands, zero where nothing flows."""
    flowing = [v.name for v in op.results if results[v.name].requires_grad]
    if flowing:
        torch.autograd.backward([results[n] for n in flowing], [gradients[n] for n in flowing])
    with_gradient = {n: x for n, x in operands.items() if x.requires_grad}
    return {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in with_gradient.items()}


def leaves(tensors: Tensors, differentiable: frozenset[str]) -> Tensors:
    return {n: x.detach().clone().requires_grad_(n in differentiable) for n, x in tensors.items()}


def check_mode(call: Sample, mode: Mode, mesh: Mesh) -> None:
    """One mode of the op, on every rank, gives what the op gives."""
    op, graph = call.op, call.graph
    operand_layouts = {n: placed(s, graph.values[n]) for n, s in zip(op.operands, mode.operands, strict=True)}
    result_layouts = {v.name: placed(s, v) for v, s in zip(op.results, mode.results, strict=True)}
    whole = leaves(call.tensors, call.differentiable)
    expected = run_graph(graph, whole, batch=1)
    gradients = {n: torch.randn_like(y) for n, y in expected.items() if continuous(y)}
    expected_gradients = backward(op, whole, expected, gradients)

    parts = {n: distribute(x, operand_layouts[n], mesh) for n, x in call.tensors.items()}
    gradient_parts = {n: distribute(g, dual_layout(result_layouts[n]), mesh, zeros=True) for n, g in gradients.items()}
    local_results = tuple(
        Value(v.name, v.type.with_shape(local_shape(v.type.shape, result_layouts[v.name], mesh))) for v in op.results
    )
    local = replace(op, results=local_results)
    if mode.spmd:
        assert mode.factor is not None
        folded = any(isinstance(state, Split) and state.folded for state in mode.operands)
        local = along_axis(local, mesh[0].name, mode.factor.size, folded=folded)
    else:
        local = localized_arguments(local, lambda size: size)
    ranks = range(mesh[0].size)
    own = [leaves({n: parts[n][rank] for n in parts}, call.differentiable) for rank in ranks]
    results = run_op(local, graph, mesh, own, batch=1, global_batch=1, concurrent_backward=True)
    for v in local_results:
        assert all(tuple(r[v.name].shape) == v.type.shape for r in results)
    made = {n: [r[n].detach() for r in results] for n in expected}
    with ThreadPoolExecutor(len(ranks)) as pool:

        def back_of(rank: int) -> Tensors:
            return backward(local, own[rank], results[rank], {n: g[rank] for n, g in gradient_parts.items()})

        back = list(pool.map(back_of, ranks))
    made_gradients = {n: [b[n] for b in back] for n in expected_gradients}
    for name, y in expected.items():
        total = combine(made[name], result_layouts[name], mesh, tuple(y.shape))
        torch.testing.assert_close(total, y.detach(), equal_nan=True, msg=lambda m, n=name: f"{n} in {mode}: {m}")
    for name, gradient in expected_gradients.items():
        total = combine(
            made_gradients[name], dual_layout(operand_layouts[name]), mesh, tuple(gradient.shape), zeros=True
        )
        torch.testing.assert_close(
            total, gradient, equal_nan=True, msg=lambda m, n=name: f"gradient of {n} in {mode}: {m}"
        )


def check_case(case: Case, data: st.DataObject, ranks: int) -> None:
    torch.manual_seed(0)
    folded = data.draw(st.booleans())
    d = Draw(data, 2 * ranks if folded else ranks)
    call = case(d)
    graph = with_cuts(d, call.graph)
    table = FactorTable(graph)
    differentiable = call.differentiable | {v.name for v in call.op.results if v.type.is_floating}
    for mode in offered(graph, 0, table, ranks, differentiable, folded=folded, padding=True):
        if "empty" in call.op.target:
            continue
        check_mode(call, mode, mesh_of(ranks))


OFTEN = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
QUICK = settings(OFTEN, max_examples=4, derandomize=True)


def each_case() -> list:
    listed = [(rule, i, case) for rule, cases in CASES.items() for i, case in enumerate(cases)]
    marks = {rule: needs_torch((2, 13), "it has no derivative") for rule in ("narrow_copy", "aminmax")}
    return [pytest.param(case, id=f"{rule}-{i}" if i else rule, marks=marks.get(rule, ())) for rule, i, case in listed]


@pytest.mark.one_in(6)
@pytest.mark.parametrize("case", each_case())
@QUICK
@given(data=st.data(), ranks=st.sampled_from([2, 3]))
def test_every_mode_of_every_rule(case: Case, data: st.DataObject, ranks: int) -> None:
    check_case(case, data, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("case", each_case())
@OFTEN
@given(data=st.data(), ranks=st.sampled_from([2, 3]))
def test_every_mode_of_every_rule_often(case: Case, data: st.DataObject, ranks: int) -> None:
    check_case(case, data, ranks)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(i)) for i, c in enumerate(POINTWISE)])
@QUICK
@given(data=st.data(), ranks=st.sampled_from([2, 3]))
def test_pointwise_ops_without_a_rule(case: Case, data: st.DataObject, ranks: int) -> None:
    check_case(case, data, ranks)


def test_every_rule_has_a_case() -> None:
    drawn = {name for name, operator in OPERATORS.items() if operator.draws and name not in CASES}
    registered = {name for name in OPERATORS if "::" in name and not name.startswith("galvatron::")}  # by other tests
    assert set(CASES) == {name for name, operator in OPERATORS.items() if operator.dims} - drawn - registered


def padded_names(call: Sample, ranks: int = 4) -> set[str]:
    """The names of an op's dimensions that may be padded."""
    modes = offered(call.graph, 0, FactorTable(call.graph), ranks, call.differentiable, padding=True)
    states = [(mode, state) for mode in modes for state in (*mode.operands, *mode.results)]
    return {mode.factor.name for mode, state in states if mode.factor and isinstance(state, Split) and state.padded}


def test_what_can_be_padded() -> None:
    """Never a dimension that is summed, nor a factor of one, nor one that an op would count."""
    x, w = real(4, 7), real(10, 7)
    assert padded_names(sample("linear.default", x, w, real(10))) == {"n"}
    assert padded_names(sample("addmm.default", real(10), x, real(7, 10))) == {"n"}
    grouped = sample("galvatron.grouped_linear.default", x, real(10, 11, 7), below(10, 4))
    assert padded_names(grouped) == {"e", "n"}
    assert padded_names(sample("embedding.default", real(10, 8), below(10, 4))) == {"v"}
    assert padded_names(sample("cross_entropy_loss.default", x, below(7, 4), None, 2)) == {"v"}
    assert padded_names(sample("logsumexp.default", x, [1])) == {"w1"}
    assert padded_names(sample("div.Tensor", x, 3.0)) == padded_names(sample("div.Tensor", x, real(4, 1))) == {"b.0"}
    assert len(padded_names(sample("reshape.default", real(4, 4, 7), [16, 7]))) == 1
    assert len(padded_names(sample("reshape.default", real(4, 4, 7), [4, 28]))) == 0
    for refused in (
        sample("sum.dim_IntList", x, [1]),
        sample("exp.default", x),
        sample("softmax.int", x, 1),
        sample("mse_loss.default", x, x.clone(), 2),
        sample("div.Tensor", x, real(4, 7)),
        sample("linear.default", x, real(9, 7)),  # three ranks have it all, the fourth would have nothing but filler
    ):
        assert not padded_names(refused)


def factors_of(call: Sample) -> set[str]:
    graph = call.graph
    return {f.name for f in FactorTable(graph).op_factors(0)}


def test_what_can_be_sharded() -> None:
    """Rules that refuse too much would pass the numerical test: the shardable names of some important ops."""
    assert factors_of(sample("linear.default", real(2, 3, 4), real(6, 4), real(6))) == {"b.0", "b.1", "k", "n"}
    assert factors_of(sample("addmm.default", real(6), real(2, 4), real(4, 6))) == {"m", "k", "n"}
    heads = real(2, 4, 8, 6)
    attention = sample(
        "scaled_dot_product_attention.default", heads, real(2, 2, 8, 6), real(2, 2, 8, 6), enable_gqa=True
    )
    assert factors_of(attention) == {"b.0", "h", "g", "q"}
    causal = sample("scaled_dot_product_attention.default", heads, heads, heads, is_causal=True)
    assert factors_of(causal) == {"b.0", "h"}
    x = real(4, 6, 6)
    assert factors_of(sample("repeat_interleave.self_int", x, 2, 0)) == {"d0", "d1", "d2"}
    assert factors_of(sample("repeat.default", x, [2, 1, 1])) == {"d0", "d1", "d2"}
    assert factors_of(sample("cat.default", [x, x.clone()])) == {"d0", "d1", "d2"}
    assert factors_of(sample("slice_scatter.default", x, x.clone(), 0)) == {"b.0", "b.1", "b.2"}
    assert factors_of(sample("index_put.default", x, [None, below(6, 3)], real(4, 3, 6))) == {"d0", "d2"}
    assert factors_of(sample("cosine_similarity.default", x, real(6, 6), 1)) == {"d0", "d2"}
    assert factors_of(sample("einsum.default", "abc,dc->abd", [x, real(5, 6)])) == {"a", "b", "c", "d"}
    image = real(4, 6, 8, 8)
    assert factors_of(sample("conv2d.default", image, real(4, 3, 2, 2), None, [1, 1], [0, 0], [1, 1], 2)) == set("nco")
    assert factors_of(sample("conv_transpose2d.input", image, real(6, 4, 2, 2))) == {"n", "c", "o"}
    assert factors_of(sample("max_pool2d.default", image, [2, 2])) == {"b.0", "b.1"}
    assert factors_of(sample("group_norm.default", image, 2)) == {"n"}
    state, weights = real(1, 4, 3), [real(12, 6), real(12, 3)]
    lstm = sample("lstm.input", x, [state, state.clone()], weights, False, 1, 0.0, True, False, True)
    assert factors_of(lstm) == {"n"}
    assert factors_of(sample("lstm_cell.default", real(4, 6), [real(4, 3), real(4, 3)], *weights)) == {"n"}
    assert factors_of(sample("nll_loss_nd.default", real(4, 5, 3), below(5, 4, 3), None, 2)) == {"n", "d.0"}
