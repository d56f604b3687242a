"""Text to programs, by one function for each part of the text. No text is ever evaluated as code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir.cluster import Cluster
from galvatron.ir.cost import ClassCost
from galvatron.ir.graph import Graph, Value
from galvatron.ir.plan import Plan
from galvatron.ir.program import (
    BatchSizes,
    Candidates,
    Check,
    Cut,
    Form,
    Layer,
    LayerClass,
    LayerKind,
    Number,
    Program,
    Reached,
    Result,
    Stage,
    State,
    StateLayout,
    Transfer,
    Update,
)
from galvatron.ir.text import tokens
from galvatron.ir.text.arguments import read_argument
from galvatron.ir.text.expansion import Item, read_loop
from galvatron.ir.text.expressions import SYMBOLS
from galvatron.ir.text.graphs import (
    read_function,
    read_graph,
    read_layout,
    read_mesh,
    read_state,
    read_type,
    read_value,
)
from galvatron.ir.text.records import read_list, read_record
from galvatron.ir.text.scanner import NAME, Scanner, Template, token
from galvatron.ir.text.sources import Sources, SourceTable, functions_with_sources, read_sources, with_sources
from galvatron.ir.text.strategies import read_candidates, read_cuts, read_stages, read_strategy, read_ties
from galvatron.ir.types import NUMBER_KINDS, Length
from galvatron.ir.update_rule import UpdateRule

_ZERO = token(r"zero[123](?![\w.])")

_LAYERS = {str(kind): kind for kind in LayerKind}
_KINDS = ("parameter", "buffer", "constant")


def parse_program(text: str) -> Program:
    """Reads the text of a program.

    Raises:
        ParseError: malformed text; carries line and column and shows the offending line.
    """
    s = Scanner(text)
    _version(s)
    s.expect("program")
    name = s.name()
    at = s.at
    form, forms = s.expected(NAME, "a form"), {str(f): f for f in Form}
    if form not in forms:
        s.refuse(f"unknown form {form!r}; {did_you_mean(form, forms)}", at)
    s.expect("batch")
    batch_size = s.integer()
    batch_sizes = _batch_sizes(s)
    precision = s.expected(NAME, "an element type") if s.accept("precision") else None
    parts, met = _Parts(), set[str]()
    while s.at < len(s.text):
        keyword = s.keyword()
        if keyword not in SECTIONS:
            s.unexpected(*map(repr, SECTIONS))
        if keyword in met and keyword in _ONCE:
            s.refuse(f"a second {keyword}", s.at)
        met.add(keyword)
        SECTIONS[keyword](s, parts)
    if parts.output is None:
        s.refuse("the program has no output", at)
    parts.given.check(s, parts.sources or {})
    return _program(parts, name, forms[form], batch_size, batch_sizes, precision)


def parse_graph(text: str) -> Graph:
    """Reads the text of a single op graph: `graph { … }`, with or without the version line.

    Raises:
        ParseError: malformed text; carries line and column and shows the offending line.
    """
    s = Scanner(text)
    if s.keyword() == "galvatron":
        _version(s)
    given = Sources()
    while s.keyword() == "function":
        read_function(s, given)
    s.expect("graph", "{")
    graph = read_graph(s, given)
    table = read_sources(s) if s.keyword() == "sources" else {}
    s.end()
    given.check(s, table)
    return with_sources(graph, table, functions_with_sources(given.functions, table))


@dataclass
class _Parts:
    """What was read of a program so far."""

    inputs: list[Value] = field(default_factory=list)
    free: list[Number] = field(default_factory=list)
    state: list[State] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    classes: list[LayerClass] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    given: Sources = field(default_factory=Sources)
    output: str | None = None
    updates: list[Update] = field(default_factory=list)
    outputs: list[Result] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    reached: list[Reached] = field(default_factory=list)
    unlike_evaluated: str = ""
    inductor: bool | None = None
    rules: list[UpdateRule] = field(default_factory=list)
    graph: Graph | None = None
    shares: bool = False
    """Whether the graph has the inputs and the state of the program."""
    cluster: Cluster | None = None
    plan: Plan | None = None
    candidates: tuple[Candidates, ...] | None = None
    cuts: tuple[Cut, ...] | None = None
    sources: SourceTable | None = None


def _program(
    parts: _Parts, name: str, form: Form, batch_size: int, batch_sizes: BatchSizes, precision: str | None
) -> Program:
    assert parts.output is not None
    inputs, state, graph, classes = tuple(parts.inputs), tuple(parts.state), parts.graph, parts.classes
    if graph is not None and parts.shares:
        graph = replace(graph, inputs=inputs, state=read_state(graph, state, precision))
    if table := parts.sources:
        functions = functions_with_sources(parts.given.functions, table)
        graph = graph and with_sources(graph, table, functions)
        classes = [replace(cls, graph=with_sources(cls.graph, table, functions)) for cls in classes]
    return Program(
        name=name,
        form=form,
        batch_size=batch_size,
        inputs=inputs,
        state=state,
        output=parts.output,
        updates=tuple(parts.updates),
        outputs=tuple(parts.outputs),
        checks=tuple(parts.checks),
        reached=tuple(parts.reached),
        unlike_evaluated=parts.unlike_evaluated,
        inductor=bool(parts.inductor),
        rules=tuple(parts.rules),
        graph=graph,
        classes=tuple(classes),
        layers=tuple(parts.layers),
        cluster=parts.cluster,
        candidates=parts.candidates or (),
        cuts=parts.cuts or (),
        plan=parts.plan,
        stages=tuple(parts.stages),
        precision=precision,
        batch_sizes=batch_sizes,
        numbers=tuple(parts.free),
    )


def _version(s: Scanner) -> None:
    s.expect("galvatron", "ir")
    at = s.at
    version = s.integer()
    if version != tokens.VERSION:
        told = f"the text is of version {version}, this Galvatron reads version {tokens.VERSION}"
        s.refuse(f"{told}: capture the model again, and search or apply its plan again", at)


def _batch_sizes(s: Scanner) -> BatchSizes:
    if not s.accept("from"):
        return BatchSizes()
    least, most, but = s.integer(), s.integer() if s.accept("to") else None, []
    at = s.at
    multiple = s.integer() if s.accept("by") else 1
    if multiple < 1:
        s.refuse("sizes are multiples of 1 at least", at)
    while s.accept("but"):
        but.append(s.integer())
    return BatchSizes(least, most, tuple(but), multiple)


# Inputs, output, graph, state


def _input(s: Scanner, parts: _Parts) -> None:
    s.expect("input")
    parts.inputs.append(read_value(s))


def _length(s: Scanner, parts: _Parts) -> None:
    s.expect("length")
    at = s.at
    name = s.expected(NAME, "a name")
    if name in s.lengths or name in SYMBOLS or not name.isidentifier():
        s.refuse(f"{name!r} cannot name a length", at)
    s.expect("=")
    s.lengths[name] = Length(name, s.integer(), _batch_sizes(s))


def _number(s: Scanner, parts: _Parts) -> None:
    s.expect("number")
    at = s.at
    kind, dot, name = s.expected(NAME, "a number such as float.rate").partition(".")
    if not dot or kind not in NUMBER_KINDS:
        s.refuse(f"a number is {' or '.join(f'{k}.name' for k in NUMBER_KINDS)}", at)
    s.expect("=")
    at = s.at
    example = read_argument(s)
    if not isinstance(example, (int, float)):
        s.refuse("the example of a number is one", at)
    parts.free.append(Number(name, kind, example))


def _output(s: Scanner, parts: _Parts) -> None:
    s.expect("output")
    parts.output = s.value()


def _update(s: Scanner) -> Update:
    s.expect("update")
    state, adds = s.name(), s.accept("+=")
    if not adds:
        s.expect("=")
    return Update(state, s.value(), adds)


def _reached(s: Scanner) -> Reached:
    s.expect("gradient")
    value = s.value()
    s.expect("state")
    return Reached(value, _bound_state(s))


def _result(s: Scanner) -> Result:
    s.expect("result")
    name = s.name()
    s.expect("=")
    return Result(name, s.value())


def _check(s: Scanner, parts: _Parts) -> None:
    s.expect("check")
    says = s.name()
    s.expect("never")
    parts.checks.append(Check(says, s.value()))


def _inductor(s: Scanner, parts: _Parts) -> None:
    s.expect("inductor")
    parts.inductor = True


def _evaluation(s: Scanner, parts: _Parts) -> None:
    s.expect("evaluation", "unlike")
    parts.unlike_evaluated = s.name()


def _graph(s: Scanner, parts: _Parts) -> None:
    at = s.at
    s.expect("graph")
    if s.accept("of"):
        s.expect("program")
        parts.shares = True
    s.expect("{")
    parts.graph = read_graph(s, parts.given)
    if parts.shares and (parts.graph.inputs or parts.graph.state):
        s.refuse("a graph of the program has the program's inputs and state", at)


def _function(s: Scanner, parts: _Parts) -> None:
    read_function(s, parts.given)


def _state(s: Scanner) -> State:
    kind = s.keyword()
    if kind not in _KINDS:
        s.unexpected(*map(repr, _KINDS))
    s.expect(kind)
    name = s.name()
    s.expect(":")
    type_ = read_type(s)
    trainable = s.accept("trainable") or (not s.accept("frozen") and kind == "parameter")
    aliases = s.names() if s.accept("tied") else ()
    return State(name, type_, kind, trainable, aliases, s.name() if s.accept("by") else "")


# Classes, layers, stages


def _class(s: Scanner, parts: _Parts) -> None:
    s.expect("class")
    name = s.class_name()
    base = s.class_name() if s.accept("of") else ""
    strategy = read_strategy(s) if s.accept("strategy") else None
    mesh = read_mesh(s) if s.accept("mesh") else ()
    s.expect("{")
    cost = read_list(s, ClassCost) if s.keyword() == "cost" else None
    parts.classes.append(LayerClass(name, read_graph(s, parts.given, mesh), cost, base, strategy, mesh))


def _layer(s: Scanner) -> Layer:
    kind = s.keyword()
    if kind not in _LAYERS:
        s.unexpected(*map(repr, _LAYERS))
    s.expect(kind)
    name, results = s.name(), s.values()
    s.expect("=")
    cls = s.class_name()
    s.expect("(")
    operands = s.listed(s.value, ")")
    origin = s.values() if s.accept("of") else ()
    state = _bound_state(s) if s.accept("state") else ()
    return Layer(name, cls, operands, state, results, _LAYERS[kind], origin)


def _bound_state(s: Scanner) -> tuple[str, ...]:
    """Names in parentheses, perhaps with the beginning of all of them before."""
    if s.stands("("):
        return s.names()
    at, quoted, prefix = s.at, s.stands('"'), s.name()
    names_at = s.at
    names = s.names()
    s.pay((prefix,), len(names), at)
    counting = [isinstance(name, Template) for name in names]
    if (quoted and any(counting)) or (isinstance(prefix, Template) and '"' in s.text[names_at : s.at]):
        s.refuse("a quoted part of a name does not count with a loop; write the names whole", at)
    return tuple(_joined(prefix, name, at) for name in names)


def _joined(prefix: str, name: str, at: int) -> str:
    if not isinstance(prefix, Template) and not isinstance(name, Template):
        return prefix + name
    joined = Template(prefix + name)
    joined.at = at
    return joined


def _stage(s: Scanner, parts: _Parts) -> None:
    s.expect("stage")
    index = s.integer()
    s.expect("{")
    items: list[Item] = []
    receives, sends = [], []
    while not s.accept("}"):
        if s.accept("receive"):
            receives.append(_transfer(s))
        elif s.accept("send"):
            sends.append(_transfer(s))
        elif s.keyword() == "for":
            items.extend(read_loop(s, _staged))
        else:
            items.append(_staged(s))
    layers = tuple(item for item in items if isinstance(item, Layer))
    state = tuple(item for item in items if isinstance(item, StateLayout))
    parts.stages.append(Stage(index, layers, tuple(receives), tuple(sends), state))


def _staged(s: Scanner) -> Layer | StateLayout:
    if not s.accept("keep"):
        return _layer(s)
    name = s.name()
    s.expect(":")
    mesh = read_mesh(s)
    layout, zero = read_layout(s, mesh), s.take(_ZERO)
    return StateLayout(name, mesh, layout, int(zero[-1]) if zero else 0)


def _transfer(s: Scanner) -> Transfer:
    name = s.value()
    s.expect(":")
    return Transfer(name, read_type(s), not s.accept("no_gradient"))


def _item(s: Scanner, parts: _Parts) -> None:
    items = read_loop(s, _one_item) if s.keyword() == "for" else (_one_item(s),)
    parts.layers.extend(item for item in items if isinstance(item, Layer))
    parts.state.extend(item for item in items if isinstance(item, State))
    parts.updates.extend(item for item in items if isinstance(item, Update))
    parts.outputs.extend(item for item in items if isinstance(item, Result))
    parts.reached.extend(item for item in items if isinstance(item, Reached))


def _one_item(s: Scanner) -> Layer | State | Update | Result | Reached:
    if s.keyword() == "update":
        return _update(s)
    if s.keyword() == "gradient":
        return _reached(s)
    if s.keyword() == "result":
        return _result(s)
    return _state(s) if s.keyword() in _KINDS else _layer(s)


# Rules of the optimizer, cluster, plan, search


def _rule(s: Scanner, parts: _Parts) -> None:
    parts.rules.append(read_record(s, UpdateRule))


def _cluster(s: Scanner, parts: _Parts) -> None:
    at = s.at
    parts.cluster = read_record(s, Cluster)
    try:
        parts.cluster.check()
    except ClusterError as error:
        s.refuse(str(error), at)


def _plan(s: Scanner, parts: _Parts) -> None:
    parts.plan = read_record(s, Plan, {"ties": read_ties, "stages": read_stages})


def _candidates(s: Scanner, parts: _Parts) -> None:
    parts.candidates = read_candidates(s)


def _cuts(s: Scanner, parts: _Parts) -> None:
    parts.cuts = read_cuts(s)


def _sources(s: Scanner, parts: _Parts) -> None:
    parts.sources = read_sources(s)


SECTIONS: Mapping[str, Callable[[Scanner, _Parts], Any]] = {
    "input": _input,
    "length": _length,
    "number": _number,
    "output": _output,
    "check": _check,
    "evaluation": _evaluation,
    "inductor": _inductor,
    "rule": _rule,
    "cluster": _cluster,
    "plan": _plan,
    "stage": _stage,
    "candidates": _candidates,
    "cuts": _cuts,
    "function": _function,
    "class": _class,
    "graph": _graph,
    "sources": _sources,
    **dict.fromkeys((*_LAYERS, *_KINDS, "update", "result", "gradient", "for"), _item),
}
"""How a section is read, by its first word."""

_ONCE = frozenset({"output", "evaluation", "inductor", "cluster", "plan", "candidates", "cuts", "graph", "sources"})
"""Sections of which a program has one at most."""
