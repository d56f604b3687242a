"""Layers that repeat another are traced as one mark each, for which the ops of the other are then written anew.

`again` stands for a call of a module that does what an earlier one has done (`capture.alike`). It is given the operands
of both and the results of the earlier one, and makes results of the same types. Once the graph is functional, what lies
between the operands and the results of the earlier call is copied into its place, with the call's own operands and the
parameters and buffers of its own module (`write_copies`). So the graph is that of a model which was traced whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from galvatron.ir.capture.alike import Called, each_call, operands_of, returned
from galvatron.ir.capture.meaning import Meaning

_LIBRARY = torch.library.Library("galvatron_copies", "DEF")
_LIBRARY.define("again(str of, str path, Tensor[] operands, Tensor[] of_operands, Tensor[] of_results) -> Tensor[]")
_LIBRARY.impl(
    "again",
    lambda _of, _path, _operands, _of_operands, results: [torch.empty_like(result) for result in results],
    "CompositeExplicitAutograd",
)


def _never(*_: Any) -> Any:
    raise AssertionError("a mark of a trace has no backward")


torch.library.register_autograd("galvatron_copies::again", _never, lib=_LIBRARY)
_again = torch.ops.galvatron_copies.again


class UnlikeTracedError(Exception):
    """The trace did something else than the forward before it, or has what cannot be written anew: the model is to be
    traced whole."""


class Standing:
    """Inside `trace()` the calls that do what an earlier one did are traced as marks.

    Args:
        modules: see `siblings.repeated_modules`.
        calls: of these, in order, in a forward before.
        meaning: that of both forwards.
        results: what that forward gave.
    """

    def __init__(
        self, modules: Mapping[int, str], calls: Sequence[Called], meaning: Meaning, results: tuple[torch.Tensor, ...]
    ) -> None:
        self.results = results
        self._modules, self._meaning = modules, meaning
        self._coming = iter(calls)
        self._traced: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        self._repeated = {id(call.of) for call in calls if call.of is not None}
        self._is_inside = False

    @contextmanager
    def trace(self) -> Iterator[None]:
        """Forward is traced inside the `with` block.

        Raises:
            UnlikeTracedError: it makes other calls.
        """
        with each_call(self._modules, self._called):
            yield
        if next(self._coming, None) is not None:
            raise UnlikeTracedError

    def _called(self, path: str, module: nn.Module, forward: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        if self._is_inside:
            return forward()
        call = next(self._coming, None)
        operands = operands_of(args, kwargs)
        if call is None or call.path != path or [*map(self._meaning.of, operands)] != call.meant:
            raise UnlikeTracedError
        if call.of is not None:
            return returned(call, operands, self._results(call, call.of, operands))
        self._is_inside = True
        try:
            output = forward()
        finally:
            self._is_inside = False
        if id(call) in self._repeated:
            known = {id(tensor) for tensor in operands}
            self._traced[id(call)] = operands, [t for t in operands_of(output, {}) if id(t) not in known]
        return output

    def _results(self, call: Called, of: Called, operands: list[torch.Tensor]) -> list[torch.Tensor]:
        of_operands, of_results = self._traced[id(of)]
        if len(of_operands) != len(operands) or len(of_results) != len(call.means):
            raise UnlikeTracedError
        with torch._C.DisableTorchFunction():
            results = _again(of.path, call.path, operands, of_operands, of_results)
        for result, meant in zip(results, call.means, strict=True):
            self._meaning.stand_for(result, meant)
        return list(results)


def write_copies(exported: ExportedProgram) -> ExportedProgram:
    """Writes, in place, the ops of calls that were traced as marks.

    Raises:
        UnlikeTracedError: they cannot be written anew.
    """
    marks = [node for node in exported.graph.nodes if node.target is _again.default]
    if marks:
        copies = _Copies(exported)
        for mark in marks:
            copies.write(mark)
    return exported


class _Copies:
    def __init__(self, exported: ExportedProgram) -> None:
        self._exported = exported
        self._order = {node: place for place, node in enumerate(exported.graph.nodes)}
        specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        self._specs = {node: specs[node.name] for node in exported.graph.nodes if node.op == "placeholder"}
        self._state = {spec.target: node for node, spec in self._specs.items() if spec.target is not None}
        self._bodies: dict[str, list[fx.Node]] = {}

    def write(self, mark: fx.Node) -> None:
        """Writes the ops of one call, and takes its mark away."""
        of, path, operands, of_operands, of_results = mark.args
        known: dict[fx.Node, fx.Node] = dict(zip(of_operands, operands, strict=True))  # type: ignore[arg-type]  # by schema
        if of not in self._bodies:
            self._bodies[str(of)] = self._body(of_operands, of_results)  # type: ignore[arg-type]  # by schema
        graph = self._exported.graph
        with graph.inserting_before(mark):
            for node in self._bodies[str(of)]:
                if node.op == "placeholder":
                    known[node] = self._of_module(node, str(of), str(path))
                    continue
                known[node] = copy = graph.node_copy(node, lambda argument: known.get(argument, argument))
                copy.meta["nn_module_stack"] = {
                    key: (_moved(str(place), str(of), str(path)), kind)
                    for key, (place, kind) in (node.meta.get("nn_module_stack") or {}).items()
                }
        for user in list(mark.users):
            if user.target is not operator.getitem:
                raise UnlikeTracedError
            result = known[of_results[user.args[1]]]  # type: ignore[index]  # by schema
            user.replace_all_uses_with(result)
            self._exported.graph_signature.replace_all_uses(user.name, result.name)
            graph.erase_node(user)
        graph.erase_node(mark)

    def _body(self, operands: Sequence[fx.Node], results: Sequence[fx.Node]) -> list[fx.Node]:
        """What lies between operands and results, in order, and the state that it reads."""
        found: set[fx.Node] = set()
        pending = list(results)
        while pending:
            node = pending.pop()
            if node in found or node in operands or not _is_of_tensors(node):
                continue
            found.add(node)
            if node.op == "placeholder":
                if self._specs[node].kind is InputKind.CONSTANT_TENSOR:
                    raise UnlikeTracedError
                continue
            if node.op != "call_function" or str(node.target).startswith("galvatron"):
                raise UnlikeTracedError
            pending.extend(node.all_input_nodes)
        return sorted(found, key=self._order.__getitem__)

    def _of_module(self, node: fx.Node, of: str, path: str) -> fx.Node:
        """The piece of state of one module that is in the place of another's."""
        target = self._specs[node].target
        if target is None or not target.startswith(f"model.{of}."):
            return node
        return self._state[_moved(target, of, path)]


def _is_of_tensors(node: fx.Node) -> bool:
    """Whether a node is no number or size: these are the same wherever they are told."""
    value = node.meta.get("val")
    return isinstance(value, (torch.Tensor, tuple, list))


def _moved(name: str, of: str, path: str) -> str:
    """The name within one module of what has a name within another."""
    prefix = f"model.{of}"
    is_within = name == prefix or name.startswith((f"{prefix}.", f"{prefix}@"))
    return f"model.{path}{name[len(prefix) :]}" if is_within else name
