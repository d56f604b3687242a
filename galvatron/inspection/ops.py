"""The ops of a layer, with their figures and lines, and all that is known of one op."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from galvatron.errors import GalvatronError, did_you_mean
from galvatron.inspection.choices import AxisChoice, choices
from galvatron.inspection.placements import PlacedValue, values_of
from galvatron.inspection.view import Amounts, View
from galvatron.ir.collectives import WAIT
from galvatron.ir.gradients import gradients
from galvatron.ir.graph import Graph, Op
from galvatron.ir.ops.foreign import is_foreign
from galvatron.ir.ops.table import op_dims
from galvatron.ir.ops.targets import parsed
from galvatron.ir.program import LayerClass
from galvatron.ir.text.graph_lines import op_text


@dataclass(frozen=True)
class OpRow:
    """An op: its results, what it calls as people write it, the types of its results, and where it comes from.

    Attributes:
        source: file and line of the model, `code` the text there, `scope` the module; empty where nothing is known.
    """

    results: tuple[str, ...]
    op: str
    types: tuple[str, ...]
    figures: Amounts
    source: str
    code: str
    scope: str


@dataclass(frozen=True)
class LayerOps:
    """A layer class op by op; `bound` says which state of the model the first of its layers reads under which name."""

    cls: str
    kind: str
    layers: tuple[str, ...]
    unit: str
    inputs: tuple[tuple[str, str], ...]
    bound: tuple[tuple[str, str, str], ...]
    outputs: tuple[str, ...]
    ops: tuple[OpRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class OpFacts:
    """All that is known of an op.

    Attributes:
        rule: its sharding rule, with the names of the dimensions that it has here; empty where there is none, and then
            `why_no_rule` says why.
        sizes: of the named dimensions.
        reads: its operands: name, type, and what makes it.
        read_by: what reads its results, in order.
        placements: on each axis of the `mesh`, of its operands and results in a sharded program, and why that is legal.
        choices: by strategy and mesh axis, what was chosen and what else there was; of a program with a plan.
    """

    cls: str
    layers: int
    unit: str
    text: str
    row: OpRow
    rule: str
    why_no_rule: str
    sizes: dict[str, str]
    reads: tuple[tuple[str, str, str], ...]
    read_by: tuple[str, ...]
    mesh: tuple[str, ...]
    placements: tuple[PlacedValue, ...]
    choices: tuple[AxisChoice, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def layer_ops(view: View, name: str) -> tuple[LayerOps, ...]:
    """The classes that a name of a layer or class means, op by op.

    Raises:
        GalvatronError: there is no such layer.
    """
    return tuple(_layer_ops(view, cls) for cls in view.classes_of(name))


def op_facts(view: View, name: str, layer: str = "") -> tuple[OpFacts, ...]:
    """All that is known of the ops that make a value of this name, in each class that has one, or in those of a layer.

    Raises:
        GalvatronError: there is no such layer, or no such value.
    """
    wanted = name.removeprefix("%")
    classes = view.classes_of(layer) if layer else list(view.program.classes)
    found = [cls for cls in classes if wanted in cls.graph.producers]
    if not found:
        given = [cls.name for cls in classes if wanted in cls.graph.values]
        if given:
            raise GalvatronError(f"no op makes {wanted!r}: it is given to {', '.join(given)}")
        known = dict.fromkeys(chain.from_iterable(cls.graph.producers for cls in classes))
        raise GalvatronError(f"there is no op that makes {wanted!r}; {did_you_mean(wanted, known)}")
    return tuple(_facts(view, cls, wanted) for cls in found)


def op_row(view: View, cls: LayerClass, op: Op) -> OpRow:
    """An op of a class."""
    source = op.source
    return OpRow(
        results=tuple(value.name for value in op.results),
        op=parsed(op.target).brief,
        types=tuple(str(value.type) for value in op.results),
        figures=view.op_figures(cls, op),
        source="" if source is None else str(source),
        code="" if source is None else source.code,
        scope="" if source is None else source.scope,
    )


def _layer_ops(view: View, cls: LayerClass) -> LayerOps:
    layers, graph = view.layers_of(cls), cls.graph
    formals = (value.name for value in view.program.class_of[cls.name].graph.state)
    bound = dict(zip(formals, layers[0].state, strict=True)) if layers else {}
    return LayerOps(
        cls=cls.name,
        kind=str(layers[0].kind) if layers else "",
        layers=tuple(layer.name for layer in layers),
        unit=view.unit,
        inputs=tuple((value.name, str(value.type)) for value in graph.inputs),
        bound=tuple((v.name, str(v.type), bound[v.name]) for v in graph.state if v.name in bound),
        outputs=graph.outputs,
        ops=tuple(op_row(view, cls, op) for op in graph.ops),
    )


def _facts(view: View, cls: LayerClass, name: str) -> OpFacts:
    graph = cls.graph
    op = graph.producers[name]
    dims = op_dims(op, graph.types)
    return OpFacts(
        cls=cls.name,
        layers=len(view.layers_of(cls)),
        unit=view.unit,
        text=op_text(op),
        row=op_row(view, cls, op),
        rule="" if dims is None else str(dims),
        why_no_rule=_why_no_rule(op) if dims is None else "",
        sizes={} if dims is None else {name: str(size) for name, size in dims.sizes.items()},
        reads=tuple((n, str(graph.types[n]), _made_by(graph, n)) for n in dict.fromkeys(op.operands)),
        read_by=tuple(_readers(graph, op)),
        mesh=tuple(map(str, cls.mesh)),
        placements=tuple(_placed(view, cls, op)),
        choices=choices(view, cls, graph.ops.index(op)),
    )


def _why_no_rule(op: Op) -> str:
    if op.target == WAIT:
        return "the end of a collective that was started"
    if op.namespace == "comm":
        return "a collective, which takes a value from one placement to another"
    if is_foreign(op.target):
        return "nobody has said how it splits: see galvatron.register_rule"
    return "the table of operators says nothing of its dimensions, so every rank computes it whole"


def _made_by(graph: Graph, name: str) -> str:
    if name in graph.producers:
        return parsed(graph.producers[name].target).brief
    return "state" if any(value.name == name for value in graph.state) else "input"


def _readers(graph: Graph, op: Op) -> Iterator[str]:
    for value in op.results:
        for reader in graph.consumers[value.name]:
            yield f"%{reader.results[0].name} = {parsed(reader.target).brief}" if reader.results else reader.target
        if value.name in graph.outputs:
            yield "the layer's result"


def _placed(view: View, cls: LayerClass, op: Op) -> Iterator[PlacedValue]:
    """The operands and results of an op, in a sharded program."""
    if view.is_local and cls.mesh:
        found = {value.name: value for value in values_of(view.program, cls, gradients(view.program))}
        yield from (found[name] for name in dict.fromkeys((*op.operands, *(value.name for value in op.results))))
