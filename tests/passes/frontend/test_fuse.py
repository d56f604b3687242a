"""Every rewrite computes what it replaces, forward and backward; and leaves alone what only looks alike."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import Program, State
from galvatron.ir.text import parse_program
from galvatron.ir.types import TORCH_DTYPE_NAMES, TensorType, evaluate
from galvatron.passes.frontend.cluster_layers import ClusterLayers
from galvatron.passes.frontend.fuse import FUSIONS, Fuse, constants
from galvatron.passes.frontend.normalize import Normalize
from galvatron.rewriting import rewritten
from tests import models
from tests.marks import some_slow

TEXTS = {path.stem: path for path in (Path(__file__).parents[2] / "filecheck" / "fuse").glob("*.gir")}


def case(name: str) -> Graph:
    return graph_of(parse_program(TEXTS[name].read_text(encoding="utf-8")))


def graph_of(program: Program) -> Graph:
    assert program.graph is not None
    return program.graph


def fused(graph: Graph, without: str = "") -> Graph:
    """The graph after the rewrites of `fuse` alone, all of them or all but one."""
    rules = {name: rule for name, rule in FUSIONS.items() if name != without}
    return rewritten(graph, rules, trainable=[value.name for value in graph.state])


def dtype_name(tensor: torch.Tensor) -> str:
    return next(name for name, of_torch in TORCH_DTYPE_NAMES.items() if getattr(torch, of_torch) == tensor.dtype)


def random_values(graph: Graph, size: int) -> dict[str, torch.Tensor]:
    """A tensor for every input and state value; masks let the first position through."""
    torch.manual_seed(size)
    return {value.name: random_value(value, size) for value in (*graph.inputs, *graph.state)}


def random_value(value: Value, size: int) -> torch.Tensor:
    shape = [evaluate(dim, size) for dim in value.type.shape]
    if value.type.dtype == "bool":
        mask = torch.rand(shape) < 0.5
        mask[..., 0] = True
        return mask
    return torch.randn(shape, dtype=getattr(torch, TORCH_DTYPE_NAMES[value.type.dtype]), requires_grad=True)


def loss_and_gradients(graph: Graph, values: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    loss = run_graph(graph, values, batch=size)[graph.outputs[0]]
    leaves = {name: tensor for name, tensor in values.items() if tensor.requires_grad}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("name", TEXTS)
def test_computes_the_same(name: str) -> None:
    before = case(name)
    after = graph_of(Fuse().run(parse_program(TEXTS[name].read_text(encoding="utf-8"))))
    rounds = any(value.type.dtype in ("f32", "bf16") for value in before.values.values())
    for size in (3, 1):
        values = random_values(before, size)
        expected = loss_and_gradients(before, values, size)
        models.assert_close(loss_and_gradients(after, values, size), expected, 0.0 if rounds else 1e-9)


@pytest.mark.parametrize("name", FUSIONS)
def test_has_a_text_case_that_needs_it(name: str) -> None:
    assert fused(case(name)) != fused(case(name), without=name)


UNMASKED = {"mask": False}
EAGER = {"attn_implementation": "eager"}
LIKE_OTHERS = ("qwen3", "roberta", "opt")
"""Families of which every pattern is in another one, too."""
FAST = [
    *((name, {}) for name in ("gpt", *models.FAMILIES) if name not in LIKE_OTHERS),
    *((name, UNMASKED) for name in ("llama", "gpt2")),
    ("gpt2", UNMASKED | EAGER),
    ("llama", EAGER),
]
OTHERS = [
    *((name, {}) for name in LIKE_OTHERS),
    *((name, UNMASKED) for name in ("mistral", "qwen3", "gemma", "bert")),
    ("t5", EAGER),
]


def retyped(graph: Graph, dtypes: tuple[str, ...]) -> Graph | None:
    """The graph with other element types for its floating inputs and state; None where torch does not take them."""
    given = iter(dtypes)
    values: dict[str, torch.Tensor] = {}

    def typed(value: Value) -> Value:
        type_ = replace(value.type, dtype=next(given)) if value.type.is_floating else value.type
        shape = [evaluate(d, 4) for d in type_.shape]
        values[value.name] = torch.empty(shape, dtype=getattr(torch, TORCH_DTYPE_NAMES[type_.dtype]), device="meta")
        return replace(value, type=type_)

    inputs, state = tuple(map(typed, graph.inputs)), tuple(map(typed, graph.state))
    ops: list[Op] = []
    for op in graph.ops:
        names = tuple(v.name for v in op.results)
        operands = tuple(Value(name, TensorType("f32", ())) for name in dict.fromkeys(op.operands))
        try:
            values.update(run_graph(Graph(operands, (), (op,), names), values, batch=4, device=torch.device("meta")))
        except RuntimeError:
            return None
        results = tuple(replace(v, type=replace(v.type, dtype=dtype_name(values[v.name]))) for v in op.results)
        ops.append(replace(op, results=results))
    return replace(graph, inputs=inputs, state=state, ops=tuple(ops))


@pytest.mark.parametrize("name", some_slow([name for name in TEXTS if name != "turns"], TEXTS))
def test_types_stay_for_every_mix(name: str) -> None:
    graph = case(name)
    floating = [v for v in (*graph.inputs, *graph.state) if v.type.is_floating]
    for dtypes in itertools.product(("f32", "f64", "bf16"), repeat=len(floating)):
        mixed = retyped(graph, dtypes)
        if mixed is None:
            continue
        again = retyped(fused(mixed), dtypes)
        assert again is not None, f"{dtypes}: torch does not take what was fused"
        for output in mixed.outputs:
            assert again.values[output].type == mixed.values[output].type, dtypes


@pytest.mark.one_in(6)
@pytest.mark.parametrize(("name", "options"), some_slow(FAST, OTHERS), ids=models.case_name)
def test_fused_models_equal_eager(name: str, options: dict[str, Any]) -> None:
    model_case = models.shared(name, **options)
    captured = model_case.captured
    with models.Doubles():
        program = Fuse().run(Normalize().run(captured.program))
        for size in (4, 1):
            batch = model_case.batch(size, size)
            output = model_case.model(**batch)
            expected = models.loss_and_gradients(getattr(output, "loss", output), model_case.model)
            values = models.tensors_of(program, model_case.model, batch, captured.constants)
            actual = models.loss_and_gradients(models.run(graph_of(program), values, size), model_case.model)
            models.assert_close(actual, expected, 1e-9)
    assert Fuse().run(program) == program
    assert program.fingerprint == captured.program.fingerprint


def fused_family(name: str, **options: object) -> Program:
    return Fuse().run(Normalize().run(models.shared(name, **options).captured.program))


@pytest.mark.slow
def test_llama_without_padding() -> None:
    """Causal attention of grouped heads without a mask, one op per norm, and no trace of how the mask was made."""
    program = fused_family("llama", mask=False, torch_dtype="float64")
    counts = Counter(op.target for op in graph_of(program).ops)
    assert not counts.keys() & {"aten.expand.default", "aten.cumsum.default", "aten.bitwise_and.Tensor"}
    attention = [op for op in graph_of(program).ops if "scaled_dot_product_attention" in op.target]
    assert all(op.args[3:] == (None, 0.0, True) and op.kwarg("enable_gqa") is True for op in attention)
    layers = [layer for layer in ClusterLayers().run(program).layers if layer.cls == "layers"]
    assert len(layers) == len(attention) == 2


@pytest.mark.slow
def test_t5_bias_is_for_one_sample() -> None:
    """The position bias of the decoder goes into attention as `[1, heads, n, n]`, though its mask was expanded to B."""
    graph = graph_of(fused_family("t5"))
    masks = [graph.values[op.operands[3]].type for op in graph.ops if "scaled_dot_product" in op.target]
    assert TensorType("f64", (1, 4, models.SEQUENCE, models.SEQUENCE)) in masks


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu-tanh", "linear-bias", "rms-norm", "rms-norm-weight"])
def test_in_sixteen_bits_one_op_is_nearer_to_what_the_model_means(name: str, dtype: str) -> None:
    """The gradient of `%g` is the result before it is weighted, that of `%x` has come all the way back."""
    text = TEXTS[name].read_text(encoding="utf-8")
    exact, graph = (graph_of(parse_program(text.replace("f64", kind))) for kind in ("f64", dtype))
    after = fused(graph)
    assert len(after.ops) < len(graph.ops)
    values = random_values(graph, 64)
    wide = {key: value.detach().double().requires_grad_() for key, value in values.items()}
    meant = loss_and_gradients(exact, wide, 64)
    found, model = loss_and_gradients(after, values, 64), loss_and_gradients(graph, values, 64)
    for key in meant.keys() - {"loss"}:
        ours, theirs = ((result[key].double() - meant[key]).norm() for result in (found, model))
        assert ours <= 1.1 * theirs, key  # of a weight's gradient both round the sum, each in its own way


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_attention_in_sixteen_bits_stays_written_out(dtype: str) -> None:
    text = TEXTS["attention"].read_text(encoding="utf-8").replace("f64", dtype)
    graph = graph_of(parse_program(text))
    assert fused(graph) == graph


def is_causal(graph: Graph) -> bool:
    """Whether attention is told to be causal, which is its sixth argument."""
    return any(len(op.args) > 5 for op in graph.ops if "scaled_dot_product" in op.target)


def test_masks_of_the_batch_stay() -> None:
    """A mask is not known where a batch input, the number of samples, or a draw goes into it."""
    text = TEXTS["causal"].read_text(encoding="utf-8")
    for line, other in (
        ("aten.arange.default(end=4) ", "aten.bernoulli.default(%u) "),
        ("aten.le.Tensor(%column, %row)", "aten.lt.Tensor(%column, %row)"),
    ):
        assert line in text
        changed = text.replace(line, other).replace("input %g", "input %u : i64[4]\ninput %g")
        assert not is_causal(fused(graph_of(parse_program(changed))))


def test_large_masks_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_causal(fused(case("causal")))
    monkeypatch.setattr(constants, "_MAX_BYTES", 20)
    assert not is_causal(fused(case("causal")))


def test_unread_constants_leave_the_program() -> None:
    program = parse_program(TEXTS["silu"].read_text(encoding="utf-8"))
    program = replace(program, state=(*program.state, State("constant.0", TensorType("f32", (2,)), "constant", False)))
    after = Fuse().run(program)
    assert after.state == () and after.fingerprint == program.fingerprint
