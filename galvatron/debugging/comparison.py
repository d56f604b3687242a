"""The first op of which a value, or the gradient of one, is not what it was before a pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from galvatron.debugging.rounding import Reference, Rounding, least_norm, norm
from galvatron.debugging.running import Tensors, Trace, traced
from galvatron.debugging.sides import Sides, check_sides
from galvatron.debugging.trials import settle, trials
from galvatron.debugging.values import random_values
from galvatron.debugging.widened import widened
from galvatron.errors import GalvatronError
from galvatron.ir.alignment import aligned
from galvatron.ir.graph import Graph, Op
from galvatron.ir.inlined import inlined
from galvatron.ir.layout import Mesh
from galvatron.ir.program import Form, Program
from galvatron.ir.types import BatchSizes, evaluate

ROUNDING = Rounding(1e3, 1e-9)
"""Of programs in float64, where the other rounding is what the first makes when every result of an op is another one in
its last bit. Sums in another order differ by far less than the least, another computation by far more; but where scores
are large, a softmax makes much of a last bit."""

_SHOWN = 5
"""Ops that a message shows of those that differ."""

MOST_ELEMENTS = 1 << 26
"""Of all values of a graph together, at the size at which it is run: half a gigabyte."""


@dataclass(frozen=True)
class Departure:
    """Where two programs depart.

    Attributes:
        what: `value` or `gradient`.
        name, before: the value in the second program, and in the first.
        ops: of the second program, those that are to blame: what computes the value, or what reads it.
        unlike: where the first program has these very ops, those before or behind them in which the programs differ.
        difference: relative to the norm of the value.
        scale: of the random numbers at which it shows.
        within: the layer class, if it is one; empty for the whole program.
        mesh: of that class.
        note: more about it, such as which rank has something else than the others.
    """

    what: str
    name: str
    before: str
    ops: tuple[Op, ...]
    difference: float
    scale: float
    within: str = ""
    mesh: Mesh = ()
    note: str = ""
    unlike: tuple[Op, ...] = ()

    def __str__(self) -> str:
        """Where, and by how much, with the ops and their lines."""
        of = f"of %{self.before}" if self.before == self.name else f"of %{self.name}, which was %{self.before},"
        inside = f"in class @{self.within}: " if self.within else ""
        much = "is another" if math.isinf(self.difference) else f"is off by {self.difference:.2g} of its norm"
        note = self.note and f": {self.note}"
        lines = [f"{inside}the {self.what} {of} {much}{note} (random numbers of scale {self.scale:g})"]
        if self.unlike:
            shown = self.unlike[:_SHOWN]
            more = f", of which {_SHOWN} are" if len(shown) < len(self.unlike) else ":"
            lines.append(f"the ops that differ and that it depends on ({len(self.unlike)}){more}")
            lines += [*(_blamed(op, self.mesh) for op in shown), "it shows at"]
        return "\n".join((*lines, *(_blamed(op, self.mesh) for op in self.ops)))


def _blamed(op: Op, mesh: Mesh) -> str:
    from galvatron.ir.text.graph_lines import op_text

    source = op.source
    line = "" if source is None else f"\n    {source}  {source.code}" + (f"  in {source.scope}" if source.scope else "")
    return f"  {op_text(op, mesh)}{line}"


@dataclass(frozen=True)
class Failure:
    """A program that fails where the one that it was made from does not."""

    text: str
    what: str = "failure"

    def __str__(self) -> str:
        return self.text


Pairs = Sequence[tuple[str, str]]
"""Values of the second of two graphs, each with that of the first which it should be."""


def departure(
    first: Graph, second: Graph, sizes: BatchSizes, trained: Collection[str], results: Pairs
) -> Departure | Failure | None:
    """Where the second of two graphs, which should compute the same, departs from the first; None where it does not.

    Args:
        sizes: the numbers of samples for which they hold.
        trained: the state that has a gradient.
        results: what of both has to be the same; the first is the loss.

    Raises:
        GalvatronError: they are too large to run here, or cannot be run, or random numbers say nothing of what has to
            be the same.
    """
    wide = widened(first), widened(second)
    unknown: set[tuple[str, str]] | None = None
    sides = Sides(first), Sides(second)
    for trial in trials(wide, sizes):
        one, two = (settle(graph, trial.settled) for graph in wide)
        check_size((one, two), trial.samples)
        _check_signatures(one, two, trial.samples)
        given = random_values(one, trial.samples, trial.scale, 0)
        own, nearby = (traced(one, given, trial.samples, trained, rounded=rounded) for rounded in (False, True))
        try:
            other = traced(two, given, trial.samples, trained)
        except GalvatronError as error:
            return Failure(f"it fails with numbers that the program before takes: {error}")
        compared = _Comparison(first, second, own, other, nearby, results)
        if (found := compared.departure()) is not None:
            return replace(found, scale=trial.scale)
        unknown = compared.unknown if unknown is None else unknown & compared.unknown
        for seen, trace in zip(sides, (own, other), strict=True):
            seen.see(trace.values)
    check_known(unknown or ())
    check_sides(*sides)
    return None


def not_finite(what: str, tensors: Tensors) -> set[tuple[str, str]]:
    """Those of some values, or gradients, that nowhere are finite, so that others would be the same."""
    return {(what, name) for name, tensor in tensors.items() if tensor.numel() and not tensor.isfinite().any()}


def check_known(unknown: Iterable[tuple[str, str]], within: str = "") -> None:
    """
    Args:
        unknown: what is nowhere finite in any trial.

    Raises:
        GalvatronError: there is something.
    """
    for what, name in sorted(unknown):
        raise GalvatronError(
            f"nothing is known of the {what} of %{name}{within}, which is not finite for random numbers of any scale"
        )


def one_run(program: Program) -> tuple[float, dict[str, float]]:
    """The loss of a program for random numbers, and the norm of the gradient of each trained parameter.

    Raises:
        GalvatronError: it is sharded, or too large to be run here.
    """
    if program.form >= Form.SHARDED:
        raise GalvatronError(f"the program is {program.form}: what one rank does of it is not run alone")
    wide = widened(inlined(program))
    trial = trials([wide], program.batch_sizes)[0]
    graph = settle(wide, trial.settled)
    check_size([graph], trial.samples)
    given = random_values(graph, trial.samples, trial.scale, 0)
    found = traced(graph, given, trial.samples, program.trainable)
    trained = [state.name for state in program.state if state.trainable and state.name in found.gradients]
    return found.values[graph.outputs[0]].item(), {name: norm(found.gradients[name]) for name in trained}


def _check_signatures(first: Graph, second: Graph, batch: int) -> None:
    """
    Raises:
        GalvatronError: the second graph is given what the first is not.
    """
    known = {value.name: value for value in (*first.inputs, *first.state)}
    for value in (*second.inputs, *second.state):
        if value.name not in known:
            raise GalvatronError(f"%{value.name} is read by one program alone, which so is not made of the other")
        one, other = (tuple(evaluate(n, batch) for n in v.type.shape) for v in (known[value.name], value))
        if (known[value.name].type.dtype, one) != (value.type.dtype, other):
            told = f"{known[value.name].type} in one program and {value.type} in the other"
            raise GalvatronError(f"%{value.name} is {told}")


def check_size(graphs: Iterable[Graph], batch: int) -> None:
    """
    Raises:
        GalvatronError: a graph has too many elements to be run.
    """
    for graph in graphs:
        total = sum(evaluate(value.type.numel, batch) for value in graph.values.values())
        if total > MOST_ELEMENTS:
            raise GalvatronError(
                f"its values have {total:,} elements with {batch} samples, more than the {MOST_ELEMENTS:,} that are "
                "run to compare: capture a smaller model of the same kind"
            )


class _Comparison:
    """Two graphs that should compute the same, and what they made of the same numbers."""

    def __init__(self, first: Graph, second: Graph, before: Trace, after: Trace, nearby: Trace, results: Pairs) -> None:
        """
        Args:
            nearby: what the first makes when each result is another one in its last bit.
            results: see `departure`.
        """
        self._first, self._second = first, second
        self._found = aligned(first, second)
        self._before, self._after, self._nearby = before, after, nearby
        found = self._found
        given = (value.name for value in (*second.inputs, *second.state))
        self._due = [(name, name) for name in given if name in before.values]
        self._due += results
        changed = {value.name for place in found.changed for value in first.ops[place].results}
        self._same = {name: there for name, there in found.values.items() if name not in changed}
        pairs = [(there, name) for name, there in self._same.items()]
        for one, other in found.instead.items():
            gone = one in first.values and one not in found.values
            pairs.append((other, one) if gone else (one, other))
        places = {name: place for place, name in enumerate(second.values)}
        self._pairs = sorted(dict.fromkeys((*pairs, *self._due)), key=lambda pair: places.get(pair[0], -1))
        self._pairs = [(n, b) for n, b in self._pairs if n in after.values and b in before.values]

    def departure(self) -> Departure | None:
        """The first value in the order of the second graph that departs, or else the last whose gradient does, if
        anything departs that has to be the same."""
        if not any(self._off(*pair) or self._gradient_off(*pair) for pair in self._due):
            return None
        for name, before in self._pairs:
            if off := self._off(name, before):
                makers = self._makers(name, before)
                return Departure("value", name, before, makers, off, 0.0, unlike=self._unlike(makers, name, before))
        name, before = next(pair for pair in reversed(self._pairs) if self._gradient_off(*pair))
        readers = [op for op in self._second.ops if name in op.operands]
        readers += [op for op in self._first.ops if before in op.operands and self._is_gone(op)]
        unlike = self._unlike(readers, name, before, behind=True)
        return Departure("gradient", name, before, tuple(readers), self._gradient_off(name, before), 0.0, unlike=unlike)

    def _unlike(self, blamed: Sequence[Op], name: str, before: str, *, behind: bool = False) -> tuple[Op, ...]:
        """In what the programs differ before a value, or `behind` it: ops that one of them has alone or with other
        arguments. None where such an op is blamed already."""
        there = set(self._found.ops.values())
        gone = [op for place, op in enumerate(self._first.ops) if place not in self._found.ops]
        changed = {self._found.ops[place] for place in self._found.changed}
        other = [op for place, op in enumerate(self._second.ops) if place in changed or place not in there]
        if any(op in (*gone, *other) for op in blamed):
            return ()
        own = (_depending(graph, one, behind=behind) for graph, one in ((self._second, name), (self._first, before)))
        return tuple(op for ops, near in zip((other, gone), own, strict=True) for op in ops if _names(op) & near)

    @property
    def unknown(self) -> set[tuple[str, str]]:
        """What has to be the same, and is nowhere finite: then any two are."""
        values, gradients = self._before.values, self._before.gradients
        due = [before for _, before in self._due]
        flowing = {name: gradients[name] for name in due if name in gradients}
        return not_finite("value", {name: values[name] for name in due}) | not_finite("gradient", flowing)

    def _is_gone(self, op: Op) -> bool:
        return all(value.name not in self._same for value in op.results)

    def _makers(self, name: str, before: str) -> tuple[Op, ...]:
        """What computes a value from values that are the same in both graphs: all ops in between, the last one first;
        those of the first graph where the second just has no such op."""
        back = {there: own for own, there in self._same.items()}
        if name in back and back[name] != before:
            return _makers(self._first, before, set(self._same))
        return _makers(self._second, name, set(back))

    def _off(self, name: str, before: str) -> float:
        """How far a value is off, zero where that is rounding."""
        return _off(self._before.values[before], self._nearby.values[before], self._after.values[name])

    def _gradient_off(self, name: str, before: str) -> float:
        own, wanted = self._after.gradients.get(name), self._before.gradients.get(before)
        if own is None and wanted is None:
            return 0.0
        zero = torch.zeros_like(self._after.values[name])
        own, wanted, nearby = (
            zero if one is None else one for one in (own, wanted, self._nearby.gradients.get(before))
        )
        return _off(wanted, nearby, own, self._least)

    @cached_property
    def _least(self) -> float:
        found = (self._before.gradients.get(before) for _, before in self._due)
        return least_norm(gradient for gradient in found if gradient is not None)


def _off(wanted: Tensor, nearby: Tensor, found: Tensor, least: float = 0.0) -> float:
    off = Reference(wanted, nearby).beside(found, ROUNDING, least)
    return 0.0 if off.is_rounding else off.difference


def _depending(graph: Graph, name: str, *, behind: bool) -> set[str]:
    """The value itself, and those that it is computed from, or `behind` it those that are computed from it."""
    found = {name}
    for op in graph.ops if behind else reversed(graph.ops):
        read, made = set(op.operands), _names(op)
        if not found.isdisjoint(read if behind else made):
            found |= made if behind else read | made
    return found


def _names(op: Op) -> set[str]:
    return {value.name for value in op.results}


def _makers(graph: Graph, name: str, known: set[str]) -> tuple[Op, ...]:
    """What computes a value from those that are known to be right: all ops in between, the last one first."""
    found: dict[str, Op] = {}
    waiting = [name]
    while waiting:
        op = graph.producers.get(one := waiting.pop(0))
        if op is not None and (one == name or one not in known) and op.results[0].name not in found:
            found[op.results[0].name] = op
            waiting += op.operands
    return tuple(found.values())
