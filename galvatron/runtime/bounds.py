"""What must hold of the values of a step: the model's own checks, and that indices lie inside of what they look up.

Looking an index up in a sharded dimension does not show that it is outside: what is not in this rank's slice may be in
another's. So an op that looks something up notes the least and the greatest index, and a layer whether a check of its
results fails, on the device. A step adds up over all ranks how many notes are wrong, in the collective that it ends
with anyway, and refuses its batch before anything is updated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from galvatron.errors import CheckError, GalvatronError, PlanError
from galvatron.runtime.comm import Place, now


class OutsideError(RuntimeError):
    """An op of the model was given an index that is not in what it looks up."""


_SAY_SO = re.compile(r"out of (bounds|range)|must be smaller than num_classes")
"""What kernels say of that, where it is no `IndexError`."""


@contextmanager
def looking_up() -> Iterator[None]:
    """
    Raises:
        OutsideError: an op in it was given an index that is not in what it looks up.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if isinstance(error, IndexError) or _SAY_SO.search(str(error)):
            raise OutsideError(str(error)) from error
        raise


@dataclass(frozen=True)
class _Note:
    what: str
    size: int
    place: Place | None
    least: Tensor
    greatest: Tensor


@dataclass(frozen=True)
class _Check:
    says: str
    place: Place | None
    fails: Tensor


class Bounds:
    """The look-ups and checks of this rank since the step began."""

    def __init__(self) -> None:
        self._notes: list[_Note] = []
        self._checks: list[_Check] = []
        self._checked = True

    def start(self, *, checked: bool = True) -> None:
        """A step begins; the model's own checks are left out unless it is `checked`."""
        self._notes, self._checks, self._checked = [], [], checked

    def never(self, says: str, value: Tensor) -> None:
        """What must be true nowhere; otherwise the model `says` this."""
        if self._checked:
            self._checks.append(_Check(says, now.place, value.detach().any()))

    def note(self, what: str, indices: Tensor, size: int) -> None:
        """Indices that must be at least 0 and less than `size`; `what` names them, as in "`what` 7 of 5"."""
        if indices.numel():
            self._notes.append(_Note(what, size, now.place, *indices.detach().aminmax()))

    def outside(self, device: torch.device) -> Tensor:
        """How many calls had indices outside or failed a check, and how many there were, as float64."""
        wrong = [torch.stack([check.fails for check in self._checks])] if self._checks else []
        if self._notes:
            least, greatest, sizes = self._stacked()
            wrong.append((least < 0) | (greatest >= sizes))
        if not wrong:
            return torch.zeros(2, dtype=torch.float64, device=device)
        each = torch.cat(wrong)
        return torch.stack([each.sum(dtype=torch.float64), each.new_full((), len(each), dtype=torch.float64)])

    def error(self, batch: Mapping[str, Tensor], held: Sequence[int] | None = None) -> GalvatronError | None:
        """What went outside first on this rank, and which inputs of the batch have that number; or else the check that
        failed first.

        Args:
            held: which samples of the whole batch these are; None, all.
        """
        pairs = zip(*(t.tolist() for t in self._stacked()[:2]), strict=True) if self._notes else ()
        for note, (least, greatest) in zip(self._notes, pairs, strict=True):
            if least < 0 or greatest >= note.size:
                value = least if least < 0 else greatest
                outside = f"{note.what} {value} is outside of 0 to {note.size - 1}{_where(note.place)}"
                return PlanError(f"{outside}{_found(batch, value, held)}; nothing was updated")
        failed = (check for check in self._checks if check.fails)
        return next((CheckError(f"{c.says}{_where(c.place)}; nothing was updated") for c in failed), None)

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        least = torch.stack([note.least.to(torch.int64) for note in self._notes])
        greatest = torch.stack([note.greatest.to(torch.int64) for note in self._notes])
        # Filled in on the device: a copy from the host would wait for it.
        sizes = [note.least.new_full((), note.size, dtype=torch.int64) for note in self._notes]
        return least, greatest, torch.stack(sizes)


class Reading:
    """A tensor that the host reads without waiting for what the device does after it: on its way from now on."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._there = values, None
        if values.device.type != "cpu":
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._there = torch.Event(values.device)
            self._there.record()

    def read(self) -> list[float]:
        """Its values, once they are there."""
        if self._there is not None:
            self._there.synchronize()
        return self._values.tolist()


def _where(place: Place | None) -> str:
    return f" (in layer {place[1]}, micro-batch {place[2]})" if place else ""


def _found(batch: Mapping[str, Tensor], value: int, held: Sequence[int] | None) -> str:
    for name, tensor in batch.items():
        if tensor.dim() and not tensor.is_floating_point() and tensor.dtype != torch.bool:
            places = (tensor == value).nonzero()
            if len(places):
                row = int(places[0, 0])
                return f": batch input {name!r} has it in sample {row if held is None else held[row]}"
    return ""


bounds = Bounds()
"""One step runs in a process at a time, so there is one record."""
