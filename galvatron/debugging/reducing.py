"""A captured program made smaller for as long as something about it stays as it is, such as the failure of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.names import Names
from galvatron.ir.program import Form, Program
from galvatron.ir.types import TensorType
from galvatron.ir.verify import verify


def reduced(program: Program, stays: Callable[[Program], bool]) -> Program:
    """The smallest program that is found, by leaving out what comes last, what comes first and single ops, for which
    `stays` holds. Every program that is tried is valid, and ends in the sum of a value.

    Raises:
        GalvatronError: the program is not captured, or `stays` does not hold for it.
    """
    if program.form is not Form.CAPTURED:
        raise GalvatronError(
            f"a program that is reduced is captured, not {program.form}: capture it with --form captured"
        )
    if not stays(program):
        raise GalvatronError("the program does not fail to begin with, so that nothing can be left out of it")
    smaller: Program | None = program
    while smaller is not None:
        program = smaller
        count = len(program.required_graph.ops)
        fewer = (one for one in _smaller(program) if len(one.required_graph.ops) < count)
        smaller = next((one for one in fewer if _holds(one, stays)), None)
    return program


def _holds(program: Program, stays: Callable[[Program], bool]) -> bool:
    try:
        verify(program)
    except GalvatronError:
        return False
    return stays(program)


def _smaller(program: Program) -> Iterator[Program]:
    """Programs with fewer ops, those with fewest first."""
    graph = program.required_graph
    count = len(graph.ops)
    shares = [share for share in (1, 2, 4, 8, 16, 32, 64) if share < count] + [count]
    for share in shares:
        for part in range(share):
            first, last = count * part // share, count * (part + 1) // share
            if share > 1 and last < count:
                yield from _ending(program, last)
            if share > 1 and first > 0:
                yield from _beginning(program, first)
    for place in range(count):
        yield from _without(program, place)


def _ending(program: Program, count: int) -> Iterator[Program]:
    """The program of the first ops, whose loss is the sum of the last value."""
    graph = program.required_graph
    floating = [value for op in graph.ops[:count] for value in op.results if value.type.is_floating]
    if floating:
        value = floating[-1]
        name = Names(graph.values).fresh("loss")
        end = Op("aten.sum.default", (Ref(value.name),), (), (Value(name, TensorType(value.type.dtype, ())),))
        yield _with(program, replace(graph, ops=(*graph.ops[:count], end), outputs=(name,)))


def _beginning(program: Program, count: int) -> Iterator[Program]:
    """The program without the first ops: what they make is given."""
    graph = program.required_graph
    read = {name for op in graph.ops[count:] for name in op.operands} | set(graph.outputs)
    given = [value for op in graph.ops[:count] for value in op.results if value.name in read]
    if given and not any(value.name in graph.outputs for value in given):
        yield _with(program, replace(graph, inputs=(*graph.inputs, *given), ops=graph.ops[count:]))


def _without(program: Program, place: int) -> Iterator[Program]:
    """The program without one op, of whose operands one is read instead."""
    graph = program.required_graph
    op = graph.ops[place]
    if len(op.results) != 1:
        return
    for name in dict.fromkeys(op.operands):
        if graph.types[name] == op.result.type:
            yield from _reading(program, place, name)


def _reading(program: Program, place: int, instead: str) -> Iterator[Program]:
    """The program without one op, and with a value in the place of its result."""
    graph = program.required_graph
    gone = graph.ops[place].result.name

    def read(name: str) -> str:
        return instead if name == gone else name

    outputs = tuple(map(read, graph.outputs))
    if instead not in graph.producers and instead in outputs:
        return
    rest = (op.map_refs(read) for op in graph.ops[place + 1 :])
    yield _with(program, replace(graph, ops=(*graph.ops[:place], *rest), outputs=outputs))


def _with(program: Program, graph: Graph) -> Program:
    """The program of a graph that has its first output for a loss, with what that reads."""
    graph = replace(graph, outputs=graph.outputs[:1]).without_dead_ops()
    read = {name for op in graph.ops for name in op.operands} | set(graph.outputs)
    inputs = tuple(value for value in graph.inputs if value.name in read)
    state = tuple(value for value in graph.state if value.name in read)
    graph = replace(graph, inputs=inputs, state=state)
    own = tuple(one for one in program.state if one.name in {value.name for value in state})
    program = replace(program, updates=(), outputs=(), checks=(), reached=())
    return replace(program, graph=graph, inputs=inputs, state=own, output=graph.outputs[0])
