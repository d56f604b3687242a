"""Local graphs: one rank's part of a layer class, with its collectives, from the solver's choice of modes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cached_property, lru_cache

import networkx
import sympy

from galvatron.ir.graph import Graph, Op, Value, map_refs
from galvatron.ir.layout import Axis, Layout, contiguous, gradientless, local_shape
from galvatron.ir.local_arguments import with_local_arguments
from galvatron.ir.names import Names
from galvatron.ir.random import drawn_axes, is_random, with_site
from galvatron.ir.spmd import along_axis
from galvatron.ir.types import BATCH, LOCAL_BATCH, Dim, TensorType, has_samples, simplify_dim
from galvatron.partition.conversion import redistribute, rounds
from galvatron.partition.modes import AxisState, Mode, Split


class Localizer:
    """Rewrites one class graph; `batch_ways` is how many ways the batch is sharded."""

    def __init__(self, graph: Graph, mesh: tuple[Axis, ...], batch_ways: int, differentiable: frozenset[str]) -> None:
        self.graph = graph
        self.mesh = mesh
        self.differentiable = differentiable
        self._micro_batch = simplify_dim(batch_ways * LOCAL_BATCH)
        self._ops: list[Op] = []
        self._sites = 0
        self._converted: dict[tuple[str, Layout], Value] = {}
        self._sources: dict[tuple[str, Layout], Layout] = {}
        self._targets: dict[tuple[str, tuple[AxisState, ...]], Layout] = {}
        self._names = Names(graph.values)

    def run(
        self,
        inputs: dict[str, tuple[AxisState, ...]],
        state: dict[str, tuple[AxisState, ...]],
        outputs: dict[str, tuple[AxisState, ...]],
        operands: list[list[tuple[AxisState, ...]]],
        results: list[list[tuple[AxisState, ...]]],
        spmd: list[tuple[Axis, Mode] | None],
    ) -> Graph:
        """The local graph, given the states, one per mesh axis, of each value or of each op's operands and results.

        `spmd` has, per op that its counterpart in `ir.spmd` replaces, the axis and how the op runs on it.
        """
        new_inputs = tuple(self._local(v, inputs[v.name]) for v in self.graph.inputs)
        new_state = tuple(self._local(v, state[v.name]) for v in self.graph.state)
        available = {v.name: v for v in (*new_inputs, *new_state)}
        self._plan_conversions(available, operands, results, outputs)
        for index, op in enumerate(self.graph.ops):
            sources = [
                self._converted_to(available[n], states) for n, states in zip(op.operands, operands[index], strict=True)
            ]
            made = tuple(self._local(v, states) for v, states in zip(op.results, results[index], strict=True))
            self._ops.append(self._local_op(op, sources, made, spmd[index]))
            available.update((v.name, v) for v in made)
        names = tuple(
            self._converted_to(available[n], outputs[n]).name if n in outputs else n for n in self.graph.outputs
        )
        return Graph(new_inputs, new_state, tuple(self._ops), names)

    @cached_property
    def _wholes(self) -> dict[str, TensorType]:
        """The type of each value over all shards of one micro-batch."""
        types = self.graph.types
        return {name: type_.with_shape(tuple(self._size(d) for d in type_.shape)) for name, type_ in types.items()}

    def _size(self, dim: Dim) -> Dim:
        return dim if isinstance(dim, int) else _at_batch(dim, self._micro_batch)

    def _layout(self, value: str, states: tuple[AxisState, ...]) -> Layout:
        shape = self._wholes[value].shape

        def placement(state: AxisState):
            if not isinstance(state, Split):
                return state
            local = replace(state, inner=self._size(state.inner), size=self._size(state.size))
            return local.placement(shape[state.dim])

        return contiguous(tuple(placement(s) for s in states), self.mesh)

    def _local(self, value: Value, states: tuple[AxisState, ...]) -> Value:
        layout = self._target(value.name, states)
        whole = self._wholes[value.name]
        return Value(value.name, whole.with_shape(local_shape(whole.shape, layout, self.mesh)), layout)

    def _plan_conversions(
        self,
        given: dict[str, Value],
        operands: list[list[tuple[AxisState, ...]]],
        results: list[list[tuple[AxisState, ...]]],
        outputs: dict[str, tuple[AxisState, ...]],
    ) -> None:
        """Decides from which copy of a value every other is made."""
        produced: dict[str, Layout] = {name: value.layout or () for name, value in given.items()}
        needed: dict[str, list[Layout]] = defaultdict(list)
        for op, needs, makes in zip(self.graph.ops, operands, results, strict=True):
            for name, states in zip(op.operands, needs, strict=True):
                needed[name].append(self._target(name, states))
            for value, states in zip(op.results, makes, strict=True):
                produced[value.name] = self._target(value.name, states)
        for name, states in outputs.items():
            needed[name].append(self._target(name, states))
        for name, layouts in needed.items():
            for source, layout in _arborescence(produced[name], layouts, differentiable=name in self.differentiable):
                self._sources[name, layout] = source

    def _target(self, name: str, states: tuple[AxisState, ...]) -> Layout:
        key = name, states
        if key not in self._targets:
            layout = self._layout(name, states)
            self._targets[key] = layout if name in self.differentiable else gradientless(layout)
        return self._targets[key]

    def _converted_to(self, value: Value, states: tuple[AxisState, ...]) -> Value:
        """The value in the layout a consumer needs, each copy made once."""
        return self._copy(value, self._target(value.name, states))

    def _copy(self, value: Value, target: Layout) -> Value:
        if target == value.layout:
            return value
        if (value.name, target) not in self._converted:
            source = self._copy(value, self._sources[value.name, target])
            whole, differentiable = self._wholes[value.name], value.name in self.differentiable
            ops = redistribute(
                source, target, self.mesh, whole, differentiable=differentiable, fresh_name=self._names.fresh
            )
            self._ops.extend(ops)
            self._converted[value.name, target] = ops[-1].result
        return self._converted[value.name, target]

    def _local_op(self, op: Op, sources: list[Value], made: tuple[Value, ...], spmd: tuple[Axis, Mode] | None) -> Op:
        remaining = iter(sources)
        renamed = replace(
            op,
            args=tuple(map_refs(a, lambda _: next(remaining).name) for a in op.args),
            kwargs=tuple((k, map_refs(v, lambda _: next(remaining).name)) for k, v in op.kwargs),
            results=made,
        )
        if spmd is not None:
            axis, mode = spmd
            assert mode.factor is not None
            folded = any(isinstance(state, Split) and state.folded for state in mode.operands)
            return along_axis(renamed, axis.name, self._size(mode.factor.size), folded=folded)
        local = with_local_arguments(renamed, sources, self._size)
        return self._drawn(op, local) if is_random(op) else local

    def _drawn(self, op: Op, local: Op) -> Op:
        """The local op with the next free site; results that are the same for every batch size are drawn per step."""
        self._sites += 1
        per_step = not any(has_samples(d) for v in op.results for d in v.type.shape)
        return with_site(local, self._sites - 1, drawn_axes(local.results[0], self.mesh), per_step)


@lru_cache(maxsize=1 << 12)
def _at_batch(dim: sympy.Expr, batch: Dim) -> Dim:
    return simplify_dim(dim.subs(BATCH, batch))


def _arborescence(root: Layout, layouts: list[Layout], *, differentiable: bool) -> list[tuple[Layout, Layout]]:
    """The cheapest way to make all copies of a value, as pairs of a layout and one that is made from it."""
    nodes = list(dict.fromkeys([root, *layouts]))
    steps: networkx.DiGraph[Layout] = networkx.DiGraph()
    steps.add_nodes_from(nodes)
    for source in nodes:
        for target in nodes:
            if target not in (source, root):
                steps.add_edge(source, target, weight=rounds(source, target, differentiable=differentiable))
    return list(networkx.minimum_spanning_arborescence(steps).edges) if len(nodes) > 1 else []
