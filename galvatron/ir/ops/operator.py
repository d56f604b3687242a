"""What the compiler knows of one operator: the record of which every entry of the table is one.

Everything that depends on *which* operator an op calls is a field here, so that an operator is added by one entry and a
question is answered in one place. What an entry does not say is what holds for any operator: it is computed whole on
every rank, its results' types are those that torch gives, and it is written `torch.ops.aten.name.overload(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from galvatron.ir.graph import Op
from galvatron.ir.layout import Partial, Replicate
from galvatron.ir.ops.call import Call, DimsFunction
from galvatron.ir.ops.notation import OpDims, Shape
from galvatron.ir.ops.work import Work

ShapesFunction = Callable[[Call], tuple[Shape, ...]]
"""The result shapes that follow from operands and arguments.

Raises:
    ShapeError: the operands do not fit together.
    LookupError, TypeError, ValueError: it is not called the way the function expects.
"""

Moves = Literal["pointwise", "norm", "softmax", "reduction", "copy", "gather", "scatter", "optimizer"]
"""How a kernel that memory bounds goes through it, which decides what it reaches of the bandwidth: each element by
itself; rows, with statistics of each; rows of which each element depends on all; many elements to few; the same
elements in another order or place; rows at indices, read or written; many tensors at once, each element by itself."""

DtypeRule = Literal["", "named", "bool", "same", "shared", "bits", "counted", "summed", "promoted"]
"""What is said of the element type of an operator's results, if torch is not asked: it is the one that an argument
names, as it is for the other rules where one does; `bool`; that of the first operand; the real one that all operands
share, or the whole or boolean one; `i64`; the real one, or `i64` of whole and boolean numbers; the one that
the operands are promoted to, numbers of Python among them."""

EVERY = range(8)
"""All operands of an operator."""


@dataclass(frozen=True)
class Draws:
    """How an operator draws random numbers: each element of its result by itself, given the operands.

    `switch` is the parameter that turns the drawing on; None for an operator that always draws. `linear` says that
    partial sums may pass: with its draws given, the operator is linear in its operand. `drops` says that its first
    result is its operand where it does not draw.
    """

    switch: str | None = None
    linear: bool = False
    drops: bool = False


@dataclass(frozen=True)
class OnSlices:
    """The operator's counterpart `spmd.X` on a slice of a dimension that it must see whole (see `ir.spmd`).

    `result` is the placement, on the axis, of a result without the sharded dimension. `forward` and `backward` are the
    collectives that it runs inside, each with how many numbers it carries (of a rank, for a gather) per row of the
    first operand, all but its last dimension, or for what goes over `channels` per element of its dimension 1. In a
    `ring` keys and values are passed round instead: it says on how many of the slices of so many ranks the busiest one
    works. `folded` says what it makes of folded slices: it takes none, it takes any without a difference, or it must be
    told. Where it `routes`, its last operand chooses for each row of the first in the dimension, and a rank may also
    have just the rows that choose something of its slice.
    """

    result: Replicate | Partial
    forward: tuple[tuple[str, int], ...] = ()
    backward: tuple[tuple[str, int], ...] = ()
    channels: bool = False
    ring: Callable[[Op, int], int] | None = None
    routes: bool = False
    folded: Literal["none", "alike", "told"] = "none"
    function: str = ""
    """What it is called in `galvatron.runtime`, if not as the operator."""

    @property
    def communicates(self) -> bool:
        """Whether ranks send each other anything in it."""
        return bool(self.forward or self.backward or self.ring)


@dataclass(frozen=True)
class Operator:
    """One operator, with all its overloads or, in an entry `name.overload`, one of them."""

    dims: str | DimsFunction | None = None
    """Its named dimensions, a line of `notation` or a function: what may be sharded, and what is linear in what."""
    written: str | Mapping[str, str] = ""
    """How a person writes it (see `codegen.forms`): the overload `default`, or each of some by overload."""
    shapes: ShapesFunction | None = None
    """The shapes of its results, where they are cheap to say."""
    dtype: DtypeRule = ""

    contracts: bool = False
    """It does most of the work of a model: a product, a convolution, attention, a recurrent network."""
    attends: bool = False
    """It is the core of attention: scores, their softmax, and the mixture of values."""
    kept: bool = False
    """Selective recomputation keeps its result: its time is in arithmetic, not in memory traffic."""
    anchored: bool = False
    """It belongs to a layer even where no parameter is upstream: nobody wants it computed on every stage."""
    rows: bool = False
    """It reads rows of its first operand, at indices."""
    indices: str = ""
    """The parameter whose elements count something, places in another operand or classes: they are whole numbers."""
    masks: bool = False
    """Its indices may be masks."""
    negative: bool = False
    """Its indices may be negative, and say something then: a place counted from the end, or the end of a list."""
    probabilities: bool = False
    """In place of indices it may read floating numbers: probabilities, of as many classes as there are."""
    special: tuple[str, ...] = ()
    """The parameters that name an index which is not like others: it is ignored, or its row has no gradient."""
    signs: str = ""
    """The parameter whose elements are 1 or -1."""
    looks_up: bool = False
    """It reads rows of a table of weights."""
    thresholds: tuple[str, ...] = ()
    """The parameters that, where they are numbers, its first operand is cut off at, or compared with."""
    beside: tuple[int, ...] = ()
    """It compares with a number: how far from it the whole numbers are that lie on its two sides."""
    elements: Literal["", "moved", "mixed"] = ""
    """Its results have elements of its first operand at other places, as views have, or those of all operands."""
    free: bool = False
    """A view: it costs nothing."""
    gathers: bool = False
    """Its kernel reads of the first operand only as much as it writes."""
    allocates: bool = False
    """Its kernel only reserves memory."""
    moves: Moves = "pointwise"
    """How its kernel, and that of its gradient, goes through memory, where that bounds it."""
    work: Callable[..., Work] | None = None
    """The arithmetic of a call of its kernel, given its result and its arguments; without it, it is bound by memory."""
    op_work: Callable[[Op, Sequence[Any], OpDims | None], Work | None] | None = None
    """The arithmetic of an op on the shapes of a rank's operands and results, given its named dimensions, where these
    alone do not say it."""

    pointwise: bool = False
    """Each element of the result follows from those at its place, though torch does not tag it so."""
    casts: bool = False
    """Its result is its operand, perhaps in another element type."""
    stops_gradient: bool = False
    """Its result has no gradient, whatever it reads."""
    numbers: bool = False
    """It takes a number where a tensor stands in its signature: torch makes a tensor of it."""
    in_training: str = ""
    """The parameter that says whether it trains: a step that only evaluates turns it off."""
    commutes: bool = False
    """Its two operands may change places."""
    updated: tuple[str, ...] = ()
    """The operands that it may write, unseen by a trace; those may be of another element type than the others."""
    updates: str = ""
    """The parameter that says whether it writes them."""
    draws: Draws | None = None
    on_slices: OnSlices | None = None
    padded: range = range(0)
    """The positions of the operands that may be padded shards (see `ir.padding`)."""
    mask: str = ""
    """The operand that broadcasts over samples."""
    weights: tuple[str, ...] = ()
    """The operands whose gradients may be computed later than those of others (see `runtime.deferral`)."""
    reads_memory: bool = False
    """It reads the order of elements in memory, which values do not have: its first operand is made contiguous."""

    @property
    def switch(self) -> str:
        """The parameter that a step which only evaluates turns off; empty if there is none."""
        return self.in_training or (self.draws and self.draws.switch) or ""

    size: str = ""
    """The parameter that is the shape of its result: in a local graph the local shape."""
    times: str = ""
    """The parameter that says how often it repeats its operand."""
    rounds: str = ""
    """The parameter that says how often its kernel goes over what it reads: a number, or a list by its length."""
    parts: str = ""
    """The parameter that says into parts of what sizes it cuts the dimension `dim`."""
    factors: str = ""
    """The parameter that says into what dimensions it unfolds the dimension `dim`."""
    bounds: tuple[str, ...] = ()
    """The parameters that say where the part of the dimension `dim` that it reads or writes begins and ends, where that
    may be a part of the samples."""
    counts: bool = False
    """Its arguments are numbers from which the size of its result follows."""
    grows: bool = False
    """Its `dim` is one of the result, which has one dimension more than the operand."""

    on_values: str = ""
    """The operator that it is to values, which have no strides, if it is another one."""
    short: str = ""
    """What its result is called in emitted code, if not after the operator."""

    @property
    def sizes(self) -> frozenset[str]:
        """The parameters of which the shapes of the results say all."""
        return frozenset((self.size, self.times, self.parts, self.factors)) - {""}

    def form(self, overload: str) -> str:
        """How an overload is written; empty for one that has no form."""
        if isinstance(self.written, str):
            return self.written if overload == "default" else ""
        return self.written.get(overload, "")


def alike(names: str, operator: Operator) -> dict[str, Operator]:
    """One entry for operators of which the same is known."""
    return dict.fromkeys(names.split(), operator)


UNKNOWN = Operator()
"""What is known of an operator without an entry."""
