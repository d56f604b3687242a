"""What a graph does, observed under fake tensors, against real autograd and against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from galvatron.costs.events import CollectiveCall, launches
from galvatron.costs.profile import profile_graph
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.interpreter import empty_like_type, run_graph
from galvatron.ir.layout import Axis
from galvatron.ir.types import LOCAL_BATCH, TensorType
from tests.ir.programs import clustered

S, D, H = 4, 8, 16
TP = Axis("tp", 2, 1)


def value(name: str, *shape: int, batch: bool = True) -> Value:
    return Value(name, TensorType("f32", (LOCAL_BATCH, *shape) if batch else shape))


def op(target: str, args: tuple, result: Value, **kwargs: object) -> Op:
    return Op(target, args, tuple(kwargs.items()), (result,))  # type: ignore[arg-type]  # keyword values are arguments


def split_mlp() -> Graph:
    """A column- and row-split pair of linears with its two collectives."""
    ops = (
        op("comm.copy", (Ref("x"),), value("copy", S, D), axis="tp"),
        op("aten.linear.default", (Ref("copy"), Ref("up")), value("hidden", S, H // 2)),
        op("aten.silu.default", (Ref("hidden"),), value("active", S, H // 2)),
        op("aten.linear.default", (Ref("active"), Ref("down")), value("part", S, D)),
        op("comm.all_reduce", (Ref("part"),), value("sum", S, D), axis="tp", grad="identity"),
        op("aten.add.Tensor", (Ref("x"), Ref("sum")), value("out", S, D)),
    )
    state = (value("up", H // 2, D, batch=False), value("down", D, H // 2, batch=False))
    return Graph((value("x", S, D),), state, ops, ("out",))


def test_collectives_and_their_adjoints_are_read_off_the_graph() -> None:
    profile = profile_graph(split_mlp(), (TP,), frozenset({"x", "up", "down"}))
    (forward,) = [e for e in profile.forward if isinstance(e, CollectiveCall)]
    (backward,) = [e for e in profile.backward if isinstance(e, CollectiveCall)]
    assert forward == backward and forward.kind == "all_reduce" and forward.axis == TP
    assert forward.payload_bytes(5) == 5 * S * D * 4


@pytest.mark.parametrize(
    ("target", "arguments", "shape"),
    [("topk", (3, 0), (3, D)), ("select.int", (0, 20), (D,)), ("slice.Tensor", (0, 5), (LOCAL_BATCH - 5, D))],
)
def test_a_graph_that_takes_some_samples_at_least_is_profiled_with_as_many(
    target: str, arguments: tuple[int, ...], shape: tuple
) -> None:
    results = [Value("out", TensorType("f32", shape))]
    if target == "topk":
        target, results = "topk.default", [*results, Value("at", TensorType("i64", shape))]
    only = Op(f"aten.{target}", (Ref("x"), *arguments), (), tuple(results))
    profile = profile_graph(Graph((value("x", D),), (), (only,), ("out",)), (), frozenset({"x"}))
    assert profile.backward


def test_no_gradient_no_adjoint() -> None:
    profile = profile_graph(split_mlp(), (TP,), frozenset({"up", "down"}))
    assert not [e for e in profile.backward if isinstance(e, CollectiveCall)]


@pytest.mark.parametrize(
    ("forward", "backward", "kinds"),
    [
        ("all_reduce", "all_reduce", ("all_reduce", "all_reduce")),
        ("all_gather", "slice", ("all_gather", None)),
        ("all_gather", "reduce_scatter", ("all_gather", "reduce_scatter")),
        ("slice", "all_gather", (None, "all_gather")),
        ("slice", "pad", (None, None)),
    ],
)
def test_payloads_are_whole_tensors(forward: str, backward: str, kinds: tuple[str | None, str | None]) -> None:
    before, after = {"all_gather": (S, 2 * S), "slice": (2 * S, S)}.get(forward, (S, S))
    result = value("y", after)
    where: dict[str, object] = {} if forward == "all_reduce" else {"dim": 1, "outer": 1}
    comm = op(f"comm.{forward}", (Ref("x"),), result, axis="tp", **where, grad=backward)
    profile = profile_graph(Graph((value("x", before),), (), (comm,), ("y",)), (TP,), frozenset("x"))
    found = [[e for e in events if isinstance(e, CollectiveCall)] for events in (profile.forward, profile.backward)]
    assert [events[0].kind if events else None for events in found] == list(kinds)
    assert all(e.payload_bytes(3) == 3 * max(before, after) * 4 for events in found for e in events)


def test_flop_and_saved_bytes_of_two_linears() -> None:
    profile = profile_graph(split_mlp(), (TP,), frozenset({"x", "up", "down"}))
    forward = sum(e.at(3).flop for e in launches(profile.forward))
    backward = sum(e.at(3).flop for e in launches(profile.backward))
    assert forward == 2 * (2 * 3 * S * D * H / 2)
    assert backward == 2 * forward
    assert profile.saved_bytes(3) == 3 * S * (D + 2 * H / 2) * 4  # x, and the input and output of silu
    assert profile.shared_bytes == ()


@pytest.mark.parametrize("causal", [False, True])
def test_flop_of_attention(causal: bool) -> None:
    heads, length, width = 2, 6, 4
    names = ("q", "k", "v")
    attend = Op(
        "aten.scaled_dot_product_attention.default",
        (*map(Ref, names), None, 0.0, causal),
        (),
        (value("o", heads, length, width),),
    )
    graph = Graph(tuple(value(n, heads, length, width) for n in names), (), (attend,), ("o",))
    profile = profile_graph(graph, (), frozenset(names))
    product = 2 * heads * length * length * width / (2 if causal else 1)
    assert sum(e.at(1).flop for e in launches(profile.forward)) == 2 * product
    assert sum(e.at(1).flop for e in launches(profile.backward)) == 5 * product


@pytest.mark.parametrize("name", ["embedding", "block", "head"])
@pytest.mark.parametrize("batch", [3, 8])
def test_saved_bytes_are_those_of_autograd(name: str, batch: int) -> None:
    """Unique storages that real autograd keeps, at batch sizes that were not fitted."""
    graph = clustered().class_of[name].graph
    differentiable = frozenset(v.name for v in (*graph.inputs, *graph.state) if v.type.dtype == "f32") - {"c"}
    values = {v.name: torch.zeros_like(empty_like_type(v.type, batch)) for v in (*graph.inputs, *graph.state)}
    for formal in differentiable:
        values[formal].requires_grad_(True)
    state = {values[v.name].untyped_storage().data_ptr() for v in graph.state}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run_graph(graph, values, batch=batch)
    profile = profile_graph(graph, (), differentiable)
    predicted = profile.saved_bytes(batch) + sum(size(batch) for _, size in profile.shared_bytes)
    assert outputs
    assert predicted == sum(kept.values())


def test_what_is_copied_at_one_batch_size_only_counts_in_proportion_to_the_larger_one() -> None:
    """Two columns of a batch of two are one behind the other once a dimension of half the batch is in front."""
    halves = TensorType("f32", (LOCAL_BATCH / 2, S, D))
    turned = Op("aten.permute.default", (Ref("x"), (1, 0, 2)), (), (value("turned"),))
    rows = Op("aten.reshape.default", (Ref("turned"), (-1, D)), (), (value("rows"),))
    graph = Graph((Value("x", halves),), (), (turned, rows), ("rows",))
    profile = profile_graph(graph, (), frozenset({"x"}))
    (copy,) = launches(profile.forward)
    assert copy.at(4).traffic_bytes == 2 * (4 // 2 * S * D * 4)
    assert copy.at(2).traffic_bytes == copy.at(4).traffic_bytes / 2
    assert profile.saved_bytes(4) == 0


def test_values_without_a_gradient_are_counted_apart() -> None:
    graph = clustered().class_of["block"].graph
    profile = profile_graph(graph, (), frozenset({"x", "up.weight", "down.weight", "down.bias"}))
    assert [name for name, _ in profile.shared_bytes] == ["m"]


def test_a_frozen_weight_has_no_kernels_of_its_gradient() -> None:
    graph = clustered().class_of["block"].graph
    trained = frozenset({"x", "up.weight", "down.weight", "down.bias"})
    whole, without = (profile_graph(graph, (), names) for names in (trained, trained - {"up.weight", "down.weight"}))

    def flop(launched: Any) -> float:
        return sum(event.at(1).flop for event in launches(launched))

    assert flop(whole.backward) == 2 * flop(whole.forward)
    assert flop(without.backward) == flop(without.forward) == flop(whole.forward)
    assert without.saved_bytes(4) < whole.saved_bytes(4)
