"""What `torch.compile` makes of the kernels of a layer: a model of its compiler, which a test holds to it.

Whatever memory bounds, and lies equally many products deep, is one kernel: it reads what others have made and writes
what others read. (A product here is any kernel that the compiler calls as it is: matrices, attention, convolutions.)
Sums that are the gradients of weights go through memory the other way, and are kernels of their own. Messages end all
that came before.

Between forward and backward the compiler keeps what autograd does, but for what it computes again: results of
functions of each element that no product reads, and whose operands are kept as well or are smaller, as before a cast.
The compiler itself looks for the cut of least bytes through the whole graph; this takes one value after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import ceil
from typing import Any

import torch

from galvatron.costs.watch import ObservedEvent
from galvatron.ir.device import VECTOR_BYTES
from galvatron.ir.ops.table import of_target
from galvatron.ir.ops.work import Work
from galvatron.ir.types import DTYPE_BYTES


@dataclass
class _Group:
    """Kernels that become one."""

    members: list[ObservedEvent] = field(default_factory=list)

    def read(self) -> dict[int, float]:
        """What the kernel reads, with its bytes: nothing that it makes itself."""
        found: dict[int, float] = {}
        made: set[int] = set()
        for member in self.members:
            for value, size in member.reads:
                if value not in made:
                    found[value] = max(size, found.get(value, 0.0))
            made |= {value for value, _ in member.writes}
        return found

    def made(self) -> dict[int, float]:
        return {value: size for member in self.members for value, size in member.writes}

    def kernel(self, read_later: Collection[int]) -> ObservedEvent:
        """The one kernel, named after what decides how it goes through memory: its norm or sum, if there is one."""
        first = next((m for m in self.members if not is_elementwise(m)), self.members[-1])
        reads = tuple(self.read().items())
        writes = tuple((value, size) for value, size in self.made().items() if value in read_later)
        return replace(first, size_bytes=sum(size for _, size in (*reads, *writes)), reads=reads, writes=writes)


def padded(event: ObservedEvent) -> ObservedEvent:
    """A product as the compiler has it computed on a GPU: of matrices with more columns, where rows would otherwise
    begin at multiples of fewer bytes than its instructions read (`torch._inductor.config.shape_padding`)."""
    if event.work is None or event.work.kind != "product":
        return event
    count, *sides = event.work.sizes
    elements = VECTOR_BYTES // DTYPE_BYTES[event.dtype]
    return replace(event, work=Work("product", (count, *(elements * ceil(side / elements) for side in sides))))


def peak_bytes(
    kernels: Sequence[ObservedEvent], there: Mapping[int, float], given: Collection[int], lasting: Collection[int]
) -> float:
    """The most bytes that are alive at one time while kernels run in turn, above those that are there at first.

    A value is alive from the kernel that makes it to the last that reads it.

    Args:
        there: values that are there at first, with their bytes, and go when they are not read any more.
        given: values that are not counted.
        lasting: values that are alive to the end.
    """
    last = {value: at for at, kernel in enumerate(kernels) for value, _ in (*kernel.reads, *kernel.writes)}
    alive = dict(there)
    now = peak = 0.0
    for at, kernel in enumerate(kernels):
        for value, size in (*kernel.reads, *kernel.writes):
            if value not in alive and value not in given:
                alive[value] = size
                now += size
        peak = max(peak, now)
        for value, _ in (*kernel.reads, *kernel.writes):
            if last[value] == at and value not in lasting and value in alive:
                now -= alive.pop(value)
    return peak


def fused(
    events: Sequence[ObservedEvent],
    *,
    lasting: Collection[int],
    of_weights: Collection[int] = (),
    again: Mapping[int, ObservedEvent] | None = None,
) -> list[ObservedEvent]:
    """The kernels of one pass as the compiler groups them.

    Args:
        lasting: values that are there after the pass: outputs, what is kept, and gradients.
        of_weights: those of them that are gradients of weights.
        again: values that are not kept, with the kernels that compute them again where they are first read.
    """
    again = dict(again or {})
    depth: dict[int, int] = {}
    groups: dict[tuple[int, bool], _Group] = {}
    order: list[ObservedEvent | _Group] = []
    least = deepest = 0
    for event in events:
        if event.axis is not None:
            least = deepest = deepest + 1
            order.append(event)
            continue
        at = max([least, *(depth.get(value, 0) for value, _ in event.reads)])
        deepest = max(deepest, at)
        if is_external(event):
            order.append(event)
            depth |= {value: at + 1 for value, _ in event.writes}
            deepest = at + 1
            continue
        key = at, any(value in of_weights for value, _ in event.writes)
        if key not in groups:
            order.append(groups.setdefault(key, _Group()))
        for value, _ in event.reads:
            groups[key].members += _computed_again(value, again)
        groups[key].members.append(event)
        depth |= {value: at for value, _ in event.writes}
    return [_kernel(one, order, lasting) if isinstance(one, _Group) else one for one in order]


def _computed_again(value: int, again: dict[int, ObservedEvent]) -> list[ObservedEvent]:
    """The kernels that compute a value again, from what is kept; none if it was before, or is kept."""
    event = again.pop(value, None)
    if event is None:
        return []
    return [*(earlier for operand, _ in event.reads for earlier in _computed_again(operand, again)), event]


def _kernel(group: _Group, order: Iterable[ObservedEvent | _Group], lasting: Collection[int]) -> ObservedEvent:
    read = set(lasting)
    for other in order:
        if other is not group:
            read |= other.read().keys() if isinstance(other, _Group) else {value for value, _ in other.reads}
    return group.kernel(read)


@dataclass(frozen=True)
class Kept:
    """What the compiler keeps beside and without what autograd does: values with their bytes, and with the kernels that
    compute them again."""

    more: dict[int, float]
    again: dict[int, ObservedEvent]


def kept_instead(forward: Iterable[ObservedEvent], kept: Mapping[int, float], there: Collection[int]) -> Kept:
    """What the compiler keeps of a forward.

    Args:
        kept: what autograd keeps of what the forward makes, in bytes.
        there: what is there in the backward in any case, such as weights.
    """
    events = list(forward)
    into_products = {value for event in events if is_external(event) for value, _ in event.reads}
    found = Kept({}, {})
    for event in events:
        if len(event.writes) != 1 or not is_elementwise(event):
            continue
        ((value, _),) = event.writes
        if value not in kept or value in into_products or any(operand == value for operand, _ in event.reads):
            continue
        missing = {
            operand: size
            for operand, size in event.reads
            if not any(operand in values for values in (kept, there, found.more, found.again))
        }
        if sum(missing.values()) < kept[value]:
            found.more.update(missing)
            found.again[value] = event
    return found


def is_external(event: ObservedEvent) -> bool:
    """Whether the compiler calls a kernel as it is, rather than write its own."""
    if not event.writes:  # what communication copies, which runs between what is compiled
        return True
    called, taken_apart = _of_inductor()
    return event.work is not None or (event.operator in called and event.operator not in taken_apart)


def is_elementwise(event: ObservedEvent) -> bool:
    """Whether each element of a kernel's result follows from those at its place, and from no draw."""
    tags = event.operator.tags
    plain = torch.Tag.pointwise in tags or of_target(str(event.operator)).casts
    return plain and torch.Tag.nondeterministic_seeded not in tags


@cache
def _of_inductor() -> tuple[Any, Any]:
    """What Inductor has no code of its own for, and what it takes apart; seconds, at the first call."""
    from torch._inductor.decomposition import decompositions
    from torch._inductor.lowering import fallbacks

    return fallbacks, decompositions
