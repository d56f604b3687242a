"""Every form of the table means exactly what its ATen op means, and knows the op's signature."""

import re
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F

from galvatron import runtime as rt
from galvatron.codegen.forms import forms
from galvatron.codegen.ops import OpPrinter
from galvatron.ir.graph import Const, Graph, Op, Ref, Value
from galvatron.ir.interpreter import run_graph, torch_op
from galvatron.ir.ops.schemas import is_operator, operators, schema_of
from galvatron.ir.ops.table import OPERATORS
from galvatron.ir.types import TORCH_DTYPE_NAMES, TensorType

TENSORS = {
    "x": torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.4,
    "y": torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1,
    "f": torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2)),
    "m": torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)),
    "w": torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)),
    "v": torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(5)),
    "u": torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(6)),
    "p": torch.rand(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7)),
    "s": torch.tensor(2.5, dtype=torch.float64),
    "q": torch.rand(2, 4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8)),
    "kv": torch.rand(2, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9)),
    "qmask": torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(10)) > 0.1,
    "i": torch.tensor([[0, 2, 1], [1, 1, 3]]),
    "j": torch.tensor([1, 0, 1]),
    "k": torch.tensor([[3, 0, 2, 1]]),
    "scalar_i": torch.tensor(1),
    "mask": torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(11)) > 0.5,
    "mask2": torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(12)) > 0.5,
    "logits": torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(13)),
    "labels": torch.tensor([1, -100, 6, 0, 3]),
    "weights": torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(14)),
    "gi": torch.tensor([[[0, 1, 0, 1]] * 3]),
    "src": torch.rand(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(15)),
    "image": torch.rand(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(16)),
    "kernel": torch.rand(6, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(17)),
    "kernel_bias": torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(18)),
    "signal": torch.rand(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(19)),
    "kernel1": torch.rand(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(20)),
    "one": torch.rand(2, 1, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(21)),
}
F64, F32 = Const("dtype", "f64"), Const("dtype", "f32")
_NAMES = {getattr(torch, name): ir for ir, name in TORCH_DTYPE_NAMES.items()}


def refs(args: Any) -> Any:
    """Names of tensors, written `:x`, as references."""
    if isinstance(args, tuple):
        return tuple(refs(a) for a in args)
    return Ref(args[1:]) if isinstance(args, str) and args.startswith(":") else args


def make_op(target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Op, Graph]:
    """The op with the result types that torch gives it, in a graph over all test tensors."""
    inputs = tuple(Value(n, TensorType(_NAMES[t.dtype], tuple(t.shape))) for n, t in TENSORS.items())
    op = Op(target, refs(args), tuple((k, refs(v)) for k, v in kwargs.items()), ())
    out = torch_op(target)(*_torch(op.args), **dict(zip(kwargs, _torch(tuple(v for _, v in op.kwargs)), strict=True)))
    outs = out if isinstance(out, (tuple, list)) else (out,)
    results = tuple(Value(f"out_{n}", TensorType(_NAMES[t.dtype], tuple(t.shape))) for n, t in enumerate(outs))
    op = Op(target, op.args, op.kwargs, results)
    return op, Graph(inputs, (), (op,), tuple(r.name for r in results))


def _torch(args: Any) -> Any:
    if isinstance(args, tuple):
        return [_torch(a) for a in args]
    if isinstance(args, Const):
        return getattr(torch, TORCH_DTYPE_NAMES.get(args.name, args.name))
    return TENSORS[args.name] if isinstance(args, Ref) else args


def written(op: Op, graph: Graph) -> str:
    return str(OpPrinter(str, graph.values, "x.device").expression(op))


ONE_TENSOR = [
    "neg",
    "abs",
    "exp",
    "sin",
    "cos",
    "erf",
    "sign",
    "floor",
    "ceil",
    "relu",
    "silu",
    "mish",
    "sigmoid",
    "tanh",
    "hardswish",
    "log_sigmoid",
    "softplus",
    "square",
    "reciprocal",
    "isnan",
    "logical_not",
    "sum",
    "mean",
    "any",
    "all",
    "detach",
    "clone",
    "contiguous",
    "zeros_like",
    "ones_like",
    "gelu",
    "leaky_relu",
    "glu",
]
TWO_TENSORS = [
    "add.Tensor",
    "sub.Tensor",
    "mul.Tensor",
    "div.Tensor",
    "floor_divide.default",
    "remainder.Tensor",
    "maximum.default",
    "max.other",
]
TWO_TENSORS += [
    "minimum.default",
    "min.other",
    "eq.Tensor",
    "ne.Tensor",
    "lt.Tensor",
    "le.Tensor",
    "gt.Tensor",
    "ge.Tensor",
    "type_as.default",
]
SCALARS = ["add", "sub", "rsub", "mul", "div", "remainder", "eq", "ne", "lt", "le", "gt", "ge"]

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *((f"{name}.default", (":x",), {}) for name in ONE_TENSOR),
    *((name, (":x", ":y"), {}) for name in TWO_TENSORS),
    *((f"{name}.Scalar", (":x", 0.25), {}) for name in SCALARS),
    *((f"{name}.Scalar", (":x", -2), {}) for name in SCALARS),
    *((f"{name}.default", (":y",), {}) for name in ("log", "log1p", "sqrt", "rsqrt")),
    *((f"{name}.Tensor", (":mask", ":mask2"), {}) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")),
    *((f"{name}.Tensor", (":mask", ":mask2"), {}) for name in ("__and__", "__or__")),
    *((f"logical_{name}.default", (":mask", ":f"), {}) for name in ("and", "or")),
    ("bitwise_not.default", (":mask",), {}),
    ("add.Tensor", (":f", 2), {}),
    ("mul.Tensor", (":x", float("-inf")), {}),
    ("div.Tensor", (":i", 2), {}),
    ("floor_divide.default", (":i", 2), {}),
    ("linear.default", (":x", ":w"), {}),
    ("linear.default", (":x", ":w", ":v"), {}),
    ("matmul.default", (":x", ":p"), {}),
    ("mm.default", (":w", ":one_hot_free"), {}),
    ("bmm.default", (":x", ":p"), {}),
    ("outer.default", (":u", ":v"), {}),
    ("addmm.default", (":u", ":logits_t", ":m_t"), {}),
    ("baddbmm.default", (":one3", ":x", ":p"), {"beta": 0.5, "alpha": 2}),
    ("einsum.default", ("bij,bjk->bik", (":x", ":p")), {}),
    ("conv1d.default", (":signal", ":kernel1"), {}),
    ("conv1d.default", (":signal", ":kernel1", ":kernel_bias", (2,), (1,)), {}),
    ("conv2d.default", (":image", ":kernel", ":kernel_bias", (2, 2), (1, 1), (1, 1), 2), {}),
    ("conv2d.default", (":image", ":kernel", None, (1, 1), (0, 0), (1, 1), 2), {}),
    ("scaled_dot_product_attention.default", (":q", ":q", ":q"), {}),
    ("scaled_dot_product_attention.default", (":q", ":q", ":q", None, 0.0, True), {"scale": 0.3}),
    ("scaled_dot_product_attention.default", (":q", ":q", ":q", ":qmask"), {}),
    ("scaled_dot_product_attention.default", (":q", ":kv", ":kv"), {"enable_gqa": True}),
    ("pow.Tensor_Scalar", (":x", 2), {}),
    ("pow.Tensor_Scalar", (":y", -0.5), {}),
    ("pow.Tensor_Tensor", (":y", ":x"), {}),
    ("pow.Scalar", (10000.0, ":x"), {}),
    ("div.Tensor_mode", (":x", ":y"), {"rounding_mode": "floor"}),
    ("clamp.default", (":x", 0.0), {}),
    ("clamp.default", (":x", None, 0.25), {}),
    ("clamp.default", (":x",), {"min": -0.1, "max": 0.2}),
    ("clamp_min.default", (":x", 0.1), {}),
    ("clamp_max.default", (":x", 0.1), {}),
    ("isin.Tensor_Tensor", (":i", ":j"), {}),
    ("where.self", (":mask", ":x", ":s"), {}),
    ("where.ScalarOther", (":mask", ":x", float("-inf")), {}),
    ("where.ScalarSelf", (":mask", 0.0, ":f"), {}),
    ("masked_fill.Scalar", (":f", ":mask", float("-inf")), {}),
    ("masked_fill.Tensor", (":x", ":mask", ":s"), {}),
    ("tril.default", (":x",), {}),
    ("triu.default", (":x", 1), {}),
    ("gelu.default", (":x",), {"approximate": "tanh"}),
    ("glu.default", (":x", 2), {}),
    ("leaky_relu.default", (":x", 0.3), {}),
    ("softplus.default", (":x", 2, 10), {}),
    ("softmax.int", (":x", 2), {}),
    ("softmax.int", (":f", 1, F64), {}),
    ("log_softmax.int", (":x", 2), {}),
    ("layer_norm.default", (":x", (4,), ":u", ":u", 1e-6), {}),
    ("layer_norm.default", (":x", (4,)), {}),
    ("layer_norm.default", (":x", (4,), None, None, 1e-5, False), {}),
    ("rms_norm.default", (":x", (4,), ":u", 1e-6), {}),
    ("rms_norm.default", (":x", (4,), None, 1e-6), {}),
    ("group_norm.default", (":image", 2), {}),
    ("embedding.default", (":w", ":i"), {}),
    ("embedding.default", (":w", ":i", 3), {}),
    ("one_hot.default", (":i", 5), {}),
    *(("cross_entropy_loss.default", (":logits", ":labels", None, r), {}) for r in (0, 1, 2)),
    ("cross_entropy_loss.default", (":logits", ":labels", ":weights", 2, -100, 0.1), {}),
    ("nll_loss_nd.default", (":logits", ":labels", None, 2), {}),
    *((f"{name}.default", (":x", ":y", r), {}) for name in ("mse_loss", "l1_loss") for r in (0, 1, 2)),
    ("binary_cross_entropy_with_logits.default", (":x", ":y"), {}),
    ("sum.default", (":f",), {"dtype": F64}),
    ("sum.dim_IntList", (":x", (0, 2)), {}),
    ("sum.dim_IntList", (":x", (1,), True), {}),
    ("sum.dim_IntList", (":x", ()), {}),
    ("sum.dim_IntList", (":f", None), {"dtype": F64}),
    ("mean.dim", (":x", (2,), True), {}),
    ("mean.default", (":f",), {"dtype": F64}),
    ("prod.dim_int", (":x", 1), {}),
    ("var.correction", (":x", (2,)), {"correction": 0, "keepdim": True}),
    ("var.correction", (":x",), {}),
    ("std.correction", (":x", (1, 2)), {"correction": 1}),
    *((f"{name}.default", (":x", (1,), True), {}) for name in ("amax", "amin")),
    ("amax.default", (":x",), {}),
    ("argmax.default", (":x", 1), {}),
    ("argmax.default", (":x",), {}),
    *((f"{name}.dim", (":x", 1, True), {}) for name in ("max", "min", "any", "all")),
    ("logsumexp.default", (":x", (2,)), {}),
    ("cumsum.default", (":i", 1), {}),
    ("cumsum.default", (":mask", 1), {"dtype": F32}),
    ("topk.default", (":x", 2), {}),
    ("topk.default", (":x", 2, 1, False), {}),
    ("sort.default", (":x", 1, True), {}),
    ("view.default", (":x", (6, 4)), {}),
    ("view.default", (":s1", ()), {}),
    ("reshape.default", (":x", (2, 12)), {}),
    ("expand.default", (":one", (2, 3, 4, 5)), {}),
    ("permute.default", (":x", (2, 0, 1)), {}),
    ("transpose.int", (":x", 1, 2), {}),
    ("t.default", (":w",), {}),
    ("unsqueeze.default", (":x", 1), {}),
    ("squeeze.default", (":one",), {}),
    ("squeeze.dim", (":one", 1), {}),
    ("squeeze.dims", (":one", (1, 3)), {}),
    ("flatten.using_ints", (":x", 1), {}),
    ("flatten.using_ints", (":x", 0, 1), {}),
    ("flatten.using_ints", (":x",), {}),
    ("unflatten.int", (":x", 2, (2, 2)), {}),
    ("movedim.int", (":x", 0, 2), {}),
    ("narrow.default", (":x", 1, 1, 2), {}),
    ("repeat.default", (":x", (2, 1, 3)), {}),
    ("repeat_interleave.self_int", (":x", 2, 1), {}),
    ("flip.default", (":x", (0, 2)), {}),
    ("roll.default", (":x", (1,), (1,)), {}),
    ("cat.default", ((":x", ":y"), 2), {}),
    ("cat.default", ((":x",),), {}),
    ("stack.default", ((":x", ":y"), 1), {}),
    ("split.Tensor", (":x", 2, 2), {}),
    ("split.Tensor", (":x", 4, 2), {}),
    ("split_with_sizes.default", (":x", (1, 3), 2), {}),
    ("chunk.default", (":x", 2, 2), {}),
    ("unbind.int", (":x", 1), {}),
    ("unbind.int", (":one", 1), {}),
    ("constant_pad_nd.default", (":i", (0, 1), -100), {}),
    ("constant_pad_nd.default", (":x", (1, 1, 0, 2)), {}),
    ("pad.default", (":i", (0, 1), "constant", -100.0), {}),
    ("pad.default", (":x", (1, 1), "reflect"), {}),
    ("gather.default", (":x", 0, ":gi"), {}),
    ("index_select.default", (":x", 0, ":j"), {}),
    ("scatter.src", (":x", 0, ":gi", ":src"), {}),
    ("scatter.value", (":x", 0, ":gi", 1.5), {}),
    ("scatter_add.default", (":x", 0, ":gi", ":src"), {}),
    ("index_add.default", (":m", 0, ":j", ":m"), {"alpha": 2}),
    ("_to_copy.default", (":x",), {"dtype": F32}),
    ("to.dtype", (":x", F32), {}),
    ("clone.default", (":x_t",), {"memory_format": Const("memory_format", "contiguous_format")}),
    ("contiguous.default", (":x_t",), {}),
    ("arange.default", (7,), {}),
    ("arange.default", (7.5,), {}),
    ("arange.start", (2, 7), {"dtype": F32}),
    ("arange.start_step", (0, 8, 2), {}),
    ("full.default", ((2, 3), 0.5), {}),
    ("full.default", ((), True), {}),
    ("zeros.default", ((2, 3),), {"dtype": F64}),
    ("ones.default", ((3,),), {}),
    ("scalar_tensor.default", (0.5,), {}),
    ("zeros_like.default", (":x",), {"dtype": F32}),
    ("ones_like.default", (":i",), {"dtype": Const("dtype", "bool")}),
    ("full_like.default", (":x", float("inf")), {}),
    ("new_zeros.default", (":x", (2, 3)), {}),
    ("new_ones.default", (":x", (2, 3)), {"dtype": F32}),
    ("new_full.default", (":i", (2,), 7), {}),
    ("lerp.Scalar", (":x", ":x", 0.3), {}),
    ("_native_batch_norm_legit_functional.default", (":x", None, ":c3", ":c3", ":c3", True, 0.1, 1e-5), {}),
    # Drawn.
    ("dropout.default", (":x", 0.5, True), {}),
    ("bernoulli.default", (":m",), {}),
    ("rand.default", ((2, 3),), {"dtype": F64}),
    ("randn.default", ((2, 3),), {"dtype": F32}),
    ("rand_like.default", (":x",), {}),
    ("randn_like.default", (":x",), {"dtype": F32}),
    ("view_as_real.default", (":z",), {}),
    ("view_as_complex.default", (":pairs",), {}),
    ("complex.default", (":x", ":x"), {}),
    ("polar.default", (":x", ":x"), {}),
    ("real.default", (":z",), {}),
    ("imag.default", (":z",), {}),
    ("conj_physical.default", (":z",), {}),
    # Written with square brackets.
    ("slice.Tensor", (":x", 2, 0, 2), {}),
    ("slice.Tensor", (":x", 1, 1, 2**63 - 1), {}),
    ("slice.Tensor", (":x", 0, 1), {}),
    ("slice.Tensor", (":x", 2, -3, -1), {}),
    ("slice.Tensor", (":x", 2, 0, 2**63 - 1, 2), {}),
    ("slice.Tensor", (":m", 1, 1, 3), {}),
    ("select.int", (":x", 1, 2), {}),
    ("select.int", (":x", 2, -1), {}),
    ("index.Tensor", (":x", (":j",)), {}),
    ("index.Tensor", (":m", (None, ":j")), {}),
    ("index.Tensor", (":x", (None, ":j", ":j")), {}),
    ("index.Tensor", (":x", (":mask",)), {}),
    ("galvatron::grouped_linear.default", (":m", ":matrices", ":j"), {}),
]  # fmt: skip
TENSORS["one_hot_free"] = TENSORS["m"].t().contiguous()
TENSORS["logits_t"] = TENSORS["logits"].t().contiguous()
TENSORS["m_t"] = TENSORS["w"]
TENSORS["one3"] = torch.ones(2, 3, 5, dtype=torch.float64)
TENSORS["matrices"] = torch.rand(2, 5, TENSORS["m"].size(1), dtype=torch.float64)
TENSORS["c3"] = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
TENSORS["s1"] = TENSORS["s"].view(1)
TENSORS["z"] = torch.complex(TENSORS["m"], TENSORS["m"] + 1)
TENSORS["pairs"] = torch.view_as_real(TENSORS["z"]).transpose(0, 1)
TENSORS["x_t"] = TENSORS["x"].transpose(1, 2)


def target_of(name: str) -> str:
    """The target of an entry of the table with an overload."""
    return name.replace("::", ".") if "::" in name else f"aten.{name}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_form_equals_its_op(case):
    name, args, kwargs = case
    op, graph = make_op(target_of(name), args, kwargs)
    text = written(op, graph)
    torch.manual_seed(0)
    expected = list(run_graph(graph, TENSORS, batch=1).values())
    torch.manual_seed(0)
    result = eval(text, {"torch": torch, "F": F, "rt": rt, "training": True, **TENSORS})
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    assert len(results) == len(expected)
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))
    if not name.startswith(("slice", "select", "index.")) and case[1][-1] is not False:
        assert "torch.ops" not in text


WRITTEN = sorted(name for name in operators() if forms(f"aten.{name}"))


def test_every_form_has_a_case():
    """A form of the table that nothing compares with its op cannot be trusted."""
    assert sorted(set(WRITTEN) - {name for name, _, _ in CASES}) == []


@pytest.mark.parametrize("name", WRITTEN)
def test_a_form_has_the_operators_parameters(name):
    names = {p.name for p in schema_of(f"aten.{name}").parameters}
    assert all(form.written <= names for form in forms(f"aten.{name}"))


@pytest.mark.parametrize("name", sorted(n for n, operator in OPERATORS.items() if operator.written))
def test_every_form_is_of_an_operator(name):
    written, (base, _, overload) = OPERATORS[name].written, name.partition(".")
    overloads = ["default"] if isinstance(written, str) else list(written)
    assert all(is_operator(target_of(f"{base}.{o}")) for o in overloads) and overload in ("", *overloads)


def test_an_argument_without_a_place_is_written_out():
    op, graph = make_op("aten.add.Tensor", (":x", ":y"), {"alpha": 3})
    assert written(op, graph) == "torch.ops.aten.add.Tensor(x, y, alpha=3)"
    op, graph = make_op("aten.index.Tensor", (":x", (":scalar_i",)), {})
    assert written(op, graph) == "torch.ops.aten.index.Tensor(x, [scalar_i])"
    op, graph = make_op("aten.linspace.default", (0, 1, 5), {"dtype": F64})
    assert re.search(r"device=x\.device", written(op, graph))


def test_symbolic_sizes_read_like_python():
    b = sympy.Symbol("b", integer=True, positive=True)
    value = Value("x", TensorType("f32", (b, 16, 64)))
    printer = OpPrinter(str, {"x": value}, "x.device")

    def text(target, *args):
        return str(printer.expression(Op(target, (Ref("x"), *args), (), (value,))))

    assert text("aten.view.default", (b * 16, 64)) == "x.view(b * 16, 64)"
    assert text("aten.slice.Tensor", 2, 0, 8) == "x[..., :8]"
    assert text("aten.slice.Tensor", 0, b / 2, b) == "x[b // 2 : b]"
    assert text("aten.div.Tensor", b * 16) == "x / (b * 16)"
    assert text("aten.add.Tensor", -1) == "x + -1"
    assert text("aten.view.default", (b, 4, 4, 64)) == "x.view(b, 4, 4, 64)"
