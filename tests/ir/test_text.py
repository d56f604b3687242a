"""The text form: what is printed is what is parsed, in every form, and bad text is refused at its line and column."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galvatron.errors import GalvatronError, ParseError, VerifyError
from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Source, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Shard
from galvatron.ir.ops.schemas import Parameter, Required
from galvatron.ir.program import BatchSizes, Program, State, Update
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import parse_graph, parse_program, print_graph, print_program
from galvatron.ir.text.arguments import parse_expression
from galvatron.ir.text.calls import parameters_of
from galvatron.ir.types import BATCH, DTYPE_BYTES, LOCAL_BATCH, TensorType
from galvatron.ir.verify import verify
from tests.ir.programs import FORMS, captured, clustered, costed, op, planned, rounded, sharded, staged, updating, value

B, b = BATCH, LOCAL_BATCH


def sources(program: Program) -> list[Source | None]:
    graphs = [program.graph] if program.graph else [c.graph for c in program.classes]
    return [o.source for graph in graphs for o in graph.ops]


# Round trips


@pytest.mark.parametrize("comments", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_survives_text(form: str, comments: bool) -> None:
    program = FORMS[form]()
    text = print_program(program, comments=comments)
    parsed = parse_program(text)
    assert parsed == program
    assert sources(parsed) == sources(program)
    assert print_program(parsed, comments=comments) == text
    assert ("//" in text) <= comments


@pytest.mark.parametrize("form", [form for form in FORMS if form != "captured"])
def test_updates_survive_text(form: str) -> None:
    program = updating(FORMS[form]())
    more = [Update(f"blocks.{i}.seen", f"block_{i}.add", adds=True) for i in range(5)]
    for made in (program, replace(program, updates=(*program.updates, *more, Update("last", "h1")))):
        assert parse_program(print_program(made)) == made
    assert "  update blocks.{i}.seen += %block_{i}.add" in print_program(made)


@pytest.mark.parametrize("form", FORMS)
def test_a_precision_survives_text(form: str) -> None:
    program = rounded(FORMS[form](), "f16")
    text = print_program(program)
    assert text.splitlines()[2] == f"program Net {program.form} batch 8 precision f16"
    assert parse_program(text) == program


@pytest.mark.parametrize("sizes", ["from 2 to 63 but 5 but 7", "from 8", "from 1 to 8"])
def test_batch_sizes_survive_text(sizes: str) -> None:
    least, *rest = (int(word) for word in sizes.split() if word.isdigit())
    most, *but = rest if "to" in sizes else [None, *rest]
    program = replace(FORMS["planned"](), batch_sizes=BatchSizes(least, most, tuple(n for n in but if n)))
    text = print_program(program)
    assert text.splitlines()[2] == f"program Net planned batch 8 {sizes}"
    assert parse_program(text) == program


def test_text_of_a_graph() -> None:
    graph = next(c.graph for c in clustered().classes if c.name == "block")
    assert print_graph(graph) == (
        """\
galvatron ir 2

graph {
  input %x : f32[B, 6, 8]
  input %m : bool[B, 6, 1]
  state %up.weight   : f32[16, 8]
  state %down.weight : f32[8, 16]
  state %down.bias   : f32[8]
  in net.body of net.py
  %up   = aten.linear.default(%x, %up.weight)      : f32[B, 6, 16]  #12
  %silu = aten.silu.default(%up)                   : f32[B, 6, 16]  #13
  %down = aten.linear.default(%silu, %down.weight) : f32[B, 6, 8]   #14
  %add  = aten.add.Tensor(%down, %down.bias)       : f32[B, 6, 8]   #14
  %mul  = aten.mul.Tensor(%add, %m)                : f32[B, 6, 8]   #15
  %y    = aten.add.Tensor(%x, %mul)                : f32[B, 6, 8]   #15
  return %y
}

sources {
  file net.py "/home/user/net.py" {
       12 "line 12"
       13 "line 13"
       14 "line 14"
       15 "line 15"
  }
}
"""
    )
    assert parse_graph(print_graph(graph)) == graph


def test_equal_layers_and_their_state_are_loops() -> None:
    text = print_program(clustered(32), comments=False)
    assert (
        """\
for i in 0..31 {
  layer  block_{i} %h{i+1} = @block(%h{i}, %mask)
    state blocks.{i}. (up.weight, down.weight, down.bias)
}
"""
        in text
    )
    assert (
        """\
for i in 0..31 {
  parameter blocks.{i}.up.weight   : f32[16, 8]
  parameter blocks.{i}.down.weight : f32[8, 16]
  parameter blocks.{i}.down.bias   : f32[8]
}
"""
        in text
    )


def test_a_loop_begins_where_a_block_does() -> None:
    """The first of the blocks has more in it than the others: from its middle on it looks like them."""
    usual = ("q", "k", "norm", "up")
    names = [f"blocks.{i}.{name}" for i in range(4) for name in (("q", "k", "bias", *usual[2:]) if i == 0 else usual)]
    program = replace(clustered(0), state=tuple(State(name, TensorType("f32", (2,))) for name in names))
    text = print_program(program, comments=False)
    assert "for i in 1..3 {\n  parameter blocks.{i}.q    : f32[2]\n" in text
    assert text.count("blocks.0.") == 5 and parse_program(text) == program


def test_defaults_between_arguments_are_left_out() -> None:
    attention = "aten.scaled_dot_product_attention.default"
    for told, said in {
        "%x, %x, %x, none, 0.0, true": "%x, %x, %x, is_causal=true",
        "%x, %x, %x, %x, 0.5": "%x, %x, %x, %x, dropout_p=0.5",
        "%x, key=%x, value=%x": "%x, %x, %x",
        "%x, %x, %x, is_causal=false": "%x, %x, %x, is_causal=false",
        "%x, %x, %x, scale=2.0, is_causal=true": "%x, %x, %x, is_causal=true, scale=2.0",
    }.items():
        graph = parse_graph(f"graph {{ input %x : f32[] %y = {attention}({told}) : f32[] return %y }}")
        assert f"{attention}({said}) :" in print_graph(graph)


def test_locations_are_comments() -> None:
    text = print_program(captured(), locations=True)
    assert "  #12  // /home/user/net.py:12  line 12\n" in text
    assert parse_program(text) == captured()


def test_a_layer_that_differs_interrupts_its_loop() -> None:
    program = clustered(12)
    layers = list(program.layers)
    at = next(i for i, layer in enumerate(layers) if layer.name == "block_6")
    layers[at] = replace(layers[at], operands=("h0", "mask"))
    changed = replace(program, layers=tuple(layers))
    text = print_program(changed)
    assert "for i in 0..5 {" in text and "for i in 7..11 {" in text
    assert parse_program(text) == changed


@pytest.mark.parametrize(
    "names",
    [
        ["a.0", "a.1", "a.2", "a.3", "a.4"],
        ["a.0", "a.02", "a.04", "a.06", "a.08"],
        ["a9", "a10", "a11", "a12"],
        ["a.5", "a.4", "a.3", "a.2", "a.1"],
        ["a.1", "b.2", "a.3", "b.4", "a.5", "b.6", "a.7", "b.8"],
        ["x.0.y.10", "x.1.y.7", "x.2.y.4"],
        ["0.{i}", "1.{i}", "2.{i}", "3.{i}", "4.{i}"],
        ["a 0", "a 1", "a 2", "a 3", "a 4"],
        ["a.3.0", "a.3.1", "a.3.2", "a.3.3", "a.4.0", "a.4.1", "a.4.2", "a.4.3"],
    ],
)
def test_numbering_of_any_kind_is_kept(names: list[str]) -> None:
    state = tuple(State(name, TensorType("f32", (2,))) for name in names)
    program = replace(clustered(0), state=state)
    assert parse_program(print_program(program)).state == state


@pytest.mark.parametrize(
    "arg",
    [
        0, 1, -1, 10**30, True, False, None, 0.0, 1.0, -0.5, 1e-300, 0.1 + 0.2, 1e16, 2e12,
        math.inf, -math.inf, math.nan, "", 'a"b\\c\nd\te//f #1', "größe ×", "\x00\u2028", (), (1,),
        ((1, 2.0), (True, None)), Ref("x"), Ref("odd name"),
        Const("dtype", "f32"), Const("memory_format", "contiguous_format"), B, b, 2 * B, B**2 - 3 * B + 1, B / 2, -B,
        sympy.floor(B / 2), sympy.Mod(B, 8), sympy.Max(1, B - 4), sympy.sqrt(B), 1 / B, B * 0.1, (B * 16, -1),
        sympy.Mul(2, B + 1, evaluate=False), sympy.Integer(4), sympy.Rational(1, 3), sympy.Float(0.1), (B + 1) ** 2 / 3,
        sympy.ceiling(B / 3) * 2, sympy.Min(B, 7) - sympy.Abs(B - 9), sympy.factor(B**2 + 2 * B + 1),
    ],
    ids=repr,
)  # fmt: skip
def test_arguments_survive_text(arg: Arg) -> None:
    graph = Graph(
        (value("x", "f32"), value("odd name", "f32")), (), (op("aten.neg.default", (arg,), value("y", "f32")),), ()
    )
    keyed = replace(graph, ops=(replace(graph.ops[0], target="aten.add.Tensor", args=(), kwargs=(("alpha", arg),)),))
    for case in (graph, keyed):
        parsed = parse_graph(print_graph(case))
        assert parsed == case
        assert repr(parsed) == repr(case)  # tells 1 from 1.0 from True, and 0.0 from -0.0


def test_a_constant_of_the_batch_in_a_layout() -> None:
    folded = (Shard(1, folded=True), Shard(0, B, folded=True))
    layout = (Shard(0, B), Shard(1, outer=3), Shard(1, padded=True), *folded, REPLICATE, BROADCAST, PARTIAL)
    graph = Graph((value("x", "f32", 16 * b, 6, layout=layout), value("y", "f32", layout=())), (), (), ("x",))
    assert parse_graph(print_graph(graph)) == graph


def test_an_unknown_symbol_or_function_has_no_text() -> None:
    for bad in (sympy.Symbol("s0") + 1, sympy.sin(B), sympy.Symbol("B") + 1, 2**B):
        graph = Graph((value("x", "f32", bad),), (), (), ("x",))
        with pytest.raises(GalvatronError, match="no text form"):
            print_graph(graph)


def test_the_strategy_of_nothing() -> None:
    program = planned()
    assert program.plan is not None
    odd = (Strategy(()), Strategy((), 3, "full"), Strategy.parse("dp1-tp1"), Strategy.parse("tp4+sp-cp2-zero1"))
    changed = replace(program, plan=replace(program.plan, stages=(odd, ()), step_time_s=None, peak_bytes=None))
    assert parse_program(print_program(changed)) == changed


# Random programs

NAMES = st.text(st.sampled_from('ab01._-%@{}i+ "\\/äß\n'), min_size=1, max_size=8)
DIMS = st.integers(0, 4096) | st.builds(lambda n, c: n * B + c, st.integers(1, 64), st.integers(0, 9))
DTYPES = st.sampled_from(sorted(DTYPE_BYTES))
PLACEMENTS = st.sampled_from([REPLICATE, BROADCAST, PARTIAL, Shard(1, padded=True)]) | st.builds(
    Shard, st.integers(0, 3), st.just(1) | DIMS, folded=st.booleans()
)
LAYOUTS = st.none() | st.lists(PLACEMENTS, max_size=2).map(tuple)
TYPES = st.builds(TensorType, DTYPES, st.lists(DIMS, max_size=3).map(tuple))
VALUES = st.builds(Value, NAMES, TYPES, LAYOUTS)
WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)
SCALARS = (
    st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | st.text(max_size=6) | st.builds(Ref, NAMES)
    | st.builds(Const, WORDS, WORDS) | DIMS
)  # fmt: skip
ARGS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
SOURCES = st.none() | st.builds(
    lambda file, line, scope: Source(file, line, f"{file} {line}", scope),
    NAMES | st.sampled_from(["a/net.py", "b/net.py", "net.py"]), st.integers(0, 10**4), st.text(max_size=9) | NAMES,
)  # fmt: skip
TARGETS = (
    "aten.add.Tensor", "aten._to_copy.default", "aten.__and__.Scalar", "aten.slice.Tensor", "aten.mean.dim",
    "aten.scaled_dot_product_attention.default", "aten.layer_norm.default", "aten.index_put.default", "comm.copy",
    "comm.pad", "spmd.embedding", "random.dropout.default",
)  # fmt: skip


@st.composite
def ops(draw: st.DrawFn) -> Op:
    """An op whose arguments are those of its operator, each of any kind or its default."""
    target = draw(st.sampled_from(TARGETS))
    parameters = parameters_of(target)

    def arg(parameter: Parameter) -> Arg:
        default = () if isinstance(parameter.default, Required) else (st.just(parameter.default),)
        return draw(st.one_of(ARGS, *default))

    positional = [p for p in parameters if not p.keyword_only]
    args = tuple(map(arg, positional[: draw(st.integers(0, len(positional)))]))
    keywords = draw(st.permutations([p for p in parameters if p.keyword_only and draw(st.booleans())]))
    results = tuple(draw(st.lists(VALUES, max_size=2)))
    return Op(target, args, tuple((p.name, arg(p)) for p in keywords), results, draw(SOURCES))


OPS = ops()
GRAPHS = st.builds(
    Graph,
    st.lists(VALUES, max_size=2).map(tuple),
    st.lists(VALUES, max_size=2).map(tuple),
    st.lists(OPS, max_size=4).map(tuple),
    st.lists(NAMES, max_size=2).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(GRAPHS)
def test_random_graphs_survive_text(graph: Graph) -> None:
    parsed = parse_graph(print_graph(graph))
    assert parsed == graph
    assert repr(parsed) == repr(graph)


NUMBERED = (
    st.builds(lambda a, n, z: f"{a}.{n}.{z}", st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 3)) | NAMES
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_programs_survive_text(data: st.DataObject) -> None:
    """Any form, with names drawn anew: loops must never swallow a name that does not count evenly."""
    program = FORMS[data.draw(st.sampled_from(sorted(FORMS)))](data.draw(st.integers(0, 4)))
    state = tuple(replace(s, name=data.draw(NUMBERED), aliases=(data.draw(NAMES),)) for s in program.state)

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(data.draw(NUMBERED) for _ in names)

    layers = tuple(
        replace(layer, name=data.draw(NUMBERED), state=renamed(layer.state), results=renamed(layer.results))
        for layer in program.layers
    )
    changed = replace(program, state=state, layers=layers, name=data.draw(NAMES))
    parsed = parse_program(print_program(changed))
    assert parsed == changed
    assert repr(parsed) == repr(changed)


# Refusals

CORRUPTIONS: dict[str, tuple[Callable[[], Program], str, str, str]] = {
    "a wrong version": (captured, "galvatron ir 2", "galvatron ir >7", "version 7"),
    "an unknown form": (captured, "Net captured", "Net >capturd", "did you mean 'captured'"),
    "an unknown type": (captured, "%ids    : i64[B, 6]", "%ids    : >i65[B, 6]", "unknown element type"),
    "an unknown symbol": (captured, "%labels : i64[B, 6]", "%labels : i64[>q, 6]", "unknown word 'q'"),
    "a size that is no number": (captured, "%labels : i64[B, 6]", "%labels : >i64[B, true]", "a size is a whole"),
    "an op from elsewhere": (captured, "= aten.silu.default", "= >os.system", "unknown op 'os.system'"),
    "a dunder op": (captured, "= aten.silu.default", "= >aten.__class__.mro", "unknown op"),
    "an unknown collective": (staged, "comm.copy", ">comm.steal", "unknown op"),
    "a call of a function": (captured, "%ids    : i64[B, 6]", "%ids    : i64[>exec(6)]", "unknown function 'exec'"),
    "a power tower": (captured, "%ids    : i64[B, 6]", "%ids    : i64[9>**9**9]", "exponent"),
    "a division by zero": (captured, "%ids    : i64[B, 6]", "%ids    : i64[B >/ 0]", "division by zero"),
    "arithmetic on a word": (captured, "%ids    : i64[B, 6]", "%ids    : i64[B >+ true]", "no number"),
    "a missing source": (captured, "#12\n", ">#99\n", "line 99 of 'net.py' is not in the table"),
    "a second file of a name": (captured, "  }\n}\n", '  }\n  file >net.py "b" {}\n}\n', "a second file"),
    "a missing type": (captured, "input %ids    : i64[B, 6]", "input %ids\n>input %x : i64[]", "expected ':'"),
    "two types for one result": (captured, "16]  #12", "16], f32[]  #12", "1 results, but 2 types"),
    "an argument of another name": (captured, "other=0)", ">others=0)", "no argument 'others'; did you mean 'other'?"),
    "an argument by name and by position": (captured, "other=0)", "0, >other=1)", "'other' is given twice"),
    "an argument by position behind a name": (captured, "other=0)", "other=0, >1)", "by position after one by name"),
    "a misspelled axis": (sharded, "comm.copy(%x, axis=", "comm.copy(%x, >axes=", "did you mean 'axis'"),
    "an axis that the mesh lacks": (sharded, "(dp:S(0), tp:R)", ">(dp:S(0), cp:R)", "axes of the mesh are dp, tp"),
    "axes in another order": (sharded, "(dp:S(0), tp:R)", ">(tp:S(0), dp:R)", "axes of the mesh are dp, tp"),
    "one axis without a name": (sharded, "(dp:S(0), tp:R)", ">(S(0), tp:R)", "axes of the mesh are dp, tp"),
    "an axis without a mesh": (captured, "%ids    : i64[B, 6]", "%ids    : i64[B, 6] >(dp:R)", "there is no mesh"),
    "a stray character": (captured, "output %loss", "output >§loss", "unexpected"),
    "an open string": (clustered, "in net.body", 'in >"net', "expected"),
    "a second line for a tie": (
        planned, "  tie embed.weight", "  tie embed.weight = dp2\n  tie >embed.weight", "a second line for the tie"
    ),
    "a second word on evaluation": (
        captured, "output %loss", 'evaluation unlike "a"\n>evaluation unlike "b"\noutput %loss', "a second evaluation"
    ),
    "a second output": (captured, "output %loss", "output %loss\n>output %loss", "a second output"),
    "a counter outside a loop": (clustered, "@head(%h4", "@head(>%h{i}", "no loop"),
    "a loop that counts down": (clustered, "for i in 0..3", "for i in >3..0", "upwards"),
    "a negative number": (clustered, "layer  block_{i}", "layer  >block_{i-1}", "is negative"),
    "a number that ends in a word": (captured, "batch 8", "batch >8from 1", "a whole number"),
    "a quoted beginning of names that count": (
        lambda: replace(clustered(), layers=clustered().layers),
        "state blocks.{i}. (up.weight", 'state >"blocks\\u0000" (w{i}.weight', "does not count with a loop",
    ),
    "a rate twice": (
        costed, "    matmul_flop_per_s.f32", "    matmul_flop_per_s.f32 = 1e12\n    >matmul_flop_per_s.f32",
        "is given twice",
    ),
    "a malformed counter": (clustered, "layer  block_{i}", "layer  >block_{i+}", "malformed loop counter"),
    "an endless loop": (clustered, "for i in 0..3", "for i in >0..999999999", "upwards"),
    "an unknown strategy": (planned, "stage 0 = dp2-tp2", "stage 0 = >dq2-tp2", "unknown token 'dq2'"),
    "an unknown field": (planned, "  world_size ", "  >word_size ", "did you mean 'world_size'"),
    "a field of the wrong kind": (planned, "  world_size        = 8", "  >world_size        = 8.5", "a whole number"),
    "a missing field": (planned, "  micro_batches     = 4\n", "", "plan needs micro_batches"),
    "stages out of order": (planned, "stage 1 = dp2", "stage >2 = dp2", "where stage 1 should"),
    "an incomplete cost": (planned, "       saved_bytes     = 1.5*B,", "", "cost needs saved_bytes"),
    "an unknown keyword": (staged, "stage 1 {", ">stagger 1 {", "unexpected"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupt_text_is_refused_where_it_is_wrong(name: str) -> None:
    """The mark `>` in the replacement, which is taken out, is where the error must be."""
    make, old, new, message = CORRUPTIONS[name]
    text = print_program(make(), comments=False)
    assert old in text
    at = text.index(old)
    marked = text[:at] + new + text[at + len(old) :]
    where = marked.find(">", at) if ">" in new else None
    corrupt = marked if where is None else marked[:where] + marked[where + 1 :]
    with pytest.raises(ParseError, match=re.escape(message)) as caught:
        parse_program(corrupt)
    if where is not None:
        before = corrupt[:where]
        assert (caught.value.line, caught.value.column) == (before.count("\n") + 1, where - before.rfind("\n"))
        assert corrupt.split("\n")[before.count("\n")].rstrip() in str(caught.value)


def test_text_that_ends_early() -> None:
    text = print_program(captured())
    with pytest.raises(ParseError, match="ends too early") as caught:
        parse_program(text[: text.index("return")])
    assert caught.value.line == text[: text.index("return")].rstrip().count("\n") + 1
    with pytest.raises(ParseError, match="line 1, column 1"):
        parse_program("")


def test_nothing_is_evaluated() -> None:
    for text in ("__import__('os')", "().__class__", "open('x')", "B.subs(1)", "[x for x in y]", "lambda: 1", "`ls`"):
        with pytest.raises(ParseError):
            parse_expression(text)


@pytest.mark.parametrize("text", ["[" * 50_000, "(" * 50_000, "9" * 10_000, "floor(" * 5000 + "B"])
def test_hostile_text_ends_in_an_error(text: str) -> None:
    with pytest.raises(ParseError):
        parse_expression(text)


FRAGMENTS = [
    *"%@#{}()[],:=-*/×.\"09Bb \n\x00é", "", "**", "..", "//", "1e400", "none", "nan", "inf", "true", "f32",
    "{i}", "{2i+1}", "dtype.f32", "%loss", "layer ", "state ", "stage ", "R'", "S(1)", "dp4",
    "tp=2@1", "tp=0@0", "outer", "comm.copy",
    "aten.cat.default", "in ", "return ", "99999999999999999999", "Mul(B, 2)",
]  # fmt: skip
TEXTS = {name: print_program(make()) for name, make in FORMS.items()}


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(TEXTS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 12), st.sampled_from(FRAGMENTS)), max_size=3),
)
def test_mutated_text_never_crashes(form: str, edits: list[tuple[float, int, str]]) -> None:
    """Whatever is deleted or put in, the outcome is a program or an error of ours."""
    text = TEXTS[form]
    for place, deleted, put_in in edits:
        at = int(place * len(text))
        text = text[:at] + put_in + text[at + deleted :]
    try:
        program = parse_program(text)
        verify(program)
    except (ParseError, VerifyError):
        return
    assert parse_program(print_program(program)) == program


TOKEN = re.compile(r"[%@]?[\w.]+")


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(TEXTS)), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 2**16)), max_size=2))
def test_exchanged_words_never_crash(form: str, swaps: list[tuple[int, int]]) -> None:
    """A word replaced by a like one from elsewhere in the text often parses, and then the verifier must cope."""
    text = TEXTS[form]
    for first, second in swaps:
        words = list(TOKEN.finditer(text))
        old = words[first % len(words)]
        alike = [w.group() for w in words if _kind(w.group()) == _kind(old.group())]
        text = text[: old.start()] + alike[second % len(alike)] + text[old.end() :]
    with contextlib.suppress(ParseError, VerifyError):
        verify(parse_program(text))


def _kind(word: str) -> str:
    return word[0] if word[0] in "%@" else "0" if word[0].isdigit() else word.partition(".")[0] if "." in word else "a"
