"""Which inputs hold samples, and for which numbers of samples a traced model holds: read off the trace.

Dim 0 of every input is traced as a size of its own. What the model does then tells them apart: a table that is
multiplied by has the size that it must have, labels are compared with logits and have as many rows as these. The
largest group of inputs whose sizes the model relates to each other, and leaves free, are the samples. So are others of
the same size that it leaves free, such as a mask of which only the sum is read, but for what is evidently none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._sympy.functions import Max, Min

from galvatron.ir.capture.batch import Batch
from galvatron.ir.ops.table import of_target
from galvatron.ir.program import BatchSizes
from galvatron.ir.types import BATCH, Dim

_TRIED = 66
"""Below this, a condition that is no simple inequality must hold for every batch size."""


class NoSamplesError(ValueError):
    """The model fixes dim 0 of every input that could hold samples, or holds for no range of batch sizes."""


@dataclass(frozen=True)
class Samples:
    """The batch, with what holds samples; what each symbol of the trace stands for; the batch sizes it holds for."""

    batch: Batch
    symbols: Mapping[sympy.Symbol, Dim]
    sizes: BatchSizes


def find_samples(exported: ExportedProgram, batch: Batch) -> Samples:
    """Reads off a trace which inputs hold samples.

    Raises:
        NoSamplesError: none is left that could.
    """
    nodes = dict(zip(batch.tensors, _inputs(exported), strict=True))
    free = {name: symbol for name, node in nodes.items() if (symbol := _free_size(node)) is not None}
    told = frozenset(name for name, dim in batch.said.items() if dim == 0)
    if not free or not told <= free.keys():
        raise NoSamplesError
    environment = next(nodes[name].meta["val"].shape[0].node.shape_env for name in free)
    guards = [environment.replace(guard.expr) for guard in environment.guards]
    members = _members(batch, nodes, free, guards, told)
    batch = batch.with_batched(members)
    symbols: dict[sympy.Symbol, Dim] = {s: batch.tensors[name].shape[0] for name, s in free.items()}
    symbols.update((free[name], BATCH) for name in members)
    return Samples(batch, symbols, _batch_sizes([guard.subs(symbols) for guard in guards]))


def _inputs(exported: ExportedProgram) -> Iterable[fx.Node]:
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    specs = exported.graph_signature.input_specs
    return [placeholders[spec.arg.name] for spec in specs if spec.kind is InputKind.USER_INPUT]


def _free_size(node: fx.Node) -> sympy.Symbol | None:
    value = node.meta["val"]
    size = value.shape[0] if value.dim() else None
    return size.node.expr if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol else None


def _members(
    batch: Batch,
    nodes: Mapping[str, fx.Node],
    free: Mapping[str, sympy.Symbol],
    guards: list[sympy.Basic],
    told: frozenset[str],
) -> frozenset[str]:
    """The inputs that hold samples: the largest group of one size and related by the model, the first of equals, and
    others of that size, unless the model uses them as tables or lists of borders. Inputs that a model does not read
    hold samples only where it reads none.
    """
    possible = [name for name in free if not told or batch.tensors[name].shape[0] == batch.size]
    read = [name for name in possible if nodes[name].users]
    if not possible or (not read and any(node.users for node in nodes.values())):
        raise NoSamplesError
    members = max((_related(batch, free, guards, name) for name in read or possible), key=len)
    size = batch.tensors[next(iter(members))].shape[0]
    rest = [name for name in free if name not in members and batch.tensors[name].shape[0] == size]
    return members.union(told, (name for name in rest if not _is_other_data(nodes[name], free[name])))


def _is_other_data(node: fx.Node, size: sympy.Symbol) -> bool:
    """Whether an input is a table whose rows are looked up, or has borders between its elements (`x[1:] - x[:-1]`)."""
    values = (n.meta.get("val") for n in node.graph.nodes if n.op == "call_function")
    sizes = (d.node.expr for v in values if isinstance(v, torch.Tensor) for d in v.shape if isinstance(d, torch.SymInt))
    is_table = any(of_target(str(user.target)).rows and user.args[0] is node for user in node.users)
    return is_table or any(d.coeff(size, 0).is_Integer and d.coeff(size, 0) for d in sizes if d.free_symbols == {size})


def _related(batch: Batch, free: Mapping[str, sympy.Symbol], guards: list[sympy.Basic], name: str) -> frozenset[str]:
    """The inputs of the size of one that the model relates to it, directly or not."""
    size = batch.tensors[name].shape[0]
    alike = {n: symbol for n, symbol in free.items() if batch.tensors[n].shape[0] == size}
    links = [guard.free_symbols & set(alike.values()) for guard in guards]
    found = {free[name]}
    while more := set().union(*(link for link in links if link & found)) - found:
        found |= more
    return frozenset(n for n, symbol in alike.items() if symbol in found)


def _batch_sizes(conditions: Iterable[sympy.Basic]) -> BatchSizes:
    """The batch sizes at which all conditions hold.

    Raises:
        NoSamplesError: that is no range with a few gaps, as with a size that must divide.
    """
    found = BatchSizes()
    for condition in conditions:
        if condition.free_symbols != {BATCH}:
            continue
        if not is_range(condition):
            raise NoSamplesError
        found &= _linear(condition) or BatchSizes()
    # Traced for at least two samples; what holds for two is taken to hold for one.
    return replace(found, least=1) if found.least <= 2 else found


def is_range(condition: sympy.Basic) -> bool:
    """Whether a condition on the batch size is an inequality, or none at all."""
    known = _linear(condition) is not None
    return known or all(condition.subs(BATCH, n) != sympy.false for n in range(2, _TRIED))


def _compared(condition: sympy.Basic) -> sympy.Basic:
    """`a <= b` for `min(a, b) == a`, and the like; other conditions as they are."""
    if isinstance(condition, (sympy.Eq, sympy.Ne)):
        for extreme, one in (condition.args, condition.args[::-1]):
            if isinstance(extreme, (Min, Max)) and len(extreme.args) == 2 and one in extreme.args:
                (other,) = (arg for arg in extreme.args if arg != one)
                holds = sympy.Le(one, other) if isinstance(extreme, Min) else sympy.Ge(one, other)
                return holds if isinstance(condition, sympy.Eq) else sympy.Not(holds)
    return condition


def _linear(condition: sympy.Basic) -> BatchSizes | None:
    """The batch sizes that a condition on a multiple of it allows; None for other conditions."""
    condition = _compared(condition)
    if not isinstance(condition, (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt, sympy.Ne)):
        return None
    difference = sympy.expand(condition.lhs - condition.rhs)  # type: ignore[operator]  # both sides are numbers
    slope, offset = difference.coeff(BATCH, 1), difference.coeff(BATCH, 0)
    if not (slope.is_Rational and offset.is_Rational and slope) or difference != slope * BATCH + offset:
        return None
    border = -offset / slope
    if isinstance(condition, sympy.Ne):
        return BatchSizes(but=(int(border),) if border.is_Integer and border > 0 else ())
    strict = isinstance(condition, (sympy.Gt, sympy.Lt))
    if (slope > 0) == isinstance(condition, (sympy.Ge, sympy.Gt)):
        return BatchSizes(least=max(int(sympy.floor(border)) + 1 if strict else int(sympy.ceiling(border)), 1))
    return BatchSizes(most=int(sympy.ceiling(border)) - 1 if strict else int(sympy.floor(border)))
