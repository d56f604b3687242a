"""Modes: the ways to run one op on one mesh axis, each with what it needs of its operands and leaves in its results.

On an axis an op may run whole on every rank, whole with a partial gradient, on partial sums where it is linear, or
along one shardable factor. Layouts are named here by factor, since the number in `Shard(dim, outer)` follows from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from galvatron.ir.factors import Factor, FactorTable, OpFactor
from galvatron.ir.gradients import takes_terms
from galvatron.ir.graph import Graph, Op
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Partial, Replicate, Shard, padded_part
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.rows import acts_on_rows
from galvatron.ir.ops.table import operator_of
from galvatron.ir.padding import paddable
from galvatron.ir.random import is_random
from galvatron.ir.types import BATCH, Dim, exact_quotient, simplify_dim


@dataclass(frozen=True)
class Split:
    """Sharded along the factor of dimension `dim` that has `size` elements, each spanning `inner`.

    `padded`, `folded` and `by` are those of `Shard`. A padded split is of a whole dimension that the axis does not
    divide; it is never converted (`ir.padding`).
    """

    dim: int
    inner: Dim
    size: Dim
    padded: bool = False
    folded: bool = False
    by: str = ""

    def placement(self, length: Dim) -> Shard:
        """The placement on the axis, given the size of the dimension."""
        outer = exact_quotient(length, simplify_dim(self.inner * self.size))
        assert outer is not None
        return Shard(self.dim, outer, self.padded, self.folded, self.by)


AxisState = Replicate | Partial | Split

RING = "ring"
"""The name under which the sequence counts as sharded in ring attention."""


@dataclass(frozen=True)
class Mode:
    """How an op runs on one axis.

    `factor` is what is sharded, or None; `spmd` says that the op's counterpart in `ir.spmd` runs in its place, and
    `routed` that its rows are those that choose something of the rank.
    """

    operands: tuple[AxisState, ...]
    results: tuple[AxisState, ...]
    factor: OpFactor | None = None
    spmd: bool = False
    routed: bool = False


@dataclass(frozen=True)
class Fits:
    """What of an op fits on an axis: all that its modes ask of sizes and of other axes.

    By their numbers, `even` are the factors that it divides into equal pieces and `padded` those that it takes with
    filler at the end; `routed` are values by which a rank may have the op's rows, each with the number of the factor
    that these choose in, if the op is what they choose for; `ring` says that queries and keys divide, for attention
    that passes keys round.
    """

    even: tuple[int, ...] = ()
    padded: tuple[int, ...] = ()
    routed: tuple[tuple[str, int | None], ...] = ()
    ring: bool = False


def fits(
    graph: Graph,
    index: int,
    table: FactorTable,
    size: int,
    taken: Mapping[OpFactor, int],
    allowed: Iterable[int],
    *,
    ring: bool = False,
    routes: Collection[str] = (),
    folded: bool = False,
    padding: bool = False,
) -> Fits:
    """What of op `index` fits on an axis of so many ranks.

    Args:
        taken: how many ways each of the op's factors is already sharded by other axes.
        allowed: the numbers of the factors that the axis' role may shard.
        ring: whether the axis' role has attention pass keys and values round.
        routes: values by which the axis' role has rows on the ranks that have what these choose.
        folded: whether what the axis shards is folded.
        padding: whether the axis' role pads dimensions that the axis does not divide.
    """
    op, dims, factors = graph.ops[index], table.dims[index], table.op_factors(index)
    even: list[int] = []
    padded: list[int] = []
    rings = ring and _ring_divides(graph, index, size, taken, folded)
    if dims is None:
        return Fits(ring=rings)
    for number in allowed:
        factor = factors[number]
        ways = taken.get(factor, 1)
        on_slices = operator_of(op).on_slices if factor.name in dims.spmd else None
        if on_slices and (ways > 1 or factor.size != dims.sizes[factor.name]):
            continue
        if on_slices and folded and on_slices.folded == "none":
            continue
        if _divides(pieces(size, folded) * ways, factor.size):
            even.append(number)
        elif padding and not folded and ways == 1 and _may_pad(graph, op, factor, size, on_slices is not None):
            padded.append(number)
    routed = _routed(graph, op, dims, factors, size, taken, routes) if routes else ()
    return Fits(tuple(even), tuple(padded), routed, rings)


def op_modes(
    graph: Graph,
    index: int,
    table: FactorTable,
    differentiable: frozenset[str],
    fitting: Fits,
    *,
    folded: bool = False,
) -> tuple[Mode, ...]:
    """All modes of op `index` on an axis.

    Args:
        differentiable: the values that have a gradient; for the others `R'` is `R`.
        fitting: what fits on the axis.
        folded: whether what the axis shards is folded.
    """
    op = graph.ops[index]
    operand_names, result_names = op.operands, tuple(v.name for v in op.results)
    dims = table.dims[index]

    def mode(
        operands: list[AxisState], results: list[AxisState], factor: OpFactor | None = None, spmd: bool = False
    ) -> Mode:
        # An operand without a gradient is satisfied by R where R' is asked for.
        kept = [
            REPLICATE if s == BROADCAST and n not in differentiable else s
            for n, s in zip(operand_names, operands, strict=True)
        ]
        made = [
            REPLICATE if s == BROADCAST and n not in differentiable else s
            for n, s in zip(result_names, results, strict=True)
        ]
        return Mode(tuple(kept), tuple(made), factor, spmd)

    count = len(operand_names)
    modes = [mode([REPLICATE] * count, [REPLICATE] * len(result_names))]
    if takes_terms(op):
        modes.append(mode([BROADCAST] * count, [BROADCAST] * len(result_names)))
    if dims is not None:
        modes += [mode(o, r) for o, r in _partial_modes(dims.products, dims.sums, count, len(result_names))]
        for number, factor in enumerate(table.op_factors(index)):
            if number in fitting.even or number in fitting.padded:
                spmd = operator_of(op).on_slices if factor.name in dims.spmd else None
                missing = spmd.result if spmd else PARTIAL
                padded = number in fitting.padded
                states = _sharded(factor, dims.sums, missing, padded, folded, any_results=spmd is not None)
                if states is not None:
                    modes.append(mode(*states, factor, spmd is not None))
    for by, number in fitting.routed:
        factors = table.op_factors(index)
        chosen = None if number is None else factors[number]
        states = _by_choice(factors, chosen, by, operand_names)
        modes.append(replace(mode(*states, chosen or _samples(factors), chosen is not None), routed=chosen is not None))
    if fitting.ring and (states := _ring(graph, index, table, folded)) is not None:
        modes.append(mode(*states, _ring_factor(graph, op), spmd=True))
    return tuple(dict.fromkeys(modes))


def routes_of(graph: Graph, table: FactorTable) -> tuple[str, ...]:
    """The values that choose matrices for rows, of samples, by which ranks may have these rows."""
    return tuple(
        dict.fromkeys(
            op.operands[-1]
            for index, op in enumerate(graph.ops)
            if (counterpart := operator_of(op).on_slices) is not None and counterpart.routes
            if _samples(table.op_factors(index)) is not None
        )
    )


def _routed(
    graph: Graph,
    op: Op,
    dims: OpDims,
    factors: Sequence[OpFactor],
    size: int,
    taken: Mapping[OpFactor, int],
    routes: Collection[str],
) -> tuple[tuple[str, int | None], ...]:
    """Values by which an axis may have the rows of an op, and what these choose in, if it is this op's (see `Fits`).

    The op does to each row the same, whichever others there are, and is not told how many.
    """
    samples = _samples(factors)
    if samples is None or not acts_on_rows(op, dims, samples.name):
        return ()
    rows = [by for by in routes if graph.values[by].type.shape == (dims.sizes[samples.name],)]
    places = [place for place in (*samples.operands, *samples.results) if place is not None]
    if any(simplify_dim(place.inner * BATCH) != dims.sizes[samples.name] for place in places):
        return ()
    counterpart = operator_of(op).on_slices
    if counterpart is None or not counterpart.routes:
        return tuple((by, None) for by in rows if by not in op.operands)
    return tuple(
        (op.operands[-1], number)
        for number, factor in enumerate(factors)
        if op.operands[-1] in rows and factor.name in dims.spmd and factor.size == dims.sizes[factor.name]
        if taken.get(factor, 1) == 1 and _divides(size, factor.size)
    )


def _samples(factors: Sequence[OpFactor]) -> OpFactor | None:
    """The factor of an op that is the batch; the rows that it has of each sample are beside it."""
    return next((factor for factor in factors if factor.size == BATCH), None)


def _by_choice(
    factors: Sequence[OpFactor], chosen: OpFactor | None, by: str, operands: Sequence[str]
) -> tuple[list[AxisState], list[AxisState]]:
    """Operand and result states where a rank has the rows that choose something of its own by a value, which itself is
    where it was."""
    samples = _samples(factors)
    assert samples is not None

    def state(rows: Factor | None, own: Factor | None, by: str) -> AxisState:
        if rows is not None:
            return Split(rows.dim, rows.inner, rows.size, by=by)
        return BROADCAST if own is None else Split(own.dim, own.inner, own.size)

    own = (None,) * len(operands) if chosen is None else chosen.operands
    given = [
        state(place, slices, "" if name == by else by)
        for name, place, slices in zip(operands, samples.operands, own, strict=True)
    ]
    return given, [state(place, None, by) for place in samples.results]


def pieces(size: int, folded: bool) -> int:
    """Into how many equal pieces an axis of so many ranks cuts what it shards."""
    return 2 * size if folded else size


def _ring_divides(graph: Graph, index: int, size: int, taken: Mapping[OpFactor, int], folded: bool) -> bool:
    """Whether an op is attention that may pass keys and values round, and its sequence divides.

    Not with dropout, whose mask the ring does not have: then attention sees all keys, as any other op would.
    """
    op = graph.ops[index]
    counterpart = operator_of(op).on_slices
    if counterpart is None or not counterpart.ring or is_random(op):
        return False
    rows, columns = (graph.values[name].type.shape[-2] for name in op.operands[:2])
    return rows == columns and _divides(pieces(size, folded) * taken.get(_ring_factor(graph, op), 1), rows)


def _ring(graph: Graph, index: int, table: FactorTable, folded: bool) -> tuple[list[AxisState], list[AxisState]] | None:
    """Attention with queries, keys and values all sharded along the sequence, and of a mask the rows."""
    op = graph.ops[index]
    rows = graph.values[op.operands[0]].type.shape[-2]

    def state(name: str) -> AxisState | None:
        shape = graph.values[name].type.shape
        if len(shape) < 2 or shape[-2] == 1:
            return BROADCAST
        factor = table.at(name, len(shape) - 2, 1, shape[-2])
        return Split(factor.dim, factor.inner, factor.size, folded=folded) if factor.size == rows else None

    operands, result = [state(name) for name in op.operands], state(op.result.name)
    if result is None or any(s is None for s in operands):
        return None
    return [s for s in operands if s is not None], [result]


def _ring_factor(graph: Graph, op: Op) -> OpFactor:
    """What counts as sharded in ring attention: the whole sequence, wherever it is."""
    return OpFactor(RING, graph.values[op.operands[0]].type.shape[-2], (), ())


def _partial_modes(
    products: frozenset[int], sums: frozenset[int], operands: int, results: int
) -> list[tuple[list[AxisState], list[AxisState]]]:
    """Partial sums pass an op that adds them (all of them partial) or multiplies one of them by whole values."""
    modes: list[tuple[list[AxisState], list[AxisState]]] = []
    if sums and len(sums) + len(products) < operands:
        return modes
    if sums and not products:
        modes.append(([PARTIAL] * operands, [PARTIAL] * results))
    for position in sorted(products):
        states: list[AxisState] = [PARTIAL if i == position or i in sums else BROADCAST for i in range(operands)]
        modes.append((states, [PARTIAL] * results))
    return modes


def _divides(ways: int, size: Dim) -> bool:
    """The batch divides by any degree that a role gives it: plans are checked for that."""
    return size == BATCH or exact_quotient(size, ways) is not None


def _may_pad(graph: Graph, op: Op, factor: OpFactor, size: int, spmd: bool) -> bool:
    """Whether an op may run beside filler at the end of a factor: the factor is whole dimensions, of operands that may
    be padded and, unless the op's counterpart in `ir.spmd` sees to it, of every result."""
    if padded_part(factor.size, size) is None or (not spmd and None in factor.results):
        return False
    if any(place is not None and i not in paddable(op) for i, place in enumerate(factor.operands)):
        return False
    names = (*op.operands, *(v.name for v in op.results))
    places = zip(names, (*factor.operands, *factor.results), strict=True)
    return all(graph.values[name].type.shape[f.dim] == factor.size for name, f in places if f is not None)


def _sharded(
    factor: OpFactor,
    sums: frozenset[int],
    missing: Replicate | Partial,
    padded: bool,
    folded: bool,
    *,
    any_results: bool,
) -> tuple[list[AxisState], list[AxisState]] | None:
    """Operand and result states when a factor is sharded.

    Operands without it are whole and get a partial gradient, except that an operand added to a partial result must be
    partial itself. Results without it are in the state `missing`; an op with several results must have it in all or
    none, unless it takes `any_results`.
    """
    present = [f is not None for f in factor.results]
    if any(present) and not all(present) and not any_results:
        return None
    summed = not any(present)

    def state(position: int, place: Factor | None) -> AxisState:
        if place is not None:
            return Split(place.dim, place.inner, place.size, padded, folded)
        return PARTIAL if summed and position in sums else BROADCAST

    operands = [state(i, place) for i, place in enumerate(factor.operands)]
    results: list[AxisState] = [
        missing if place is None else Split(place.dim, place.inner, place.size, padded, folded)
        for place in factor.results
    ]
    return operands, results
