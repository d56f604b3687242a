"""The kernels of an op on one rank, forward and backward, as its sharding rule and local sizes say.

What really runs is observed when a sharded graph is profiled; this is for who has to choose how to shard it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

from galvatron.ir.graph import Op
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.table import operator_of
from galvatron.ir.ops.work import Work, product
from galvatron.ir.types import DTYPE_BYTES
from galvatron.machine.kernel import Kernel, touched_bytes

BACKWARD_TRAFFIC = 2
"""A backward reads gradients beside what the forward read, and writes as much."""


@dataclass(frozen=True)
class LocalTensor:
    """What one rank has of an operand or result."""

    dtype: str
    shape: tuple[float, ...]

    @property
    def bytes(self) -> float:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def op_kernels(
    op: Op,
    dims: OpDims | None,
    sizes: Mapping[str, float],
    tensors: Sequence[LocalTensor],
    differentiable: Set[str],
) -> tuple[Kernel, ...]:
    """The kernels of an op, those of its backward included.

    Args:
        dims: its named dimensions; None for an op without a rule.
        sizes: of the named dimensions on this rank.
        tensors: its operands and results on this rank.
        differentiable: the values that have a gradient.
    """
    operator = operator_of(op)
    if operator.free:
        return ()
    name, dtype = op.name, tensors[0].dtype
    touched = [tensor.bytes for tensor in tensors]
    operands, results = touched[: len(op.operands)], touched[len(op.operands) :]
    work = _work(op, dims, sizes, [tensor.shape for tensor in tensors])
    forward = Kernel(name, dtype, touched_bytes(operands, results, gathers=operator.gathers), work)
    if not any(v.name in differentiable for v in op.results):
        return (forward,)
    if dims is not None and work is not None and work.kind == "product":
        # One product per factor with a gradient, of the same three tensors.
        factors = enumerate(op.operands[i] for i in sorted(dims.products))
        gradients = (work.gradient(i) for i, factor in factors if factor in differentiable)
        return (forward, *(Kernel(f"{name}_backward", dtype, sum(touched), gradient) for gradient in gradients))
    backward = work and Work("attention_backward", work.sizes)
    return (forward, Kernel(f"{name}_backward", dtype, BACKWARD_TRAFFIC * sum(touched), backward))


def _work(op: Op, dims: OpDims | None, sizes: Mapping[str, float], shapes: Sequence[tuple[float, ...]]) -> Work | None:
    """The arithmetic of an op that contracts dimensions; None of any other."""
    if op_work := operator_of(op).op_work:
        return op_work(op, shapes, dims)
    if dims is None or len(dims.products) < 2:
        return None
    first, *others = ({n for names in dims.operands[i] for n in names} for i in sorted(dims.products))
    second, result = set().union(*others), {n for names in dims.results[0] for n in names}
    parts = (first & second & result, (first & result) - second, (second & result) - first, (first | second) - result)
    if not parts[-1]:
        return None
    return product(*(prod(sizes[n] for n in sorted(part)) for part in parts))
