"""The table of operators: an entry is all that an operator needs, and what the runtime has is what the table says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import FunctionType

import pytest
import torch

from galvatron import runtime
from galvatron.codegen.ops import OpPrinter
from galvatron.costs.events import Launch
from galvatron.costs.profile import profile_graph
from galvatron.ir.collectives import COLLECTIVES
from galvatron.ir.graph import Op, Ref, Value
from galvatron.ir.layout import Shard
from galvatron.ir.ops import schemas, table
from galvatron.ir.ops.operator import UNKNOWN, Operator
from galvatron.ir.ops.table import OPERATORS, named, of_target, op_dims, operator_of
from galvatron.ir.ops.targets import parsed
from galvatron.ir.ops.work import product
from galvatron.ir.types import TensorType, evaluate
from galvatron.passes import LOWERING
from galvatron.passes.pipeline import Pipeline
from galvatron.runtime import inductor
from tests.costs.test_fallbacks import planned

TARGET = "mylib.scale_rows.default"


@torch.library.custom_op("mylib::scale_rows", mutates_args=())
def scale_rows(x: torch.Tensor, power: int = 1) -> torch.Tensor:
    """Each row by its number: what no operator of torch does in one kernel."""
    return x * torch.arange(x.size(1), dtype=x.dtype, device=x.device)[:, None] ** power


@scale_rows.register_fake
def _(x: torch.Tensor, power: int = 1) -> torch.Tensor:
    return torch.empty_like(x)


scale_rows.register_autograd(
    lambda ctx, grad: (scale_rows(grad, ctx.power), None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "power", inputs[1]),
)


@pytest.fixture
def added() -> Iterator[None]:
    entry = Operator(
        "+b s! h -> b s! h",
        "mylib.scale_rows(x, power=)",
        work=lambda out, x, power=1: product(1, x.numel(), 1, 1.5),
        kept=True,
    )
    table.add(TARGET, "(Tensor x, int power=1) -> Tensor", entry)
    yield
    del OPERATORS["mylib::scale_rows"], schemas.ADDED[TARGET]


@pytest.mark.usefixtures("added")
def test_an_operator_is_one_entry() -> None:
    """One of another library is captured, sharded, priced and written as its entry says."""
    program = planned(lambda x: scale_rows(x, 2), "tp4")
    (cls,) = (c for c in program.classes if any(op.target == TARGET for op in c.graph.ops))
    (op,) = (op for op in cls.graph.ops if op.target == TARGET)
    assert op["power"] == 2 and op.name == "scale_rows" and operator_of(op).kept

    sharded = Pipeline.of(LOWERING[:1]).run(program)
    local = next(c for c in sharded.classes if c.mesh and any(o.target == TARGET for o in c.graph.ops))
    (part,) = (o for o in local.graph.ops if o.target == TARGET)
    assert part.result.layout == (Shard(2),)

    profile = profile_graph(local.graph, local.mesh, frozenset())
    kernels = [k for k in profile.forward if isinstance(k, Launch) and k.name == "scale_rows"]
    assert [k.at(2).flop for k in kernels] == [3 * evaluate(part.result.type.numel, 2)]

    written = OpPrinter(str, local.graph.values, "device").expression(part)
    assert str(written) == f"mylib.scale_rows({part.operands[0]}, power=2)"


@pytest.mark.usefixtures("added")
def test_an_added_operator_is_whole_without_dimensions() -> None:
    OPERATORS["mylib::scale_rows"] = Operator()
    sharded = Pipeline.of(LOWERING[:1]).run(planned(scale_rows, "tp4"))
    made = [o.result for c in sharded.classes if c.mesh for o in c.graph.ops if o.target == TARGET]
    assert made and not any(isinstance(p, Shard) for value in made for p in value.layout or ())


def test_every_entry_is_of_an_operator_of_torch_and_of_one_family() -> None:
    of_torch = [name for name in OPERATORS if "::" not in name]
    assert [name for name in of_torch if not hasattr(torch.ops.aten, name.partition(".")[0])] == []
    ours = [name for name in OPERATORS if name.startswith(("step::", "galvatron::"))]
    assert len(of_torch) + len(ours) == sum(
        len(family.OPERATORS) for family in vars(table).values() if hasattr(family, "OPERATORS")
    )


def test_an_overload_goes_before_its_operator() -> None:
    assert of_target("aten.div.Tensor") is OPERATORS["div.Tensor"]
    assert of_target("aten.div.Scalar") is OPERATORS["div"]
    assert of_target("random.dropout.default") is OPERATORS["dropout"]
    assert of_target("spmd.embedding") is OPERATORS["embedding"]
    assert of_target("comm.copy") is of_target("aten.bitwise_left_shift.Tensor") is UNKNOWN


def test_arguments_by_parameter() -> None:
    op = Op("aten.sum.dim_IntList", ((1,),), (("keepdim", True),), ())
    assert op.arguments == {"self": (1,), "dim": None, "keepdim": True, "dtype": None}
    assert op["keepdim"] is True and op.get("nothing") is None
    assert op.changed(keepdim=False, dim=(0,)) == Op("aten.sum.dim_IntList", ((1,),), (("keepdim", False),), ())
    assert Op("comm.all_reduce", (), (("axis", "tp"),), ())["axis"] == "tp"


@pytest.mark.parametrize("text", ["aten.add.Tensor", "spmd.embedding", "aten.relu.default", "aten.add.Tensor.x"])
def test_a_target_is_its_parts(text: str) -> None:
    assert str(parsed(text)) == text


def test_the_runtime_hides_from_the_compiler_what_the_table_has_there() -> None:
    """Collectives, ops on slices, products whose weights may wait, and the steps of recomputed layers."""
    on_slices = {(o.on_slices.function or name) for name, o in OPERATORS.items() if o.on_slices}
    counterparts = {*on_slices, *named(lambda o: o.weights), "again", "keep", "once"}
    functions = {name: value for name in runtime.__all__ if isinstance(value := getattr(runtime, name), FunctionType)}
    hidden = {name for name, function in functions.items() if function.__module__ in inductor._OPAQUE}
    assert hidden - {"packed"} == counterparts | {parsed(target).name for target in COLLECTIVES}


def test_of_tensors_of_other_ranks_than_a_rule_tells_nothing_is_sharded() -> None:
    """`linear` takes a bias of several rows, of which its line says nothing."""
    names = ("x", "weight", "bias")
    op = Op("aten.linear.default", tuple(map(Ref, names)), (), (Value("y", TensorType("f32", (4, 8))),))
    for bias, sharded in (((8,), True), ((1, 8), False), ((4, 8), False)):
        types = {name: TensorType("f32", shape) for name, shape in zip(names, ((4, 8), (8, 8), bias), strict=True)}
        dims = op_dims(op, types)
        assert dims is not None and len(dims.operands) == 3
        assert any(itertools.chain(*dims.operands, *dims.results)) == sharded
