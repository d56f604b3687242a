"""An exported graph in which no op writes into a tensor, made of the operators that programs are made of.

What `torch.export` gives may write, and has operators such as `reshape` that hand their operand through where they can.
`ExportedProgram.run_decompositions` makes both plain, by tracing the whole graph again, twice. Most graphs write
nothing, or what nobody sees; then only these few operators are replaced (`functional`), which leads to the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._C import DispatchKey
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map_only

from galvatron.ir.capture.tracing import storage_of

_aten = torch.ops.aten
_dropout = _aten.dropout.default

_INSTEAD: dict[Any, Callable[..., Any]] = {
    _aten.lift_fresh_copy.default: _aten.clone.default,
    _aten.detach_.default: lambda value: value,  # of `torch.tensor`: elsewhere it is refused (`gradients.py`)
}
"""What stands for the operators by which a trace says that a constant is made."""


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The exported graph, changed in place where nobody sees what it writes, else a new one."""
    calls = [node for node in exported.graph.nodes if node.op not in ("placeholder", "output")]
    unseen = _written_unseen(exported.graph)
    if any(node not in unseen and _is_left_to_torch(node) for node in calls):
        return exported.run_decompositions({})
    if made := [node for node in calls if node in unseen or _is_made_of_others(node.target)]:
        _take_apart(exported, made)
    return exported


def _written_unseen(graph: fx.Graph) -> set[fx.Node]:
    """The calls that write into their first operand and hand it on, where nothing that shares its memory is read again
    but what they give: they might as well make a tensor of their own."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    calls = [node for node in graph.nodes if _out_of_place(node.target) is not None]
    sharing: dict[int | None, list[fx.Node]] = {}
    for node in graph.nodes if calls else ():
        for storage in {_storage_id(value) for value in tree_leaves(node.meta.get("val"))}:
            sharing.setdefault(storage, []).append(node)

    def is_unseen(call: fx.Node) -> bool:
        if (storage := _storage_id(call.meta.get("val"))) is None:
            return False
        before = [node for node in sharing[storage] if order[node] < order[call]]
        is_its_own = call.args[0] in before and _makes_its_own(before[0])
        return is_its_own and all(order[user] <= order[call] for node in before for user in node.users)

    return {call for call in calls if is_unseen(call)}


def _storage_id(value: Any) -> int | None:
    storage = storage_of(value) if isinstance(value, torch.Tensor) else None
    return None if storage is None else storage._cdata


def _makes_its_own(node: fx.Node) -> bool:
    """Whether the results of a node are in no memory that was there before."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.maybe_aliasing_or_mutating in target.tags:
        return False
    return not any(argument.alias_info for argument in target._schema.arguments)


@cache
def _out_of_place(target: Any) -> Callable[..., Any] | None:
    """What makes the tensor that an operator writes into its first operand; None for what does something else."""
    if target is _aten.detach_.default:
        return _INSTEAD[target]
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    made = getattr(packet, target._overloadname, None)
    writes = [argument.alias_info is not None for argument in target._schema.arguments]
    if not name.endswith("_") or made is None or writes != [True, *(False for _ in writes[1:])]:
        return None
    is_plain = not made._schema.is_mutable and torch.Tag.maybe_aliasing_or_mutating not in made.tags
    return made if is_plain and _signature(made) == _signature(target) else None


def _signature(target: torch._ops.OpOverload) -> tuple[list[tuple[str, str]], list[str]]:
    schema = target._schema
    return [(argument.name, str(argument.type)) for argument in schema.arguments], [str(r.type) for r in schema.returns]


def _is_left_to_torch(node: fx.Node) -> bool:
    """Whether an op may write into a tensor, as far as its schema and its tags tell, as what has graphs of its own may;
    or whether torch's tracing has a form of its own for an operator."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op != "call_function" or isinstance(target, torch._ops.OperatorBase)
    if target is _dropout:
        return False
    is_written_anew = DispatchKey.Autograd in target.py_kernels and not _is_composite(target)
    may_write = target._schema.is_mutable or torch.Tag.maybe_aliasing_or_mutating in target.tags
    return is_written_anew or may_write


def _is_composite(target: torch._ops.OpOverload) -> bool:
    return target.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)


def _is_made_of_others(target: Any) -> bool:
    """Whether an operator is a function over others that may hand an operand through."""
    if not isinstance(target, torch._ops.OpOverload) or not _is_composite(target):
        return target in _INSTEAD
    return target is _dropout or any(argument.alias_info for argument in target._schema.arguments)


def _take_apart(exported: ExportedProgram, calls: list[fx.Node]) -> None:
    """Replaces calls by what they do, which one trace tells: of all calls, each on operands of its own."""
    operands = list(dict.fromkeys(node for call in calls for node in call.all_input_nodes))

    def run(*values: Any) -> list[Any]:
        known = dict(zip(operands, values, strict=True))
        return [_called(call, known) for call in calls]

    values = [_value(node) for node in operands]
    mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
    with mode, torch.no_grad(), enable_python_dispatcher():
        traced = make_fx(run)(*values).graph
    results: Any = traced.output_node().args[0]
    now: dict[fx.Node, fx.Node] = {}
    copies = dict(zip(traced.find_nodes(op="placeholder"), operands, strict=True))
    for call, made in zip(calls, results, strict=True):
        _write(exported, call, made, copies, now)


def _write(
    exported: ExportedProgram, call: fx.Node, results: Any, copies: dict[fx.Node, fx.Node], now: dict[fx.Node, fx.Node]
) -> None:
    """Writes what was traced of one call in its place.

    Args:
        results: one node of the trace, or several of a call that makes a list.
        copies: the nodes of the graph by those of the trace, as far as they are written.
        now: what stands in the place of nodes that were replaced before.
    """
    graph = exported.graph
    told = {name: call.meta[name] for name in ("stack_trace", "nn_module_stack") if name in call.meta}
    with graph.inserting_before(call):
        for node in _needed(results, copies):
            copies[node] = copy = graph.node_copy(node, lambda n: now.get(copies[n], copies[n]))
            copy.meta = dict(node.meta) | told

    def replace(old: fx.Node, new: fx.Node) -> None:
        now[old] = new = now.get(copies[new], copies[new])
        old.replace_all_uses_with(new)
        exported.graph_signature.replace_all_uses(old.name, new.name)
        graph.erase_node(old)

    if isinstance(results, fx.Node):
        replace(call, results)
        return
    for user in list(call.users):
        assert user.target is operator.getitem
        replace(user, results[user.args[1]])
    graph.erase_node(call)


def _needed(results: Any, copies: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """The nodes of the trace of which some results are made, in order, but for those that are written."""
    found: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        if node not in copies and node not in found:
            for source in node.all_input_nodes:
                visit(source)
            found[node] = None

    for result in tree_leaves(results):
        visit(result)
    return list(found)


def _called(call: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = tree_map_only(fx.Node, known.__getitem__, (call.args, call.kwargs))
    assert callable(call.target)
    if made := _out_of_place(call.target):
        return made(*args, **kwargs).to(call.meta["val"].dtype)
    return _INSTEAD.get(call.target, call.target)(*args, **kwargs)


def _value(node: fx.Node) -> Any:
    """What a node has been traced to be; a tensor of its own, even where the node hands another through."""
    value = node.meta["val"]
    return value.detach() if isinstance(value, torch.Tensor) else value
