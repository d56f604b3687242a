"""The driver of rewrites, and how it reads its rules."""

from __future__ import annotations

import pytest

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph, Op
from galvatron.ir.text import parse_graph
from galvatron.rewriting import Builder, Formula, Function, RewriteRule, rewritten
from galvatron.rewriting.notation import parse

SILU = Formula("x * sigmoid(x)", "silu(x)")


def graph_of(*ops: str, returns: str = "%out") -> Graph:
    """A graph over the input `x` and the parameter `w`; all values are `f64[4, 4]`."""
    body = "".join(f"%{op} : f64[4, 4]\n" for op in ops)
    return parse_graph(f"graph {{\ninput %x : f64[4, 4]\nstate %w : f64[4, 4]\n{body}return {returns}\n}}")


def after(graph: Graph, *rules: RewriteRule) -> Graph:
    return rewritten(graph, {str(place): rule for place, rule in enumerate(rules)}, trainable=["w"])


def targets(graph: Graph) -> list[str]:
    return [op.target for op in graph.ops]


def test_a_formula_applies_where_nothing_else_reads_what_it_covers() -> None:
    ops = ("s = aten.sigmoid.default(%w)", "out = aten.mul.Tensor(%s, %w)")
    assert targets(after(graph_of(*ops), SILU)) == ["aten.silu.default"]
    shared = graph_of(*ops, "more = aten.add.Tensor(%out, %s)", returns="%more")
    assert after(shared, SILU) == shared
    returned = graph_of(*ops, returns="%out, %s")
    assert after(returned, SILU) == returned


def test_a_reader_that_a_rewrite_takes_away_does_not_count() -> None:
    """`out - s * 0` reads the sigmoid only until the rule about zero has applied, which comes later in the walk."""
    graph = graph_of(
        "s = aten.sigmoid.default(%w)",
        "silu = aten.mul.Tensor(%w, %s)",
        "zero = aten.mul.Tensor(%s, 0)",
        "out = aten.sub.Tensor(%silu, %zero)",
    )
    assert targets(after(graph, SILU, Formula("x - y * 0", "x"))) == ["aten.silu.default"]


def test_an_outcome_is_rewritten_again() -> None:
    graph = graph_of("out = aten.relu.default(%w)")
    rules = (Formula("relu(x)", "tanh(x)"), Formula("tanh(x)", "x + 0"), Formula("x + 0", "x"))
    assert after(graph, *rules).ops == () and after(graph, *rules).outputs == ("w",)


def test_a_formula_that_would_change_the_type_does_not_apply() -> None:
    graph = graph_of("out = aten.relu.default(%w)")
    assert after(graph, Formula("relu(x)", "isnan(x)")) == graph
    assert after(graph, Formula("relu(x)", "y", lambda match: {"y": 1})) == graph


@pytest.mark.parametrize(("number", "pattern", "applies"), [("1", "1", True), ("1.0", "1", True), ("true", "1", False)])
def test_numbers(number: str, pattern: str, applies: bool) -> None:
    graph = graph_of(f"out = aten.mul.Tensor(%w, {number})")
    assert (after(graph, Formula(f"x * {pattern}", "x")) != graph) is applies


@pytest.mark.parametrize(("number", "applies"), [("0.7978845608", True), ("0.797", False)])
def test_fractions_are_equal_up_to_rounding(number: str, applies: bool) -> None:
    graph = graph_of(f"out = aten.mul.Tensor(%w, {number})")
    assert (after(graph, Formula("x * 0.7978845608028654", "x")) != graph) is applies


def test_whole_numbers_are_exact() -> None:
    graph = graph_of("out = aten.mul.Tensor(%w, 1.0000000001)")
    assert after(graph, Formula("x * 1", "x")) == graph


def test_arguments_that_are_not_written_have_their_defaults() -> None:
    graph = graph_of("out = aten.add.Tensor(%x, %w, alpha=2)")
    assert after(graph, Formula("add.Tensor(x, y)", "x")) == graph
    assert after(graph, Formula("add.Tensor(x, ...)", "x")).outputs == ("x",)


def test_what_is_given_by_parameter_stands_in_its_place() -> None:
    def written_out(op: Op, build: Builder) -> Op:
        value = build.emit("aten.softmax.int", op.args[0], dim=0)
        assert build.ops[-1].args == (op.args[0], 0) and not build.ops[-1].kwargs
        return Op("aten.silu.default", (value,), (), op.results, op.source)

    after(graph_of("out = aten.relu.default(%x)"), Function(written_out, "relu"))


def test_what_is_emitted_stands_before_it_at_the_same_line() -> None:
    def through_tanh(op: Op, build: Builder) -> Op:
        value = build.emit("aten.tanh.default", op.args[0])
        assert build.type_of(value) == op.result.type and build.producer(value) == build.ops[-1]
        return Op("aten.silu.default", (value,), (), op.results, op.source)

    made = after(graph_of("out = aten.relu.default(%x)"), Function(through_tanh, "relu"))
    assert targets(made) == ["aten.tanh.default", "aten.silu.default"]
    assert made.state == (), "what is not read is no longer state of the graph"


def test_repeats_are_shared_where_nothing_is_trained() -> None:
    def twice(value: str) -> Graph:
        ops = (f"{name} = aten.relu.default(%{value})" for name in "ab")
        return graph_of(*ops, "out = aten.add.Tensor(%a, %b)")

    assert len(after(twice("x")).ops) == 2
    assert len(after(twice("w")).ops) == 3


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("x *", "pattern 'x \\*'"),
        ("nonsense(x)", "which torch does not have"),
        ("relu(x, y)", "arguments that it does not take"),
        ("linear(..., x)", "cannot say"),
        ("x if y else z", "cannot say"),
    ],
)
def test_wrong_patterns(pattern: str, complaint: str) -> None:
    with pytest.raises(GalvatronError, match=complaint):
        parse(pattern)
