"""Reads loops: what stands in one is written out, with the numbers in its names counting."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from galvatron.errors import GalvatronError
from galvatron.ir import limits
from galvatron.ir.program import Layer, Reached, Result, State, StateLayout, Update
from galvatron.ir.text.names import counted
from galvatron.ir.text.scanner import Scanner, Template

Item = Layer | State | StateLayout | Update | Result | Reached


def read_loop(s: Scanner, read: Callable[[Scanner], Item]) -> tuple[Item, ...]:
    """`for i in 0..31 { … }`, with at least one item in it, written out."""
    s.expect("for", "i", "in")
    at = s.at
    first = s.integer()
    s.expect("..")
    last = s.integer()
    if not 0 <= last - first < limits.REPEATS:
        s.refuse(f"a loop counts upwards, at most {limits.REPEATS} times", at)
    s.expect("{")
    s.looping = True
    items = [read(s)]
    while not s.accept("}"):
        items.append(read(s))
    s.looping = False
    s.pay(tuple(chain.from_iterable(map(_names, items))), last - first + 1, at)
    fillers = [_filler(s, item, first) for item in items]
    return tuple(fill(i) for i in range(first, last + 1) for fill in fillers)


def _names(item: Item) -> tuple[str, ...]:
    match item:
        case Layer():
            return (item.name, item.cls, *item.operands, *item.state, *item.results, *item.origin)
        case State():
            return (item.name, *item.aliases, item.rule)
        case StateLayout():
            return (item.state,)
        case Update():
            return (item.state, item.value)
        case Result():
            return (item.name, item.value)
        case Reached():
            return (item.value, *item.states)


def _filler(s: Scanner, item: Item, first: int) -> Callable[[int], Item]:
    """What makes the item for a number of the loop, which stands for the counters in its names."""

    def name(text: str) -> Callable[[int], str]:
        if not isinstance(text, Template):
            return lambda i: text
        try:
            return counted(text, first)
        except GalvatronError as error:
            s.refuse(str(error), text.at)

    def names(texts: tuple[str, ...]) -> Callable[[int], tuple[str, ...]]:
        if not any(isinstance(text, Template) for text in texts):
            return lambda i: texts
        fills = [name(text) for text in texts]
        return lambda i: tuple([fill(i) for fill in fills])

    match item:
        case Layer():
            own, cls, origin = name(item.name), name(item.cls), names(item.origin)
            operands, state, results = names(item.operands), names(item.state), names(item.results)
            return lambda i: Layer(own(i), cls(i), operands(i), state(i), results(i), item.kind, origin(i))
        case State():
            own, aliases, rule = name(item.name), names(item.aliases), name(item.rule)
            return lambda i: State(own(i), item.type, item.kind, item.trainable, aliases(i), rule(i))
        case StateLayout():
            own = name(item.state)
            return lambda i: StateLayout(own(i), item.mesh, item.layout, item.zero)
        case Update():
            own, value = name(item.state), name(item.value)
            return lambda i: Update(own(i), value(i), item.adds)
        case Result():
            own, value = name(item.name), name(item.value)
            return lambda i: Result(own(i), value(i))
        case Reached():
            value, states = name(item.value), names(item.states)
            return lambda i: Reached(value(i), states(i))
