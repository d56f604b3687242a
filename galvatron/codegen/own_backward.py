"""Functions with a backward of their own, as the classes that PyTorch has for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from galvatron.codegen.function import bind_batch, body_lines, returned, symbols_in
from galvatron.codegen.layout import INDENT, call, lines, prefixed
from galvatron.codegen.names import Scope
from galvatron.codegen.ops import OpPrinter
from galvatron.ir.graph import Function, Graph


def emit_own_backward(function: Function, name: str) -> str:
    """The `torch.autograd.Function` of a function as a rank runs it."""
    forward, backward = function.forward, function.backward
    scope = _scope(forward)
    operands = [scope.bind(value.name) for value in forward.inputs]
    out = [f"class {name}(torch.autograd.Function):"]
    out += _method("forward", operands, [], _body(forward, scope))
    saved = [scope[value] for value in function.saved]
    out += lines(call("ctx.save_for_backward", saved), 2) if saved else []
    out += returned([scope[value.name] for value in function.made], 2)
    scope = _scope(backward)
    saved = [scope.bind(value) for value in function.saved]
    gradients = iter(function.gradients)
    taken = [
        scope.bind(next(gradients).name) if v.type.is_floating else scope.bind(("unused", v.name), "unused")
        for v in function.made
    ]
    targets = f"({saved[0]},)" if len(saved) == 1 else ", ".join(saved)
    unpacked = lines(f"{targets} = ctx.saved_tensors", 2) if saved else []
    out += ["", *_method("backward", taken, unpacked, _body(backward, scope))]
    given = dict(zip(function.differentiated, backward.outputs, strict=True))
    places = range(len(forward.inputs))
    out += returned([scope[given[place]] if place in given else "None" for place in places], 2)
    return "\n".join(out)


def _scope(graph: Graph) -> Scope:
    return Scope(taken=["ctx", *map(str, symbols_in(graph))])


def _method(name: str, parameters: Sequence[str], first: Sequence[str], body: Iterator[str]) -> list[str]:
    head = lines(prefixed("def ", call(name, ["ctx", *parameters]), ":"), 1)
    return [f"{INDENT}@staticmethod", *head, *first, *body]


def _body(graph: Graph, scope: Scope) -> Iterator[str]:
    for symbol in sorted(symbols_in(graph), key=str):
        yield f"{INDENT * 2}{bind_batch(graph, scope, symbol)}"
    device = f"{scope[graph.inputs[0].name]}.device"
    yield from body_lines(graph, scope, OpPrinter(scope.__getitem__, graph.values, device), {}, depth=2)
