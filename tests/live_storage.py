"""How much memory tensors take: a dispatch mode that follows every storage made while it is entered until it is freed.

with LiveStorages() as live:
    loss = model(x)
    kept = live.bytes           # what autograd keeps, the loss included
live.peak_bytes
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import finalize

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that are alive of those made inside, each once whatever its views, and their peak.

    Memory that a kernel takes and gives back within one call is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, Any] = {}

    def ignore(self, *tensors: Tensor) -> None:
        """Leave out the storages of tensors that were there before."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A view of a storage that was made outside is not of one made here.
        before = {tensor.untyped_storage()._cdata for tensor in _tensors((args, tuple((kwargs or {}).values())))}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known and storage._cdata not in before:
                size = storage.nbytes()
                self._known[storage._cdata] = finalize(storage, self._freed, storage._cdata, size)
                self.bytes += size
                self.peak_bytes = max(self.peak_bytes, self.bytes)
        return out

    def _freed(self, key: int, size: int) -> None:
        del self._known[key]
        self.bytes -= size


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
