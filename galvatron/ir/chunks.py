"""Rows that go where something is that they choose, in chunks: while one is computed, another is on its way.

Between `comm.dispatch` and `comm.combine` every op treats rows one by one, so that a part of the rows is computed as
all of them are. Chunks are cut within each sample, where no mesh axis and no micro-batch cuts: all that is new are
ordinary ops on slices, of which each chunk has those that all rows had.

    %ids.samples = aten.reshape(%ids, [b, 48])                   %there.0 = comm.dispatch(%rows.0, …, by=%ids.0, …)
    %ids.0, %ids.1 = aten.split_with_sizes(%ids.samples, …)      %there.1 = comm.dispatch(%rows.1, …, by=%ids.1, …)
    …                                                            …
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import sympy

from galvatron.ir.collectives import ALSO
from galvatron.ir.graph import Graph, Op, Ref, Source, Value
from galvatron.ir.layout import Placement, Shard
from galvatron.ir.names import Names
from galvatron.ir.types import Dim, exact_quotient, simplify_dim

DISPATCH, COMBINE = "comm.dispatch", "comm.combine"


def in_chunks(graph: Graph, count: int) -> Graph:
    """A local graph, in which nothing has been started, with all rows that are sent by what they choose in so many
    chunks; those are sent whole of which samples have too few. The first chunks may have a row of each sample more."""
    chosen = {name: cut for name in _choices(graph) if (cut := _Cut.of(graph, name, count)) is not None}
    return _Chunked(graph, chosen).graph() if count > 1 and chosen else graph


def _choices(graph: Graph) -> Iterator[str]:
    """The values by which rows are sent."""
    yield from dict.fromkeys(_by(op) for op in graph.ops if op.target == DISPATCH)


def _by(op: Op) -> str:
    by = op.kwarg("by")
    assert isinstance(by, Ref)
    return by.name


def _routed(value: Value) -> set[str]:
    return {p.by for p in value.layout or () if isinstance(p, Shard) and p.by}


@dataclass(frozen=True)
class _Cut:
    """How rows are cut: neighbours of which no axis cuts, of each so many into each chunk."""

    neighbours: int
    sizes: tuple[int, ...]

    @staticmethod
    def of(graph: Graph, chosen: str, count: int) -> _Cut | None:
        """How the rows are cut that go by a value; None where they are not, as where it is not all that they go by."""
        ids = graph.values[chosen]
        rows = [p for p in ids.layout or () if isinstance(p, Shard) and p.dim == 0]
        moved = [v for v in graph.values.values() if chosen in _routed(v)]
        alike = all(v.type.shape[0] == ids.type.shape[0] and _routed(v) == {chosen} for v in moved)
        if not alike or any(shard.padded for shard in rows):
            return None
        neighbours = int(sympy.sympify(ids.type.shape[0]).as_content_primitive()[0])
        if any(shard.folded for shard in rows):  # of two pieces, which are no neighbours
            neighbours //= 2
        if neighbours < count or exact_quotient(ids.type.shape[0], neighbours) is None:
            return None
        each, more = divmod(neighbours, count)
        return _Cut(neighbours, tuple(each + (i < more) for i in range(count)))

    def size(self, whole: Dim, chunk: int) -> Dim:
        """How many rows a chunk has of so many."""
        groups = exact_quotient(whole, self.neighbours)
        assert groups is not None
        return simplify_dim(groups * self.sizes[chunk])


class _Chunked:
    """The graph, op by op. What is done to rows where they went waits for the first op that reads some that are back:
    then all of it is done to the first chunk, to the second one, and so on."""

    def __init__(self, graph: Graph, cuts: dict[str, _Cut]) -> None:
        self._graph, self._cuts, self._names = graph, cuts, Names(graph.values)
        self._ops: list[Op] = []
        self._waiting: list[Op] = []
        self._chunks: dict[str, tuple[Value, ...]] = {}
        self._told = set[str]()

    def graph(self) -> Graph:
        for op in self._graph.ops:
            if not self._own(op).isdisjoint(self._cuts):
                self._waiting.append(op)
                continue
            if not {v.name for one in self._waiting for v in one.results}.isdisjoint(op.operands):
                self._compute()
            if op.target == DISPATCH and _by(op) in self._cuts:
                self._send(op)
            else:
                self._ops.append(op)
        self._compute()
        return replace(self._graph, ops=tuple(self._ops))

    @staticmethod
    def _own(op: Op) -> set[str]:
        """By what the rows went on which an op works where they are, or which it brings back."""
        if op.target == COMBINE:
            return {_by(op)}
        return set() if op.target == DISPATCH else {by for value in op.results for by in _routed(value)}

    def _send(self, op: Op) -> None:
        rows, ids = op.operands[0], _by(op)
        for name in (ids, rows):
            if name not in self._chunks:
                self._chunks[name] = self._parted(self._graph.values[name], self._cuts[ids], op.source)
        first, *others = (self._on(op, chunk) for chunk in range(len(self._cuts[ids].sizes)))
        if ids not in self._told:
            self._told.add(ids)
            also = tuple(Ref(chunk.name) for chunk in self._chunks[ids][1:])
            first = replace(first, kwargs=(*first.kwargs, (ALSO, also)))
        self._ops += [first, *others]

    def _compute(self) -> None:
        """Does what waits, chunk by chunk, and puts together what is back."""
        waiting, self._waiting = self._waiting, []
        for chunk in range(max((len(cut.sizes) for cut in self._cuts.values()), default=0)):
            self._ops += [self._on(op, chunk) for op in waiting]
        for op in waiting:
            if op.target == COMBINE:
                self._join(op.result, self._cuts[_by(op)], op.source)

    def _on(self, op: Op, chunk: int) -> Op:
        """An op on a chunk."""
        made = tuple(self._chunk_of(value, op)[chunk] for value in op.results)
        read = op.map_refs(lambda name: self._chunks[name][chunk].name if name in self._chunks else name)
        return replace(read, results=made)

    def _chunk_of(self, value: Value, op: Op) -> tuple[Value, ...]:
        """The chunks of what an op makes."""
        if value.name not in self._chunks:
            by = _by(op) if op.target in (DISPATCH, COMBINE) else next(iter(_routed(value)))
            dim = next((p.dim for p in value.layout or () if isinstance(p, Shard) and p.by), 0)
            self._chunks[value.name] = self._values(value, f"{value.name}.", dim, self._cuts[by])
        return self._chunks[value.name]

    def _values(self, value: Value, name: str, dim: int, cut: _Cut) -> tuple[Value, ...]:
        """A part of a value for each chunk, along a dimension."""

        def part(chunk: int) -> Value:
            shape = (*value.type.shape[:dim], cut.size(value.type.shape[dim], chunk), *value.type.shape[dim + 1 :])
            layout = tuple(self._placed(placement, chunk) for placement in value.layout or ())
            return Value(self._names.fresh(f"{name}{chunk}"), value.type.with_shape(shape), layout)

        return tuple(part(chunk) for chunk in range(len(cut.sizes)))

    def _placed(self, placement: Placement, chunk: int) -> Placement:
        if not isinstance(placement, Shard) or not placement.by:
            return placement
        return replace(placement, by=self._chunks[placement.by][chunk].name)

    def _parted(self, value: Value, cut: _Cut, source: Source | None) -> tuple[Value, ...]:
        """The chunks of rows that are where they were."""
        whole, parts = self._blocks(value, cut)
        chunks = self._values(value, f"{value.name}.", 0, cut)
        self._ops.append(_reshaped(value, whole, source))
        arguments = (Ref(whole.name), cut.sizes, 1)
        self._ops.append(Op("aten.split_with_sizes.default", arguments, (), parts, source))
        self._ops += [_reshaped(part, chunk, source) for part, chunk in zip(parts, chunks, strict=True)]
        return chunks

    def _join(self, value: Value, cut: _Cut, source: Source | None) -> None:
        """Rows that are back in chunks, in the order that they had."""
        whole, parts = self._blocks(value, cut)
        chunks = self._chunks.pop(value.name)
        self._ops += [_reshaped(chunk, part, source) for part, chunk in zip(parts, chunks, strict=True)]
        listed = tuple(Ref(part.name) for part in parts)
        self._ops.append(Op("aten.cat.default", (listed, 1), (), (whole,), source))
        self._ops.append(_reshaped(whole, value, source))

    def _blocks(self, value: Value, cut: _Cut) -> tuple[Value, tuple[Value, ...]]:
        """Rows with a dimension of their own for neighbours, and the same of each chunk."""
        size, *rest = value.type.shape
        blocks = exact_quotient(size, cut.neighbours)
        assert blocks is not None
        placed = (replace(p, dim=p.dim + 1) if isinstance(p, Shard) and p.dim else p for p in value.layout or ())
        shape = value.type.with_shape((blocks, cut.neighbours, *rest))
        whole = Value(self._names.fresh(f"{value.name}.blocks"), shape, tuple(placed))
        return whole, self._values(whole, f"{whole.name}.", 1, cut)


def _reshaped(value: Value, made: Value, source: Source | None) -> Op:
    return Op("aten.reshape.default", (Ref(value.name), made.type.shape), (), (made,), source)
