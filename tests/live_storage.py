"""How much memory tensors take: a dispatch mode that follows every storage made while it is entered until it is freed.

with LiveStorages() as live:
    loss = model(x)
    kept = live.bytes           # what autograd keeps, the loss included
live.peak_bytes
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

_GIVEN_BACK_S = 0.005
"""The library of communication may hold what it has sent for a moment longer than until that was waited for."""

Label = tuple[int, int] | None
"""A stage and a micro-batch."""


@dataclass(frozen=True)
class Held:
    """The most micro-batches that are in flight on a stage after a forward, and the most bytes that they take."""

    in_flight: int
    bytes: int


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that are alive of those made inside, each once whatever its views, and their peak.

    A storage that is resized counts with its new size. Memory that a kernel, or the communication library, takes and
    gives back within one call is not seen. What is made while `label` is set belongs to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._made: dict[int, ref[UntypedStorage]] = {}
        self._outside: dict[int, ref[UntypedStorage]] = {}
        self._labels: dict[int, Label] = {}
        self.label: Label = None

    @property
    def bytes(self) -> int:
        """Held now."""
        return sum(storage.nbytes() for storage in self._alive().values())

    @property
    def by_label(self) -> Counter[Label]:
        """Bytes held now, by what they belong to."""
        held = Counter[Label]()
        for key, storage in self._alive().items():
            held[self._labels[key]] += storage.nbytes()
        return held

    def claim(self, *tensors: Tensor) -> None:
        """Let tensors that were made inside belong to the present label."""
        for tensor in tensors:
            self._labels[tensor.untyped_storage()._cdata] = self.label

    def _alive(self) -> dict[int, UntypedStorage]:
        storages = {key: storage for key, made in self._made.items() if (storage := made()) is not None}
        self._made = {key: self._made[key] for key in storages}
        return storages

    def ignore(self, *tensors: Tensor) -> None:
        """Leave out the storages of tensors that were there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._outside[storage._cdata] = ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view of a storage that was made outside is not of one made here.
        self.ignore(*(t for t in _tensors((args, tuple((kwargs or {}).values()))) if not _knows(self._made, t)))
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            if not tensor.is_meta and not _knows(self._outside, tensor):
                storage = tensor.untyped_storage()
                if not _knows(self._made, tensor):
                    self._labels[storage._cdata] = self.label
                self._made[storage._cdata] = ref(storage)
        if self.bytes > self.peak_bytes:
            time.sleep(_GIVEN_BACK_S)
            self.peak_bytes = max(self.peak_bytes, self.bytes)
        return out


def _knows(storages: dict[int, ref[UntypedStorage]], tensor: Tensor) -> bool:
    """Whether the storage of a tensor is among some; the address of a freed one may be used again."""
    storage = tensor.untyped_storage()
    known = storages.get(storage._cdata)
    return known is not None and known() is not None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
