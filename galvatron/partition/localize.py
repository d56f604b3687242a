"""Local graphs: one rank's part of a layer class, with its collectives, from the solver's choice of modes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import networkx
import sympy

from galvatron.ir.graph import Graph, Op, Value, map_refs
from galvatron.ir.layout import BROADCAST, REPLICATE, Axis, Layout, Placement, Shard, contiguous, is_routed, local_shape
from galvatron.ir.local_arguments import with_local_arguments
from galvatron.ir.names import Names
from galvatron.ir.random import drawn_axes, is_random, with_site
from galvatron.ir.spmd import along_axis
from galvatron.ir.types import BATCH, LOCAL_BATCH, Dim, has_samples, simplify_dim
from galvatron.partition.axes import SolvedAxis
from galvatron.partition.conversion import chooses_for, redistribute, rounds
from galvatron.partition.modes import AxisState, Mode, Split


@dataclass(frozen=True)
class PlacedAxis:
    """How one axis places values: inputs and state as they are `given`, outputs as they are `wanted`, and by op its
    operands and results. By number, `spmd` are the modes of the ops whose counterparts in `ir.spmd` replace them."""

    given: Mapping[str, Placement]
    wanted: Mapping[str, Placement]
    operands: Sequence[tuple[Placement, ...]]
    results: Sequence[tuple[Placement, ...]]
    spmd: Mapping[int, Mode]


class MicroBatch:
    """A class graph in one micro-batch, seen over all shards, where the batch is sharded so many ways."""

    def __init__(self, graph: Graph, batch_ways: int, differentiable: frozenset[str]) -> None:
        self.graph, self.differentiable = graph, differentiable
        self._size = simplify_dim(batch_ways * LOCAL_BATCH)
        self._placed: dict[SolvedAxis, PlacedAxis] = {}
        self.types = {name: type_.with_shape(tuple(map(self.size, type_.shape))) for name, type_ in graph.types.items()}

    def size(self, dim: Dim) -> Dim:
        """A size of the whole batch, in a micro-batch."""
        return dim if isinstance(dim, int) else _at_batch(dim, self._size)

    def placed(self, axis: SolvedAxis) -> PlacedAxis:
        """How an axis places every value where it is made and read."""
        if axis not in self._placed:
            self._placed[axis] = self._place(axis)
        return self._placed[axis]

    def _place(self, axis: SolvedAxis) -> PlacedAxis:
        boundary, modes = axis.boundary, axis.solution.modes
        ops = list(zip(self.graph.ops, modes, strict=True))
        names = [tuple(value.name for value in op.results) for op in self.graph.ops]
        return PlacedAxis(
            given=self._placements((*boundary.inputs.items(), *axis.solution.state.items())),
            wanted=self._placements(boundary.outputs.items()),
            operands=[tuple(map(self._placement, op.operands, mode.operands)) for op, mode in ops],
            results=[tuple(map(self._placement, own, mode.results)) for own, mode in zip(names, modes, strict=True)],
            spmd={index: mode for index, mode in enumerate(modes) if mode.spmd},
        )

    def _placements(self, states: Iterable[tuple[str, AxisState]]) -> dict[str, Placement]:
        return {name: self._placement(name, state) for name, state in states}

    def _placement(self, value: str, state: AxisState) -> Placement:
        """The placement of a value on an axis; without a gradient `R'` and `R` are the same."""
        if not isinstance(state, Split):
            return REPLICATE if state == BROADCAST and value not in self.differentiable else state
        local = replace(state, inner=self.size(state.inner), size=self.size(state.size))
        return local.placement(self.types[value].shape[state.dim])


class Localizer:
    """Rewrites one class graph for the ranks of a mesh, given how each axis of it places values."""

    def __init__(self, whole: MicroBatch, mesh: tuple[Axis, ...], axes: Sequence[PlacedAxis]) -> None:
        self.graph, self.mesh, self._whole = whole.graph, mesh, whole
        self._is_cut = len({axis.parent for axis in mesh}) < len(mesh)
        ops = list(enumerate(self.graph.ops))
        self._operands = [self._layouts([axis.operands[i] for axis in axes], len(op.operands)) for i, op in ops]
        self._results = [self._layouts([axis.results[i] for axis in axes], len(op.results)) for i, op in ops]
        self._given = {v.name: self._layout([axis.given[v.name] for axis in axes]) for v in self._formals}
        self._wanted = {
            name: self._layout([axis.wanted[name] for axis in axes])
            for name in self.graph.outputs
            if all(name in axis.wanted for axis in axes)
        }
        self._spmd: dict[int, tuple[Axis, Mode]] = {}
        for own, axis in zip(mesh, axes, strict=True):
            self._spmd = {index: (own, mode) for index, mode in axis.spmd.items()} | self._spmd
        self._routes = self._chosen_among()
        self._ops: list[Op] = []
        self._sites = 0
        self._converted: dict[tuple[str, Layout], Value] = {}
        self._sources: dict[tuple[str, Layout], Layout] = {}
        self._names = Names(self.graph.values)
        self._available: dict[str, Value] = {}

    @property
    def _formals(self) -> tuple[Value, ...]:
        return *self.graph.inputs, *self.graph.state

    def _layouts(self, axes: Sequence[tuple[Placement, ...]], count: int) -> list[Layout]:
        """The layout of each of so many values, from the placements of all of them on each axis."""
        return [self._layout([axis[position] for axis in axes]) for position in range(count)]

    def _layout(self, placements: Sequence[Placement]) -> Layout:
        return contiguous(tuple(placements), self.mesh) if self._is_cut else tuple(placements)

    def _chosen_among(self) -> dict[str, int]:
        """By the name of a value that rows are sent by, among how many it chooses."""
        found: dict[str, int] = {}
        for index, (_, mode) in self._spmd.items():
            if mode.routed:
                assert mode.factor is not None and isinstance(mode.factor.size, int)
                found[self.graph.ops[index].operands[-1]] = mode.factor.size
        return found

    def run(self) -> Graph:
        """The local graph."""
        given = {value.name: self._local(value, self._given[value.name]) for value in self._formals}
        available = self._available = dict(given)
        self._plan_conversions()
        for index, op in enumerate(self.graph.ops):
            sources = [self._copy(available[n], to) for n, to in zip(op.operands, self._operands[index], strict=True)]
            made = tuple(map(self._local, op.results, self._results[index]))
            self._ops.append(self._local_op(index, op, sources, made))
            available.update((v.name, v) for v in made)
        names = tuple(
            self._copy(available[n], self._wanted[n]).name if n in self._wanted else n for n in self.graph.outputs
        )
        inputs, state = (tuple(given[v.name] for v in values) for values in (self.graph.inputs, self.graph.state))
        ops = tuple(map(self._placed, self._ops)) if self._routes else tuple(self._ops)
        return Graph(inputs, state, ops, names)

    def _choosing(self, by: str, rows: Layout) -> tuple[Value, int]:
        """The copy of a value that rows in a layout are sent by, and among how many it chooses."""
        return self._copy(self._available[by], chooses_for(rows)), self._routes[by]

    def _placed(self, op: Op) -> Op:
        """An op whose results, if they are rows that have been sent, are placed by the copy that has their layout."""

        def told(placement: Placement, rows: Layout) -> Placement:
            if not isinstance(placement, Shard) or not placement.by:
                return placement
            return replace(placement, by=self._choosing(placement.by, rows)[0].name)

        def placed(value: Value) -> Value:
            rows = value.layout or ()
            return replace(value, layout=tuple(told(p, rows) for p in rows)) if any(map(is_routed, rows)) else value

        return replace(op, results=tuple(map(placed, op.results)))

    def _local(self, value: Value, layout: Layout) -> Value:
        whole = self._whole.types[value.name]
        return Value(value.name, whole.with_shape(local_shape(whole.shape, layout, self.mesh)), layout)

    def _plan_conversions(self) -> None:
        """Decides from which copy of a value every other is made."""
        nodes: dict[str, list[Layout]] = {name: [layout] for name, layout in self._given.items()}
        for op, needs, makes in zip(self.graph.ops, self._operands, self._results, strict=True):
            for name, layout in zip(op.operands, needs, strict=True):
                nodes[name].append(layout)
            nodes.update((value.name, [layout]) for value, layout in zip(op.results, makes, strict=True))
        for name, layout in self._wanted.items():
            nodes[name].append(layout)
        routes = [(p, rows) for layouts in nodes.values() for rows in layouts for p in rows]
        for placement, rows in routes:
            if isinstance(placement, Shard) and placement.by:
                nodes[placement.by].append(chooses_for(rows))
        for name, layouts in nodes.items():
            if all(layout == layouts[0] for layout in layouts):
                continue
            found = _arborescence(tuple(dict.fromkeys(layouts)), name in self._whole.differentiable)
            self._sources.update(((name, layout), source) for source, layout in found)

    def _copy(self, value: Value, target: Layout) -> Value:
        """The value in the layout that a reader needs, each copy made once."""
        if target == value.layout:
            return value
        if (value.name, target) not in self._converted:
            source = self._copy(value, self._sources[value.name, target])
            whole, differentiable = self._whole.types[value.name], value.name in self._whole.differentiable
            ops = redistribute(
                source,
                target,
                self.mesh,
                whole,
                differentiable=differentiable,
                fresh_name=self._names.fresh,
                choosing=self._choosing,
            )
            self._ops.extend(ops)
            self._converted[value.name, target] = ops[-1].result
        return self._converted[value.name, target]

    def _local_op(self, index: int, op: Op, sources: list[Value], made: tuple[Value, ...]) -> Op:
        remaining = iter(sources)
        renamed = replace(
            op,
            args=tuple(map_refs(a, lambda _: next(remaining).name) for a in op.args),
            kwargs=tuple((k, map_refs(v, lambda _: next(remaining).name)) for k, v in op.kwargs),
            results=made,
        )
        if index in self._spmd:
            axis, mode = self._spmd[index]
            assert mode.factor is not None
            folded = any(isinstance(state, Split) and state.folded for state in mode.operands)
            size = self._whole.size(mode.factor.size)
            return along_axis(renamed, axis.name, size, folded=folded, routed=mode.routed)
        local = with_local_arguments(renamed, sources, self._whole.size)
        return self._drawn(op, local) if is_random(op) else local

    def _drawn(self, op: Op, local: Op) -> Op:
        """The local op with the next free site; results that are the same for every batch size are drawn per step."""
        self._sites += 1
        per_step = not any(has_samples(d) for v in op.results for d in v.type.shape)
        return with_site(local, self._sites - 1, drawn_axes(local.results[0], self.mesh), per_step)


@lru_cache(maxsize=1 << 12)
def _at_batch(dim: sympy.Expr, batch: Dim) -> Dim:
    return simplify_dim(dim.subs(BATCH, batch))


@lru_cache(maxsize=1 << 12)
def _arborescence(nodes: tuple[Layout, ...], differentiable: bool) -> tuple[tuple[Layout, Layout], ...]:
    """The cheapest way to make all copies of a value, as pairs of a layout and one that is made from it.

    Args:
        nodes: first how the value is made, then every other layout that it is needed in.
    """
    if len(nodes) < 3:
        return ((nodes[0], nodes[1]),) if len(nodes) == 2 else ()
    steps: networkx.DiGraph[Layout] = networkx.DiGraph()
    steps.add_nodes_from(nodes)
    for source in nodes:
        for target in nodes:
            if target not in (source, nodes[0]):
                steps.add_edge(source, target, weight=rounds(source, target, differentiable=differentiable))
    return tuple(networkx.minimum_spanning_arborescence(steps).edges)
