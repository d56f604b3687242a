"""Sample calls of ops on random shapes: of every op in the rule table there is one in some `samples*.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Value
from galvatron.ir.interpreter import torch_op
from galvatron.ir.types import TORCH_DTYPE_NAMES, TensorType


@dataclass(frozen=True)
class Sample:
    """One op as a graph of its own, with a tensor for every operand."""

    op: Op
    tensors: dict[str, torch.Tensor]

    @property
    def differentiable(self) -> frozenset[str]:
        """The operands that have a gradient."""
        return frozenset(n for n, t in self.tensors.items() if continuous(t) and not hasattr(t, "constant"))

    @property
    def graph(self) -> Graph:
        inputs = tuple(Value(name, type_of(tensor)) for name, tensor in self.tensors.items())
        return Graph(inputs, (), (self.op,), tuple(v.name for v in self.op.results))


def type_of(tensor: torch.Tensor) -> TensorType:
    dtype = next(k for k, name in TORCH_DTYPE_NAMES.items() if getattr(torch, name) == tensor.dtype)
    return TensorType(dtype, tuple(tensor.shape))


def continuous(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def sample(target: str, *args: Any, **kwargs: Any) -> Sample:
    """The call `aten.<target>(*args, **kwargs)`, or that of a whole target; tensors among the arguments become
    operands."""
    target = target if target.startswith("galvatron.") else f"aten.{target}"
    tensors: dict[str, torch.Tensor] = {}

    def argument(value: Any) -> Arg:
        if isinstance(value, torch.Tensor):
            tensors[f"x{len(tensors)}"] = value
            return Ref(f"x{len(tensors) - 1}")
        if isinstance(value, torch.dtype):
            return Const("dtype", next(k for k, n in TORCH_DTYPE_NAMES.items() if getattr(torch, n) == value))
        return tuple(argument(v) for v in value) if isinstance(value, (list, tuple)) else value

    made = torch_op(target)(*args, **kwargs)
    results = made if isinstance(made, (list, tuple)) else (made,)
    values = tuple(Value(f"y{i}", type_of(result)) for i, result in enumerate(results))
    ir_args, ir_kwargs = tuple(argument(a) for a in args), tuple((k, argument(v)) for k, v in kwargs.items())
    return Sample(Op(target, ir_args, ir_kwargs, values), tensors)


class Draw:
    """Draws what a sample needs; sizes are such that `ranks` ranks can often share them."""

    def __init__(self, data: st.DataObject, ranks: int) -> None:
        self._data = data
        self._sizes = (1, ranks, 2 * ranks, ranks * ranks, 5)

    def one_of(self, *options: Any) -> Any:
        return self._data.draw(st.sampled_from(options))

    def size(self) -> int:
        return self.one_of(*self._sizes)

    def shape(self, low: int = 0, high: int = 3) -> tuple[int, ...]:
        return tuple(self.size() for _ in range(self._data.draw(st.integers(low, high))))

    def index(self, count: int) -> int:
        return self._data.draw(st.integers(0, count - 1))

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`: leading dimensions left out, others of size one."""
        return tuple(self.one_of(size, 1) for size in shape[self.index(len(shape) + 1) :])


def real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def positive(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1


def constant(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, marked as an operand by which the op cannot be differentiated."""
    tensor.constant = True  # type: ignore[attr-defined]  # tensors take attributes
    return tensor


def below(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape)


Case = Callable[[Draw], Sample]
CASES: dict[str, list[Case]] = {}
"""Sample calls per entry of the rule table."""
POINTWISE: list[Case] = []
"""Sample calls of ops that have no rule of their own."""


def case(*rules: str) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        for rule in rules:
            CASES.setdefault(rule, []).append(function)
        return function

    return register


def each(rules: tuple[str, ...], function: Callable[[Draw, str], Sample]) -> None:
    """One case per rule, all alike but for the name of the op."""
    for rule in rules:
        case(rule)(lambda d, rule=rule: function(d, rule))
