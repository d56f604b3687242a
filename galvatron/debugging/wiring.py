"""What stands between the classes of a sharded program, held to the program that it was made from: which layer reads
which values and which state, and what becomes of the results.

Values are known by the names that they have before there are copies and conversions (`Program.origin_of`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from galvatron.errors import GalvatronError
from galvatron.ir.program import Layer, LayerKind, Program

WHAT = "wiring"
"""What departs, beside the `value` and `gradient` of a `galvatron.debugging.comparison.Departure`."""


@dataclass(frozen=True)
class Rewired:
    """A layer, or a result of the program, that is of other values or other state than before."""

    text: str
    what: str = WHAT

    def __str__(self) -> str:
        return self.text


def wiring_departures(before: Program, after: Program) -> Iterator[Rewired]:
    """Where layers and results of one program are of other values or state than those of another one, in order.

    Raises:
        GalvatronError: a layer makes what the first program does not have.
    """
    made = {_makes(before, layer): layer for layer in before.all_layers}
    for layer in after.all_layers:
        if layer.kind is LayerKind.CONVERSION:
            continue
        values = _makes(after, layer)
        if values not in made:
            raise GalvatronError(f"{layer.name} makes {_told(values)}, which no layer of the program before makes")
        first = made[values]
        for what, now, then in zip(_PARTS, _parts(after, layer), _parts(before, first), strict=True):
            for one, other in zip_longest(now, then, fillvalue="nothing"):
                if one != other:
                    yield Rewired(f"{layer.name}, which makes {_told(values)}, {what} {one}; before, {other}")
    now, then = dict(_results(after)), dict(_results(before))
    for name in dict.fromkeys((*then, *now)):
        if now.get(name) != then.get(name):
            yield Rewired(f"{name} is {_value(now.get(name))}; before, {_value(then.get(name))}")


_PARTS = ("is of", "reads", "has the state")


def _parts(program: Program, layer: Layer) -> tuple[tuple[str, ...], ...]:
    """What a layer calls, what it reads and the state that it has, by the names before sharding."""
    operands = tuple(f"%{program.origin_of.get(name, name)}" for name in layer.operands)
    return (f"@{program.class_of[layer.cls].origin_name}",), operands, layer.state


def _makes(program: Program, layer: Layer) -> tuple[str, ...]:
    return tuple(program.origin_of.get(name, name) for name in layer.results)


def _results(program: Program) -> Iterator[tuple[str, str]]:
    """The results of a program, each with the value that it is."""
    named = [("the loss", program.output)]
    named += [(f"the {'sum' if u.adds else 'value'} of the update of {u.state}", u.value) for u in program.updates]
    named += [(f"the output {output.name}", output.value) for output in program.outputs]
    named += [(str(check), check.value) for check in program.checks]
    return ((name, program.origin_of.get(value, value)) for name, value in named)


def _told(names: tuple[str, ...]) -> str:
    return ", ".join(f"%{name}" for name in names) or "nothing"


def _value(name: str | None) -> str:
    return "not there" if name is None else f"%{name}"
