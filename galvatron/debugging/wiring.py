"""What stands between the classes of a sharded program, held to the program that it was made from: which layer reads
which values and which state, and what becomes of the results.

Values are known by the names that they have before there are copies and conversions (`Program.origin_of`).
"""

from __future__ import annotations

from collections import Counter
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
    for name, then, now in paired_results(before, after):
        if now != then:
            yield rewired(name, then, now)


def paired_results(before: Program, after: Program) -> Iterator[tuple[str, str | None, str | None]]:
    """What becomes of a step of each of two programs: what it is called, and the value that it is in both; None where
    one has none."""
    then, now = dict(_results(before)), dict(_results(after))
    yield from ((name, then.get(name), now.get(name)) for name in dict.fromkeys((*then, *now)))


_PARTS = ("is of", "reads", "has the state")


def _parts(program: Program, layer: Layer) -> tuple[tuple[str, ...], ...]:
    """What a layer calls, what it reads and the state that it has, by the names before sharding."""
    operands = tuple(f"%{program.origin_of.get(name, name)}" for name in layer.operands)
    return (f"@{program.class_of[layer.cls].origin_name}",), operands, layer.state


def _makes(program: Program, layer: Layer) -> tuple[str, ...]:
    return tuple(program.origin_of.get(name, name) for name in layer.results)


def _results(program: Program) -> Iterator[tuple[str, str]]:
    """The results of a program, each with the value that it is; the loss first."""
    named = [("the loss", program.output)]
    named += [(f"the {'sum' if u.adds else 'value'} of the update of {u.state}", u.value) for u in program.updates]
    named += [(f"the output {output.name}", output.value) for output in program.outputs]
    told: Counter[str] = Counter()
    for check in program.checks:
        told[check.says] += 1
        again = f", number {told[check.says]}" if told[check.says] > 1 else ""
        named.append((f"{check}{again}", check.value))
    return ((name, program.origin_of.get(value, value)) for name, value in named)


def rewired(name: str, then: str | None, now: str | None) -> Rewired:
    """A result of the program that is another value than it was."""
    return Rewired(f"{name} is {_value(now)}; before, {_value(then)}")


def _told(names: tuple[str, ...]) -> str:
    return ", ".join(f"%{name}" for name in names) or "nothing"


def _value(name: str | None) -> str:
    return "not there" if name is None else f"%{name}"
