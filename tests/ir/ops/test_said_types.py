"""What the table of operators says of results is what torch says, so that nothing need be run, nor torch be loaded."""

from __future__ import annotations

import itertools
import random

import pytest

from galvatron.ir.graph import Arg, Ref
from galvatron.ir.ops.notation import Shape
from galvatron.ir.ops.sizes import ShapeError
from galvatron.ir.types import BATCH, TensorType, evaluate
from galvatron.ir.verify.computed import BATCHES, computed_problem, computed_types
from galvatron.ir.verify.shapes import expected_dtype, expected_shapes
from tests.ir.ops.calls import SAMPLES, calls, given, said
from tests.ir.programs import op, value

X, W, B, NUMBER, OTHER = map(Ref, "xwbno")
OPS: dict[str, tuple[tuple[Arg, ...], tuple[Arg, ...] | None]] = {
    "aten.pow.Tensor_Scalar": ((X, 2), None),
    "aten.pow.Scalar": ((2.0, X), None),
    "aten.mean.dim": ((X, (2,), True), (X, (3,), True)),
    "aten.sum.dim_IntList": ((X, (0, -1)), (X, (1, -2))),
    "aten.add.Tensor": ((X, W), (X, OTHER)),
    "aten.mul.Scalar": ((X, 2.0), None),
    "aten.rsub.Scalar": ((X, 2), None),
    "aten.div.Tensor": ((X, NUMBER), None),
    "aten.relu.default": ((X,), None),
    "aten.softplus.default": ((X, 2.0), None),
    "aten.maximum.default": ((X, W), None),
    "aten.dropout.default": ((X, 0.5, True), (X, 1.5, True)),
    "aten.rms_norm.default": ((X, (8,), W, 1e-6), (X, (4,), W, 1e-6)),
    "aten.layer_norm.default": ((X, (8,), W, B), (X, (8,), W, X)),
}
"""Ops by operator: arguments that it takes, and some that it does not."""


UNCHECKED = ("aten.scaled_dot_product_attention.default",)
"""Operators of which a kernel of torch reads past the end of operands that do not fit together."""


def types(dtype: str) -> dict[str, TensorType]:
    sizes = {"x": (BATCH, 4, 8), "w": (8,), "b": (8,), "o": (3,), "n": ()}
    return {name: TensorType(dtype, shape) for name, shape in sizes.items()}


@pytest.mark.parametrize("target", OPS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_the_table_says_what_torch_says(target: str, dtype: str) -> None:
    made = op(target, OPS[target][0], value("y", dtype, BATCH, 4, 8))
    (shape,) = expected_shapes(made, types(dtype)) or ((),)
    said = TensorType(expected_dtype(made, types(dtype)) or "", shape)
    at_batch = TensorType(said.dtype, tuple(evaluate(size, BATCHES[0]) for size in said.shape))
    assert computed_types(made, types(dtype), BATCHES[0]) == (at_batch,)


@pytest.mark.parametrize("target", [target for target, (_, wrong) in OPS.items() if wrong])
def test_what_torch_refuses_is_refused(target: str) -> None:
    wrong = op(target, OPS[target][1] or (), value("y", "f32", BATCH, 4, 8))
    assert isinstance(computed_types(wrong, types("f32"), BATCHES[0]), str)
    with pytest.raises(ShapeError):
        expected_shapes(wrong, types("f32"))
    assert computed_problem(wrong, types("f32"))


@pytest.mark.parametrize(
    ("target", "args", "of"),
    [
        ("aten.mean.dim", (X, (2,)), {"x": "c64"}),
        ("aten.sum.dim_IntList", (X, (2,)), {"x": "c64"}),
        ("aten.add.Tensor", (X, 0.5), {"x": "i64"}),
        ("aten.bitwise_and.Scalar", (X, 1), {"x": "bool"}),
        ("aten.pow.Tensor_Scalar", (X, 0.5), {"x": "i64"}),
        ("aten.rms_norm.default", (X, (8,), W), {"w": "bf16"}),
    ],
)
def test_of_other_types_torch_is_asked(target: str, args: tuple[Arg, ...], of: dict[str, str]) -> None:
    known = {name: TensorType(of.get(name, type_.dtype), type_.shape) for name, type_ in types("f32").items()}
    assert expected_dtype(op(target, args, value("y", "f32", BATCH, 4, 8)), known) is None


@pytest.mark.parametrize("target", ["aten.mul.Tensor", "aten.min.other"])
def test_several_types_come_to_one(target: str) -> None:
    dtypes = ["f64", "f32", "f16", "bf16", "i64", "i32", "u8", "bool"]
    told = 0
    for one, other, number in itertools.product(dtypes, dtypes, ["x", "w", ""]):
        known = {"x": TensorType(one, (4, 8)), "w": TensorType(other, (8,))}
        known |= {number: TensorType(known[number].dtype, ())} if number else {}
        made = op(target, (X, W), value("y", "f32", 4, 8))
        if (dtype := expected_dtype(made, known)) is not None:
            found, told = computed_types(made, known, BATCHES[0]), told + 1
            assert isinstance(found, tuple) and found[0].dtype == dtype, (one, other, number)
    assert told > 100


def test_how_a_curve_is_computed_is_one_of_two_ways() -> None:
    ways = {
        how: op("aten.gelu.default", (X,), value("y", "f32", BATCH, 4, 8), approximate=how) for how in ("tanh", "x")
    }
    assert expected_dtype(ways["tanh"], types("f32")) == "f32" and not computed_problem(ways["tanh"], types("f32"))
    assert isinstance(computed_types(ways["x"], types("f32"), BATCHES[0]), str)
    assert "an approximation by 'x'" in computed_problem(ways["x"], types("f32"))


@pytest.mark.parametrize(
    ("args", "fits"),
    [
        ((X, Ref("t")), True),
        ((X, Ref("t"), W, 1, -100, 0.5), False),
        ((X, Ref("t"), Ref("c"), 2, -100, 0.5), True),
        ((X, X), True),
        ((X, Ref("u")), False),
        ((X, Ref("t"), None, 1, -100, 1.5), False),
    ],
)
def test_a_loss_of_classes(args: tuple[Arg, ...], fits: bool) -> None:
    known = types("f32") | {
        "t": TensorType("i64", (BATCH, 8)), "u": TensorType("i64", (BATCH, 4)), "c": TensorType("f32", (4,)),
    }  # fmt: skip
    loss = op("aten.cross_entropy_loss.default", args, value("y", "f32"))
    assert isinstance(computed_types(loss, known, BATCHES[0]), tuple) is fits
    assert (computed_problem(loss, known) == "") is fits
    if fits:
        assert (expected_shapes(loss, known), expected_dtype(loss, known)) == (((),), "f32")


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 8), *(pytest.param(s, 100, marks=pytest.mark.slow) for s in (1, 2, 3))]
)
def test_of_any_call_the_table_says_what_torch_does(seed: int, count: int) -> None:
    draw, told = random.Random(seed), 0
    for target in said():
        for made, types in calls(target, draw, count):
            try:
                shapes, dtype = expected_shapes(made, types), expected_dtype(made, types)
            except ShapeError as error:
                assert target in UNCHECKED or not isinstance(given(made, types), tuple), (made, types, str(error))
                continue
            found = None if shapes is None and dtype is None else given(made, types)
            if isinstance(found, tuple):
                told += shapes is not None and dtype is not None
                assert dtype is None or {t.dtype for t in found} <= {dtype}, (made, types, dtype, found)
                assert shapes is None or [at(shape) for shape in shapes] == [t.shape for t in found], (made, types)
            elif shapes is not None and dtype is not None:
                assert found is None, (made, types, found)
    assert told > 40 * count


def at(shape: Shape) -> Shape:
    return tuple(evaluate(size, SAMPLES) for size in shape)


@pytest.mark.parametrize(("places", "size"), [((1, 10, 4), 3), ((None, -2, 1), 10**30 - 2), ((5, 2, 1), 0)])
def test_a_slice_of_more_elements_than_there_can_be(places: tuple[Arg, ...], size: int) -> None:
    made = op("aten.slice.Tensor", (X, 0, *places), value("y", "f32", size))
    assert expected_shapes(made, {"x": TensorType("f32", (10**30,))}) == ((size,),)
