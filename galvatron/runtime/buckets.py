"""Flat memory for parameters that are synchronised together: their values, gradients, and this rank's part of both.

    values     |-- a --|-- b --|- c -|.|      what the layers read; `.` is filler up to a multiple of the ranks
    shard              |-------|              this rank's part, which the optimizer updates

The ranks of a bucket's group hold the same parameters, and their gradients add up. What is kept whole and what is cut
into the ranks' parts is the ZeRO level (Rajbhandari et al. 2020): the optimizer's state from level 1 on, gradients from
level 2 on, values from level 3 on. With a master type the shard has that type, and the values are rounded copies of it.

Frozen parameters have values and nothing else, and buckets of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from galvatron.runtime import comm
from galvatron.runtime.stage import StateSpec

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Group:
    """The ranks over which the gradients of a bucket are summed; alone when there is nothing to sum."""

    process_group: dist.ProcessGroup | None
    size: int
    index: int


ALONE = Group(None, 1, 0)


@dataclass
class Member:
    """One parameter of a bucket: where it lies, and the leaf that the layers read.

    `filled` says whether the gradient buffer holds its gradient of the running step or micro-batch; `trained` is what
    the optimizer gets, unless it is frozen: the leaf itself, or this rank's part of it, which is one row, perhaps
    empty, with as many dimensions as the leaf, so that "no decay for vectors" means the same.
    """

    name: str
    spec: StateSpec
    begin: int
    leaf: nn.Parameter
    trained: nn.Parameter
    filled: bool = False

    @property
    def end(self) -> int:
        return self.begin + self.leaf.numel()


class Bucket:
    """Parameters in one flat piece of memory, at one ZeRO level over one group of ranks.

    Args:
        specs: the parameters; they share element types, and are all trained or all frozen.
        tie: the ranks of other stages that hold copies of the same slices, if any.
    """

    def __init__(
        self,
        specs: Sequence[StateSpec],
        group: Group,
        tie: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        first = specs[0]
        self.frozen = first.frozen
        self.group, self.tie = group, tie
        self.level = first.zero if group.size > 1 else 0
        self.ways = group.size if self.level else 1
        self.dtype, self.master_dtype = first.dtype, first.master or first.dtype
        step = _ALIGNMENT_BYTES // self.dtype.itemsize
        begins = [0]
        for spec in specs:
            begins.append(_round_up(begins[-1] + spec.local_numel, step))
        size = _round_up(begins[-1], step * self.ways)
        self.part = size // self.ways
        self._rank = group.index if self.level else 0
        self.values = torch.empty(size, dtype=self.dtype, device=device)
        # Only where both the type and the lifetime agree is the shard a part of the values.
        shares = self.level < 3 and self.master_dtype == self.dtype
        self.shard = self._own(self.values) if shares else self.values.new_empty(self.part, dtype=self.master_dtype)
        self.members = [self._member(spec, begin, shares) for spec, begin in zip(specs, begins, strict=False)]
        self._arriving: comm.Handle | None = None
        self.synchronised = not self.frozen and (group.size > 1 or tie is not None)
        self.buffered = self.synchronised or self.master_dtype != self.dtype
        """Whether gradients are collected in flat memory; otherwise they stay where autograd makes them."""
        self._whole: Tensor | None = None
        self._sum: Tensor | None = None
        if self.buffered:
            if self.level < 2:
                self._whole = torch.zeros(size, dtype=self.master_dtype, device=device)
                self._sum = self._own(self._whole)
            else:
                self._sum = torch.zeros(self.part, dtype=self.master_dtype, device=device)
        self._pending: tuple[comm.Handle, Tensor] | None = None
        self._summed_any = False
        self.release()

    def _member(self, spec: StateSpec, begin: int, shares: bool) -> Member:
        shape = spec.local_shape()
        # `.data`, so that writing the flat memory does not count as changing a tensor that autograd has saved.
        leaf = nn.Parameter(self.values[begin : begin + spec.local_numel].view(shape).data, not self.frozen)
        if shares and self.ways == 1:
            return Member(spec.name, spec, begin, leaf, leaf)
        member = Member(spec.name, spec, begin, leaf, leaf)
        own = self._part_of(self.shard, member)
        row = (1,) * (len(shape) - 1) + (own.numel(),)
        member.trained = nn.Parameter(own.view(shape if self.ways == 1 else row), not self.frozen)
        return member

    def _own(self, flat: Tensor) -> Tensor:
        return flat[self._rank * self.part : (self._rank + 1) * self.part]

    def _part_of(self, shard: Tensor, member: Member) -> Tensor:
        """What a shard has of a member."""
        begin, end = self._overlap(member, self._rank)
        return shard[begin - self._rank * self.part : end - self._rank * self.part]

    def _overlap(self, member: Member, rank: int) -> tuple[int, int]:
        """What lies both in a member and in the part of a rank."""
        begin = min(max(member.begin, rank * self.part), (rank + 1) * self.part)
        return begin, max(begin, min(member.end, (rank + 1) * self.part))

    def range_of(self, member: Member) -> tuple[int, int]:
        """From which to which element of the member this rank's part goes."""
        begin, end = self._overlap(member, self._rank)
        return begin - member.begin, end - member.begin

    # Values

    def write(self, member: Member, local: Tensor) -> None:
        """Set a parameter from this rank's whole slice of it, of which no more is copied than what is kept."""
        local = local.detach()
        self.arrived()
        with torch.no_grad():
            if self.level < 3:
                self.values[member.begin : member.end].view(local.shape).copy_(local)
            if self.shard.untyped_storage().data_ptr() == self.values.untyped_storage().data_ptr():
                return
            own, (begin, end) = self._part_of(self.shard, member), self.range_of(member)
            if end - begin == local.numel():
                own.view(local.shape).copy_(local)
            else:
                own.copy_(local.reshape(-1)[begin:end])

    def read(self, member: Member, shard: Tensor) -> Tensor:
        """The whole slice of a parameter, or of what is cut like it, from the shards of the group. Collective."""
        own = self._part_of(shard, member)
        shape = member.spec.local_shape()
        if self.ways == 1:
            return own.view(shape)
        assert self.group.process_group is not None
        whole, begun = own.new_empty(member.end - member.begin), []
        for rank in range(self.ways):
            begin, end = self._overlap(member, rank)
            if begin < end:  # of most ranks nothing is in it
                part = whole[begin - member.begin : end - member.begin]
                if rank == self._rank:
                    part.copy_(own)
                begun.append(comm.broadcast(part, self.group.process_group, rank))
        for handle in begun:
            handle.wait()
        return whole.view(shape)

    def publish(self) -> None:
        """After an update: bring the values up to date with the shards; `ready` waits for them."""
        if self.level == 3 or (self.ways == 1 and self.master_dtype == self.dtype):
            return
        self.arrived()
        if self.master_dtype != self.dtype:
            self._own(self.values).copy_(self.shard)
        if self.ways > 1:
            self._gather(self._own(self.values))

    def fetch(self) -> None:
        """At level 3: start to make the values whole, unless they are; `ready` waits for them."""
        if self.level == 3 and self.values.untyped_storage().size() == 0:
            self.values.untyped_storage().resize_(self.values.nbytes)
            self._gather(self.shard.to(self.dtype))

    def ready(self) -> None:
        """The values can be read when this returns."""
        self.fetch()
        self.arrived()

    def arrived(self) -> None:
        """Nothing is being written into the values when this returns."""
        if self._arriving is not None:
            self._arriving.wait()
            self._arriving = None

    def release(self) -> None:
        """At level 3: give the memory of the values back."""
        if self.level == 3:
            assert self._arriving is None, "released while it is being fetched"
            self.values.untyped_storage().resize_(0)

    def _gather(self, own: Tensor) -> None:
        assert self.group.process_group is not None
        self._arriving = comm.all_gather(self.values, own, self.group.process_group, phase="parameters")

    # Gradients

    def start(self) -> None:
        """Forget the gradients of the step before."""
        self._summed_any = False
        for member in self.members:
            member.leaf.grad = None
            member.filled = False

    def collect(self, member: Member) -> None:
        """Take over the gradient that autograd has just added to a leaf."""
        if self._whole is None:
            self._whole = torch.empty_like(self.values, dtype=self.master_dtype)
        gradient = member.leaf.grad
        assert gradient is not None
        view = self._whole[member.begin : member.end].view_as(gradient)
        if gradient.data_ptr() != view.data_ptr() or gradient.dtype != view.dtype:
            # A first gradient is copied: less traffic than adding it to zeros.
            view.add_(gradient) if member.filled else view.copy_(gradient)
            # From now on autograd adds in place, if it can.
            member.leaf.grad = view if view.dtype == gradient.dtype else None
        member.filled = True

    @property
    def complete(self) -> bool:
        """Whether every member has a gradient."""
        return all(member.filled for member in self.members)

    def sum(self) -> None:
        """Start adding up what was collected over the group: the whole of it, or each rank its part."""
        if self._whole is None:
            if self._summed_any:
                return
            self._whole = torch.empty_like(self.values, dtype=self.master_dtype)
        for member in self.members:
            if not member.filled:  # nothing in the batch reached it
                self._whole[member.begin : member.end].zero_()
        self.settle()
        assert self._sum is not None
        group = self.group.process_group
        if group is None:
            return
        if self.level == 0:
            self._pending = comm.all_reduce(self._whole, group, phase="gradients"), self._sum
        else:
            target = torch.empty_like(self._sum) if self._summed_any else self._sum
            self._pending = comm.reduce_scatter(target, self._whole, group, phase="gradients"), target
        self._summed_any = True
        if self.level >= 2:
            # The collective holds the memory until it has ended.
            self._whole = None
            for member in self.members:
                member.leaf.grad = None
                member.filled = False

    def settle(self) -> None:
        """Wait for a sum that was started."""
        if self._pending is None:
            return
        handle, target = self._pending
        handle.wait()
        self._pending = None
        assert self._sum is not None
        if target.data_ptr() != self._sum.data_ptr():
            self._sum += target

    def finish(self) -> None:
        """Wait for the sum over the group, and start the one over the stages of a tie."""
        self.settle()
        if self.tie is not None:
            assert self._sum is not None
            self._pending = comm.all_reduce(self._sum, self.tie, phase="gradients"), self._sum

    def hand_over(self) -> None:
        """Wait for the sum over the stages, and give the optimizer its gradients."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
        for member in self.members:
            if self._sum is not None:
                member.trained.grad = self._part_of(self._sum, member).view_as(member.trained)

    def gradient(self, member: Member) -> Tensor:
        """The whole slice of a parameter's gradient. Collective over the group."""
        if self._sum is not None:
            return self.read(member, self._sum)
        gradient = member.leaf.grad
        return gradient if gradient is not None else torch.zeros_like(member.leaf)

    def gradients(self) -> Iterator[tuple[Member, Tensor]]:
        """The gradients that this rank's optimizer sees."""
        for member in self.members:
            if member.trained.grad is not None and member.trained.numel():
                yield member, member.trained.grad


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
