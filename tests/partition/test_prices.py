"""What the solver is told an op costs, against the bytes and FLOP of a rank's part counted by hand."""

from __future__ import annotations

import pytest

from galvatron.ir.cluster import Cluster
from galvatron.ir.factors import FactorTable
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.layout import Axis
from galvatron.ir.ops.work import product
from galvatron.ir.types import BATCH, TensorType
from galvatron.machine import Kernel, Machine
from galvatron.partition.boundary import Border
from galvatron.partition.modes import fits, op_modes
from galvatron.partition.prices import ClassPrices, Prices
from tests.partition.offered import offered

SAMPLES, ROWS, COLUMNS = 8, 1024, 512
OUTER, INNER = Axis("dp", 2, 2), Axis("tp", 2, 1)
MACHINE = Machine(Cluster.parse("a100-80g:1x4"))


def value(name: str, *shape: object) -> Value:
    return Value(name, TensorType("f32", shape))  # type: ignore[arg-type]  # numbers and the batch


def op_s(op: Op, inputs: tuple[Value, ...], differentiable: frozenset[str]) -> float:
    """The price of an op of which both axes cut a factor: the outer one the batch, the inner one the last dimension."""
    graph = Graph(inputs, (), (op,), (op.result.name,))
    table, border = FactorTable(graph), Border(differentiable, frozenset(), frozenset())
    batch, last = table.op_factors(0)[0], table.op_factors(0)[-1]
    assert batch.size == BATCH and last.results[0] is not None
    modes = offered(graph, 0, table, INNER.size, differentiable, {batch: OUTER.size})
    mode = next(mode for mode in modes if mode.factor == last)
    prices = ClassPrices(graph, table, MACHINE, SAMPLES, border)
    return Prices(prices, INNER, [{batch: OUTER.size}], {}).op_s(0, mode)


def test_every_axis_shrinks_an_operand_once_and_only_where_it_has_the_factor() -> None:
    op = Op("aten.mul.Tensor", (Ref("x"), Ref("scale")), (), (value("y", BATCH, COLUMNS),))
    seconds = op_s(op, (value("x", BATCH, COLUMNS), value("scale", COLUMNS)), frozenset())
    quarter, half = SAMPLES * COLUMNS / 4, COLUMNS / 2
    assert seconds == pytest.approx(MACHINE.kernel_s(Kernel("mul", "f32", 4 * (2 * quarter + half))))


@pytest.mark.parametrize("trained", [False, True])
def test_a_product_has_one_more_for_each_factor_with_a_gradient(trained: bool) -> None:
    op = Op("aten.linear.default", (Ref("x"), Ref("w")), (), (value("y", BATCH, ROWS, COLUMNS),))
    differentiable = frozenset({"x", "w", "y"} if trained else {"x", "y"})
    seconds = op_s(op, (value("x", BATCH, ROWS, COLUMNS), value("w", COLUMNS, COLUMNS)), differentiable)
    rows, columns = SAMPLES / 2 * ROWS, COLUMNS / 2
    touched = 4 * (rows * COLUMNS + columns * COLUMNS + rows * columns)
    forward = product(1, rows, columns, COLUMNS)
    works = (forward, *(forward.gradient(position) for position in ((0, 1) if trained else (0,))))
    assert seconds == pytest.approx(sum(MACHINE.kernel_s(Kernel("linear", "f32", touched, work)) for work in works))


def test_a_product_of_rows_that_have_come_is_of_an_axis_share_of_all() -> None:
    """And each matrix of the rank has the rows of all ranks that choose it, as where all ranks have all rows."""
    matrices, count = 4, SAMPLES * ROWS
    op = Op(
        "galvatron.grouped_linear.default", (Ref("x"), Ref("w"), Ref("ids")), (), (value("y", BATCH * ROWS, COLUMNS),)
    )
    ids = Value("ids", TensorType("i64", (BATCH * ROWS,)))
    inputs = (value("x", BATCH * ROWS, COLUMNS), value("w", matrices, COLUMNS, COLUMNS), ids)
    graph = Graph(inputs, (), (op,), ("y",))
    table, differentiable = FactorTable(graph), frozenset[str]()
    prices = Prices(
        ClassPrices(graph, table, MACHINE, SAMPLES, Border(differentiable, differentiable, differentiable)),
        INNER,
        [{}],
        {},
    )
    fitting = fits(graph, 0, table, INNER.size, {}, range(len(table.op_factors(0))), routes=("ids",))
    modes = op_modes(graph, 0, table, differentiable, fitting)
    (routed,) = (mode for mode in modes if mode.routed)
    (whole,) = (mode for mode in modes if mode.spmd and not mode.routed)
    work = product(matrices / 2, count / matrices, COLUMNS, COLUMNS)
    for mode, rows in ((routed, count / 2), (whole, count)):
        touched = 4 * (2 * rows * COLUMNS + matrices / 2 * COLUMNS * COLUMNS) + 8 * rows
        kernel = Kernel("grouped_linear", "f32", touched, work)
        assert prices.op_s(0, mode) == pytest.approx(MACHINE.kernel_s(kernel))
