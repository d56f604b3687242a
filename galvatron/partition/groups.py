"""Replicated groups: matrices that tensor parallelism leaves whole because nothing of theirs is worth a share.

A factor of a matrix is *complete* when every op that makes or reads it can be sharded along it: hidden units, heads.
Any other begins or ends at an op that must have it whole. The width of attention's keys is one: what was cut would be
gathered again. Such a factor is *blocked* where what is gathered, or summed up, goes to an op that can be sharded along
another one, which is complete. With eight query heads and one key head, attention is shared by query heads, and the key
projection has none but blocked factors: it is whole on every rank, its gradient a partial sum. A factor that is neither
complete nor blocked may be the only way to shard a matrix, and is taken.

An axis is cut into nested sub-axes where complete factors ask for it. With two key heads, four ranks become two pairs,
one for each head, and within a pair the key projection is whole: a matrix that one sub-axis shards is sharded by
another only along complete factors. Nothing here knows of heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from galvatron.ir.factors import Factor, FactorPlace, FactorTable, OpFactor
from galvatron.ir.graph import Graph
from galvatron.ir.layout import PARTIAL
from galvatron.partition.modes import Mode, Split

Modes = list[tuple[Mode, ...]]
"""The modes of every op of a graph."""


@dataclass(frozen=True, eq=False)
class Choices:
    """What a graph may do on one axis.

    `replicated` are matrices that are to be whole, with a partial gradient, `complete` those with a complete factor to
    shard.
    """

    modes: Modes
    replicated: frozenset[str] = frozenset()
    complete: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _MatrixFactor:
    """A factor of a matrix and the places that are sharded with it.

    `readers` read a value at one of the places, `makers` make one, and all of these must have it whole; `sums` are the
    ops of whose results the factor leaves a partial sum.
    """

    matrix: str
    factor: Factor
    places: frozenset[FactorPlace]
    readers: frozenset[int]
    makers: frozenset[int]
    sums: frozenset[int]

    @property
    def complete(self) -> bool:
        return not self.readers and not self.makers


class MatrixFactors:
    """The factors by which the matrices of a graph may be sharded.

    Args:
        matrices: the matrices that are to be sharded.
        parameters: every place at a factor of parameters that an axis may shard.
        stream: every place at a factor of the residual stream.
    """

    def __init__(
        self,
        graph: Graph,
        table: FactorTable,
        matrices: frozenset[str],
        parameters: frozenset[FactorPlace],
        stream: frozenset[FactorPlace],
    ) -> None:
        self._graph = graph
        self._table = table
        self._parameters = parameters
        self._stream = {
            name
            for name, value in graph.values.items()
            if all((name, f) in stream for dim in range(len(value.type.shape)) for f in table.factors(name, dim))
        }
        self._factors = self._find(matrices)
        self._complete = frozenset[FactorPlace]().union(*(f.places for f in self._factors if f.complete))

    def choices(self, modes: Modes, sharded_outside: frozenset[str] = frozenset()) -> Choices:
        """What remains of the modes on one axis without those of blocked factors.

        What a matrix that stays whole makes is carried to its readers whole: it is not cut along the sequence on the
        way only to be gathered there.

        Args:
            sharded_outside: the matrices that a sub-axis around this one shards already.
        """
        blocked = {
            f: readers for f in self._factors if (readers := self._blocking(f, modes, f.matrix in sharded_outside))
        }
        complete = frozenset(f.matrix for f in self._factors if f.complete and self._is_taken(modes, f))
        enough = [f for f in self._factors if f.matrix in sharded_outside - complete]
        places = frozenset().union(*(f.places for f in (*blocked, *enough)))
        modes = _without(modes, lambda index, factor: self._table.touches(index, factor, places))
        taken = frozenset(f.matrix for f in self._factors if self._is_taken(modes, f))
        replicated = frozenset(f.matrix for f in blocked) - taken
        ways = [self._between(f.matrix, readers) for f, readers in blocked.items() if f.matrix in replicated]
        carrying = frozenset().union(*ways)

        def along_sequence(index: int, factor: OpFactor) -> bool:
            return index in carrying and not self._table.touches(index, factor, self._parameters)

        return Choices(_without(modes, along_sequence), replicated, complete)

    def outermost(self, size: int, on: Callable[[int], Choices]) -> int:
        """How many of the `size` ranks of an axis its outermost sub-axis is to have; all, where it needs no cut.

        As many as every matrix with a complete factor can be sharded: one that can be sharded further is so inside.

        Args:
            on: what the graph may do on so many ranks.
        """
        whole = on(size)
        wanting = {f.matrix for f in self._factors if f.complete} - whole.complete
        found = size
        for part in (d for d in range(size - 1, 1, -1) if size % d == 0 and wanting):
            choices = on(part)
            if _takes_one_axis(whole.modes) or _takes_one_axis(choices.modes):
                return size
            if wanting & choices.complete:
                wanting -= choices.complete
                found = part
        return found

    def _find(self, matrices: frozenset[str]) -> tuple[_MatrixFactor, ...]:
        found: dict[FactorPlace, _MatrixFactor] = {}
        for index, op in enumerate(self._graph.ops):
            for position, name in enumerate(op.operands):
                for factor in self._table.op_factors(index) if name in matrices else ():
                    own = factor.operands[position]
                    if own is not None and (name, own) in self._parameters and (name, own) not in found:
                        found[name, own] = self._matrix_factor(name, own)
        return tuple(found.values())

    def _matrix_factor(self, name: str, factor: Factor) -> _MatrixFactor:
        places = self._table.connected([(name, factor)])
        readers, makers, sums = set[int](), set[int](), set[int]()
        for index, op in enumerate(self._graph.ops):
            known = self._table.op_factors(index)
            for position, value in enumerate(op.operands):
                if any(n == value and all(k.operands[position] != f for k in known) for n, f in places):
                    readers.add(index)
            for position, value in enumerate(op.results):
                if any(n == value.name and all(k.results[position] != f for k in known) for n, f in places):
                    makers.add(index)
            if any(self._table.touches(index, k, places) and not any(k.results) for k in known):
                sums.add(index)
        return _MatrixFactor(name, factor, places, frozenset(readers), frozenset(makers), frozenset(sums))

    def _blocking(self, own: _MatrixFactor, modes: Modes, far: bool) -> frozenset[int]:
        """The ops that can be sharded along another, complete factor and read what must be made whole of this one.

        Those that follow on others count if `far`: attention for keys that are normalised before. A matrix that is
        sharded nowhere else is not kept whole for them.
        """
        if own.complete:
            return frozenset()
        found: set[int] = set()
        whole: set[str] = set()
        gathering = own.readers | self._summing(own, modes)
        for index, op in enumerate(self._graph.ops):
            if index not in gathering and whole.isdisjoint(op.operands):
                continue
            if self._is_shared(modes[index], index, own):
                found.add(index)
            elif far:
                whole.update(value.name for value in op.results if value.name not in self._stream)
        return frozenset(found)

    def _summing(self, own: _MatrixFactor, modes: Modes) -> set[int]:
        """The ops at which partial sums along a factor have to be summed up; those of the residual stream apart."""
        partial = {value.name for index in own.sums for value in self._graph.ops[index].results} - self._stream
        found: set[int] = set()
        for index, op in enumerate(self._graph.ops):
            for position, name in enumerate(op.operands):
                if name not in partial:
                    continue
                if any(mode.operands[position] == PARTIAL for mode in modes[index]):
                    partial.update(value.name for value in op.results if value.name not in self._stream)
                else:
                    found.add(index)
        return found

    def _is_shared(self, modes: tuple[Mode, ...], index: int, other: _MatrixFactor) -> bool:
        """Whether an op may be sharded along a complete factor that is not the given one."""
        factors = [mode.factor for mode in modes if mode.factor is not None]
        return any(
            self._table.touches(index, f, self._complete) and not self._table.touches(index, f, other.places)
            for f in factors
        )

    def _is_taken(self, modes: Modes, own: _MatrixFactor) -> bool:
        """Whether some op has a mode that reads the matrix sharded along the factor."""
        wanted = (own.factor.dim, own.factor.inner, own.factor.size)
        return any(
            isinstance(state, Split) and (state.dim, state.inner, state.size) == wanted
            for op, choices in zip(self._graph.ops, modes, strict=True)
            for position, name in enumerate(op.operands)
            if name == own.matrix
            for state in (mode.operands[position] for mode in choices)
        )

    def _between(self, matrix: str, readers: frozenset[int]) -> frozenset[int]:
        """The ops on the way from a matrix to some readers."""
        ops = self._graph.ops
        reached, after = {matrix}, set[int]()
        for index, op in enumerate(ops):
            if not reached.isdisjoint(op.operands):
                reached.update(v.name for v in op.results)
                after.add(index)
        needed = {name for index in readers for name in ops[index].operands}
        between: set[int] = set()
        for index in sorted(after - readers, reverse=True):
            if not needed.isdisjoint(v.name for v in ops[index].results):
                needed.update(ops[index].operands)
                between.add(index)
        return frozenset(between)


def _without(modes: Modes, unwanted: Callable[[int, OpFactor], bool]) -> Modes:
    return [
        tuple(mode for mode in choices if mode.factor is None or not unwanted(index, mode.factor))
        for index, choices in enumerate(modes)
    ]


def _takes_one_axis(modes: Modes) -> bool:
    """Whether something may be sharded by one axis alone: what is padded, or an op of `ir.spmd`."""
    return any(
        mode.spmd or any(isinstance(s, Split) and s.padded for s in (*mode.operands, *mode.results))
        for choices in modes
        for mode in choices
    )
