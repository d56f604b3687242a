"""The table of operators: it agrees with torch, and tells which arguments fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from galvatron.errors import GalvatronError, ParseError, VerifyError
from galvatron.ir.graph import Const, Graph, Op, Ref, Value
from galvatron.ir.interpreter import run_graph, torch_constant, torch_op
from galvatron.ir.ops.schemas import operators, schema_of
from galvatron.ir.ops.table import named
from galvatron.ir.text import parse_graph
from galvatron.ir.types import BATCH, TensorType
from galvatron.ir.verify import verify
from galvatron.ir.verify.arguments import argument_problem
from tests.ir.ops import operators as torchs
from tests.ir.programs import around

HARMFUL = [
    "aten.from_file.default", "aten.copy_.default", "aten.zero_.default", "aten.set_.source_Storage",
    "aten.add.out", "aten.resize.default", "aten.item.default", "aten._local_scalar_dense.default",
    "aten.record_stream.default", "aten._assert_async.msg", "aten._print.default", "aten.sym_size.int",
    "aten.save.default", "prim.device.default", "os.system.default", "aten.add", "aten.add.Tensor.x",
    "aten.__class__.mro", "aten.as_strided.default", "aten.as_strided_scatter.default",
        "random.from_file.default", "random.dropout.out", "random.add.Tensor", "comm.from_file", "spmd.linear",
]  # fmt: skip


def test_the_table_agrees_with_torch() -> None:
    """An operator of the table that this version of torch has is free of side effects, and has this signature."""
    present = [name for name in operators() if name in torchs.known()]
    assert len(present) > 900
    assert {name: torchs.problem(name) for name in present if torchs.problem(name)} == {}
    lines = dict(line.split("(", 1) for line in torchs.FILE.read_text().splitlines())
    for name in present:
        assert lines[name].partition("  # ")[0] == torchs.text(name).split("(", 1)[1].partition("  # ")[0]


def test_the_table_is_sorted_and_every_line_reads() -> None:
    assert list(operators()) == sorted(operators())
    for name in operators():
        schema = schema_of(f"aten.{name}")
        assert schema.parameters and schema.results != 0


@pytest.mark.parametrize("name", HARMFUL)
def test_what_has_side_effects_is_in_no_program(name: str) -> None:
    source = f"graph {{\n  input %x: f32[4]\n  %y = {name}(%x) : f32[4]\n  return %y\n}}\n"
    with pytest.raises(ParseError, match="unknown op") as caught:
        parse_graph(source)
    assert (caught.value.line, caught.value.column) == (3, 8)
    x, y = (Value(n, TensorType("f32", (4,))) for n in "xy")
    graph = Graph((x,), (), (Op(name, (Ref("x"),), (), (y,)),), ("y",))
    with pytest.raises(VerifyError, match="unknown op") as refused:
        verify(around(graph))
    assert refused.value.rule == "known-ops"
    if not name.startswith(("comm.", "spmd.", "random.")):
        with pytest.raises(GalvatronError, match="not known as free of side effects"):
            run_graph(graph, {"x": torch.zeros(4)}, batch=1)


def test_nothing_but_the_table_runs() -> None:
    with pytest.raises(GalvatronError, match="not known as free of side effects"):
        torch_op("aten.from_file.default")
    with pytest.raises(GalvatronError, match="may not be given"):
        torch_constant(Const("function", "load"))


def op(target: str, *args: Any, results: int = 1, **kwargs: Any) -> Op:
    made = tuple(Value(f"y{i}", TensorType("f32", (4,))) for i in range(results))
    return Op(f"aten.{target}", args, tuple(kwargs.items()), made)


X, W = Ref("x"), Ref("w")

FITTING = [
    op("linear.default", X, W),
    op("linear.default", X, W, None),
    op("linear.default", X, weight=W),
    op("mul.Tensor", X, 0.5),
    op("add.Tensor", X, W, alpha=2),
    op("view.default", X, (BATCH, 4)),
    op("sum.dim_IntList", X, 1),
    op("sum.dim_IntList", X, (0, 1)),
    op("sum.dim_IntList", X, (1, 2), True, dtype=Const("dtype", "f32")),
    op("index.Tensor", X, (None, W)),
    op("cat.default", (X, W), 1),
    op("clone.default", X, memory_format=Const("memory_format", "contiguous_format")),
    op("topk.default", X, 2, results=2),
    op("split.Tensor", X, 2, results=3),
    op("bernoulli.p", X, 0.5, generator=None),
]


def test_numbers_stand_for_tensors_where_torch_takes_them() -> None:
    """Of torch's list, which has functions besides that do not take two operands."""
    names = {name.partition(".")[0] for name in operators()}
    taking = {name for name in names if torch._C._should_allow_numbers_as_tensors(name)}
    assert set(named(lambda operator: operator.numbers)) == taking - {"_conj", "_to_copy", "copy", "to"}


@pytest.mark.parametrize("fitting", FITTING, ids=str)
def test_arguments_that_fit(fitting: Op) -> None:
    assert argument_problem(fitting) == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (op("linear.default", X), "the argument 'weight' is missing"),
        (op("linear.default", X, W, None, None), "4 positional arguments, but it takes 3"),
        (op("linear.default", X, W, bia=X), "'bia' is no parameter; did you mean 'bias'?"),
        (op("linear.default", X, W, weight=W), "'weight' is given twice"),
        (op("add.Tensor", X, W, 2), "3 positional arguments, but it takes 2"),
        (op("linear.default", X, "w"), "w for 'weight', which is Tensor"),
        (op("linear.default", X, W, True), "True for 'bias', which is Tensor?"),
        (op("linear.default", X, W, 2), "2 for 'bias', which is Tensor?"),
        (op("linear.default", X, W, BATCH), "B for 'bias', which is Tensor?"),
        (op("relu.default", 1.5), "1.5 for 'self', which is Tensor"),
        (op("cat.default", (X, 2)), "which is Tensor[]"),
        (op("index.Tensor", X, (None, True)), "which is Tensor?[]"),
        (op("add.Tensor", X, W, alpha=W), "w for 'alpha', which is Scalar"),
        (op("view.default", X, (W, 4)), "which is SymInt[]"),
        (op("transpose.int", X, 0, True), "True for 'dim1', which is int"),
        (op("transpose.int", X, 0, BATCH), "B for 'dim1', which is int"),
        (op("dropout.default", X, 0.5, 1), "1 for 'train', which is bool"),
        (op("_to_copy.default", X, dtype="f32"), "which is ScalarType?"),
        (op("_to_copy.default", X, device="cuda"), "cuda for 'device', which is Device?"),
        (op("clone.default", X, memory_format=Const("memory_format", "load")), "load for 'memory_format'"),
        (op("cat.default", X), "which is Tensor[]"),
        (op("cat.default", (X, None)), "which is Tensor[]"),
        (op("relu.default", None), "None for 'self', which is Tensor"),
        (op("topk.default", X, 2), "it gives 2 results, not 1"),
        (op("relu.default", X, results=2), "it gives 1 results, not 2"),
        (op("split.Tensor", X, 2, results=0), "it gives a result"),
        (op("unflatten.int", X, 0), "the argument 'sizes' is missing"),
        (op("rot90.default", X, 1, (0, "x")), "which is int[]"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_do_not_fit(wrong: Op, message: str) -> None:
    assert message in argument_problem(wrong)
