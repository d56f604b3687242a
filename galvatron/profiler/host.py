"""What the process takes for an op whose kernel is as good as nothing: a step is not faster than its host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from galvatron.profiler.cases import Case
from galvatron.profiler.meter import Call

_CHAIN = 50
"""Views of one call."""


_EVICTED = 2**18
"""Elements that are copied between two ops on a processor: as much as the caches next to a core hold."""

_UNLIKE: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda x, weight, bias: functional.linear(x, weight, bias),
    lambda x, weight, bias: functional.layer_norm(x, bias.shape, bias, bias),
    lambda x, weight, bias: functional.gelu(x),
    lambda x, weight, bias: x @ weight,
    lambda x, weight, bias: x + bias,
    lambda x, weight, bias: x.softmax(-1),
    lambda x, weight, bias: functional.silu(x) * x,
    lambda x, weight, bias: torch.cat([x, weight]).narrow(0, 0, len(x)),
    lambda x, weight, bias: x.transpose(0, 1).contiguous(),
)
"""What layers are made of."""


def host_cases(device: torch.device) -> Iterator[Case]:
    """Ops of a few elements: unlike ones, as in a layer, with what autograd records and with their backward, and those
    that move nothing; and on the device the smallest kernel.

    Unlike ops on a processor are called among copies, so that what an op needs of the process lies in no cache; the
    copies are timed by themselves.
    """
    yield Case("host", "view", "f32", (), 1.0, 1024.0, lambda: _views(device), calls=_CHAIN, on_host=True)
    count, back = launched(_unlike(torch.device("cpu"))), launched(_unlike(torch.device("cpu"), backward=True))
    copy = _copy(device) if device.type == "cpu" else None
    unlike: dict[str, Callable[[], Call]] = {
        "unlike ops": lambda: _unlike(device, copy),
        "unlike ops and backward": lambda: _unlike(device, copy, backward=True),
    }
    if copy is not None:
        unlike["copies"] = lambda: lambda: [copy() for _ in _UNLIKE]
    for how, prepare in unlike.items():
        sizes = (("ops", float(count)), ("ops_and_backward", float(back)))
        yield Case("host", how, "f32", sizes, 1.0, 16.0 * _EVICTED, prepare, on_host=True)
    yield Case("launch", "kernel", "f32", (), 1.0, 1024.0, lambda: _smallest(device))


class _Count(TorchDispatchMode):
    """Counts what launches something."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        own = {a.untyped_storage()._cdata for a in args if isinstance(a, Tensor)}
        results = result if isinstance(result, tuple) else (result,)
        self.launched += any(r.untyped_storage()._cdata not in own for r in results if isinstance(r, Tensor))
        return result


def launched(call: Call) -> int:
    """How many of the ops of a call launch something."""
    with _Count() as count:
        call()
    return count.launched


def _unlike(device: torch.device, between: Call | None = None, *, backward: bool = False) -> Call:
    x, weight = (torch.full((8, 8), 0.5, device=device, requires_grad=True) for _ in range(2))
    bias = torch.ones(8, device=device, requires_grad=True)
    gradient = torch.ones(8, 8, device=device)

    def run() -> None:
        y = x
        for op in _UNLIKE:
            if between is not None:
                between()
            y = op(y, weight, bias)
        if backward:
            y.backward(gradient)
            x.grad = weight.grad = bias.grad = None

    return run


def _copy(device: torch.device) -> Call:
    source, target = (torch.zeros(_EVICTED, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def _views(device: torch.device) -> Call:
    x = torch.ones(8, device=device, requires_grad=True)

    def run() -> None:
        for _ in range(_CHAIN // 2):
            x.view(2, 4).view(8)

    return run


def _smallest(device: torch.device) -> Call:
    x = torch.ones(8, device=device)
    return lambda: x.add_(1.0)
