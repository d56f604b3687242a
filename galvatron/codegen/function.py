"""One layer class as a Python function: mesh axes, then data, then state, then what else it needs by keyword."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import sympy

from galvatron.codegen.expressions import print_expression, share
from galvatron.codegen.layout import INDENT, WIDTH, Text, call, lines, prefixed, tuple_of
from galvatron.codegen.names import Scope, escaped, shortest_suffixes
from galvatron.codegen.ops import ASKED, IN_TRAINING, OpPrinter
from galvatron.ir import graph as ir
from galvatron.ir.attention import Core, with_cores
from galvatron.ir.collectives import STARTED, WAIT, is_started
from galvatron.ir.either import Ways, has_ways
from galvatron.ir.graph import Arg, Graph, Op, Source
from galvatron.ir.layout import nameable_axes
from galvatron.ir.local_functions import with_local_functions
from galvatron.ir.ops.table import OPERATORS, operator_of
from galvatron.ir.program import LayerClass
from galvatron.ir.random import is_random
from galvatron.ir.recompute import Step, selective_steps
from galvatron.ir.types import BATCH, LOCAL_BATCH, MICRO_BATCHES, lengths_in, numbers_in

_SHORT = {name.strip("_"): operator.short for name, operator in OPERATORS.items() if operator.short}


@dataclass(frozen=True)
class Function:
    """The text of a layer class and how to call it.

    `axes` are the names of the class's mesh axes on which it communicates or draws, in mesh order. `keywords` are what
    it cannot read off its arguments: `B` (global batch size), `m` (micro-batches of the step), `b` (local batch size),
    `device`, `training` (whether the running step trains), `asked` (whether it is to give the model's outputs).
    `numbers` are the other keywords, with the numbers and lengths of the batch that they are. A `random` function also
    takes the `seed` of the call, which `rt.Layer` gives it; `stream` are the axes of the draws that may follow one
    after another from one key, None where each must have its own.
    """

    name: str
    text: str
    axes: tuple[str, ...]
    keywords: tuple[str, ...]
    random: bool = False
    numbers: tuple[tuple[str, str], ...] = ()
    stream: tuple[str, ...] | None = None


def emit_function(
    cls: LayerClass,
    name: str,
    waiting: frozenset[str] = frozenset(),
    own: Mapping[ir.Function, str] | None = None,
    only_given: frozenset[str] = frozenset(),
) -> Function:
    """Writes the function of a sharded layer class.

    Args:
        waiting: those among its weights whose gradients may come later.
        own: the Python classes of the functions with a backward of their own that its ops call.
        only_given: the outputs that no layer reads: what only these need is computed where they are asked for.
    """
    graph = with_local_functions(cls.graph, cls.mesh)
    symbols = symbols_in(graph)
    axes = _axes_used(cls)
    random = any(is_random(op) for op in graph.ops)
    trains = has_ways(graph)
    trains |= any(switch and op[switch] is True for op in graph.ops if (switch := operator_of(op).in_training))
    reserved = {"b": LOCAL_BATCH in symbols, "B": BATCH in symbols, "m": MICRO_BATCHES in symbols, "seed": random}
    trained = graph.without_outputs(only_given)
    reserved |= {IN_TRAINING: trains, ASKED: trained != graph}
    scope = Scope(taken=[*(name for name, used in reserved.items() if used), *(own or {}).values()])
    for axis in axes:
        scope.bind(("axis", axis), axis)
    parameters = [scope["axis", axis] for axis in axes]
    parameters += [scope.bind(value.name) for value in graph.inputs]
    suffixes = shortest_suffixes(value.name for value in graph.state)
    parameters += [scope.bind(value.name, suffixes[value.name]) for value in graph.state]

    names = {number.parameter for symbol in symbols for number in numbers_in(symbol)}
    names |= {length.name for symbol in symbols for length in lengths_in(symbol)}
    given = tuple((scope.bind(("number", name), name), name) for name in sorted(names))
    batch_binding = bind_batch(graph, scope, LOCAL_BATCH) if LOCAL_BATCH in symbols else None
    keywords = [str(symbol) for symbol in (BATCH, MICRO_BATCHES) if symbol in symbols]
    keywords += ["b"] if LOCAL_BATCH in symbols and batch_binding is None else []
    first_tensor = next((scope[v.name] for v in (*graph.inputs, *graph.state)), None)
    if first_tensor is None and any(not op.operands for op in graph.ops):
        keywords.append("device")
    keywords += [word for word in (IN_TRAINING, ASKED) if reserved[word]]
    device = "device" if first_tensor is None else f"{first_tensor}.device"

    named = [*keywords, *(keyword for keyword, _ in given), *(["seed"] if random else [])]
    signature = [*parameters, *(["*", *named] if named else [])]
    body = [f"{INDENT}{batch_binding}"] if batch_binding else []
    recompute = cls.strategy.recompute if cls.strategy else "none"
    steps = selective_steps(graph, recompute)
    printer = OpPrinter(scope.__getitem__, graph.values, device, waiting, own or {})
    early = {id(op) for op in trained.ops}

    def some(ops: list[Op]) -> Iterator[str]:
        return body_lines(graph, scope, printer, steps, with_cores(graph, ops) if recompute == "attention" else ops)

    body += some([op for op in graph.ops if id(op) in early])
    if reserved[ASKED]:
        body += [f"{INDENT}if not {ASKED}:"]
        body += returned([scope[output] if output in trained.outputs else "None" for output in graph.outputs], 2)
        body += some([op for op in graph.ops if id(op) not in early])
    header = lines(prefixed("def ", call(name, signature), ":"))
    body += returned([scope[output] for output in graph.outputs], 1)
    return Function(name, "\n".join([*header, *body]), axes, tuple(keywords), random, given, _stream(cls))


def returned(values: list[str], depth: int) -> list[str]:
    """The statement that returns some values."""
    result = lines(tuple_of(values) if len(", ".join(values)) > WIDTH - 12 else ", ".join(values), depth)
    result[0] = f"{INDENT * depth}return {result[0].strip()}"
    return result


def body_lines(
    graph: Graph,
    scope: Scope,
    printer: OpPrinter,
    steps: Mapping[int, Step],
    ops: Sequence[Op | Core] | None = None,
    depth: int = 1,
) -> Iterator[str]:
    """One assignment for each of some ops (all by default), each run of ops from one source line under that line, and
    what only steps of one kind compute under a condition. A core is a function in the function.

    Args:
        steps: the ops that a recomputed layer does not compute again, by their places.
    """
    namer = _Namer(graph, scope)
    used = {name for op in graph.ops for name in op.operands} | set(graph.outputs)
    place = {id(op): index for index, op in enumerate(graph.ops)}
    source: Source | None = None
    ways, way = Ways(graph), None
    outer = depth
    for op in graph.ops if ops is None else ops:
        of_way = ways.only(op.ops[-1] if isinstance(op, Core) else op)
        if of_way is not way:
            way = of_way
            if way is not None:
                yield f"{INDENT * outer}if {'' if way else 'not '}{IN_TRAINING}:"
            depth = outer + (way is not None)
        if isinstance(op, Core):
            yield from _core_lines(op, scope, body_lines(graph, scope, printer, steps, op.ops, depth + 1), depth)
            source = None
            continue
        index = place[id(op)]
        if op.source is not None and (source is None or str(op.source) != str(source)):
            source = op.source
            yield f"{INDENT * depth}{source_comment(source, depth)}"
        expression = printer.step(op, steps[index]) if index in steps else printer.expression(op)
        wish = namer.wish(op)
        targets = [scope.bind(v.name, wish or _short(v.name)) if v.name in used else "_" for v in op.results]
        unpacked = ", ".join(targets) + ("," if len(targets) == 1 and printer.returns_list(op) else "")
        if unpacked.endswith(","):
            unpacked = f"({unpacked})"
        if is_random(op):
            yield from lines(prefixed("with ", printer.draw(op), ":"), depth)
        yield from _assignment(targets, unpacked, expression, depth + is_random(op))


def _assignment(targets: Sequence[str], unpacked: str, expression: Text, depth: int) -> list[str]:
    """The statement that names results; one name a line where they are too long for one."""
    found = lines(prefixed(f"{unpacked} = ", expression), depth)
    if len(targets) == 1 or len(found[0]) <= WIDTH:
        return found
    names = (f"{INDENT * (depth + 1)}{target}," for target in targets)
    return [f"{INDENT * depth}(", *names, *lines(prefixed(") = ", expression), depth)]


def _core_lines(core: Core, scope: Scope, body: Iterator[str], depth: int) -> Iterator[str]:
    """A function of what a core reads, and a call that computes its activations again in the backward."""
    name = scope.bind(("core", core.outputs[0]), "attend")
    read = [scope[value] for value in core.inputs]
    yield from ["", *lines(prefixed("def ", call(name, read), ":"), depth), *body]
    made = [scope[value] for value in core.outputs]
    yield from [*returned(made, depth + 1), ""]
    yield from lines(prefixed(f"{', '.join(made)} = ", call("rt.again", [name, *read])), depth)


class _Namer:
    """Better names than those of the ops: what a module's weight makes is called after the module."""

    def __init__(self, graph: Graph, scope: Scope) -> None:
        self._scope = scope
        self._modules = {value.name: _module(value.name) for value in graph.state}

    def wish(self, op: Op) -> str:
        """What the result should be called; empty when the op's own name is as good."""
        if len(op.results) != 1:
            return ""
        if op.namespace == "comm":
            operand = op.operands[0]
            self._modules[op.result.name] = self._modules.get(operand, "")
            if op.target == WAIT:
                return self._scope[operand].removesuffix(f"_{STARTED}")
            return f"{self._scope[operand]}_{op.name}" + f"_{STARTED}" * is_started(op)
        module = next((self._modules[name] for name in op.operands if self._modules.get(name)), "")
        return module if module and self._scope.is_free(module) else ""


def _module(state: str) -> str:
    """The module that a weight or bias belongs to: `self_attn.q_proj.weight` → `q_proj`; empty if that says nothing."""
    *path, last = state.split(".")
    return path[-1] if path and last in ("weight", "bias") and not path[-1].isdigit() else ""


def _short(name: str) -> str:
    """What a person would call the result of an op with a long name."""
    return next((name.replace(long, short) for long, short in _SHORT.items() if name.startswith(long)), name)


def source_comment(source: Source, depth: int = 1) -> str:
    """`# modeling_llama.py:220  query = self.q_proj(x)`."""
    text = f"# {PurePath(source.file).name}:{source.line}  {' '.join(source.code.split())}".rstrip()
    text = "".join(c if c.isprintable() else escaped(c) for c in text)
    room = WIDTH - len(INDENT) * depth
    return text if len(text) <= room else f"{text[: room - 2].rstrip()} …"


def bind_batch(graph: Graph, scope: Scope, symbol: sympy.Symbol) -> str | None:
    """`b = x.size(0)`, read off the input that says it most simply; None when no input has a multiple of it as size."""
    found: list[tuple[int, int, str]] = []
    for order, value in enumerate(graph.inputs):
        for dim, size in enumerate(value.type.shape):
            factor = share(size, symbol)
            if factor is not None:
                read = sympy.Symbol(f"{scope[value.name]}.size({dim})")
                text = print_expression(read * sympy.Rational(factor.denominator, factor.numerator))
                found.append((factor.numerator + factor.denominator, order, f"{symbol} = {text}"))
    return min(found)[2] if found else None


def symbols_in(graph: Graph) -> set[sympy.Symbol]:
    """The symbols that the ops mention."""

    def walk(arg: Arg) -> Iterator[sympy.Symbol]:
        if isinstance(arg, sympy.Expr):
            yield from (s for s in arg.free_symbols if isinstance(s, sympy.Symbol))
        elif isinstance(arg, tuple):
            for item in arg:
                yield from walk(item)

    return {symbol for op in graph.ops for symbol in walk((op.args, tuple(v for _, v in op.kwargs)))}


def _axes_used(cls: LayerClass) -> tuple[str, ...]:
    used = {op.kwarg("axis") for op in cls.graph.ops if op.namespace in ("comm", "spmd")}
    for op in filter(is_random, cls.graph.ops):
        axes = op.kwarg("axes")
        assert isinstance(axes, tuple)
        used.update(axes)
    return tuple(axis.name for axis in nameable_axes(cls.mesh) if axis.name in used)


def _stream(cls: LayerClass) -> tuple[str, ...] | None:
    """The axes of most draws of each micro-batch, where all or none of the function is computed again."""
    if cls.strategy and cls.strategy.recompute not in ("none", "full"):
        return None
    draws = [op.kwarg("axes") for op in cls.graph.ops if is_random(op) and not op.kwarg("per_step")]
    axes = [tuple(map(str, axes)) for axes in draws if isinstance(axes, tuple)]
    return max(axes, key=axes.count, default=None)
