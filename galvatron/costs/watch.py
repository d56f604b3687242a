"""Watching kernels run: each as an event, and the bytes of the tensors that are alive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import finalize

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from galvatron.ir.interpreter import DTYPE_OF
from galvatron.ir.layout import Axis
from galvatron.ir.ops.kernels import KernelLaunch, launches_on
from galvatron.ir.ops.table import kernel_work, of_target
from galvatron.ir.ops.work import Work
from galvatron.machine.kernel import touched_bytes


@dataclass(frozen=True)
class ObservedEvent:
    """A kernel (`axis` None) or collective at one batch size, with the bytes that it touches or sends.

    `reads` and `writes` are the storages of its operands and results, numbered as they were first seen, with the bytes
    that it touches of each; `operator` is what torch dispatched. A collective that is started, and the wait for it,
    have the `window` between them; one that is waited for `at_once` has none, whatever the op that it belongs to.
    """

    name: str
    dtype: str
    axis: Axis | None
    size_bytes: float
    work: Work | None = None
    of_weight: bool = False
    reads: tuple[tuple[int, float], ...] = ()
    writes: tuple[tuple[int, float], ...] = ()
    operator: Any = None
    window: int | None = None
    at_once: bool = False


class Watch(TorchDispatchMode):
    """Records every kernel that a kind of device launches for what torch dispatches.

    Who wants to know more overrides `dispatched`, `made` and `gone`.
    """

    def __init__(self, events: list[Any], kind: str) -> None:
        super().__init__()
        self.events: list[Any] = events
        self.kind = kind
        self._seen: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._next = 0

    def dispatched(self, *, view: bool = False) -> None:
        """Called for all that the process dispatches: what launches something, and views."""

    def made(self, number: int, size_bytes: int) -> None:
        """Called when a storage is there that was not."""

    def gone(self, number: int) -> None:
        """Called when such a storage is freed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace != "prim":
            self._record(func, args, kwargs, out)
        return out

    def _record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        results = [t for t in _flat(out) if isinstance(t, torch.Tensor)]
        for tensor in results:
            self._track(tensor)
        name = func._overloadpacket.__name__
        operator = of_target(str(func))
        if not results or operator.allocates:
            return
        if _is_view(func, args, results):
            self.dispatched(view=True)
            return
        self.dispatched()
        operands = list(
            {id(t): t for t in _flat((args, tuple(kwargs.values()))) if isinstance(t, torch.Tensor)}.values()
        )
        dtype = DTYPE_OF.get((operands or results)[0].dtype, "f32")
        work = kernel_work(func, args, kwargs, out)
        note = partial(self._note, name, dtype, func)
        if launches := launches_on(self.kind, name):
            tensors = _by_name(func, args, kwargs, out)
            done = _done(launches, tensors)
            share = 1 / max(1, sum(launch.works for launch in done))
            part = work and Work(work.kind, (work.sizes[0] * share, *work.sizes[1:]))
            for launch in done:
                reads, writes = (
                    [t for place in places for t in tensors.get(place, ())] for places in (launch.reads, launch.writes)
                )
                note(part if launch.works else None, reads, writes)
            return
        note(work, operands, results, gathers=operator.gathers)

    def _note(
        self,
        name: str,
        dtype: str,
        func: Any,
        work: Work | None,
        operands: list[torch.Tensor],
        results: list[torch.Tensor],
        *,
        gathers: bool = False,
    ) -> None:
        reads, writes = ([(self.number(t), _size_bytes(t)) for t in tensors] for tensors in (operands, results))
        touched = touched_bytes([size for _, size in reads], [size for _, size in writes], gathers=gathers)
        if gathers and reads:
            reads[0] = reads[0][0], writes[0][1]
        self.events.append(
            ObservedEvent(name, dtype, None, touched, work, reads=tuple(reads), writes=tuple(writes), operator=func)
        )

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor's storage."""
        key = tensor.untyped_storage()._cdata
        if key not in self._numbers:
            self._count(key)
        return self._numbers[key]

    def record_in(self, events: list[Any]) -> None:
        """Lists what comes next elsewhere."""
        self.events = events

    def collective(self, kind: str | None, axis: Axis, payload_bytes: int, *, at_once: bool = False) -> None:
        if kind is not None:
            self.dispatched()
            self.events.append(ObservedEvent(kind, "", axis, payload_bytes, at_once=at_once))

    def copied(self, like: torch.Tensor, size_bytes: float) -> None:
        """Notes that so many bytes of a tensor's type were read and written again."""
        self.dispatched()
        dtype = DTYPE_OF.get(like.dtype, "f32")
        self.events.append(ObservedEvent("clone", dtype, None, 2 * size_bytes, operator=torch.ops.aten.clone.default))

    def keep(self, tensor: torch.Tensor) -> None:
        """Leaves the storage of a tensor that is there before the run out of the count."""
        key = tensor.untyped_storage()._cdata
        self._seen[key] = None
        self._count(key)

    def _count(self, key: int) -> None:
        self._numbers[key] = self._next
        self._next += 1

    def _track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen[key] = finalize(storage, self._free, key)
        self._count(key)
        self.made(self._numbers[key], size)

    def _free(self, key: int) -> None:
        self._seen.pop(key, None)
        self.gone(self._numbers.pop(key))


def _by_name(func: Any, args: Any, kwargs: Any, out: Any) -> dict[str, list[torch.Tensor]]:
    """The tensors of a call: operands by parameter, results by number."""
    parameters = (a.name for a in func._schema.arguments)
    results = out if isinstance(out, (tuple, list)) else (out,)
    named = {**dict(zip(parameters, args, strict=False)), **kwargs, **{str(i): t for i, t in enumerate(results)}}
    return {name: [t for t in _flat(value) if isinstance(t, torch.Tensor)] for name, value in named.items()}


def _done(launches: Iterable[KernelLaunch], tensors: dict[str, list[torch.Tensor]]) -> list[KernelLaunch]:
    """Those launches of a kernel that a call of it does."""
    return [
        launch
        for launch in launches
        if any(map(tensors.get, launch.writes)) and all(map(tensors.get, sorted(launch.needs)))
    ]


def _is_view(func: Any, args: Any, results: list[torch.Tensor]) -> bool:
    """Whether a kernel only gives another name to the memory of its operand."""
    if func._schema.is_mutable:
        return False
    own = {t.untyped_storage()._cdata for t in _flat(args) if isinstance(t, torch.Tensor)}
    return all(t.untyped_storage()._cdata in own for t in results)


def _size_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements, those of an expanded one counted once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    else:
        yield value
