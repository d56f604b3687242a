"""Indices into a sharded dimension must lie inside the whole of it, which looking them up does not show: what is not in
this rank's slice may be in another's.

An op that looks something up notes the least and the greatest index, on the device. A step adds up over all ranks how
many calls went outside, in the collective that it ends with anyway, and refuses its batch before anything is updated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from galvatron.errors import PlanError
from galvatron.runtime.comm import Place, now


@dataclass(frozen=True)
class _Note:
    what: str
    size: int
    place: Place | None
    least: Tensor
    greatest: Tensor


class Bounds:
    """The look-ups of this rank since the step began."""

    def __init__(self) -> None:
        self._notes: list[_Note] = []

    def start(self) -> None:
        """A step begins."""
        self._notes = []

    def note(self, what: str, indices: Tensor, size: int) -> None:
        """Indices that must be at least 0 and less than `size`; `what` names them, as in "`what` 7 of 5"."""
        if indices.numel():
            self._notes.append(_Note(what, size, now.place, *indices.detach().aminmax()))

    def outside(self, device: torch.device) -> Tensor:
        """How many calls had indices outside, and how many there were, as float64."""
        if not self._notes:
            return torch.zeros(2, dtype=torch.float64, device=device)
        least, greatest, sizes = self._stacked()
        wrong = (least < 0) | (greatest >= sizes)
        return torch.stack([wrong.sum(dtype=torch.float64), wrong.new_full((), len(wrong), dtype=torch.float64)])

    def error(self, batch: Mapping[str, Tensor]) -> PlanError | None:
        """What went outside first on this rank, and which inputs of the batch have that number."""
        if not self._notes:
            return None
        for note, least, greatest in zip(self._notes, *(t.tolist() for t in self._stacked()[:2]), strict=True):
            if least < 0 or greatest >= note.size:
                value = least if least < 0 else greatest
                where = f" in layer {note.place[1]}, micro-batch {note.place[2]}" if note.place else ""
                return PlanError(
                    f"{note.what} {value} is outside of 0 to {note.size - 1}{where}{_found(batch, value)}; nothing was "
                    "updated"
                )
        return None

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        least = torch.stack([note.least.to(torch.int64) for note in self._notes])
        greatest = torch.stack([note.greatest.to(torch.int64) for note in self._notes])
        return least, greatest, torch.tensor([note.size for note in self._notes]).to(least.device, non_blocking=True)


def _found(batch: Mapping[str, Tensor], value: int) -> str:
    for name, tensor in batch.items():
        if tensor.dim() and not tensor.is_floating_point() and tensor.dtype != torch.bool:
            places = (tensor == value).nonzero()
            if len(places):
                return f": batch input {name!r} has it in sample {int(places[0, 0])}"
    return ""


bounds = Bounds()
"""One step runs in a process at a time, so there is one record."""
