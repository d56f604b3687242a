"""The sizes of a batch, besides the number of samples, that the user says are free: what a trace makes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, product

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import Max, Min

from galvatron.errors import CaptureError
from galvatron.ir.capture.batch import Batch, Place
from galvatron.ir.capture.ranges import NoSamplesError, batch_sizes, settled
from galvatron.ir.types import BATCH, LARGE, BatchSizes, Dim, Length

_SEVERAL = BatchSizes(least=2)
"""A trace is for sizes of at least two."""

_TRIED = 12
"""How many values of a size are tried in conditions on several at once, besides a large one."""


class FixedLengthError(ValueError):
    """The model fixes a size that was said to be free, or holds for no range of it.

    Attributes:
        place: a dimension that has the size.
        length: its name.
    """

    def __init__(self, place: Place, length: str) -> None:
        super().__init__(place, length)
        self.place = place
        self.length = length


@dataclass(frozen=True)
class Lengths:
    """The lengths by name, and the symbols of the trace that are these."""

    by_name: Mapping[str, Length]
    symbols: Mapping[sympy.Symbol, Length]


def find_lengths(
    batch: Batch,
    nodes: Mapping[str, fx.Node],
    known: Mapping[sympy.Symbol, Dim],
    guards: Iterable[sympy.Basic],
    shapes: Iterable[sympy.Expr],
) -> Lengths:
    """Reads off a trace for which lengths it holds.

    Args:
        nodes: the placeholders of the tensors, by input.
        known: what other symbols stand for.
        guards: conditions that the trace has met.
        shapes: the sizes of all tensors.

    Raises:
        FixedLengthError: a size is not free.
        CaptureError: sizes of different names are one, or the model holds only for some pairs of sizes.
    """
    names: dict[sympy.Symbol, str] = {}
    for place, name in batch.free.items():
        size = nodes[place[0]].meta["val"].shape[place[1]]
        symbol = size.node.expr if isinstance(size, torch.SymInt) else None
        if symbol is None or not symbol.is_Symbol:
            raise FixedLengthError(place, name)
        if known.get(symbol) == BATCH:
            raise CaptureError(f"dynamic: {name} is, to the model, the number of samples: leave it out")
        if names.setdefault(symbol, name) != name:
            raise CaptureError(f"dynamic: {name} and {names[symbol]} are one size to the model: give them one name")
    examples = {name: batch.tensors[place[0]].shape[place[1]] for place, name in batch.free.items()}
    plain = {name: sympy.Symbol(name, integer=True, positive=True) for name in examples}
    symbols = [*known.items(), *((symbol, plain[name]) for symbol, name in names.items())]
    example = {BATCH: batch.size, **{plain[name]: size for name, size in examples.items()}}
    conditions = [guard.subs(symbols) for guard in guards]
    extremes = {shape.subs(symbols) for shape in shapes if shape.has(Max, Min)}
    conditions += [
        c for extreme in extremes if extreme.free_symbols <= example.keys() for c in settled(extreme, example)[1]
    ]
    lengths = {
        name: Length(name, size, _sizes_of(name, plain[name], size, conditions, batch))
        for name, size in examples.items()
    }
    _check_pairs(conditions, plain, lengths)
    return Lengths(lengths, {symbol: lengths[name] for symbol, name in names.items()})


def _sizes_of(
    name: str, symbol: sympy.Symbol, example: int, conditions: Iterable[sympy.Basic], batch: Batch
) -> BatchSizes:
    """The values of a length at which the conditions on it alone hold."""
    alone = [condition.subs(symbol, BATCH) for condition in conditions if condition.free_symbols == {symbol}]
    try:
        return batch_sizes(alone, example) & _SEVERAL
    except NoSamplesError:
        place = next(place for place, free in batch.free.items() if free == name)
        raise FixedLengthError(place, name) from None


def _several(sizes: BatchSizes) -> list[int]:
    """The first of these sizes, and a large one."""
    all_of_them = range(sizes.least, (sizes.most or sys.maxsize) + 1)
    large = range(sizes.most or max(LARGE, sizes.least), sizes.least - 1, -1)
    return [*islice((n for n in all_of_them if n in sizes), _TRIED), *islice((n for n in large if n in sizes), 1)]


def _check_pairs(
    conditions: Iterable[sympy.Basic], plain: Mapping[str, sympy.Symbol], lengths: Mapping[str, Length]
) -> None:
    """Refuses a condition on several sizes that does not hold for all of them."""
    of = {plain[name]: length for name, length in lengths.items()}
    for condition in conditions:
        symbols = [s for s in sorted(condition.free_symbols, key=str) if isinstance(s, sympy.Symbol)]
        if len(symbols) < 2 or not of.keys() & set(symbols):
            continue
        choices = [_several(of[s].sizes if s in of else _SEVERAL) for s in symbols]
        if any(condition.subs(list(zip(symbols, sizes, strict=True))) == sympy.false for sizes in product(*choices)):
            raise CaptureError(
                f"dynamic: the model works only where {condition}, for the sizes {', '.join(map(str, symbols))}: "
                "leave a length out, or derive sizes from the inputs, as in x.shape[1]"
            )
