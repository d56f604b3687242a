"""`galvatron.graph`: the layers of a program, or the ops of one layer class, as a `networkx` graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx

from galvatron.inspection.ops import op_row
from galvatron.inspection.view import View
from galvatron.ir.graph import Value
from galvatron.ir.program import LayerClass, Program
from galvatron.ir.summary import strategies_of


def graph(program: Program, layer: str | None = None) -> networkx.DiGraph:
    """What reads what: the layers of a program, or the ops of one layer.

    A node has a `kind`. Of layers, which are named as in the program (a second one of a name is a pair of its stage and
    its name), it is `layer`, `preamble`, `step`, `epilogue`, `closing` or `conversion`, with `cls`, `strategy`,
    `stage` and `parameters`. Of ops, which are named after their first result, it is `op`, with `op` (what it calls),
    `code` and `scope`. Both have a `source` (file and line of the model; of a layer that of its first op), and
    `forward_flop`, `backward_flop`, `kept_bytes` and `moved_bytes`: of one sample, or in a sharded program of a
    micro-batch on one rank. Other nodes are pairs of their kind and a name: `input`, `state` (what the ops of a layer
    read) and `result`. Every node has a `label` for a picture and the `values` that it makes, with their `shapes`; an
    edge has those that it stands for.

    Args:
        program: in any form; a captured one is a single layer, `graph`.
        layer: the name of a layer, or of a layer class.

    Raises:
        VerifyError: the program breaks a rule of its form.
        GalvatronError: it is none, or there is no such layer, or it stands for several classes.
    """
    from galvatron.forms import valid

    view = View.of(valid(program))
    return layer_graph(view) if layer is None else op_graph(view, view.class_named(layer))


def layer_graph(view: View) -> networkx.DiGraph:
    """The layers of a program."""
    program = view.program
    found, made = _Dataflow(), program.values()
    strategies, figures = strategies_of(program), {}
    for value in program.inputs:
        found.add(("input", value.name), [value], kind="input", label=value.name)
    for stage, layers in program.layer_groups:
        for layer in layers:
            cls = program.class_of[layer.cls]
            if cls.name not in figures:
                figures[cls.name] = view.class_figures(cls)
            found.reads(
                found.add(
                    (stage, layer.name) if layer.name in found else layer.name,
                    [made[name] for name in layer.results],
                    kind=str(layer.kind),
                    label=layer.name,
                    cls=cls.origin_name,
                    strategy=str(cls.strategy) if cls.strategy is not None else strategies.get(layer.name, ""),
                    stage=stage,
                    parameters=program.count_parameters(layer.state),
                    source=_source(cls),
                    **vars(figures[cls.name]),
                ),
                [made[name] for name in layer.operands],
            )
    updates = [(f"update {update.state}", update.value) for update in program.updates]
    outputs = [(f"output {output.name}", output.value) for output in program.outputs]
    checks = [(str(check), check.value) for check in program.checks]
    reached = [(f"gradient %{one.value}", one.value) for one in program.reached]
    for name, value in [("loss", program.output), *updates, *outputs, *checks, *reached]:
        found.reads(found.add(("result", name), [], kind="result", label=name), [made[value]])
    return found.graph()


def op_graph(view: View, cls: LayerClass) -> networkx.DiGraph:
    """The ops of a class."""
    found, own = _Dataflow(), cls.graph
    for kind, values in (("input", own.inputs), ("state", own.state)):
        for value in values:
            found.add((kind, value.name), [value], kind=kind, label=value.name)
    for number, op in enumerate(own.ops):
        row = op_row(view, cls, op)
        node = found.add(
            op.results[0].name if op.results else f"{op.target} {number}",
            op.results,
            kind="op",
            label=row.op,
            op=row.op,
            source=row.source,
            code=row.code,
            scope=row.scope,
            **vars(row.figures),
        )
        found.reads(node, [own.values[name] for name in op.operands])
    for name in own.outputs:
        found.reads(found.add(("result", name), [], kind="result", label=name), [own.values[name]])
    return found.graph()


class _Dataflow:
    """A graph whose edges follow from which node makes a value, and which read it."""

    def __init__(self) -> None:
        self._graph = networkx.DiGraph()
        self._maker: dict[str, Any] = {}
        self._read: list[tuple[Any, Value]] = []

    def __contains__(self, node: Any) -> bool:
        return node in self._graph

    def add(self, node: Any, makes: Sequence[Value], **attributes: Any) -> Any:
        """Adds a node that makes values."""
        self._maker.update((value.name, node) for value in makes)
        names, shapes = [value.name for value in makes], [str(value.type) for value in makes]
        self._graph.add_node(node, values=names, shapes=shapes, **attributes)
        return node

    def reads(self, node: Any, values: Sequence[Value]) -> None:
        """Says what a node reads, of what is there in the end."""
        self._read += ((node, value) for value in values)

    def graph(self) -> networkx.DiGraph:
        """All of it."""
        for node, value in self._read:
            ends = self._maker[value.name], node
            if not self._graph.has_edge(*ends):
                self._graph.add_edge(*ends, values=[], shapes=[])
            edge = self._graph.edges[ends]
            if value.name not in edge["values"]:
                edge["values"].append(value.name)
                edge["shapes"].append(str(value.type))
        return self._graph


def _source(cls: LayerClass) -> str:
    return next((str(op.source) for op in cls.graph.ops if op.source is not None), "")
