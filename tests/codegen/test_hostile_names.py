"""No name, text or place of a source breaks out of where it stands in emitted Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from galvatron.codegen import emit
from galvatron.codegen.names import attribute, literal
from galvatron.codegen.runs import quoted, template
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Const, Graph, Op, Ref, Source, Value
from galvatron.ir.program import Check, Layer, LayerClass, Program
from tests.codegen.programs import network
from tests.codegen.test_emit import batch, emitted_loss, stages_on_one_device, weights
from tests.ir.names import ODD
from tests.ir.programs import staged

HOSTILE = (
    '"""\nraise SystemExit(3)\n"""', "'''\nraise SystemExit(3)\n'''", '"); raise SystemExit(3)  # ', '", 1) or ("',
    "{__import__('os')}", "{{", "}}", "{i!r:>{i}}", "\\", '\\"', "\\\n", "\nraise SystemExit(3)\n", "\rraise x\r",
    "\x0braise x", "\x0craise x", "\x1cx", "\x85raise x", "\u2028raise x", "\u2029x", "\0", "\ud800", "\udfff\ud800",
    "\N{RIGHT-TO-LEFT OVERRIDE}x", "# -*- coding: utf-7 -*-", "+ACI-", "self", "torch", "batch:", "axis:", " F.x",
    *(name for name in ODD if name and not name.isidentifier() and not any(c in ".@" or c.isdigit() for c in name)),
)  # fmt: skip
"""What is put in front of every name; no digits, dots and `@`, which say how code is laid out."""

NETWORKS = [
    {"blocks": 4, "stages": 2, "strategy": "dp2-tp2"},
    {"blocks": 1, "strategy": "dp1"},
    {"blocks": 3, "strategy": "tp2"},
]


def renamed(program: Program, name: Callable[[str], str]) -> Program:
    """The program with every name changed, but those of mesh axes."""

    def names(old: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(name, old))

    def values(old: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(replace(v, name=name(v.name)) for v in old)

    def op(old: Op) -> Op:
        source = old.source and Source(name(old.source.file), old.source.line, name(old.source.code))
        return replace(old.map_refs(name), results=values(old.results), source=source)

    def graph(old: Graph) -> Graph:
        return Graph(values(old.inputs), values(old.state), tuple(map(op, old.ops)), names(old.outputs))

    def layer(old: Layer) -> Layer:
        operands, state, results = names(old.operands), names(old.state), names(old.results)
        return Layer(name(old.name), name(old.cls), operands, state, results, old.kind, names(old.origin))

    return replace(
        program,
        name=name(program.name),
        inputs=values(program.inputs),
        output=name(program.output),
        state=tuple(replace(s, name=name(s.name), aliases=names(s.aliases)) for s in program.state),
        classes=tuple(replace(c, name=name(c.name), base=name(c.base), graph=graph(c.graph)) for c in program.classes),
        stages=tuple(
            replace(
                stage,
                layers=tuple(map(layer, stage.layers)),
                receives=tuple(replace(t, name=name(t.name)) for t in stage.receives),
                sends=tuple(replace(t, name=name(t.name)) for t in stage.sends),
                state=tuple(replace(k, state=name(k.state)) for k in stage.state),
            )
            for stage in program.stages
        ),
    )


def with_class(program: Program, cls: LayerClass) -> Program:
    return replace(program, classes=tuple(cls if c.name == cls.name else c for c in program.classes))


def shape(text: str) -> str:
    """The syntax tree of a module without its identifiers and the content of its strings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for field in ("id", "arg", "attr", "name"):
            if isinstance(getattr(node, field, None), str):
                setattr(node, field, "_")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = "_"
    return ast.dump(tree)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:24])
def test_code_is_the_same_but_for_its_names(text: str) -> None:
    for options in NETWORKS:
        program = network(**options)  # type: ignore[arg-type]  # a table of different keywords
        harmless, hostile = emit(program), emit(renamed(program, lambda name: text + name))
        for file, written in hostile.items():
            written.encode()
            assert shape(written) == shape(harmless[file])


def test_comments_never_change_the_code() -> None:
    program = network(blocks=1)
    cls = program.classes[2]
    for text in HOSTILE:
        ops = tuple(replace(op, source=Source(f"/a/{text}", 3, text)) for op in cls.graph.ops)
        none = tuple(replace(op, source=None) for op in cls.graph.ops)
        commented, plain = (
            emit(with_class(program, replace(cls, graph=replace(cls.graph, ops=chosen)))) for chosen in (ops, none)
        )
        for file in plain:
            assert ast.dump(ast.parse(commented[file])) == ast.dump(ast.parse(plain[file]))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:24])
def test_what_a_check_says_is_a_literal(text: str) -> None:
    program = network(blocks=1)
    value = program.stages[0].layers[0].results[0]
    (written,) = emit(replace(program, checks=(Check(text, value),))).values()
    calls = [node for node in ast.walk(ast.parse(written)) if isinstance(node, ast.Call)]
    said = [call.args[0] for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "never"]
    assert [ast.literal_eval(one) for one in said] == [text]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:24])
def test_emitted_stages_compute_the_same_under_any_names(text: str, tmp_path: Path) -> None:
    """Imported and run: nothing but the stages runs, on state and inputs of the names that the program gives them."""
    plain = network(blocks=3, stages=2)
    program = renamed(plain, lambda name: text + name)
    stages = stages_on_one_device(program, weights(program), tmp_path)
    assert {name for stage in stages for name in stage.state_specs} == {state.name for state in program.state}
    loss = emitted_loss(stages, {text + name: value for name, value in batch().items()})
    assert torch.equal(loss, emitted_loss(stages_on_one_device(plain, weights(plain), tmp_path), batch()))


@pytest.mark.parametrize("text", [*HOSTILE, *ODD], ids=lambda text: ascii(text)[:24])
def test_literals_say_what_they_are_made_from(text: str) -> None:
    assert ast.literal_eval(literal(text)) == text
    assert "\n" not in literal(text) and literal(text).isprintable()
    names = [f"{text}.{i}.{text}" for i in range(3)]
    found = template(names, 0)
    assert found is None or [eval(quoted(found), {"i": i}) for i in range(3)] == names
    constant = template([text, text], 0)
    assert constant is not None and eval(quoted(constant)) == text


def test_ordinary_literals_look_ordinary() -> None:
    assert literal("model.layers.0.weight") == '"model.layers.0.weight"'
    assert literal("größe") == '"größe"'
    assert literal("it's") == '"it\'s"'


@pytest.mark.parametrize("name", ["a b", "a)", "import", "x.lambda", "a\n", "", "é", "1a", "a..b", "__import__('os')"])
def test_what_cannot_be_a_literal_is_refused(name: str) -> None:
    with pytest.raises(GalvatronError, match="cannot be written in Python"):
        attribute(name)
    program = network(blocks=1)
    cls = program.classes[2]
    bad = (
        Op(f"aten.unknown_{name}.x", (Ref("x"),), (), cls.graph.ops[-1].results),
        Op("aten.unknown.x", (Ref("x"),), ((name, 1),), cls.graph.ops[-1].results),
        Op("aten.unknown.x", (Ref("x"), Const("layout", name)), (), cls.graph.ops[-1].results),
        Op("aten.unknown.x", (Ref("x"), Const("dtype", name)), (), cls.graph.ops[-1].results),
    )
    for op in bad[name in ("import", "", "é", "1a") :]:
        graph = replace(cls.graph, ops=(*cls.graph.ops[:-1], op))
        with pytest.raises(GalvatronError, match="cannot be written in Python|none of those without side effects"):
            emit(with_class(program, replace(cls, graph=graph)))


def test_layers_of_two_stages_do_not_draw_alike() -> None:
    """`block.3` and `block_3` are one identifier, and what a layer draws follows from what it is called."""
    program = staged(4)
    first, second = program.stages
    layers = tuple(replace(layer, name="block.3") if layer.name == "block_0" else layer for layer in first.layers)
    texts = emit(replace(program, stages=(replace(first, layers=layers), second)))
    called = [set(re.findall(r'self\.layer\(\s*"(\w+)"', text)) for text in texts.values()]
    assert "block_3" in called[0] and "block_3_2" in called[1]
    assert called[0].isdisjoint(called[1])
