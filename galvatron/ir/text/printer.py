"""Programs as text for people: one line per op, layer or piece of state, repeats as loops, costs as comments.

Every part of a program is printed by one small function that yields `Line`s; a line knows which part it shows (its
locus), so the verifier can point at it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from galvatron.ir.cluster import Cluster
from galvatron.ir.cost import ClassCost, at_batch
from galvatron.ir.functions import functions_of
from galvatron.ir.graph import Arg, Function, Graph, Op, Source, Value
from galvatron.ir.layout import Axis, Layout, Placement, Shard
from galvatron.ir.plan import Plan, kept_text
from galvatron.ir.program import (
    BatchSizes,
    Candidates,
    Check,
    Cut,
    Layer,
    LayerClass,
    Program,
    Result,
    Stage,
    State,
    StateLayout,
    Transfer,
    Update,
)
from galvatron.ir.text import tokens
from galvatron.ir.text.arguments import format_argument
from galvatron.ir.text.graphs import read_state
from galvatron.ir.text.loops import Loop, rolled
from galvatron.ir.text.names import bare_or_quoted, quote, sigiled, split_marks, unmark
from galvatron.ir.text.records import entries, figure, record_lines, within
from galvatron.ir.text.strategies import format_runs, format_strategy
from galvatron.ir.types import Dim, TensorType

_NAME_WIDTH, _CALL_WIDTH, _TYPE_WIDTH, _COLUMN_WIDTH, _LINE_WIDTH = 28, 80, 40, 64, 120
_AXIS_NAME = re.compile(tokens.NAME)


GRAPH, SHARED_GRAPH = "graph {", "graph of program {"
"""What opens a captured program's graph: one with a signature of its own, and one that has the program's."""


@dataclass(frozen=True)
class Line:
    """One printed line, and which part of the program it shows: `("layer", "decoder_3")`, `("op", class, index)` …"""

    text: str
    locus: tuple[Hashable, ...] = ()


@dataclass
class _Writer:
    """Options of one printing, and the source locations met so far.

    A lenient writer never fails (it prints invalid programs for the verifier's messages) and rolls nothing into loops.
    """

    comments: bool = True
    lenient: bool = False
    sources: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def source(self, source: Source) -> str:
        key = (source.file, source.line, source.code)
        return f"#{self.sources.setdefault(key, len(self.sources))}"

    def note(self, text: str) -> str:
        return f"  // {text}" if self.comments else ""


def print_program(program: Program, *, comments: bool = True) -> str:
    """The text of a program; `parse_program` gives back an equal program, with equal sources.

    Raises:
        GalvatronError: an expression or constant that has no text form.
    """
    return _joined(program_lines(program, _Writer(comments)))


def print_graph(graph: Graph, *, comments: bool = True) -> str:
    """The text of a single op graph; `parse_graph` gives it back."""
    w = _Writer(comments)
    functions = [line for function in functions_of([graph]) for line in (*_function(function, w), Line(""))]
    body = [*functions, Line("graph {"), *_graph_body(graph, w, None), Line("}")]
    return _joined([Line(f"galvatron ir {tokens.VERSION}"), Line(""), *body, *_sources(w)])


def op_text(op: Op) -> str:
    """One op on a line of its own, without what says where it comes from."""
    w = _Writer(lenient=True)
    types = ", ".join(_typed(value, w) for value in op.results) if op.results else "()"
    return unmark(f"{_names([value.name for value in op.results])} = {_call(op, w)} : {types}")


def table_lines(program: Program) -> list[str]:
    """The text of a program, line by line, without the table of its sources."""
    return [unmark(line.text) for line in program_lines(program, _Writer())]


def lenient_program_lines(program: Program) -> list[Line]:
    """The lines of a possibly invalid program, nothing rolled into loops, for error messages."""
    return [Line(unmark(line.text), line.locus) for line in program_lines(program, _Writer(lenient=True))]


def _joined(lines: Iterable[Line]) -> str:
    return unmark("\n".join(line.text.rstrip() for line in lines)) + "\n"


def program_lines(program: Program, w: _Writer) -> list[Line]:
    """The whole file: what is computed and how it is cut first, the graphs after, tables last."""
    head = f"program {bare_or_quoted(program.name)} {program.form} batch {program.batch_size}"
    head += "" if program.batch_sizes == BatchSizes() else f" {program.batch_sizes}"
    head += "" if program.precision is None else f" precision {program.precision}"
    sections = [
        [Line(f"galvatron ir {tokens.VERSION}")],
        [
            Line(head, ("program",)),
            *(Line(f"length {length} = {length.example} {length.sizes}", ("length",)) for length in program.lengths),
        ],
        [
            *_aligned_values("input", program.inputs, w, "program"),
            *(
                Line(f"number {number.symbol.name} = {_arg(number.example, w)}", ("number", number.name))
                for number in program.numbers
            ),
            Line(f"output {sigiled('%', program.output)}", ("output",)),
            *_updates(program.updates, w),
            *_outputs(program.outputs, w),
            *map(_check, program.checks),
            *(
                [Line(f"evaluation unlike {quote(unlike)}", ("output",))]
                if (unlike := program.unlike_evaluated)
                else []
            ),
            *([Line("inductor", ("output",))] if program.inductor else []),
        ],
        _plan(program.plan, w) if program.plan else [],
        _layers(program.layers, w, ""),
        *(_stage(stage, w) for stage in program.stages),
        _candidates(program.candidates) if program.candidates else [],
        *(_function(function, w) for function in program.functions),
        *(_layer_class(cls, program.batch_size, w) for cls in program.classes),
        _program_graph(program, w) if program.graph is not None else [],
        _state(program.state, w),
        *([Line(text, ("rule", rule.name)) for text in record_lines("rule", rule, w.note)] for rule in program.rules),
        _cuts(program.cuts) if program.cuts else [],
        _cluster(program.cluster, w) if program.cluster else [],
    ]
    lines = [line for section in sections if section for line in (*section, Line(""))]
    tail = _sources(w)
    return lines + tail[1:] if tail else lines[:-1]


# Values and types


def _arg(arg: Arg, w: _Writer) -> str:
    return format_argument(arg, lenient=w.lenient)


def _type(type: TensorType, w: _Writer) -> str:
    return f"{type.dtype}[{', '.join(_arg(d, w) for d in type.shape)}]"


def _placement(placement: Placement, w: _Writer) -> str:
    if isinstance(placement, Shard) and placement.outer != 1:
        flags = ", folded" * placement.folded + ", padded" * placement.padded
        return f"S({placement.dim}, outer={_arg(placement.outer, w)}{flags})"
    return str(placement)


def _layout(layout: Layout, w: _Writer) -> str:
    return f"({', '.join(_placement(p, w) for p in layout)})"


def _typed(value: Value, w: _Writer) -> str:
    return _type(value.type, w) + ("" if value.layout is None else " " + _layout(value.layout, w))


def _mesh(mesh: tuple[Axis, ...]) -> str:
    names = (a.name if _AXIS_NAME.fullmatch(a.name) else quote(a.name) for a in mesh)
    return f"({', '.join(f'{name}={a.size}@{a.stride}' for name, a in zip(names, mesh, strict=True))})"


def _value_name(name: str) -> str:
    return sigiled("%", name)


def _names(names: Sequence[str]) -> str:
    return ", ".join(_value_name(n) for n in names) if names else "_"


def _width(texts: Iterable[str], limit: int) -> int:
    """The width of the widest text that is not wider than the limit."""
    return max((n for n in map(_length, texts) if n <= limit), default=0)


def _length(text: str) -> int:
    return len(text) - text.count("\x00")


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _length(text))


def _aligned_values(keyword: str, values: Sequence[Value], w: _Writer, owner: Hashable, indent: str = "") -> list[Line]:
    names = [_value_name(v.name) for v in values]
    width = _width(names, 64)
    return [
        Line(f"{indent}{keyword} {_pad(name, width)} : {_typed(v, w)}", (keyword, owner, v.name))
        for name, v in zip(names, values, strict=True)
    ]


# Op graphs


def _call(op: Op, w: _Writer) -> str:
    args = [_arg(a, w) for a in op.args] + [f"{k}={_arg(v, w)}" for k, v in op.kwargs]
    return f"{op.target}({', '.join(args)})"


def _graph_body(graph: Graph, w: _Writer, owner: Hashable, *, signature: bool = True) -> list[Line]:
    lines: list[Line] = []
    if signature:
        lines += _aligned_values("input", graph.inputs, w, owner, "  ")
        lines += _aligned_values("state", graph.state, w, owner, "  ")
    results = [_names([v.name for v in op.results]) for op in graph.ops]
    calls = [_call(op, w) for op in graph.ops]
    types = [", ".join(_typed(v, w) for v in op.results) if op.results else "()" for op in graph.ops]
    widths = _width(results, _NAME_WIDTH), _width(calls, _CALL_WIDTH), _width(types, _TYPE_WIDTH)
    scope: str | None = None
    for index, op in enumerate(graph.ops):
        source = ""
        if op.source is not None:
            if op.source.scope != scope and not (scope is None and op.source.scope == ""):
                lines.append(Line(f"  in {unmark(bare_or_quoted(op.source.scope))}"))
            scope = op.source.scope
            source = "  " + w.source(op.source)
        columns = (_pad(t, n) for t, n in zip((results[index], calls[index], types[index]), widths, strict=True))
        left, call, right = columns
        lines.append(Line(f"  {left} = {call} : {right}{source}", ("op", owner, index)))
    lines.append(Line(f"  return {_names(graph.outputs)}", ("return", owner)))
    return lines


def _program_graph(program: Program, w: _Writer) -> list[Line]:
    graph = program.required_graph
    shared = graph.inputs == program.inputs and graph.state == read_state(graph, program.state, program.precision)
    opening = SHARED_GRAPH if shared and not w.lenient else GRAPH
    body = _graph_body(graph, w, None, signature=opening == GRAPH)
    return [Line(opening, ("graph",)), *body, Line("}")]


def _function(function: Function, w: _Writer) -> list[Line]:
    """Forward and backward; how many results there are, and the places of the operands that have a gradient."""
    places = ", ".join(map(str, function.differentiated))
    head = f"function {function.name} results {function.results} gradients ({places}) {{"
    forward = _graph_body(function.forward, w, (function.name, "forward"))
    backward = _graph_body(function.backward, w, (function.name, "backward"))
    return [Line(head, ("function", function.name)), *forward, Line("} backward {"), *backward, Line("}")]


# Classes, layers, stages


def _layer_class(cls: LayerClass, batch_size: int, w: _Writer) -> list[Line]:
    head = [f"class {sigiled('@', cls.name)}"]
    if cls.base:
        head.append(f"of {sigiled('@', cls.base)}")
    if cls.strategy is not None:
        head.append(f"strategy {format_strategy(cls.strategy)}")
    if cls.mesh:
        head.append(f"mesh {_mesh(cls.mesh)}")
    cost = _cost(cls.cost, batch_size, w) if cls.cost else []
    body = _graph_body(cls.graph, w, cls.name)
    return [Line(" ".join(head) + " {", ("class", cls.name)), *cost, *body, Line("}")]


def _cost(cost: ClassCost, batch_size: int, w: _Writer) -> list[Line]:
    rows = list(entries(cost, lenient=w.lenient))
    texts = [f"{name:<15} = {text}" for name, text, _ in rows]
    width = _width(texts, 64)
    lines: list[Line] = []
    for index, ((name, _, _), text) in enumerate(zip(rows, texts, strict=True)):
        comma = "," if index < len(rows) - 1 else ""
        note = w.note(f"{_at_batch(name, getattr(cost, name), batch_size)} at batch {batch_size}") if w.comments else ""
        lines.append(Line(f"  {'cost' if index == 0 else '    '} {_pad(text + comma, width + 1)}{note}"))
    return lines


def _at_batch(name: str, value: Dim, batch_size: int) -> str:
    try:
        return figure(name, at_batch(value, batch_size))
    except TypeError:
        return "unknown"


def _layer(layer: Layer) -> str:
    operands = ", ".join(_value_name(n) for n in layer.operands)
    origin = f" of {_names(layer.origin)}" if layer.origin else ""
    call = f"{sigiled('@', layer.cls)}({operands}){origin}"
    text = f"{layer.kind}\t{bare_or_quoted(layer.name)}\t{_names(layer.results)}\t= {call}"
    return f"{text}{_bound_state(layer.state)}" if layer.state else text


def _bound_state(names: Sequence[str]) -> str:
    prefix = _common_prefix(names)
    shown = [bare_or_quoted(name[len(prefix) :]) for name in names]
    opening = f"state {bare_or_quoted(prefix)} (" if prefix else "state ("
    lines, line = [], opening
    for index, name in enumerate(shown):
        piece = name + (", " if index < len(shown) - 1 else ")")
        # Counted without the digits, so that equal layers break their lines at equal places and roll into a loop.
        if len(split_marks(line + piece)[0]) > _LINE_WIDTH - 4 and line != opening:
            lines.append(line.rstrip())
            line = "  "
        line += piece
    return "".join(f"\n  {part}" for part in (*lines, line))


def _common_prefix(names: Sequence[str]) -> str:
    """The dotted prefix that all names share, ending in a dot, when writing it once makes plain names."""
    if len(names) < 2:
        return ""
    shortest, longest = min(names), max(names)
    common = next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
    prefix = shortest[: shortest.rfind(".", 0, common) + 1]
    plain = all(not bare_or_quoted(n[len(prefix) :] or " ").startswith('"') for n in names)
    return prefix if plain and prefix and not bare_or_quoted(prefix).startswith('"') else ""


def _rolled(items: Sequence[str], loci: Sequence[tuple[Hashable, ...]], w: _Writer, indent: str) -> list[Line]:
    """Items as lines, regular stretches as loops, tabs aligned.

    An item may be several lines, of which the first carries the locus.
    """
    lines: list[Line] = []

    def emit(item: str, locus: tuple[Hashable, ...], margin: str) -> None:
        first, *rest = item.split("\n")
        lines.append(Line(margin + first, locus))
        lines.extend(Line(margin + part) for part in rest)

    at = 0
    for entry in items if w.lenient else rolled(items):
        if isinstance(entry, Loop):
            lines.append(Line(f"{indent}for i in {entry.first}..{entry.last} {{{w.note(f'×{entry.count}')}"))
            for item in entry.body:
                emit(item, (), indent + "  ")
            lines.append(Line(indent + "}"))
            at += entry.count * len(entry.body)
        else:
            emit(entry, loci[at], indent)
            at += 1
    return _aligned(lines)


def _aligned(lines: Sequence[Line]) -> list[Line]:
    """Lines with their tab-separated columns padded to equal widths."""
    rows = [line.text.split("\t") for line in lines]
    for column in range(max((len(row) for row in rows), default=1) - 1):
        # One line much longer than the others, such as a preamble's many results, must not push them apart.
        lengths = sorted(_length(row[column]) for row in rows if len(row) > column + 1)
        usual = 2 * lengths[len(lengths) // 2] + 8
        width = _width((row[column] for row in rows if len(row) > column + 1), min(usual, _COLUMN_WIDTH))
        for row in rows:
            if len(row) > column + 1:
                row[column] = _pad(row[column], width)
    return [Line(" ".join(row), line.locus) for row, line in zip(rows, lines, strict=True)]


def _layers(layers: Sequence[Layer], w: _Writer, indent: str, owner: Hashable = None) -> list[Line]:
    loci: list[tuple[Hashable, ...]] = [("layer", owner, index) for index in range(len(layers))]
    return _rolled([_layer(layer) for layer in layers], loci, w, indent)


def _transfers(keyword: str, transfers: Sequence[Transfer], stage: int, w: _Writer) -> list[Line]:
    width = _width((_value_name(t.name) for t in transfers), 64)
    return [
        Line(
            f"  {keyword:<7} {_pad(_value_name(t.name), width)} : {_type(t.type, w)}"
            + ("" if t.differentiable else " no_gradient"),
            (keyword, stage, t.name),
        )
        for t in transfers
    ]


def _kept(kept: StateLayout, w: _Writer) -> str:
    zero = f" zero{kept.zero}" if kept.zero else ""
    return f"keep {bare_or_quoted(kept.state)}\t: {_mesh(kept.mesh)} {_layout(kept.layout, w)}{zero}"


def _stage(stage: Stage, w: _Writer) -> list[Line]:
    loci: list[tuple[Hashable, ...]] = [("keep", stage.index, kept.state) for kept in stage.state]
    return [
        Line(f"stage {stage.index} {{", ("stage", stage.index)),
        *_transfers("receive", stage.receives, stage.index, w),
        *_layers(stage.layers, w, "  ", stage.index),
        *_transfers("send", stage.sends, stage.index, w),
        *_rolled([_kept(k, w) for k in stage.state], loci, w, "  "),
        Line("}"),
    ]


def _state(state: Sequence[State], w: _Writer) -> list[Line]:
    items = []
    for s in state:
        text = f"{s.kind} {bare_or_quoted(s.name)}\t: {_type(s.type, w)}"
        if s.trainable != (s.kind == "parameter"):
            text += " trainable" if s.trainable else " frozen"
        if s.aliases:
            text += f" tied ({', '.join(bare_or_quoted(a) for a in s.aliases)})"
        if s.rule:
            text += f" by {bare_or_quoted(s.rule)}"
        items.append(text)
    return _rolled(items, [("program state", None, s.name) for s in state], w, "")


def _updates(updates: Sequence[Update], w: _Writer) -> list[Line]:
    items = [f"update {bare_or_quoted(u.state)}\t{'+=' if u.adds else '='} {_value_name(u.value)}" for u in updates]
    return _rolled(items, [("update", u.state) for u in updates], w, "")


def _outputs(outputs: Sequence[Result], w: _Writer) -> list[Line]:
    items = [f"result {bare_or_quoted(o.name)}\t= {_value_name(o.value)}" for o in outputs]
    return _rolled(items, [("result", o.name) for o in outputs], w, "")


def _evaluation(unlike: str) -> list[Line]:
    return [Line(f"evaluation unlike {quote(unlike)}", ("evaluation",))] if unlike else []


def _check(check: Check) -> Line:
    return Line(f"check {quote(check.says)} never {_value_name(check.value)}", ("check", check.value))


# Cluster, plan, search


def _plan(plan: Plan, w: _Writer) -> list[Line]:
    return [
        Line("plan {", ("plan",)),
        *(
            Line(f"  {name:<17} = {text}{w.note(shown) if shown else ''}", ("plan", name))
            for name, text, shown in entries(plan, lenient=w.lenient)
        ),
        *(Line(f"  {line}", ("plan",)) for line in within(plan, w.note)),
        *(
            Line(f"  tie {unmark(bare_or_quoted(name))} = {kept_text(kept)}", ("plan", "tie", name))
            for name, kept in plan.ties
        ),
        *(
            Line(f"  stage {i} = {format_runs(stage)}{w.note(f'{len(stage)} layers')}", ("plan", "stage", i))
            for i, stage in enumerate(plan.stages)
        ),
        Line("}"),
    ]


def _candidates(candidates: Sequence[Candidates]) -> list[Line]:
    lines = [Line("candidates {")]
    for c in candidates:
        locus = ("candidates", c.pipeline_degree, c.cls)
        lines.append(Line(f"  pp{c.pipeline_degree} {sigiled('@', c.cls)}: {format_runs(c.strategies)}", locus))
    return [*lines, Line("}")]


def _cuts(cuts: Sequence[Cut]) -> list[Line]:
    rows = [f"  cut {quote(c.branch)} by {unmark(bare_or_quoted(c.rule))} because {quote(c.reason)}" for c in cuts]
    return [Line("cuts {"), *map(Line, rows), Line("}")]


def _cluster(cluster: Cluster, w: _Writer) -> list[Line]:
    *lines, end = record_lines("cluster", cluster, w.note)
    return [*(Line(line, ("cluster",)) for line in lines), Line(end)]


# Sources


def _sources(w: _Writer) -> list[Line]:
    """The table of source locations, by file; empty (or blank, then the table)."""
    if not w.sources or w.lenient:
        return []
    lines = [Line(""), Line("sources {")]
    table = sorted(w.sources.items(), key=lambda entry: entry[0][0])
    for file, rows_of_file in groupby(table, key=lambda entry: entry[0][0]):
        lines.append(Line(f"  file {quote(file)} {{"))
        rows = sorted((number, line, code) for (_, line, code), number in rows_of_file)
        lines += [Line(f"    {f'#{number}':<5} {line:>5} {quote(code)}") for number, line, code in rows]
        lines.append(Line("  }"))
    return [*lines, Line("}")]
