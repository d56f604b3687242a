"""FLOPs of matmul-like kernels: by one table of formulas. Every other kernel is bound by the memory it touches."""

from __future__ import annotations

from typing import Any

from torch.utils.flop_counter import flop_registry

from galvatron.ir.ops.table import of_target


def kernel_flop(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """FLOPs of one call of a dispatched kernel; 0 for a kernel that is no matmul, attention or convolution.

    Formulas: `torch.utils.flop_counter` (a multiply-add is two FLOPs) and those of the table of operators.
    """
    packet = kernel._overloadpacket
    own = of_target(str(kernel)).flop
    if own is not None:
        return int(own(*args, **kwargs))
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0
