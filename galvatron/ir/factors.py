"""Factors: a flattened dimension is a product, and what is sharded is one of its factors.

`linear` makes a dimension of 768 that a later `view` reads as 12 heads × 64; sharding by heads means sharding the
factor 12 of the linear's output, of its weight and of its bias. This module carries such cuts from the op that makes
them to every value they reach: each dimension of each value becomes a list of elementary factors, and a factor is named
by the dimension and the product of the factors inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush

from galvatron.ir.graph import Graph, Op
from galvatron.ir.ops.notation import DimNames, OpDims
from galvatron.ir.ops.table import op_dims
from galvatron.ir.types import BATCH, Dim, divides, exact_quotient, simplify_dim


@dataclass(frozen=True)
class Factor:
    """An elementary factor of one dimension of a value: `size` elements, each spanning `inner`."""

    dim: int
    inner: Dim
    size: Dim


FactorPlace = tuple[str, Factor]
"""A factor of a named value."""


@dataclass(frozen=True)
class OpFactor:
    """An elementary factor of a named dimension of an op: where each operand and result has it, None for nowhere."""

    name: str
    size: Dim
    operands: tuple[Factor | None, ...]
    results: tuple[Factor | None, ...]


class FactorTable:
    """The elementary factors of every value of a graph, and the shardable factors of every op."""

    def __init__(self, graph: Graph) -> None:
        types = graph.types
        self.dims: dict[int, OpDims | None] = {i: op_dims(op, types) for i, op in enumerate(graph.ops)}
        self._cuts: dict[tuple[str, int], list[Dim]] = {
            (name, d): _first_cuts(size) for name, type_ in types.items() for d, size in enumerate(type_.shape)
        }
        self._graph = graph
        self._refine()
        self._op_factors = [self._find_op_factors(i) for i in range(len(graph.ops))]

    def factors(self, value: str, dim: int) -> list[Factor]:
        """The factors of one dimension, outermost first."""
        cuts = self._cuts[value, dim]
        pairs = list(zip(cuts, cuts[1:], strict=False))
        return [Factor(dim, inner, _quotient(outer, inner)) for inner, outer in reversed(pairs)]

    def op_factors(self, index: int) -> list[OpFactor]:
        """The factors along which an op may be sharded: the same elementary factor at every place that has the name."""
        return self._op_factors[index]

    def at(self, value: str, dim: int, inner: Dim, size: Dim) -> Factor:
        """The outermost elementary factor of a stretch of a dimension: `size` elements that each span `inner`."""
        end = simplify_dim(inner * size)
        return next(f for f in self.factors(value, dim) if simplify_dim(f.inner * f.size) == end)

    def of_values(self, names: Iterable[str]) -> frozenset[FactorPlace]:
        """Every place connected to a factor of one of the values."""
        given = set(names)
        return self._reach(lambda place: place[0] in given)

    def connected(self, seeds: Iterable[FactorPlace]) -> frozenset[FactorPlace]:
        """Every place connected, by ops that share a factor, to one of the given places (these included)."""
        given = set(seeds)
        return self._reach(given.__contains__) | given

    def touches(self, index: int, factor: OpFactor, places: frozenset[FactorPlace]) -> bool:
        """Whether a factor of op `index` lies at one of the places."""
        return not places.isdisjoint(self._places[index][factor])

    @cached_property
    def _places(self) -> list[dict[OpFactor, list[FactorPlace]]]:
        """Per op, where each of its factors lies."""
        names = [(*op.operands, *(v.name for v in op.results)) for op in self._graph.ops]
        return [
            {
                factor: [(n, f) for n, f in zip(own, (*factor.operands, *factor.results), strict=True) if f is not None]
                for factor in factors
            }
            for own, factors in zip(names, self._op_factors, strict=True)
        ]

    def _reach(self, wanted: Callable[[FactorPlace], bool]) -> frozenset[FactorPlace]:
        components = (c for c in self._components if any(map(wanted, c)))
        return frozenset().union(*components)

    @cached_property
    def _components(self) -> list[set[FactorPlace]]:
        """Places that are one factor to some op, directly or by way of others."""
        import networkx  # nearly 300 modules, which most commands do without

        links: networkx.Graph[FactorPlace] = networkx.Graph()
        for places in self._places:
            for path in places.values():
                networkx.add_path(links, path)
        return list(networkx.connected_components(links))

    def _find_op_factors(self, index: int) -> list[OpFactor]:
        dims = self.dims[index]
        if dims is None:
            return []
        op = self._graph.ops[index]
        found: list[OpFactor] = []
        for name in dims.sizes:
            if name in dims.indivisible:
                continue
            places = list(_places(op, dims, name))
            if not places:
                continue
            value, dim, offset = places[0][1:]
            for inner, outer in self._spans(value, dim, offset, dims.sizes[name]):
                relative, size = _quotient(inner, offset), _quotient(outer, inner)
                factor = self._at(op, dims, name, relative, size)
                if factor is not None:
                    found.append(factor)
        return found

    def _at(self, op: Op, dims: OpDims, name: str, relative: Dim, size: Dim) -> OpFactor | None:
        """The factor of `name` at a relative position, or None when some value is not cut there."""
        operands: list[Factor | None] = [None] * len(dims.operands)
        results: list[Factor | None] = [None] * len(dims.results)
        for position, value, dim, offset in _places(op, dims, name):
            inner = simplify_dim(offset * relative)
            cuts = self._cuts[value, dim]
            if inner not in cuts or cuts[cuts.index(inner) + 1 : cuts.index(inner) + 2] != [simplify_dim(inner * size)]:
                return None
            factor = Factor(dim, inner, size)
            if position < len(operands):
                operands[position] = factor
            else:
                results[position - len(operands)] = factor
        return OpFactor(name, size, tuple(operands), tuple(results))

    def _spans(self, value: str, dim: int, offset: Dim, size: Dim) -> list[tuple[Dim, Dim]]:
        """The elementary intervals of a value's dimension within `[offset, offset·size]`."""
        end = simplify_dim(offset * size)
        inside = [c for c in self._cuts[value, dim] if divides(offset, c) and divides(c, end)]
        return list(zip(inside, inside[1:], strict=False))

    def _refine(self) -> None:
        """Carries cuts between the places of every name until nothing changes: turn by turn through the ops in order,
        of which only those are looked at that have a value with new cuts."""
        touching: dict[str, list[int]] = {}
        for index, op in enumerate(self._graph.ops):
            for value in dict.fromkeys((*op.operands, *(v.name for v in op.results))):
                touching.setdefault(value, []).append(index)
        waiting = [(0, index) for index, dims in self.dims.items() if dims is not None]
        queued = set(waiting)
        while waiting:
            turn, index = heappop(waiting)
            queued.remove((turn, index))
            for value in self._carry(index):
                for other in touching[value]:
                    then = (turn if other > index else turn + 1, other)
                    if self.dims[other] is not None and then not in queued:
                        queued.add(then)
                        heappush(waiting, then)

    def _carry(self, index: int) -> dict[str, None]:
        """Carries cuts between the places of every name of an op; gives back the values that have new ones."""
        op, dims = self._graph.ops[index], self.dims[index]
        assert dims is not None
        changed: dict[str, None] = {}
        for name in dims.sizes:
            places = list(_places(op, dims, name))
            cuts: list[Dim] = []
            for _, value, dim, offset in places:
                spans = self._spans(value, dim, offset, dims.sizes[name])
                cuts += [_quotient(inner, offset) for inner, _ in spans]
            cuts.append(dims.sizes[name])
            for _, value, dim, offset in places:
                for cut in dict.fromkeys(cuts):
                    if self._cut(value, dim, simplify_dim(offset * cut)):
                        changed[value] = None
        return changed

    def _cut(self, value: str, dim: int, cut: Dim) -> bool:
        """Adds a cut where it fits the chain of those there are; True when it was new."""
        cuts = self._cuts[value, dim]
        if cut in cuts:
            return False
        position = sum(1 for c in cuts if divides(c, cut))
        if all(divides(cut, c) for c in cuts[position:]):
            cuts.insert(position, cut)
            return True
        return False


def _first_cuts(size: Dim) -> list[Dim]:
    """The whole dimension, with the batch as a factor of its own where it is one: it is the outermost by convention."""
    inside = exact_quotient(size, BATCH) if not isinstance(size, int) else None
    return list(dict.fromkeys([1, inside, size] if inside is not None else [1, size]))


def _places(op: Op, dims: OpDims, name: str) -> list[tuple[int, str, int, Dim]]:
    """Where a name appears: position among operands then results, value, dimension, product of the names inside it."""
    values = (*op.operands, *(v.name for v in op.results))
    places: list[tuple[int, str, int, Dim]] = []
    for position, (value, tensor) in enumerate(zip(values, (*dims.operands, *dims.results), strict=True)):
        for dim, names in enumerate(tensor):
            if name in names:
                places.append((position, value, dim, _inside(names, name, dims.sizes)))
    return places


def _inside(names: DimNames, name: str, sizes: Mapping[str, Dim]) -> Dim:
    inside: Dim = 1
    for other in names[names.index(name) + 1 :]:
        inside = simplify_dim(inside * sizes[other])
    return inside


def _quotient(dim: Dim, divisor: Dim) -> Dim:
    quotient = exact_quotient(dim, divisor)
    assert quotient is not None, (dim, divisor)
    return quotient
