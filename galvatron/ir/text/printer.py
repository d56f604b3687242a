"""Programs as text for people: one line per op, layer or piece of state, repeats as loops, costs as comments.

Every part of a program is printed by one small function that yields `Line`s; a line knows which part it shows (its
locus), so the verifier can point at it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.cost import ClassCost, at_batch
from galvatron.ir.functions import functions_of
from galvatron.ir.graph import Graph
from galvatron.ir.plan import Plan, kept_text
from galvatron.ir.program import (
    BatchSizes,
    Candidates,
    Check,
    Cut,
    Layer,
    LayerClass,
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
from galvatron.ir.text.arguments import format_argument
from galvatron.ir.text.graph_lines import (
    function_lines,
    graph_lines,
    layout_text,
    mesh_text,
    type_text,
    value_lines,
    value_name,
    value_names,
)
from galvatron.ir.text.graphs import read_state
from galvatron.ir.text.lines import Line, Locus, Writer, joined, pad, rolled_lines, source_lines, width
from galvatron.ir.text.names import bare_or_quoted, quote, sigiled, split_marks, unmark
from galvatron.ir.text.records import entries, figure, record_lines, within
from galvatron.ir.text.strategies import format_runs, format_strategy
from galvatron.ir.types import Dim

_COLUMN_WIDTH, _LINE_WIDTH = 64, 120


GRAPH, SHARED_GRAPH = "graph {", "graph of program {"
"""What opens a captured program's graph: one with a signature of its own, and one that has the program's."""


def print_program(program: Program, *, comments: bool = True, locations: bool = False) -> str:
    """The text of a program; `parse_program` gives back an equal program, with equal sources.

    Args:
        comments: say what figures mean, in comments.
        locations: say of each op, in a comment, which line of the model it comes from.

    Raises:
        GalvatronError: an expression or constant that has no text form.
    """
    return joined(program_lines(program, Writer(comments, locations=locations)))


def program_text(program: Program, *, locations: bool = False) -> str:
    """The text of a program that need not be valid, as far as it has one."""
    try:
        return print_program(program, locations=locations)
    except GalvatronError:
        return joined(lenient_program_lines(program))


def print_graph(graph: Graph, *, comments: bool = True) -> str:
    """The text of a single op graph; `parse_graph` gives it back."""
    w = Writer(comments)
    functions = [line for function in functions_of([graph]) for line in (*function_lines(function, w), Line(""))]
    body = [*functions, Line("graph {"), *graph_lines(graph, w, None), Line("}")]
    return joined([Line(f"galvatron ir {tokens.VERSION}"), Line(""), *body, *source_lines(w)])


def table_lines(program: Program) -> list[str]:
    """The text of a program, line by line, without the table of its sources."""
    return [unmark(line.text) for line in program_lines(program, Writer())]


def lenient_program_lines(program: Program) -> list[Line]:
    """The lines of a possibly invalid program, nothing rolled into loops, for error messages."""
    return [Line(unmark(line.text), line.locus) for line in program_lines(program, Writer(lenient=True))]


def program_lines(program: Program, w: Writer) -> list[Line]:
    """The whole file: what is computed and how it is cut first, the graphs after, tables last."""
    sections = [
        [Line(f"galvatron ir {tokens.VERSION}")],
        _head(program),
        _signature(program, w),
        _plan(program.plan, w) if program.plan else [],
        _layers(program.layers, w, ""),
        *(_stage(stage, w) for stage in program.stages),
        _candidates(program.candidates) if program.candidates else [],
        *(function_lines(function, w) for function in program.functions),
        *(_layer_class(cls, program.batch_size, w) for cls in program.classes),
        _program_graph(program, w) if program.graph is not None else [],
        _state(program.state, w),
        *([Line(text, ("rule", rule.name)) for text in record_lines("rule", rule, w.note)] for rule in program.rules),
        _cuts(program.cuts) if program.cuts else [],
        _cluster(program.cluster, w) if program.cluster else [],
    ]
    lines = [line for section in sections if section for line in (*section, Line(""))]
    tail = source_lines(w)
    return lines + tail[1:] if tail else lines[:-1]


def _head(program: Program) -> list[Line]:
    head = f"program {bare_or_quoted(program.name)} {program.form} batch {program.batch_size}"
    head += "" if program.batch_sizes == BatchSizes() else f" {program.batch_sizes}"
    head += "" if program.precision is None else f" precision {program.precision}"
    lengths = (f"length {length} = {length.example} {length.sizes}" for length in program.lengths)
    return [Line(head, ("program",)), *(Line(text, ("length",)) for text in lengths)]


def _signature(program: Program, w: Writer) -> list[Line]:
    """What is given to a program and what it gives."""
    numbers = (
        Line(f"number {n.symbol.name} = {format_argument(n.example, lenient=w.lenient)}", ("number", n.name))
        for n in program.numbers
    )
    lines = [
        *value_lines("input", program.inputs, w, "program"),
        *numbers,
        Line(f"output {value_name(program.output)}", ("output",)),
        *_updates(program.updates, w),
        *_outputs(program.outputs, w),
        *map(_check, program.checks),
        *_reached(program.reached, w),
    ]
    if program.unlike_evaluated:
        lines.append(Line(f"evaluation unlike {quote(program.unlike_evaluated)}", ("output",)))
    return [*lines, Line("inductor", ("output",))] if program.inductor else lines


def _program_graph(program: Program, w: Writer) -> list[Line]:
    graph = program.required_graph
    shared = graph.inputs == program.inputs and graph.state == read_state(graph, program.state, program.precision)
    opening = SHARED_GRAPH if shared and not w.lenient else GRAPH
    body = graph_lines(graph, w, None, signature=opening == GRAPH)
    return [Line(opening, ("graph",)), *body, Line("}")]


# Classes, layers, stages


def class_head(cls: LayerClass) -> str:
    """What is said of a class besides its cost and its graph."""
    head = [f"class {sigiled('@', cls.name)}"]
    if cls.base:
        head.append(f"of {sigiled('@', cls.base)}")
    if cls.strategy is not None:
        head.append(f"strategy {format_strategy(cls.strategy)}")
    if cls.mesh:
        head.append(f"mesh {mesh_text(cls.mesh)}")
    return " ".join(head)


def _layer_class(cls: LayerClass, batch_size: int, w: Writer) -> list[Line]:
    cost = _cost(cls.cost, batch_size, w) if cls.cost else []
    body = graph_lines(cls.graph, w, cls.name, cls.mesh)
    return [Line(f"{class_head(cls)} {{", ("class", cls.name)), *cost, *body, Line("}")]


def _cost(cost: ClassCost, batch_size: int, w: Writer) -> list[Line]:
    rows = list(entries(cost, lenient=w.lenient))
    texts = [f"{name:<15} = {text}" for name, text, _ in rows]
    wide = width(texts, _COLUMN_WIDTH)
    lines: list[Line] = []
    for index, ((name, _, _), text) in enumerate(zip(rows, texts, strict=True)):
        comma = "," if index < len(rows) - 1 else ""
        note = w.note(f"{_at_batch(name, getattr(cost, name), batch_size)} at batch {batch_size}") if w.comments else ""
        lines.append(Line(f"  {'cost' if index == 0 else '    '} {pad(text + comma, wide + 1)}{note}"))
    return lines


def _at_batch(name: str, value: Dim, batch_size: int) -> str:
    try:
        return figure(name, at_batch(value, batch_size))
    except TypeError:
        return "unknown"


def _layer(layer: Layer) -> str:
    operands = ", ".join(value_name(n) for n in layer.operands)
    origin = f" of {value_names(layer.origin)}" if layer.origin else ""
    call = f"{sigiled('@', layer.cls)}({operands}){origin}"
    text = f"{layer.kind}\t{bare_or_quoted(layer.name)}\t{value_names(layer.results)}\t= {call}"
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
    while (common := shortest.rfind(".", 0, common)) >= 0:
        prefix, rests = shortest[: common + 1], [name[common + 1 :] for name in names]
        if not any(bare_or_quoted(text).startswith('"') for text in (prefix, *rests)):
            return prefix
    return ""


def _layers(layers: Sequence[Layer], w: Writer, indent: str, owner: Hashable = None) -> list[Line]:
    loci: list[Locus] = [("layer", owner, index) for index in range(len(layers))]
    return rolled_lines([_layer(layer) for layer in layers], loci, w, indent)


def _transfers(keyword: str, transfers: Sequence[Transfer], stage: int, w: Writer) -> list[Line]:
    wide = width((value_name(t.name) for t in transfers), _COLUMN_WIDTH)
    return [
        Line(
            f"  {keyword:<7} {pad(value_name(t.name), wide)} : {type_text(t.type, w)}"
            + ("" if t.differentiable else " no_gradient"),
            (keyword, stage, t.name),
        )
        for t in transfers
    ]


def _kept(kept: StateLayout, w: Writer) -> str:
    zero = f" zero{kept.zero}" if kept.zero else ""
    return f"keep {bare_or_quoted(kept.state)}\t: {mesh_text(kept.mesh)} {layout_text(kept.layout, kept.mesh, w)}{zero}"


def _stage(stage: Stage, w: Writer) -> list[Line]:
    loci: list[Locus] = [("keep", stage.index, kept.state) for kept in stage.state]
    return [
        Line(f"stage {stage.index} {{", ("stage", stage.index)),
        *_transfers("receive", stage.receives, stage.index, w),
        *_layers(stage.layers, w, "  ", stage.index),
        *_transfers("send", stage.sends, stage.index, w),
        *rolled_lines([_kept(k, w) for k in stage.state], loci, w, "  "),
        Line("}"),
    ]


def _state(state: Sequence[State], w: Writer) -> list[Line]:
    items = []
    for s in state:
        text = f"{s.kind} {bare_or_quoted(s.name)}\t: {type_text(s.type, w)}"
        if s.trainable != (s.kind == "parameter"):
            text += " trainable" if s.trainable else " frozen"
        if s.aliases:
            text += f" tied ({', '.join(bare_or_quoted(a) for a in s.aliases)})"
        if s.rule:
            text += f" by {bare_or_quoted(s.rule)}"
        items.append(text)
    return rolled_lines(items, [("program state", None, s.name) for s in state], w)


def _updates(updates: Sequence[Update], w: Writer) -> list[Line]:
    items = [f"update {bare_or_quoted(u.state)}\t{'+=' if u.adds else '='} {value_name(u.value)}" for u in updates]
    return rolled_lines(items, [("update", u.state) for u in updates], w)


def _outputs(outputs: Sequence[Result], w: Writer) -> list[Line]:
    items = [f"result {bare_or_quoted(o.name)}\t= {value_name(o.value)}" for o in outputs]
    return rolled_lines(items, [("result", o.name) for o in outputs], w)


def _reached(reached: Sequence[Reached], w: Writer) -> list[Line]:
    items = [f"gradient {value_name(one.value)}{_bound_state(one.states)}" for one in reached]
    return rolled_lines(items, [("gradient", one.value) for one in reached], w)


def _check(check: Check) -> Line:
    return Line(f"check {quote(check.says)} never {value_name(check.value)}", ("check", check.value))


# Cluster, plan, search


def _plan(plan: Plan, w: Writer) -> list[Line]:
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


def _cluster(cluster: Cluster, w: Writer) -> list[Line]:
    *lines, end = record_lines("cluster", cluster, w.note)
    return [*(Line(line, ("cluster",)) for line in lines), Line(end)]
