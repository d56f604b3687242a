"""Regions with a mode of their own, `torch.no_grad()` and `torch.autocast`, as plain ops.

`torch.export` keeps them as calls of sub-graphs. Functionalising dissolves these: it writes the casts of autocast, yet
forgets which values were made without gradients. So regions are dissolved here first, and the results of those without
gradients go through `detach`. Only regions under an enabled autocast are left to torch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map_only

from galvatron.errors import CaptureError
from galvatron.ir.capture.sources import advice, source_of, where

_SET_GRAD = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"


def dissolve_regions(exported: ExportedProgram) -> None:
    """Replaces, in place, the regions of a freshly exported program by their ops.

    Raises:
        CaptureError: a region without gradients switches gradients on again.
    """
    _dissolve(exported.graph_module, exported)


def _dissolve(module: fx.GraphModule, exported: ExportedProgram | None) -> None:
    for node in list(module.graph.nodes):
        kind = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if kind not in (_SET_GRAD, _AUTOCAST):
            continue
        body, operands = _body_and_operands(module, node, kind)
        if kind == _AUTOCAST and node.args[2]:
            continue
        _dissolve(body, None)
        if kind == _SET_GRAD and node.args[0]:
            continue
        if kind == _SET_GRAD:
            _check_without_gradients(body)
            _write_without_gradients(body)
        results = _inlined(module, node, body, operands)
        if kind == _SET_GRAD:
            given_back = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), operands, strict=True))
            made = [_itself(result) for result in next(n for n in body.graph.nodes if n.op == "output").args[0]]
            results = [given_back.get(m) or _detached(module, r) for m, r in zip(made, results, strict=True)]
        for user in list(node.users):
            assert user.target is operator.getitem
            replacement = results[user.args[1]]  # type: ignore[call-overload,index]  # the index of a getitem is an int
            user.replace_all_uses_with(replacement)
            if exported is not None:
                exported.graph_signature.replace_all_uses(user.name, replacement.name)
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    module.recompile()


def _body_and_operands(module: fx.GraphModule, node: fx.Node, kind: str) -> tuple[fx.GraphModule, tuple[fx.Node, ...]]:
    position = 1 if kind == _SET_GRAD else 4
    call = node.args[position]
    assert isinstance(call, fx.Node)
    return getattr(module, str(call.target)), node.args[position + 1 :]  # type: ignore[return-value]  # tensors are nodes


def _inlined(module: fx.GraphModule, at: fx.Node, body: fx.GraphModule, operands: tuple[fx.Node, ...]) -> list[fx.Node]:
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    copies: dict[fx.Node, fx.Node] = dict(zip(placeholders, operands, strict=True))
    results: list[fx.Node] = []
    with module.graph.inserting_before(at):
        for node in body.graph.nodes:
            if node.op == "output":
                results = [copies[result] for result in node.args[0]]
            elif node.op == "get_attr":
                name = f"{at.name}_{node.target}"
                setattr(module, name, getattr(body, str(node.target)))
                copies[node] = module.graph.get_attr(name)
            elif node.op != "placeholder":
                copies[node] = module.graph.node_copy(node, lambda n: copies[n])
    return results


def _detached(module: fx.GraphModule, result: fx.Node) -> fx.Node:
    if not isinstance(result.meta.get("val"), torch.Tensor):
        return result
    with module.graph.inserting_after(result):
        detached = module.graph.call_function(torch.ops.aten.detach.default, (result,))
    detached.meta = dict(result.meta)
    return detached


def _itself(result: fx.Node) -> fx.Node:
    """The node whose very tensor a result is: what changes nothing, such as `x.to(x.dtype)`, gives `x` back, with its
    gradient, and the trace then knows `x` by that op."""
    while True:
        call: Any = result.args[0] if result.target is operator.getitem else result
        sources = call.all_input_nodes
        if not isinstance(call.target, torch._ops.OpOverload) or call.target._schema.is_mutable:
            break
        by_values = call.meta.get("unbacked_bindings")  # sizes or numbers of results, others at each call
        if by_values or any(node.meta.get("val") is None for node in sources):
            break
        args, kwargs = tree_map_only(fx.Node, lambda node: node.meta["val"], (call.args, call.kwargs))
        with torch.no_grad():
            again: Any = call.target(*args, **kwargs)
        again = again[result.args[1]] if call is not result else again
        source = next((node for node in sources if node.meta["val"] is again), None)
        if source is None:
            break
        result = source
    return result


def _check_without_gradients(body: fx.GraphModule) -> None:
    for node in body.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", "") == _SET_GRAD:
            own = "end the region first"
            what = "gradients are switched on inside torch.no_grad()"
            raise CaptureError(f"{where(node)}{what}: {advice(source_of(node), own)}")


def _write_without_gradients(body: fx.GraphModule) -> None:
    """Makes the ops of a region that write into tensors write values without gradients, so that what they write into,
    which may be from outside, gets none. (Into what has a gradient itself nothing may be written so, see
    `gradients.py`.)"""
    for node in list(body.graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            parameters = node.target._schema.arguments
            told = [*zip(parameters, node.args, strict=False), *((p, node.kwargs.get(p.name)) for p in parameters)]
            into = tree_leaves([arg for p, arg in told if p.alias_info is not None and p.alias_info.is_write])
            for read in [operand for operand in node.all_input_nodes if operand not in into]:
                node.replace_input_with(read, _detached(body, read))
