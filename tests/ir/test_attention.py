"""Cores of attention: which ops of a layer are found, and that the layer computes the same with them in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.ir.attention import Core, pieces, with_cores
from galvatron.ir.graph import Graph
from galvatron.ir.interpreter import empty_like_type, run_graph
from galvatron.passes.pipeline import Pipeline
from tests import models

SAMPLES, PLACES, WIDTH = 3, 4, 6
Mix = Callable[..., Any]


class Layer(nn.Module):
    """Queries, keys and values of weights, and something of them."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.more = nn.Linear(PLACES, PLACES)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self, self.q(x), self.k(x), self.v(x)).square().mean()


def graph_of(mix: Mix) -> Graph:
    program = models.captured(None, Layer(mix), lambda size, seed: {"x": torch.zeros(size, PLACES, WIDTH)}).program
    normal = Pipeline.of(("normalize",)).run(program)
    assert normal.graph is not None
    return normal.graph


def cores_of(graph: Graph) -> list[list[str]]:
    return [[op.name for op in unit.ops] for unit in with_cores(graph) if isinstance(unit, Core)]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1)


def one_op(_: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def masked(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    future = torch.ones(PLACES, PLACES, dtype=torch.bool).triu(1)
    return F.dropout(scores(q, k).masked_fill(future, -1e9).softmax(-1), 0.5, layer.training) @ v


def by_equation(_: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys first, so that the softmax is along another dimension."""
    return torch.einsum("bkq,bkd->bqd", torch.einsum("bqd,bkd->bkq", q, k).softmax(1), v)


def with_weights_given(_: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).softmax(-1)
    return (weights @ v).sum() + weights.square().sum() * v.sum()


def of_two_sums(_: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Relative places, which are products as well."""
    return (scores(q, k) + scores(q, v)).softmax(-1) @ v


def of_differences(_: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k).softmax(-1) - scores(k, v).softmax(-1)) @ v


def through_other_shapes(_: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).unsqueeze(1).softmax(-1)
    return weights.expand(-1, 2, -1, -1).transpose(0, 1).flatten(0, 1) @ v.repeat(2, 1, 1)


def biased(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What weights add to the scores stays outside."""
    return (scores(q, k) + layer.more(q[..., :PLACES])).softmax(-1) @ v


def talking(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return layer.more(scores(q, k)).softmax(-1) @ v


def over_queries(_: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).softmax(-2) @ v


def router(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return layer.more(q[..., :PLACES]).softmax(-1) @ v


def without_products(_: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q + k).softmax(-1) * v


FOUND: dict[Mix, list[list[str]]] = {
    one_op: [["scaled_dot_product_attention"]],
    masked: [["matmul", "masked_fill", "softmax", "dropout", "matmul"]],
    by_equation: [["einsum", "softmax", "einsum"]],
    with_weights_given: [["matmul", "softmax", "matmul"]],
    of_two_sums: [["matmul", "matmul", "add", "softmax", "matmul"]],
    of_differences: [["matmul", "softmax", "matmul", "softmax", "sub", "matmul"]],
    biased: [["matmul", "add", "softmax", "matmul"]],
    talking: [],
    over_queries: [],
    router: [],
    without_products: [],
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("mix", FOUND, ids=lambda mix: mix.__name__)
def test_what_is_found(mix: Mix) -> None:
    assert cores_of(graph_of(mix)) == FOUND[mix]


def test_a_dimension_is_followed_through_other_shapes() -> None:
    (found,) = cores_of(graph_of(through_other_shapes))
    assert (found[0], found[-1]) == ("matmul", "matmul") and "softmax" in found and "repeat" not in found


@pytest.mark.one_in(3)
@pytest.mark.parametrize("mix", [*FOUND, through_other_shapes], ids=lambda mix: mix.__name__)
def test_pieces_compute_the_graph(mix: Mix) -> None:
    graph = graph_of(mix)
    torch.manual_seed(0)
    given = {v.name: empty_like_type(v.type, SAMPLES).normal_() for v in (*graph.inputs, *graph.state)}
    torch.manual_seed(1)
    expected = run_graph(graph, given, batch=SAMPLES)
    torch.manual_seed(1)
    values = dict(given)
    for piece, _ in pieces(graph):
        values |= run_graph(piece, values, batch=SAMPLES)
    assert all(torch.equal(values[name], expected[name]) for name in graph.outputs)


def test_a_core_of_which_ops_are_missing_is_none() -> None:
    graph = graph_of(masked)
    last = [op for op in graph.ops if op.name == "matmul"][-1]
    some = [op for op in graph.ops if op is not last]
    assert with_cores(graph, some) == tuple(some)


def test_what_a_core_reads_comes_first() -> None:
    """The values are made between scores and their mixture; what reads the weights comes after."""

    def late(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = scores(q, k).softmax(-1)
        return (weights @ (v * weights.detach().sum() + v.exp())).sum() + weights.sum()

    def later(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = scores(q, k).softmax(-1)
        total = weights.square().sum()
        return (weights @ v.exp()).sum() + total

    for mix in (late, later):
        graph = graph_of(mix)
        made = {v.name for v in (*graph.inputs, *graph.state)}
        for piece, _ in pieces(graph):
            assert made >= {v.name for v in piece.inputs}
            made.update(piece.outputs)
        assert made >= {*graph.outputs}
