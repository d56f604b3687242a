"""Text to programs: a grammar (`grammar.lark`) and one callback per rule. No text is ever evaluated as code."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import chain, islice
from typing import Any, NoReturn, TypeVar

import sympy
from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from galvatron.errors import GalvatronError, ParseError, StrategyError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.cluster import Cluster, Device, Link
from galvatron.ir.cost import ClassCost
from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Source, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Axis, Layout, Placement, Shard
from galvatron.ir.plan import Plan
from galvatron.ir.program import (
    BatchSizes,
    Candidates,
    Cut,
    Form,
    Layer,
    LayerClass,
    Program,
    Stage,
    State,
    StateLayout,
    Transfer,
    When,
)
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import expressions
from galvatron.ir.text.budget import Budget
from galvatron.ir.text.names import expander
from galvatron.ir.text.printer import VERSION, read_state
from galvatron.ir.text.targets import is_known_target, unknown_target
from galvatron.ir.types import DTYPE_BYTES, Dim, TensorType

_LEXEME = re.compile(r'"[^"\n]*"|\w+|[^\w\s]')
_SHOWN_WIDTH, _SHOWN_MESSAGE = 160, 1000

_BUDGET: ContextVar[Budget] = ContextVar("budget")
"""Of the text that is being read."""


def parse_program(text: str) -> Program:
    """Reads the text of a program.

    Raises:
        ParseError: malformed text; carries line and column and shows the offending line.
    """
    return _parse(text, "program_file")


def parse_graph(text: str) -> Graph:
    """Reads the text of a single op graph: `graph { … }`, with or without the version line.

    Raises:
        ParseError: malformed text; carries line and column and shows the offending line.
    """
    return _parse(text, "graph_file")


def parse_expression(text: str) -> Arg:
    """Reads one op argument or size, such as `2*B + 1`.

    Raises:
        ParseError: malformed text.
    """
    return _parse(text, "expression_file")


@cache
def _lark() -> Lark:
    return Lark(
        files("galvatron.ir.text").joinpath("grammar.lark").read_text(encoding="utf-8"),
        parser="lalr",
        start=["program_file", "graph_file", "expression_file"],
        transformer=_Builder(),
        maybe_placeholders=False,
    )


def _parse(text: str, start: str) -> Any:
    _check_length(text)
    reset = _BUDGET.set(Budget(len(text)))
    try:
        return _lark().parse(text, start=start)
    except _Refused as refused:
        raise _error(text, refused.message, refused.line, refused.column) from None
    except UnexpectedInput as unexpected:
        line, column, message = _explain(text, unexpected)
        raise _error(text, message, line, column) from None
    except RecursionError:
        raise ParseError("the text nests too deeply") from None
    finally:
        _BUDGET.reset(reset)


def _check_length(text: str) -> None:
    """Refuses at once what would take long to refuse later."""
    if len(text) > limits.FILE_CHARACTERS:
        raise ParseError(f"the text has {len(text)} characters; at most {limits.FILE_CHARACTERS} are read")
    start, line = 0, 1
    while len(text) - start > limits.LINE_CHARACTERS:
        end = text.rfind("\n", start, start + limits.LINE_CHARACTERS + 1)
        line += text.count("\n", start, end + 1)
        if end < 0:
            raise _error(text, f"a line of more than {limits.LINE_CHARACTERS} characters", line, 1)
        start = end + 1
    most = min(limits.LEXEMES, limits.SHORT_TEXT_LEXEMES + len(text) // limits.LEXEME_CHARACTERS)
    beyond = next(islice(_LEXEME.finditer(text), most, None), None)
    if beyond is not None:
        before = text[: beyond.start()]
        line, column = before.count("\n") + 1, beyond.start() - before.rfind("\n")
        raise _error(text, f"more than {most} words and marks", line, column)


def _error(text: str, message: str, line: int, column: int) -> ParseError:
    lines = text.split("\n")
    shown = lines[line - 1].rstrip() if 0 < line <= len(lines) else ""
    start = max(0, column - 100) if len(shown) > _SHOWN_WIDTH else 0
    caret = " " * (column - 1 - start) + "^"
    message = message if len(message) <= _SHOWN_MESSAGE else f"{message[:_SHOWN_MESSAGE]} …"
    return ParseError(f"{message}\n  {shown[start : start + _SHOWN_WIDTH]}\n  {caret}", line=line, column=column)


def _explain(text: str, error: UnexpectedInput) -> tuple[int, int, str]:
    if isinstance(error, UnexpectedCharacters):
        what, expected = f"unexpected character {error.char!r}", error.allowed or set()
    elif isinstance(error, UnexpectedToken) and error.token.type != "$END":
        what, expected = f"unexpected {str(error.token)!r}", error.accepts or error.expected
    else:
        expected = error.expected if isinstance(error, (UnexpectedEOF, UnexpectedToken)) else set()
        lines = text.rstrip().split("\n")
        return len(lines), len(lines[-1]) + 1, f"the text ends too early; {_expected(expected)}"
    return error.line, error.column, f"{what}; {_expected(expected)}"


_TERMINALS = {
    "NAME": "a word",
    "LABEL": "a name",
    "VALUE": "a %value",
    "CLASS": "a @class",
    "STRING": "a string",
    "INT": "a whole number",
    "NUMBER": "a number",
    "SOURCE": "a #source",
    "STRATEGY": "a strategy",
    "AXIS": "an axis such as tp=2@1",
    "PIPELINE": "a pipeline degree such as pp2",
    "$END": "the end",
}


def _expected(terminals: Any) -> str:
    patterns = {t.name: t.pattern for t in _lark().terminals}
    words = set()
    for name in terminals:
        if name in _TERMINALS:
            words.add(_TERMINALS[name])
        elif name in patterns and patterns[name].type == "str":
            words.add(f"'{patterns[name].value}'")
        elif name in patterns and name not in ("BLANK", "COMMENT"):
            words.add(name.lower())
    return f"expected {', '.join(sorted(words))}" if words else "nothing more is expected"


class _Refused(Exception):
    """Well-formed text that means nothing."""

    def __init__(self, message: str, token: Token) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, token.line or 1, token.column or 1


def _refuse(message: str, token: Token) -> NoReturn:
    raise _Refused(message, token)


class _Template(str):
    """A bare name with loop counters in it, such as `layers.{i}.weight`."""

    token: Token


T = TypeVar("T")


@dataclass(frozen=True)
class _Range:
    token: Token
    first: int
    last: int

    def expand(self, items: tuple[T, ...]) -> tuple[T, ...]:
        _pay(self.token, chain.from_iterable(map(_names_of, items)), self.last - self.first + 1)
        return tuple(_filled(item, i) for i in range(self.first, self.last + 1) for item in items)


def _pay(token: Token, names: Iterable[str], times: int) -> None:
    """Refuses a loop or run that writes out too much."""
    try:
        _BUDGET.get().expand(names, times)
    except GalvatronError as error:
        _refuse(str(error), token)


def _names_of(item: Any) -> tuple[str, ...]:
    match item:
        case Layer():
            return (item.name, item.cls, *item.operands, *item.state, *item.results)
        case State():
            return (item.name, *item.aliases)
    return (item.state,)


def _filled(item: Any, i: int | None) -> Any:
    """A layer, a piece of state or a layout with the counters in its names filled in; outside a loop there are none."""
    fill = expander(i)

    def name(text: str) -> str:
        if not isinstance(text, _Template):
            return text
        try:
            return fill(text)
        except GalvatronError as error:
            raise _Refused(str(error), text.token) from None

    def names(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name(t) for t in texts)

    match item:
        case Layer():
            operands, state, results = names(item.operands), names(item.state), names(item.results)
            return Layer(name(item.name), name(item.cls), operands, state, results, item.when)
        case State():
            return replace(item, name=name(item.name), aliases=names(item.aliases))
    return replace(item, state=name(item.state))


@dataclass(frozen=True)
class _SourceRef:
    """Stands for a `Source` until the table at the end of the file is read."""

    token: Token
    scope: str


@dataclass(frozen=True)
class _Section:
    """A part of a program that may stand only once."""

    kind: str
    token: Token
    content: Any


def _name(token: Token) -> str:
    """The name a token stands for; a `_Template` when it has a loop counter."""
    if len(token) > limits.STRING_CHARACTERS and '"' not in token:
        _refuse(f"a name of more than {limits.STRING_CHARACTERS} characters", token)
    sigil = 1 if token.type in ("VALUE", "CLASS") else 0
    if token[sigil : sigil + 1] == '"':
        return _unquoted(token, token[sigil:])
    if "{" in token:
        template = _Template(token[sigil:])
        template.token = token
        return template
    return str(token[sigil:])


def _plain(token: Token) -> str:
    """The name a token stands for, where no loop is around it."""
    name = _name(token)
    if isinstance(name, _Template):
        _refuse(f"{token} counts with a loop, but there is no loop here", token)
    return name


def _unquoted(token: Token, literal: str) -> str:
    try:
        text = json.loads(literal)
    except ValueError as error:
        _refuse(f"malformed string: {error}", token)
    if len(text) > limits.STRING_CHARACTERS:
        _refuse(f"a string of more than {limits.STRING_CHARACTERS} characters", token)
    return text


def _int(token: Token, digits: str | None = None) -> int:
    """The number that a token, or the given part of it, is."""
    digits = str(token) if digits is None else digits
    if len(digits) > limits.DIGITS:
        _refuse(f"a number of more than {limits.DIGITS} digits", token)
    return int(digits)


def _strategy(token: Token) -> Strategy:
    text = str(token)
    if any(len(number) > limits.DIGITS for number in re.findall(r"[0-9]+", text)):
        _refuse(f"a number of more than {limits.DIGITS} digits", token)
    try:
        if text.startswith("()"):
            return replace(Strategy.parse("dp1" + text[2:]), axes=())
        return Strategy.parse(text)
    except StrategyError as error:
        _refuse(str(error), token)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "a whole number": lambda v: type(v) is int,
    "a number": lambda v: type(v) in (int, float),
    "a number or none": lambda v: v is None or type(v) in (int, float),
    "a string": lambda v: type(v) is str,
    "a list of whole numbers or none": lambda v: v is None or (type(v) is tuple and all(type(n) is int for n in v)),
    "a size": lambda v: type(v) is int or isinstance(v, sympy.Expr),
}

_PLAN_FIELDS = {
    "fingerprint": "a string", "cluster": "a string", "global_batch_size": "a whole number",
    "world_size": "a whole number", "micro_batches": "a whole number", "schedule": "a string",
    "step_time_s": "a number or none", "peak_bytes": "a list of whole numbers or none",
}  # fmt: skip
_CLUSTER_FIELDS = {"nodes": "a whole number", "devices_per_node": "a whole number"}
_DEVICE_FIELDS = {
    "memory_bytes": "a whole number", "memory_bytes_per_s": "a number", "kernel_launch_s": "a number",
}  # fmt: skip
_LINK_FIELDS = {"bytes_per_s": "a number", "latency_s": "a number"}
_COST_FIELDS = dict.fromkeys(ClassCost.__dataclass_fields__, "a size")


def _record(token: Token, entries: tuple[Any, ...], spec: dict[str, str]) -> dict[str, Any]:
    """`name = value` entries checked against the fields that must be there, each once and of its kind."""
    record: dict[str, Any] = {}
    for key, value in entries:
        if key not in spec:
            _refuse(f"unknown field {str(key)!r}; {did_you_mean(key, spec)}", key)
        if key in record:
            _refuse(f"{str(key)!r} is given twice", key)
        if not _CHECKS[spec[key]](value):
            _refuse(f"{str(key)!r} must be {spec[key]}", key)
        record[str(key)] = value
    if missing := [name for name in spec if name not in record]:
        _refuse(f"{token} needs {', '.join(missing)}", token)
    return record


def _list_depth(arg: Arg) -> int:
    return 1 + max((_list_depth(a) for a in arg), default=0) if isinstance(arg, tuple) else 0


_WORDS: dict[str, Arg] = {
    "true": True, "false": False, "none": None, "inf": math.inf, "nan": math.nan, **expressions.SYMBOLS,
}  # fmt: skip


@v_args(inline=True)
class _Builder(Transformer):
    """Builds IR objects bottom-up while lark parses: one method per grammar rule."""

    # Arguments

    def number(self, token: Token) -> Arg:
        if token.isdigit():
            return _int(token)
        if len(token) > 2 * limits.DIGITS:
            _refuse(f"a number of more than {2 * limits.DIGITS} characters", token)
        return float(token)

    def word(self, token: Token) -> Arg:
        if token in _WORDS:
            return _WORDS[token]
        kind, dot, name = token.partition(".")
        if dot and kind.isidentifier() and name.isidentifier():
            return Const(kind, name)
        _refuse(f"unknown word {str(token)!r}; {did_you_mean(token, _WORDS)}", token)

    def string(self, token: Token) -> Arg:
        return _unquoted(token, token)

    def ref(self, token: Token) -> Arg:
        return Ref(_plain(token))

    def call(self, token: Token, *args: Any) -> Arg:
        return self._arithmetic(token, str(token), args, lambda: expressions.call(str(token), *args))

    def list(self, token: Token, *args: Any) -> Arg:
        if len(args) > limits.LIST_ITEMS:
            _refuse(f"a list of more than {limits.LIST_ITEMS} items", token)
        if _list_depth(args) > limits.LIST_DEPTH:
            _refuse(f"a list nests deeper than {limits.LIST_DEPTH}", token)
        return args

    def binary(self, left: Any, operator: Token, right: Any) -> Arg:
        operands = (left, right)
        return self._arithmetic(
            operator, str(operator), operands, lambda: expressions.combine(str(operator), *operands)
        )

    def negate(self, token: Token, value: Any) -> Arg:
        return self._arithmetic(token, "-", (value,), lambda: expressions.negate(value))

    @staticmethod
    def _arithmetic(token: Token, operation: str, operands: tuple[Any, ...], build: Callable[[], Arg]) -> Arg:
        try:
            _BUDGET.get().compute(operation, operands)
            return build()
        except (GalvatronError, expressions.ExpressionError, ArithmeticError, TypeError, ValueError) as error:
            _refuse(str(error), token)

    def field(self, key: Token, value: Any) -> tuple[Token, Any]:
        return key, value

    def expression_file(self, arg: Any) -> Arg:
        return arg

    # Values, types, layouts

    def name(self, token: Token) -> str:
        return _name(token)

    def type(self, token: Token, _open: Token, *shape: Any) -> TensorType:
        if token not in DTYPE_BYTES:
            _refuse(f"unknown element type {str(token)!r}; {did_you_mean(token, DTYPE_BYTES)}", token)
        if len(shape) > limits.RANK:
            _refuse(f"a tensor of more than {limits.RANK} dimensions", token)
        for dim in shape:
            self._require_dim(token, dim)
        return TensorType(str(token), shape)

    @staticmethod
    def _require_dim(token: Token, dim: Any) -> Dim:
        if not (type(dim) is int or isinstance(dim, sympy.Expr)):
            _refuse("a size is a whole number or an expression", token)
        if type(dim) is int and abs(dim) > limits.SIZE:
            _refuse(f"a size of more than {limits.SIZE}", token)
        return dim

    def replicate(self) -> Placement:
        return REPLICATE

    def broadcast(self) -> Placement:
        return BROADCAST

    def partial(self) -> Placement:
        return PARTIAL

    def shard(self, dim: Token, outer: Any = 1) -> Placement:
        return Shard(_int(dim), self._require_dim(dim, outer))

    def padded_shard(self, dim: Token) -> Placement:
        return Shard(_int(dim), padded=True)

    def layout(self, *placements: Placement) -> Layout:
        return placements

    def mesh(self, *axes: Token) -> tuple[Axis, ...]:
        return tuple(self._axis(token) for token in axes)

    @staticmethod
    def _axis(token: Token) -> Axis:
        name, _, degree = token.rpartition("=")
        size, _, stride = degree.partition("@")
        name = _unquoted(token, name) if name[0] == '"' else name
        if len(name) > limits.STRING_CHARACTERS:
            _refuse(f"a name of more than {limits.STRING_CHARACTERS} characters", token)
        return Axis(name, _int(token, size), _int(token, stride))

    def value(self, token: Token, type: TensorType, layout: Layout | None = None) -> Value:
        return Value(_plain(token), type, layout)

    def typed(self, type: TensorType, layout: Layout | None = None) -> tuple[TensorType, Layout | None]:
        return type, layout

    def types(self, *typed: Any) -> tuple[Any, ...]:
        return typed

    def values(self, *tokens: Token) -> tuple[Token, ...]:
        return tokens

    # Op graphs

    def input(self, value: Value) -> Value:
        return value

    def graph_state(self, value: Value) -> tuple[str, Value]:
        return "state", value

    def scope(self, name: str) -> str:
        return name

    def op_args(self, *args: Any) -> tuple[Any, ...]:
        return args

    def op(self, results: Any, target: Token, args: Any, types: Any, source: Token | None = None) -> Op:
        if not is_known_target(target):
            _refuse(unknown_target(str(target)), target)
        if len(results) != len(types):
            _refuse(f"{len(results)} results, but {len(types)} types", target)
        positional, keywords = [], []
        for arg in args:
            # A field is the only argument whose first part is a token: list arguments hold IR values alone.
            if type(arg) is tuple and arg and type(arg[0]) is Token:
                keywords.append((str(arg[0]), arg[1]))
            elif keywords:
                _refuse("a positional argument after one with a keyword", target)
            else:
                positional.append(arg)
        if len({key for key, _ in keywords}) < len(keywords):
            _refuse("a keyword argument is given twice", target)
        values = tuple(Value(_plain(t), *typed) for t, typed in zip(results, types, strict=True))
        origin: Any = _SourceRef(source, "") if source else None
        return Op(str(target), tuple(positional), tuple(keywords), values, origin)

    def graph(self, *parts: Any) -> Graph:
        *body, outputs = parts
        scope, ops = "", []
        for part in body:
            if type(part) is Op:
                reference: Any = part.source
                ops.append(replace(part, source=_SourceRef(reference.token, scope)) if reference else part)
            elif isinstance(part, str):
                scope = str(part)
        inputs = tuple(p for p in body if type(p) is Value)
        state = tuple(p[1] for p in body if type(p) is tuple)
        return Graph(inputs, state, tuple(ops), tuple(_plain(t) for t in outputs))

    def version(self, token: Token) -> Token:
        if _int(token) != VERSION:
            _refuse(f"the text is of version {token}, this program reads version {VERSION}", token)
        return token

    def graph_file(self, *parts: Any) -> Graph:
        table = next((p.content for p in parts if isinstance(p, _Section)), {})
        return _with_sources(next(p for p in parts if isinstance(p, Graph)), table)

    # Classes, layers, stages

    def base(self, token: Token) -> str:
        return _plain(token)

    def class_strategy(self, token: Token) -> Strategy:
        return _strategy(token)

    def class_mesh(self, mesh: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return mesh

    def cost(self, token: Token, *entries: Any) -> ClassCost:
        return ClassCost(**_record(token, entries, _COST_FIELDS))

    def class_graph(self, *parts: Any) -> tuple[ClassCost | None, Graph]:
        if isinstance(parts[0], ClassCost):
            return parts[0], self.graph(*parts[1:])
        return None, self.graph(*parts)

    def layer_class(self, token: Token, *parts: Any) -> LayerClass:
        *head, (cost, graph) = parts
        base = next((p for p in head if isinstance(p, str)), "")
        strategy = next((p for p in head if isinstance(p, Strategy)), None)
        mesh = next((p for p in head if isinstance(p, tuple)), ())
        return LayerClass(_plain(token), graph, cost, base, strategy, mesh)

    def layer(self, when: Token, name: str, results: Any, cls: Token, *parts: Any) -> Layer:
        state = parts[-1] if parts and type(parts[-1]) is tuple else ()
        operands = tuple(_name(t) for t in parts if type(t) is Token)
        frequency = When.MICROBATCH if when == "layer" else When(str(when))
        return Layer(name, _name(cls), operands, state, tuple(_name(t) for t in results), frequency)

    def bound_state(self, *names: Any) -> tuple[str, ...]:
        if type(names[0]) is not Token:
            return names
        prefix, *rest = names
        return tuple(_joined(prefix, name) for name in rest)

    def range(self, first: Token, last: Token) -> _Range:
        if not 0 <= _int(last) - _int(first) < limits.REPEATS:
            _refuse(f"a loop counts upwards, at most {limits.REPEATS} times", first)
        return _Range(first, _int(first), _int(last))

    def loop(self, range: _Range, *items: Any) -> tuple[Any, ...]:
        return range.expand(items)

    def transfer(self, token: Token, type: TensorType, no_gradient: Token | None = None) -> Transfer:
        return Transfer(_plain(token), type, no_gradient is None)

    def receive(self, transfer: Transfer) -> tuple[str, Transfer]:
        return "receive", transfer

    def send(self, transfer: Transfer) -> tuple[str, Transfer]:
        return "send", transfer

    def kept(self, state: str, mesh: tuple[Axis, ...], layout: Layout, zero: Token | None = None) -> StateLayout:
        return StateLayout(state, mesh, layout, int(zero[-1]) if zero else 0)

    def stage(self, index: Token, *parts: Any) -> Stage:
        transfers = [p for p in parts if type(p) is tuple and p and isinstance(p[0], str)]
        items = _settled(p for p in parts if not (type(p) is tuple and p and isinstance(p[0], str)))
        return Stage(
            _int(index),
            tuple(i for i in items if isinstance(i, Layer)),
            tuple(t for kind, t in transfers if kind == "receive"),
            tuple(t for kind, t in transfers if kind == "send"),
            tuple(i for i in items if isinstance(i, StateLayout)),
        )

    def state(self, kind: Token, name: str, type: TensorType, *traits: Any) -> State:
        word = next((t for t in traits if isinstance(t, Token)), None)
        aliases = next((t for t in traits if isinstance(t, tuple)), ())
        return State(name, type, str(kind), kind == "parameter" if word is None else word == "trainable", aliases)

    def aliases(self, *names: str) -> tuple[str, ...]:
        return names

    # Cluster, plan, search

    def device(self, token: Token, name: str, *entries: Any) -> Device:
        rates = [(key.partition(".")[2], value) for key, value in entries if key.startswith("matmul_flop_per_s.")]
        for key, value in entries:
            if key.startswith("matmul_flop_per_s.") and not _CHECKS["a number"](value):
                _refuse(f"{str(key)!r} must be a number", key)
        others = tuple(e for e in entries if not e[0].startswith("matmul_flop_per_s."))
        return Device(str(name), matmul_flop_per_s=tuple(rates), **_record(token, others, _DEVICE_FIELDS))

    def link(self, level: Token, *entries: Any) -> tuple[Token, Link]:
        return level, Link(**_record(level, entries, _LINK_FIELDS))

    def cluster(self, token: Token, name: str, *parts: Any) -> _Section:
        device = next(p for p in parts if isinstance(p, Device))
        links = {str(p[0]): p[1] for p in parts if isinstance(p, tuple) and isinstance(p[1], Link)}
        entries = tuple(p for p in parts if isinstance(p, tuple) and not isinstance(p[1], Link))
        if set(links) != {"in_node", "cross_node"}:
            _refuse("a cluster needs one in_node and one cross_node link", token)
        fields: dict[str, Any] = {**_record(token, entries, _CLUSTER_FIELDS), **links}
        if fields["nodes"] * fields["devices_per_node"] > limits.DEVICES:
            _refuse(f"a cluster of more than {limits.DEVICES} devices", token)
        return _Section("cluster", token, Cluster(str(name), device, **fields))

    def run(self, token: Token, times: Token | None = None) -> tuple[Token, Strategy, int]:
        return token, _strategy(token), 1 if times is None else _int(times)

    def strategies(self, *runs: tuple[Token, Strategy, int]) -> tuple[Strategy, ...]:
        if sum(times for _, _, times in runs) > limits.REPEATS:
            _refuse(f"more than {limits.REPEATS} strategies", runs[0][0])
        for token, _, times in runs:
            _pay(token, ("",), times)
        return tuple(strategy for _, strategy, times in runs for _ in range(times))

    def plan_stage(self, index: Token, strategies: tuple[Strategy, ...]) -> tuple[Token, tuple[Strategy, ...]]:
        return index, strategies

    def plan(self, token: Token, *parts: Any) -> _Section:
        stages = [p for p in parts if p[0].type == "INT"]
        for expected, (index, _) in enumerate(stages):
            if _int(index) != expected:
                _refuse(f"stage {index} stands where stage {expected} should", index)
        record = _record(token, tuple(p for p in parts if p[0].type != "INT"), _PLAN_FIELDS)
        return _Section("plan", token, Plan(stages=tuple(strategies for _, strategies in stages), **record))

    def candidates(self, pipeline: Token, cls: Token, strategies: tuple[Strategy, ...]) -> Candidates:
        return Candidates(_int(pipeline, pipeline[2:]), _plain(cls), strategies)

    def candidate_section(self, token: Token, *candidates: Candidates) -> _Section:
        return _Section("candidates", token, candidates)

    def cut(self, branch: str, rule: str, reason: str) -> Cut:
        return Cut(str(branch), str(rule), str(reason))

    def cut_section(self, token: Token, *cuts: Cut) -> _Section:
        return _Section("cuts", token, cuts)

    # Sources, and the whole

    def source(self, token: Token, line: Token, code: str) -> tuple[Token, int, str]:
        return token, _int(line), str(code)

    def source_file(self, file: str, *entries: tuple[Token, int, str]) -> list[tuple[Token, str, int, str]]:
        return [(token, str(file), line, code) for token, line, code in entries]

    def sources(self, token: Token, *by_file: list[tuple[Token, str, int, str]]) -> _Section:
        table: dict[str, tuple[str, int, str]] = {}
        for number, file, line, code in (entry for entries in by_file for entry in entries):
            if number in table:
                _refuse(f"source {number} is given twice", number)
            table[str(number)] = (file, line, code)
        return _Section("sources", token, table)

    def batch_sizes(self, least: Token, *rest: tuple[str, int]) -> _Section:
        most = next((n for kind, n in rest if kind == "most"), None)
        return _Section("batch_sizes", least, BatchSizes(_int(least), most, tuple(n for k, n in rest if k == "but")))

    def batch_most(self, size: Token) -> tuple[str, int]:
        return "most", _int(size)

    def batch_but(self, size: Token) -> tuple[str, int]:
        return "but", _int(size)

    def precision(self, token: Token) -> _Section:
        return _Section("precision", token, str(token))

    def output(self, token: Token) -> _Section:
        return _Section("output", token, _plain(token))

    def whole_graph(self, token: Token, graph: Graph) -> _Section:
        return _Section("graph", token, graph)

    def program_graph(self, token: Token, graph: Graph) -> _Section:
        if graph.inputs or graph.state:
            _refuse("a graph of the program has the program's inputs and state", token)
        return _Section("graph", token, replace(graph, inputs=None, state=None))  # type: ignore[arg-type]  # see program_file

    def program_file(self, _version: Token, name: str, form: Token, batch: Token, *parts: Any) -> Program:
        forms = {str(f): f for f in Form}
        if form not in forms:
            _refuse(f"unknown form {str(form)!r}; {did_you_mean(form, forms)}", form)
        sections: dict[str, Any] = {}
        for section in (p for p in parts if isinstance(p, _Section)):
            if section.kind in sections:
                _refuse(f"a second {section.kind}", section.token)
            sections[section.kind] = section.content
        if "output" not in sections:
            _refuse("the program has no output", form)
        items = _settled(p for p in parts if not isinstance(p, _Section))
        inputs = tuple(i for i in items if isinstance(i, Value))
        state = tuple(i for i in items if isinstance(i, State))
        table = sections.get("sources", {})
        graph = sections.get("graph")
        if graph is not None and graph.inputs is None:
            graph = replace(graph, inputs=inputs, state=read_state(graph, state, sections.get("precision")))
        classes = (i for i in items if isinstance(i, LayerClass))
        return Program(
            name=str(name),
            form=forms[str(form)],
            batch_size=_int(batch),
            inputs=inputs,
            state=state,
            output=sections["output"],
            graph=None if graph is None else _with_sources(graph, table),
            classes=tuple(replace(c, graph=_with_sources(c.graph, table)) for c in classes),
            layers=tuple(i for i in items if isinstance(i, Layer)),
            cluster=sections.get("cluster"),
            candidates=sections.get("candidates", ()),
            cuts=sections.get("cuts", ()),
            plan=sections.get("plan"),
            stages=tuple(i for i in items if isinstance(i, Stage)),
            precision=sections.get("precision"),
            batch_sizes=sections.get("batch_sizes", BatchSizes()),
        )


for _rule in ("add", "subtract", "multiply", "divide", "power"):
    setattr(_Builder, _rule, _Builder.binary)
for _rule in ("layer_loop", "state_loop", "kept_loop"):
    setattr(_Builder, _rule, _Builder.loop)


def _joined(prefix: Token, name: str) -> str:
    """A name with its prefix written before the list."""
    if "{" not in prefix and not isinstance(name, _Template):
        return str(prefix) + name
    joined = _Template(prefix + name)
    joined.token = prefix
    return joined


def _settled(parts: Iterable[Any]) -> list[Any]:
    """Items and expanded loops in order, as one list, with no loop counter left in a name."""
    items: list[Any] = []
    for part in parts:
        if type(part) is tuple:
            items.extend(part)
        else:
            items.append(_filled(part, None) if isinstance(part, (Layer, State, StateLayout)) else part)
    return items


def _with_sources(graph: Graph, table: dict[str, tuple[str, int, str]]) -> Graph:
    """The graph with the source table's entries in place of references to them."""

    def resolved(op: Op) -> Op:
        reference: Any = op.source
        if reference is None:
            return op
        if reference.token not in table:
            _refuse(f"source {reference.token} is not in the table", reference.token)
        return replace(op, source=Source(*table[reference.token], reference.scope))

    return replace(graph, ops=tuple(resolved(op) for op in graph.ops))
