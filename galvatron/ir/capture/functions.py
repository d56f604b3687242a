"""Functions with a backward of their own (`torch.autograd.Function`): both of their graphs are traced where they are
called, and marked.

The marks are operators that a trace keeps as they are. `enter` stands between an operand and what the function makes of
it, `gradient` for the gradient of a result, and `call` for the function: it is given the operands, and all that was
traced of it, and makes the results. What lies between the marks is the two graphs (`calls_in`), with the model's
own lines, in its own types, and without what Python had to say.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.autograd.function import _SingleLevelFunction

from galvatron.errors import CaptureError
from galvatron.ir.capture.running import advised, here, tensors_in

_LIBRARY = torch.library.Library("galvatron_capture", "DEF")
_LIBRARY.define("enter(Tensor operand) -> Tensor")
_LIBRARY.define("gradient(Tensor result) -> Tensor")
_LIBRARY.define(
    "call(str name, str names, Tensor[] operands, Tensor[] entered, Tensor[] results, Tensor[] saved,"
    " Tensor[] gradients, Tensor?[] given) -> Tensor[]"
)
_LIBRARY.impl("enter", torch.empty_like, "CompositeExplicitAutograd")
_LIBRARY.impl("gradient", torch.empty_like, "CompositeExplicitAutograd")
_LIBRARY.impl(
    "call",
    lambda name, names, operands, entered, results, *_: [torch.empty_like(result) for result in results],
    "CompositeExplicitAutograd",
)


def _never(*_: Any) -> Any:
    raise AssertionError("a mark of a trace has no backward")


torch.library.register_autograd("galvatron_capture::call", _never, lib=_LIBRARY)
_ops = torch.ops.galvatron_capture


class _Context:
    """What forward and backward of a function are given as `ctx`."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[torch.Tensor | None, ...] = ()
        self._without_gradient: tuple[torch.Tensor, ...] = ()
        self._materializes = True

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *_: Any) -> None:
        """For derivatives in the other direction, which nobody asks for."""

    def mark_non_differentiable(self, *tensors: torch.Tensor) -> None:
        self._without_gradient = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self._materializes = value

    def mark_dirty(self, *_: torch.Tensor) -> None:
        raise _changes_operand()


def _changes_operand() -> CaptureError:
    own = "return a new tensor"
    return CaptureError(f"{here()}an autograd function changes its operand in place: {advised(own)}")


def called(cls: type[torch.autograd.Function], args: Sequence[Any]) -> Any:
    """What `cls.apply(*args)` gives while a model is traced, some operand with a gradient.

    Raises:
        CaptureError: the function does what two graphs cannot say; names the line.
    """
    places = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    operands = [args[i] for i in places]
    entered = [_ops.enter(operand) for operand in operands]
    versions = [tensor._version for tensor in entered]
    inputs = list(args)
    for i, tensor in zip(places, entered, strict=True):
        inputs[i] = tensor
    context = _Context(tuple(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args))
    with torch.no_grad():
        output = _forward(cls, context, inputs)
    if [tensor._version for tensor in entered] != versions:
        raise _changes_operand()
    made = output if isinstance(output, tuple) else (output,)
    results = [tensor for tensor in made if isinstance(tensor, torch.Tensor)]
    if not context._materializes and len(results) > 1:
        own = "leave out ctx.set_materialize_grads(False)"
        what = f"the autograd function {cls.__name__} asks which of its results are used"
        raise CaptureError(f"{here()}{what}: {advised(own)}")
    saved = tensors_in([value for name, value in vars(context).items() if name != "needs_input_grad"])
    gradients = [_ops.gradient(tensor) for tensor in results if tensor.is_floating_point()]
    with torch.no_grad():
        given = _backward(cls, context, made, gradients)
    fitting = [_fitting(given[i], args[i]) if context.needs_input_grad[i] else None for i in places]
    names = ",".join(_parameters(cls, places))
    called = iter(_ops.call(cls.__name__, names, operands, entered, results, saved, gradients, fitting))
    without = [id(tensor) for tensor in context._without_gradient]
    outputs = tuple(_result(next(called), id(t) in without) if isinstance(t, torch.Tensor) else t for t in made)
    return outputs if isinstance(output, tuple) else outputs[0]


def _forward(cls: Any, context: _Context, inputs: Sequence[Any]) -> Any:
    """The forward in either style, with or without a `setup_context`."""
    if cls.setup_context is _SingleLevelFunction.setup_context:
        return cls.forward(context, *inputs)
    output = cls.forward(*inputs)
    cls.setup_context(context, tuple(inputs), output)
    return output


def _backward(cls: Any, context: _Context, made: Sequence[Any], gradients: Sequence[torch.Tensor]) -> list[Any]:
    """What backward gives for each argument of the forward."""
    remaining = iter(gradients)
    taken: list[torch.Tensor | None] = []
    for value in made:
        gradient = None
        if isinstance(value, torch.Tensor):
            gradient = next(remaining) if value.is_floating_point() else torch.zeros_like(value)
            if any(value is tensor for tensor in context._without_gradient):
                gradient = torch.zeros_like(value)
        taken.append(gradient)
    own = getattr(cls, "backward", None)
    if own is None or own is _SingleLevelFunction.backward:
        own = cls.vjp
    given = own(context, *taken)
    listed = list(given) if isinstance(given, (tuple, list)) else [given]
    wanted = len(context.needs_input_grad)
    if len(listed) < wanted or any(extra is not None for extra in listed[wanted:]):
        raise CaptureError(
            f"{here()}the backward of {cls.__name__} gives {len(listed)} gradients for {wanted} arguments of its "
            "forward: torch would refuse it"
        )
    return listed


def _fitting(gradient: Any, operand: torch.Tensor) -> torch.Tensor | None:
    """A gradient in the shape and type of what it is of, as autograd makes it."""
    if not isinstance(gradient, torch.Tensor):
        return None
    # Sizes that depend on the batch are not compared: that would be a condition on it.
    leading = gradient.dim() - operand.dim()
    pairs = list(zip(gradient.shape[leading:], operand.shape, strict=False)) if leading >= 0 else []
    if spread := [leading + i for i, (given, wanted) in enumerate(pairs) if _is_one(wanted) and not _is_one(given)]:
        gradient = gradient.sum(spread, keepdim=True)
    if leading > 0:
        gradient = gradient.sum(list(range(leading)))
    return gradient if gradient.dtype == operand.dtype else gradient.to(operand.dtype)


def _is_one(size: int | torch.SymInt) -> bool:
    return type(size) is int and size == 1


def _result(tensor: torch.Tensor, without_gradient: bool) -> torch.Tensor:
    return tensor.detach() if without_gradient else tensor


def _parameters(cls: Any, places: Sequence[int]) -> list[str]:
    """What the function calls its operands."""
    try:
        names = list(inspect.signature(cls.forward).parameters)
    except (TypeError, ValueError):
        names = []
    if cls.setup_context is _SingleLevelFunction.setup_context:
        names = names[1:]
    return [names[i] if i < len(names) and names[i].isidentifier() else "operand" for i in places]


@dataclass(frozen=True)
class Call:
    """A call of a function in an exported graph: nodes of what it is given, what lies between, and what it makes.

    `outside` are the values that its graphs read beside its operands. `given` has a gradient for each operand, None
    where there is none.
    """

    name: str
    names: tuple[str, ...]
    operands: tuple[fx.Node, ...]
    outside: tuple[fx.Node, ...]
    entered: tuple[fx.Node, ...]
    gradients: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]
    given: tuple[fx.Node | None, ...]
    forward: tuple[fx.Node, ...]
    backward: tuple[fx.Node, ...]


_MARKS = (_ops.enter.default, _ops.gradient.default, _ops.call.default)


def calls_in(graph: fx.Graph) -> dict[fx.Node, Call]:
    """The calls of functions that were marked while the graph was traced, by the node that makes the results."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    marks = [node for node in graph.nodes if node.target is _ops.call.default]
    return {node: _call(node, order) for node in marks}


def ancestors(node: fx.Node, calls: Mapping[fx.Node, Call] | None = None) -> set[fx.Node]:
    """A node and what it needs: of the calls of functions not what lies between their marks."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            call = (calls or {}).get(current)
            pending.extend(current.all_input_nodes if call is None else (*call.operands, *call.outside))
    return found


def is_mark(node: fx.Node) -> bool:
    """Whether a node is a mark of a trace."""
    return node.target in _MARKS


def _call(node: fx.Node, order: Mapping[fx.Node, int]) -> Call:
    marked: Any = node.args  # texts and lists of nodes, by the schema of the mark
    name, names, operands, entered, results, saved, gradients, given = marked
    entered = [_marked(operand, _ops.enter.default) for operand in entered]
    gradients = [_marked(gradient, _ops.gradient.default) for gradient in gradients]
    inside = _reached([*entered, *gradients])
    made, ends = [*results, *saved], [gradient for gradient in given if gradient is not None]
    forward = needed(made, inside)
    whole = needed([*made, *ends], inside)
    read = {*made, *ends, *(source for body in whole for source in body.all_input_nodes)}
    outside = read - whole - {*entered, *gradients}
    return Call(
        name=name,
        names=tuple(names.split(",")),
        operands=tuple(operands),
        outside=_in_order((n for n in outside if isinstance(n.meta.get("val"), torch.Tensor)), order),
        entered=tuple(entered),
        gradients=tuple(gradients),
        results=tuple(results),
        given=tuple(given),
        forward=_in_order(forward, order),
        backward=_in_order(whole - forward, order),
    )


def _marked(node: fx.Node, mark: Any) -> fx.Node:
    """The mark that made a value: what changes nothing, such as `x.to(x.dtype)`, gives the tensor itself, which the
    trace then knows by that op."""
    while node.target is not mark:
        (node,) = node.all_input_nodes
    return node


def _in_order(nodes: Iterable[fx.Node], order: Mapping[fx.Node, int]) -> tuple[fx.Node, ...]:
    return tuple(sorted(nodes, key=order.__getitem__))


def _reached(starts: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes after some others, but for marks."""
    found: set[fx.Node] = set()
    pending = [user for node in starts for user in node.users]
    while pending:
        node = pending.pop()
        if node not in found and node.op == "call_function" and node.target not in _MARKS:
            found.add(node)
            pending.extend(node.users)
    return found


def needed(ends: Iterable[fx.Node], inside: set[fx.Node]) -> set[fx.Node]:
    """Those of the nodes inside that some nodes need, these included."""
    found: set[fx.Node] = set()
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node in inside and node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found
