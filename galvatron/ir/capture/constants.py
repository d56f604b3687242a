"""Values that follow from nothing but the code of forward, such as those of a mask that it makes of positions alone.

While a model is traced no tensor has values. But what is computed from numbers of Python alone is the same in every
step, so that forward may ask for its values: whether a mask is a causal one, how large the largest of some offsets is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from galvatron.ir.capture.running import tensors_in
from galvatron.ir.capture.tracing import storage_of, version_of

_READS = frozenset(
    ("__float__", "__format__", "__index__", "__int__", "allclose", "equal", "is_nonzero", "item", "tolist")
)
"""Functions that give values of tensors to Python."""

_MOST = 1 << 22
"""How many elements a tensor may have whose values are kept."""

_DEVICE = re.compile(r"[a-z]+(:\d+)?")


class ConstantsHaveValues(TorchFunctionMode):
    """Inside the `with` block a forward may read the values of constants: next to each that it makes it is made once
    more, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """By id, the tensor, which is held so that no id is given twice, and the one that has its values."""

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = (args, dict(kwargs or {}))
        operands = tensors_in(arguments)
        constant = self._is_constant(func, operands, arguments)
        if constant and operands and (func is torch.Tensor.__bool__ or func.__name__ in _READS):
            return self._really(func, arguments)
        with torch._C.DisableTorchFunction():
            versions = [version_of(tensor) for tensor in operands]
        result = func(*args, **arguments[1])
        with torch._C.DisableTorchFunction():
            sets = operands[:1] if getattr(func, "__name__", "") == "__set__" else []  # as `x.data = y` does
            written = [t for t, version in zip(operands, versions, strict=True) if version_of(t) != version] + sets
            results = tensors_in(result)
            if not (results or written) or (constant and self._made(func, arguments, results)):
                return result
            self._forget(written)
        return result

    def _is_constant(self, func: Any, operands: list[torch.Tensor], arguments: Any) -> bool:
        """Whether a call computes with nothing but constants, as far as its arguments say."""
        if not all(id(tensor) in self._twins for tensor in operands) or torch._C._are_functorch_transforms_active():
            return False
        symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
        undefined = getattr(func, "__name__", "empty").removeprefix("new_").startswith("empty")
        return not undefined and not any(isinstance(leaf, symbols) for leaf in pytree.tree_leaves(arguments))

    def _made(self, func: Any, arguments: Any, results: list[torch.Tensor]) -> bool:
        """Whether what a call has made, and written, is a constant whose values are now known."""
        if (
            any(not isinstance(size, int) for t in results for size in t.shape)
            or sum(t.numel() for t in results) > _MOST
        ):
            return False
        try:
            made = tensors_in(self._really(func, arguments))
        except Exception:  # what torch cannot do with values in memory it does without them
            return False
        if [(t.shape, t.dtype) for t in made] != [(t.shape, t.dtype) for t in results]:
            return False
        self._twins.update((id(tensor), (tensor, twin)) for tensor, twin in zip(results, made, strict=True))
        return True

    def _really(self, func: Any, arguments: Any) -> Any:
        args, kwargs = pytree.tree_map(self._real, arguments)
        with torch._C.DisableTorchFunction(), _disable_current_modes(), _WithoutChance():
            return func(*args, **kwargs)

    def _real(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return self._twins[id(argument)][1]
        is_device = isinstance(argument, torch.device) or (isinstance(argument, str) and _is_device(argument))
        return torch.device("cpu") if is_device else argument

    def _forget(self, written: Iterable[torch.Tensor]) -> None:
        """What shares memory with tensors that were written is no constant any more."""
        storages = {storage_of(self._twins[id(tensor)][1]) for tensor in written if id(tensor) in self._twins}
        shared = {storage._cdata for storage in storages if storage is not None}
        for key, (_, twin) in list(self._twins.items()):
            storage = storage_of(twin)
            if storage is None or storage._cdata in shared:
                del self._twins[key]


class _WithoutChance(TorchDispatchMode):
    """Refuses to draw random numbers."""

    def __torch_dispatch__(self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError
        return func(*args, **(kwargs or {}))


def _is_device(text: str) -> bool:
    if not _DEVICE.fullmatch(text):
        return False
    try:
        torch.device(text)
    except RuntimeError:
        return False
    return True
