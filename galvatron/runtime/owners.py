"""Tensors of which the ranks of a stage have parts, brought together at the rank that owns each, and given back.

What a rank has of a tensor are boxes of it (`boxes`), and every rank knows those of the others. So the owner of a
tensor gets each box from one of the ranks that have it, and afterwards every rank gets its boxes from the owner. Many
tensors travel at once, each owner's with those of the others: a round is one all-to-all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.boxes import Box, patches_of, whole_box
from galvatron.runtime.pieces import Piece

ROUND_BYTES = 32 << 20
"""Of the tensors that an owner gets or gives in one round, unless a single one is larger."""

Tensors = Callable[[str], Sequence[Tensor]]
"""By the name of an owned tensor, it or others that are cut like it."""


@dataclass(frozen=True)
class _Share:
    """What one rank has of a tensor: boxes of it."""

    name: str
    holder: int
    owner: int
    boxes: tuple[Box, ...]

    @property
    def count(self) -> int:
        """The number of elements."""
        return sum(box.count for box in self.boxes)


class Owners:
    """Which of the ranks of a group owns which tensor, and the ways there and back. Building it is collective.

    Tensors are shared out by size, the largest first, each to the rank that owns least.

    Args:
        pieces: what this rank has of each tensor; the names are alike on all ranks.
        group: the ranks; None for one.
        index: this rank's place in it.
        device: where tensors are.
    """

    def __init__(
        self, pieces: Mapping[str, Piece], group: dist.ProcessGroup | None, index: int, device: torch.device
    ) -> None:
        self._group, self._index, self._device = group, index, device
        self._patches = {name: patches_of(piece) for name, piece in pieces.items()}
        self._shapes = {name: piece.spec.shape for name, piece in pieces.items()}
        self._types = {name: piece.tensor.dtype for name, piece in pieces.items()}
        own = {name: tuple(patch.box for patch in patches) for name, patches in self._patches.items()}
        held = [own] if group is None else comm.gather_objects(own, group, phase="parts of parameters")
        self._size = len(held)
        self._owner = _shared_out({name: math.prod(shape) for name, shape in self._shapes.items()}, self._size)
        self._shares = {
            name: [_Share(name, rank, owner, boxes[name]) for rank, boxes in enumerate(held)]
            for name, owner in self._owner.items()
        }
        self._needed = _needed(self._shares, self._size)

    def owns(self, name: str) -> bool:
        """Whether this rank owns a tensor."""
        return self._owner[name] == self._index

    def together(self, own: Collection[str]) -> list[str]:
        """The names that any of the ranks gives, in one order. Collective."""
        lists = [list(own)] if self._group is None else comm.gather_objects(list(own), self._group, phase="names")
        return [name for name in self._owner if any(name in names for names in lists)]

    def bring(self, names: Collection[str], parts: Tensors, wholes: Tensors) -> None:
        """The owners get tensors. Collective.

        Args:
            names: alike on all ranks.
            parts: what this rank has of a tensor, and of others.
            wholes: of one that this rank owns, the memory that they come to.
        """
        for some in self._rounds(names):
            self._carry([share for name in some for share in self._needed[name]], parts, wholes, to_owner=True)

    def give(self, names: Collection[str], parts: Tensors, wholes: Tensors) -> None:
        """The owners give all ranks what these have of tensors: `bring` the other way round."""
        for some in self._rounds(names):
            self._carry([share for name in some for share in self._shares[name]], parts, wholes, to_owner=False)

    def _rounds(self, names: Collection[str]) -> Iterator[list[str]]:
        """Names of tensors of one type that travel together."""
        waiting: dict[torch.dtype, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name in names:
            waiting[self._types[name]][self._owner[name]].append(name)
        for dtype, of_owners in waiting.items():
            numel = {name: math.prod(self._shapes[name]) for own in of_owners.values() for name in own}
            while any(of_owners.values()):
                yield [name for own in of_owners.values() for name in _taken(own, numel, ROUND_BYTES // dtype.itemsize)]

    def _carry(self, shares: Sequence[_Share], parts: Tensors, wholes: Tensors, *, to_owner: bool) -> None:
        """One round of shares from who has them to the owners, or back."""
        leaving: dict[int, list[Tensor]] = defaultdict(list)
        arriving: dict[int, list[Tensor]] = defaultdict(list)
        whole_of = {name: wholes(name) for name in dict.fromkeys(s.name for s in shares) if self.owns(name)}
        for share in shares:
            held = self._in_parts(share, parts) if share.holder == self._index else []
            owned = self._in_wholes(share, whole_of[share.name]) if share.owner == self._index else []
            source, target = (share.holder, share.owner) if to_owner else (share.owner, share.holder)
            sent, received = (held, owned) if to_owner else (owned, held)
            if source == target:
                for there, here in zip(received, sent, strict=True):
                    if there.data_ptr() != here.data_ptr():
                        there.copy_(here)
            elif source == self._index:
                leaving[target] += sent
            elif target == self._index:
                arriving[source] += received
        if self._group is not None and shares:
            self._exchange(leaving, arriving, self._types[shares[0].name])

    def _in_parts(self, share: _Share, parts: Tensors) -> list[Tensor]:
        return [patch.of(part.view(-1)) for part in parts(share.name) for patch in self._patches[share.name]]

    def _in_wholes(self, share: _Share, wholes: Sequence[Tensor]) -> list[Tensor]:
        around = whole_box(self._shapes[share.name])
        return [around.cut(whole, box) for whole in wholes for box in share.boxes]

    def _exchange(
        self, leaving: Mapping[int, Sequence[Tensor]], arriving: Mapping[int, Sequence[Tensor]], dtype: torch.dtype
    ) -> None:
        """Each rank gives every other the first, and gets the second of it."""
        group, ranks = self._group, range(self._size)
        assert group is not None
        sent_parts, received_parts = (
            [sum(x.numel() for x in by_rank.get(rank, ())) for rank in ranks] for by_rank in (leaving, arriving)
        )
        sent = torch.empty(sum(sent_parts), dtype=dtype, device=self._device)
        for there, here in _stretches(sent, leaving, ranks):
            there.copy_(here)
        received = torch.empty(sum(received_parts), dtype=dtype, device=self._device)
        comm.all_to_all(
            received, sent, group, received_parts=received_parts, sent_parts=sent_parts, phase="parameters"
        ).wait()
        for there, here in _stretches(received, arriving, ranks):
            here.copy_(there)


def _stretches(
    flat: Tensor, by_rank: Mapping[int, Sequence[Tensor]], ranks: Collection[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The stretch of flat memory for each tensor, with the tensor."""
    begin = 0
    for tensor in (tensor for rank in ranks for tensor in by_rank.get(rank, ())):
        yield flat[begin : begin + tensor.numel()].view(tensor.shape), tensor
        begin += tensor.numel()


def _taken(waiting: list[str], numel: Mapping[str, int], room: int) -> Iterator[str]:
    """Takes off the front what there is room for, and one at least."""
    first = True
    while waiting and (first or numel[waiting[0]] <= room):
        room -= numel[waiting[0]]
        first = False
        yield waiting.pop(0)


def _shared_out(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """For each name, one of the ranks: by size, the largest first, to the one that has least."""
    loads = [0] * ranks
    found: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = loads.index(min(loads))
        loads[found[name]] += sizes[name]
    return found


def _needed(shares: Mapping[str, Sequence[_Share]], ranks: int) -> dict[str, list[_Share]]:
    """What goes to the owners: of ranks that have the same boxes the owner's own, or that of the one with least to
    send."""
    found: dict[str, list[_Share]] = {}
    loads = [0] * ranks
    for name, of_ranks in shares.items():
        alike: dict[tuple[Box, ...], list[_Share]] = defaultdict(list)
        for share in of_ranks:
            if share.boxes:
                alike[share.boxes].append(share)
        found[name] = [min(some, key=lambda s: (s.holder != s.owner, loads[s.holder])) for some in alike.values()]
        for share in found[name]:
            loads[share.holder] += share.count
    return found
