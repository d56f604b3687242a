"""Roles as boundary conditions: what a role fixes at the border of a layer; the solver finds everything inside.

| role | the residual stream | parameters | may shard |
|---|---|---|---|
| dp | sharded along the batch | whole | the batch |
| ep | sharded along the batch | matrices that rows choose sharded, others whole | the batch, rows |
| tp | whole | matrices sharded, others as suits | factors of parameters |
| tp+sp | sharded along the sequence | matrices sharded, others as suits | factors of parameters, the sequence |
| ulysses | sharded along the sequence | whole | everything but the batch |
| cp | sharded along the sequence, folded | whole | the sequence; attention is a ring |

The residual stream is what crosses a layer's border with a batch dimension and follows from parameters, so that it has
a gradient where these train. Other values with a gradient cross whole, with a partial gradient where the stream is
sharded; values without one are whole wherever the batch is not sharded. The loss leaves an axis that shards samples or
tokens as a partial sum. Statistics of the batch and new values of state, which forward writes, are whole, as is state
that is no parameter. What the model returns besides its loss is as the op that makes it has it. Where parameters are
whole their gradients are summed. Frozen ones are placed as if they were trained, but that they have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from galvatron.ir.factors import FactorPlace, FactorTable, OpFactor
from galvatron.ir.graph import Graph, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Placement
from galvatron.ir.spmd import chosen_matrices
from galvatron.ir.types import BATCH, TensorType, exact_quotient, simplify_dim
from galvatron.partition.groups import Choices
from galvatron.partition.modes import AxisState, Mode, Split
from galvatron.partition.solver import Boundary


@dataclass(frozen=True)
class Border:
    """What a class is to its program: which of its values have gradients, and which would have one if all parameters
    were trained (`streams`), which output is the loss, which state is `parameters`, and which of these are `trainable`.

    `whole_outputs` are outputs that every rank must have whole: statistics of the batch, new values of state and the
    sums that these are made of. Masters and gradients of what trains are `master_scale` times as large as its values.
    `free_outputs` are those that no layer reads: they stay in the layout in which they are made. Among them,
    `given_outputs` are what the model returns: a step computes them only where they are asked for, and they may be
    padded shards.
    """

    differentiable: frozenset[str]
    trainable: frozenset[str]
    parameters: frozenset[str]
    streams: frozenset[str] = frozenset()
    loss: str | None = None
    whole_outputs: frozenset[str] = frozenset()
    free_outputs: frozenset[str] = frozenset()
    given_outputs: frozenset[str] = frozenset()
    master_scale: int = 1

    def whole(self, state: str) -> AxisState:
        """How some state is whole on every rank: with its gradient summed, if it has one."""
        return BROADCAST if state in self.trainable else REPLICATE


def batch_split(type_: TensorType) -> Split | None:
    """The split of a value along the batch; None without a batch dimension."""
    for dim, size in enumerate(type_.shape):
        inside = exact_quotient(size, BATCH) if not isinstance(size, int) else None
        if inside is not None:
            return Split(dim, inside, BATCH)
    return None


def sequence_split(type_: TensorType) -> Split | None:
    """The split of a residual stream along its sequence: the first factor after the batch, the last dimension excepted.

    That is dim 1 of `(B, S, H)`, dim 0 of `(S, B, H)`, the inner factor of dim 0 of `(B·S, H)`; None for `(B, H)`.
    """
    batch = batch_split(type_)
    if batch is None:
        return None
    for dim, size in enumerate(type_.shape[:-1]):
        inside = batch.inner if dim == batch.dim else size
        if inside != 1:
            return Split(dim, 1, simplify_dim(inside))
    return None


@dataclass(frozen=True)
class Role:
    """What a role means on one mesh axis.

    `stream` gives the split of a residual stream's type, None where it stays whole; `splits_samples` says that ranks
    work on different samples or tokens throughout, so that the loss is a partial sum. `matrices` says that matrices are
    sharded, `ring` that attention passes keys and values round the axis, `routes` that rows go to the ranks of the
    matrices which they choose, and that these are sharded; `folded` that slices on it are folded. `reach` names what
    may be sharded: the batch, the sequence, factors of parameters that no residual stream has (heads, hidden units, the
    vocabulary), or any factor but the batch.
    """

    stream: Callable[[TensorType], Split | None]
    reach: frozenset[str]
    splits_samples: bool = False
    matrices: bool = False
    ring: bool = False
    routes: bool = False
    folded: bool = False

    def crossing(self, type_: TensorType, *, streams: bool, differentiable: bool) -> AxisState:
        """The state of a value of a global type where it crosses from one layer to another."""
        split = self.stream(type_) if streams or "batch" in self.reach else None
        if split is not None:
            return split
        return REPLICATE if not differentiable or self.stream is _whole else BROADCAST

    def parameters(self, graph: Graph, border: Border, table: FactorTable) -> frozenset[FactorPlace]:
        """Every place at a factor of parameters that no residual stream has, if the axis may shard these."""
        if "parameters" not in self.reach:
            return frozenset()
        return table.of_values(v.name for v in graph.state) - residual_stream(graph, border, table)

    def allowed(self, graph: Graph, border: Border, table: FactorTable) -> Callable[[int, OpFactor], bool]:
        """Which factors of which ops the axis may shard."""
        crossing = [*(v.name for v in graph.inputs), *(n for n in graph.outputs if n not in border.free_outputs)]
        seeds = [
            (name, table.at(name, split.dim, split.inner, split.size))
            for name in crossing
            if name in border.streams and (split := sequence_split(graph.values[name].type)) is not None
        ]
        sequence = table.connected(seeds) if "sequence" in self.reach else frozenset()
        parameters = self.parameters(graph, border, table)

        def allowed(index: int, factor: OpFactor) -> bool:
            if factor.size == BATCH:
                return "batch" in self.reach
            return "any" in self.reach or table.touches(index, factor, sequence | parameters)

        return allowed

    def boundary(
        self,
        graph: Graph,
        border: Border,
        table: FactorTable,
        choices: Choices,
        kept: Mapping[str, Placement],
    ) -> Boundary:
        """The boundary condition of one axis.

        Args:
            kept: how the axis is to place some of the parameters, as far as the ops can read it so.
        """

        def crossing(name: str) -> AxisState:
            of = graph.values[name].type
            state = self.crossing(of, streams=name in border.streams, differentiable=name in border.differentiable)
            if isinstance(state, Split) and state.size != BATCH:
                factor = table.at(name, state.dim, state.inner, state.size)
                return Split(factor.dim, factor.inner, factor.size, folded=self.folded)
            return state

        outputs = {name: crossing(name) for name in graph.outputs if name not in border.free_outputs}
        outputs.update((name, REPLICATE) for name in border.whole_outputs)
        if border.loss is not None:
            outputs[border.loss] = PARTIAL if self.splits_samples else REPLICATE
        return Boundary(
            inputs={v.name: crossing(v.name) for v in graph.inputs},
            outputs=outputs,
            state={v.name: self._kept(v, graph, border, table, choices, kept.get(v.name)) for v in graph.state},
        )

    def _kept(
        self,
        value: Value,
        graph: Graph,
        border: Border,
        table: FactorTable,
        choices: Choices,
        wanted: Placement | None,
    ) -> tuple[AxisState, ...]:
        """The states a parameter or buffer may be kept in.

        Under tensor parallelism a matrix is sharded wherever some mode can, whatever it costs: such a plan is asked for
        to save memory. That includes padded splits, which are among the modes only where they hold together. Where a
        placement is wanted it is that one, or else whole.
        """
        whole = border.whole(value.name)
        if value.name not in border.parameters or not (self.matrices or self.routes):
            return (whole,)
        splits = _splits(value.name, graph, choices.modes)
        if self.routes:
            return tuple(splits) or (whole,)
        if wanted is not None:
            fitting = [
                s
                for s in (REPLICATE, *splits)
                if (s.placement(value.type.shape[s.dim]) if isinstance(s, Split) else s) == wanted
            ]
            return tuple(fitting) or (whole,)
        if value.name in choices.replicated:
            return (whole,)
        if splits and _is_matrix(value.name, graph, table):
            return tuple(splits)
        return tuple(dict.fromkeys((REPLICATE, whole, *splits)))


def residual_stream(graph: Graph, border: Border, table: FactorTable) -> frozenset[FactorPlace]:
    """Every place at a factor of what crosses the layer's border and follows from parameters."""
    crossing = {*(v.name for v in graph.inputs), *graph.outputs} - border.whole_outputs - border.free_outputs
    return table.of_values(crossing & border.streams)


def matrices(graph: Graph, border: Border, table: FactorTable) -> frozenset[str]:
    """The matrices among the parameters."""
    return frozenset(v.name for v in graph.state if v.name in border.parameters and _is_matrix(v.name, graph, table))


def _splits(name: str, graph: Graph, modes: list[tuple[Mode, ...]]) -> list[AxisState]:
    """Every way in which all ops that read a value can read it sharded."""
    readable = [
        dict.fromkeys(m.operands[position] for m in choices if isinstance(m.operands[position], Split))
        for op, choices in zip(graph.ops, modes, strict=True)
        for position, operand in enumerate(op.operands)
        if operand == name
    ]
    return [state for state in readable[0] if all(state in states for states in readable)] if readable else []


def _is_matrix(name: str, graph: Graph, table: FactorTable) -> bool:
    """Whether an op multiplies the value, or a view or cast of it, and sums over a dimension of the product: a matrix,
    a lookup table, a kernel."""
    forms = {name}
    for index, op in enumerate(graph.ops):
        dims = table.dims[index]
        if dims is None or not forms.intersection(op.operands):
            continue
        summed = set(dims.sizes) - {n for tensor in dims.results for names in tensor for n in names}
        if summed and any(op.operands[i] in forms for i in dims.products):
            return True
        if not summed and len(op.operands) == 1:
            forms.update(v.name for v in op.results)
    return False


def _whole(type_: TensorType) -> None:
    """The stream of a role that keeps it whole."""


ROLES: dict[str, Role] = {
    "dp": Role(batch_split, frozenset({"batch"}), splits_samples=True),
    "ep": Role(batch_split, frozenset({"batch"}), splits_samples=True, routes=True),
    "tp": Role(_whole, frozenset({"parameters"}), matrices=True),
    "tp+sp": Role(sequence_split, frozenset({"parameters", "sequence"}), matrices=True),
    "ulysses": Role(sequence_split, frozenset({"any"}), splits_samples=True),
    "cp": Role(sequence_split, frozenset({"sequence"}), splits_samples=True, ring=True, folded=True),
}
"""Every role of a strategy that the partitioner knows."""


def roles_of_graphs(graphs: Iterable[Graph]) -> tuple[str, ...]:
    """The roles that mean something of their own to any of some graphs: `ep` does where rows choose matrices."""
    with_experts = any(map(chosen_matrices, graphs))
    return tuple(name for name, role in ROLES.items() if with_experts or not role.routes)
