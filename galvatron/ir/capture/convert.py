"""From the ATen graph of `torch.export` to a `Graph`: names, types, arguments, and where each op comes from."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import sympy
import torch
from torch import fx

from galvatron.errors import CaptureError
from galvatron.ir.capture.state import DTYPE_OF
from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Source, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.types import BATCH, Dim, TensorType, exact_quotient, simplify_dim

_DROPPED_KWARGS = frozenset({"device", "layout", "pin_memory"})
_TORCH_ROOT = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')


class Converter:
    """Converts the live part of one exported graph; `batch_symbol` is torch's name for the batch size.

    `bound` maps placeholders to the values that they stand for: batch inputs and state.
    """

    def __init__(self, bound: Mapping[fx.Node, Value], batch_symbol: sympy.Symbol) -> None:
        self._batch_symbol = batch_symbol
        self._names = Names(value.name for value in bound.values())
        self._values: dict[fx.Node, Value] = dict(bound)
        self._parts: dict[fx.Node, tuple[Value, ...]] = {}

    def graph(self, loss: fx.Node, inputs: tuple[Value, ...], state: tuple[Value, ...]) -> Graph:
        """The graph that computes `loss`, with only the state that it reads."""
        live = _ancestors(loss)
        ops = [op for node in loss.graph.nodes if node in live for op in self._ops(node)]
        read = {name for op in ops for name in op.operands}
        return Graph(inputs, tuple(v for v in state if v.name in read), tuple(ops), (self._values[loss].name,))

    def _ops(self, node: fx.Node) -> Iterable[Op]:
        if node.op != "call_function" or _is_symbolic_number(node):
            return
        if node.target is operator.getitem:
            source, index = node.args
            self._values[node] = self._parts[source][index]  # type: ignore[index]  # of an op with several results
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            raise CaptureError(f"{where(node)}the operation {node.target} is not an ATen op and cannot be distributed")
        target = str(node.target)
        results = self._results(node, base_name(target))
        args = tuple(self._arg(a, node) for a in node.args)
        kwargs = tuple((k, self._arg(v, node)) for k, v in node.kwargs.items() if k not in _DROPPED_KWARGS)
        yield Op(target, args, kwargs, results, source_of(node))

    def _results(self, node: fx.Node, base: str) -> tuple[Value, ...]:
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            self._values[node] = Value(self._names.fresh(base), self._type(value, node))
            return (self._values[node],)
        if not all(isinstance(v, torch.Tensor) for v in value):
            raise CaptureError(f"{where(node)}{node.target} returns something other than tensors")
        self._parts[node] = tuple(Value(self._names.fresh(base), self._type(v, node)) for v in value)
        return self._parts[node]

    def _type(self, tensor: torch.Tensor, node: fx.Node) -> TensorType:
        if tensor.dtype not in DTYPE_OF:
            raise CaptureError(f"{where(node)}a tensor of dtype {tensor.dtype}, which Galvatron does not support")
        return TensorType(DTYPE_OF[tensor.dtype], tuple(self._size(size, node) for size in tensor.shape))

    def _size(self, size: int | torch.SymInt, node: fx.Node) -> Dim:
        if isinstance(size, int):
            return size
        expression = _plain(size.node.expr)
        unknown = expression.free_symbols - {self._batch_symbol}
        if unknown:
            raise CaptureError(f"{where(node)}a size depends on the data (not only on the batch size)")
        if expression.atoms(sympy.Function):
            raise CaptureError(
                f"{where(node)}a size is not a polynomial in the batch size: "
                f"{expression.subs(self._batch_symbol, BATCH)} with B samples"
            )
        return simplify_dim(expression.subs(self._batch_symbol, BATCH))

    def _arg(self, arg: object, node: fx.Node) -> Arg:
        if isinstance(arg, fx.Node):
            if arg in self._values:
                return Ref(self._values[arg].name)
            return self._arg(arg.meta["val"], node)
        if isinstance(arg, torch.SymInt):
            return self._size(arg, node)
        if isinstance(arg, (torch.SymFloat, torch.SymBool)):
            raise CaptureError(f"{where(node)}a number is computed from the batch size in floating point or a comparison")
        if arg is None or isinstance(arg, (bool, int, float, str)):
            return arg
        if isinstance(arg, (tuple, list)):
            return tuple(self._arg(a, node) for a in arg)
        if isinstance(arg, torch.dtype):
            return Const("dtype", DTYPE_OF[arg])
        if isinstance(arg, torch.memory_format):
            return Const("memory_format", str(arg).removeprefix("torch."))
        if isinstance(arg, (torch.device, torch.layout)):
            return None
        raise CaptureError(f"{where(node)}{node.target} has an argument of type {type(arg).__name__}")


def _plain(expression: sympy.Expr) -> sympy.Expr:
    """An expression with torch's integer divisions replaced by exact quotients where they are exact."""

    def is_division(part: sympy.Basic) -> bool:
        return type(part).__name__ in ("FloorDiv", "CleanDiv", "CeilToInt", "FloorToInt") and len(part.args) == 2

    def divided(part: sympy.Basic) -> sympy.Basic:
        quotient = exact_quotient(_plain(part.args[0]), _plain(part.args[1]))  # type: ignore[arg-type]  # sizes
        return part if quotient is None else sympy.sympify(quotient)

    return expression.replace(is_division, divided)  # type: ignore[return-value]  # of an expression: an expression


def _is_symbolic_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))


def _ancestors(node: fx.Node) -> set[fx.Node]:
    live: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current not in live:
            live.add(current)
            pending.extend(current.all_input_nodes)
    return live


def source_of(node: fx.Node) -> Source | None:
    """The line of the user's model that made a node: the innermost stack frame outside torch."""
    scopes = list((node.meta.get("nn_module_stack") or {}).values())
    scope = re.sub(r"@\d+", "", str(scopes[-1][0])) if scopes else ""
    return source_in(node.meta.get("stack_trace") or "", scope.removeprefix("model").removeprefix("."))


@lru_cache(maxsize=4096)
def source_in(stack_trace: str, scope: str = "") -> Source | None:
    """The innermost frame of a printed stack trace that is neither torch's nor Galvatron's."""
    for frame in reversed(list(_FRAME.finditer(stack_trace))):
        if is_user_file(frame["file"]):
            return Source(short_path(frame["file"]), int(frame["line"]), frame["code"].strip(), scope)
    return None


def is_user_file(file: str) -> bool:
    """Whether a stack frame's file belongs to the user's model (which includes the libraries that it uses)."""
    return not (file.startswith((_TORCH_ROOT, _HERE, "<")) or "importlib" in file)


@lru_cache(maxsize=256)
def short_path(file: str) -> str:
    """A file as it is found from `sys.path`, so that programs read the same on every machine."""
    roots = [root for root in sys.path if root and file.startswith(root.rstrip("/") + "/")]
    return file[len(max(roots, key=len).rstrip("/")) + 1 :] if roots else file


def where(node: fx.Node) -> str:
    """The head of an error message about a node: `file:line: code: `."""
    source = source_of(node)
    return f"{source}: `{source.code}`: " if source else ""
