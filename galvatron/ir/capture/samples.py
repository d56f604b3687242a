"""Which inputs hold samples, and for which numbers of samples a traced model holds: read off the trace.

Dim 0 of every input is traced as a size of its own. What the model does then tells them apart: a table that is
multiplied by has the size that it must have, labels are compared with logits and have as many rows as these. The
largest group of inputs whose sizes the model relates to each other, and leaves free, are the samples. So are others of
the same size that it leaves free, such as a mask of which only the sum is read, but for what is evidently none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._sympy.functions import Max, Min

from galvatron.errors import CaptureError
from galvatron.ir.capture.batch import Batch, Place
from galvatron.ir.capture.lengths import find_lengths
from galvatron.ir.capture.ranges import NoSamplesError, batch_sizes, settled
from galvatron.ir.capture.sources import where
from galvatron.ir.ops.table import of_target
from galvatron.ir.types import BATCH, BatchSizes, Dim, Length, number_symbol


@dataclass(frozen=True)
class Samples:
    """The batch, with what holds samples; what each symbol of the trace stands for; the batch sizes it holds for; the
    lengths by their names."""

    batch: Batch
    symbols: Mapping[sympy.Symbol, Dim]
    sizes: BatchSizes
    lengths: Mapping[str, Length]

    @property
    def example(self) -> dict[sympy.Symbol, int]:
        """The sizes of the example batch."""
        return {BATCH: self.batch.size, **{length: length.example for length in self.lengths.values()}}


def find_samples(exported: ExportedProgram, batch: Batch, alone: str | None) -> Samples:
    """Reads off a trace which inputs hold samples, and what its symbols stand for.

    Args:
        alone: the head of an error message about where a single sample is not treated as others are, if anywhere.

    Raises:
        CaptureError: the example is such a single sample.
        NoSamplesError: none is left that could.
    """
    inputs = _inputs(exported)
    nodes = dict(zip(batch.tensors, inputs, strict=False))
    sizes = {name: count_of(node.meta["val"]) for name, node in nodes.items() if (name, 0) not in batch.free}
    free = {name: symbol for name, symbol in sizes.items() if symbol is not None}
    told = frozenset(name for name, dim in batch.said.items() if dim == 0)
    if not free or not told <= free.keys():
        raise NoSamplesError
    environment = next(nodes[name].meta["val"].shape[0].node.shape_env for name in free)
    guards = [part for g in environment.guards for part in sympy.And.make_args(environment.replace(g.expr))]
    members = _members(batch, nodes, free, guards, told)
    batch = batch.with_batched(members)
    symbols: dict[sympy.Symbol, Dim] = {s: batch.tensors[name].shape[0] for name, s in free.items()}
    symbols.update((free[name], BATCH) for name in members)
    for name, node in zip(batch.numbers, inputs[len(nodes) :], strict=True):
        symbols.update((item, number_symbol(type(batch.numbers[name]).__name__, name)) for item in _items(node))
    shapes = [d.node.expr for n in exported.graph.nodes for t in _tensors(n.meta.get("val")) for d in _symbolic(t)]
    lengths = find_lengths(batch, nodes, symbols, guards, shapes)
    symbols.update(lengths.symbols)
    conditions = [guard.subs(symbols) for guard in guards]
    sizes = batch_sizes(conditions, batch.size) & _sizes_of_shapes(exported, symbols, batch.size)
    if alone is not None:
        if batch.size == 1:
            what = "the model treats a batch of one sample unlike others, and is traced with several"
            raise CaptureError(f"{alone}{what}: give an example batch of at least two samples")
        sizes &= BatchSizes(least=2)
    return Samples(batch, symbols, sizes, lengths.by_name)


def free_sizes(exported: ExportedProgram, batch: Batch, places: Iterable[Place]) -> dict[Place, str]:
    """Names for the sizes that a model leaves free, alike where they are one size to it, read off a trace in which each
    was free by itself.

    Args:
        places: those of which it is asked, beside which `batch` may name others.
    """
    nodes = dict(zip(batch.tensors, _inputs(exported), strict=False))
    counts = {count_of(node.meta["val"]) for name, node in nodes.items() if batch.may_be_batched(name)}

    def symbol_of(place: Place) -> sympy.Symbol | None:
        size = nodes[place[0]].meta["val"].shape[place[1]]
        return size.node.expr if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol else None

    symbols = {place: symbol for place in places if (symbol := symbol_of(place)) not in {None, *counts}}
    names = {symbol_of(place): name for place, name in batch.free.items() if place not in symbols}
    fresh = (name for n in count(1) if (name := f"S{n}" if n > 1 else "S") not in batch.free.values())
    return {place: names[s] if s in names else names.setdefault(s, next(fresh)) for place, s in symbols.items()}


def _symbolic(tensor: torch.Tensor) -> list[torch.SymInt]:
    return [size for size in tensor.shape if isinstance(size, torch.SymInt)]


def _sizes_of_shapes(exported: ExportedProgram, symbols: Mapping[sympy.Symbol, Dim], example: int) -> BatchSizes:
    """The batch sizes at which all tensors whose size is the larger or smaller of two have that which the example has.

    Raises:
        CaptureError: these are small batches alone.
    """
    found = BatchSizes()
    for node in exported.graph.nodes:
        dims = {d.node.expr for t in _tensors(node.meta.get("val")) for d in _symbolic(t)}
        extremes = (dim.subs(symbols) for dim in dims if dim.has(Max, Min))
        limits = [
            limit for dim in extremes if dim.free_symbols == {BATCH} for limit in settled(dim, {BATCH: example})[1]
        ]
        found &= batch_sizes(limits, example)
        if found.most is not None:
            what = f"a size is another one for batches of more than {found.most} samples"
            raise CaptureError(f"{where(node)}{what}: give an example batch of more")
    return found


def _tensors(value: object) -> Iterable[torch.Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _items(node: fx.Node) -> Iterable[sympy.Symbol]:
    """The Python number that is read from a tensor."""
    values = (user.meta["val"] for user in node.users)
    return [value.node.expr for value in values if isinstance(value, (torch.SymInt, torch.SymFloat))]


def _inputs(exported: ExportedProgram) -> list[fx.Node]:
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    specs = exported.graph_signature.input_specs
    return [placeholders[spec.arg.name] for spec in specs if spec.kind is InputKind.USER_INPUT]


def count_of(tensor: torch.Tensor) -> sympy.Symbol | None:
    """The size of dim 0, where that is a symbol of its own in the trace."""
    size = tensor.shape[0] if tensor.dim() else None
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

    Raises:
        NoSamplesError: there are none, or more inputs share a size that the model fixes.
    """
    possible = [name for name in free if not told or batch.tensors[name].shape[0] == batch.size]
    read = [name for name in possible if nodes[name].users]
    if not possible or (not read and any(node.users for node in nodes.values())):
        raise NoSamplesError
    members = max((_related(batch, free, guards, name) for name in read or possible), key=len)
    size = batch.tensors[next(iter(members))].shape[0]
    if not told and size != batch.size:
        # Fewer than those that share another size, which the model fixes: rather than samples they are a table.
        others = [n for n, t in batch.tensors.items() if batch.may_be_batched(n) and t.shape[0] == batch.size]
        if len(members) < sum(bool(nodes[name].users) for name in others):
            raise NoSamplesError(
                f"or, if {sorted(members)[0]!r} holds the samples, batch_dims={{{sorted(members)[0]!r}: 0}}"
            )
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
