"""What communication is measured: every kind, on every shape of groups, by the calls that the runtime makes.

All groups of an axis of the mesh are at it at once, as in training, because they share links.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import torch
import torch.distributed as dist
from torch import Tensor

from galvatron.ir.types import DTYPE_BYTES
from galvatron.profiler.cases import Case, sizes_of, torch_type, turns_of
from galvatron.profiler.meter import Call
from galvatron.runtime import comm
from galvatron.runtime.mesh import Axis, World

Start = Callable[[], comm.Handle]
"""Starts a communication."""


def axis_shapes(world_size: int, per_node: int, *, all_of_them: bool) -> list[tuple[int, int]]:
    """The (size, stride) of axes of a mesh over all ranks: every divisor, at every stride.

    Args:
        all_of_them: otherwise only neighbours, all ranks, and what has one rank on each node.
    """
    sizes = [n for n in range(2, world_size + 1) if world_size % n == 0]
    shapes = [(n, s) for n in sizes for s in range(1, world_size // n + 1) if world_size // n % s == 0]
    if all_of_them:
        return shapes
    nodes = world_size // per_node
    wanted = {(sizes[0], 1), (per_node, 1), (nodes, per_node), (world_size, 1)} if sizes else set()
    return [shape for shape in shapes if shape in wanted]


@contextmanager
def axis_of(world: World, size: int, stride: int, *, own_groups: bool = False) -> Iterator[Axis]:
    """An axis of all ranks of the job, whose groups exist inside the `with` block. Collective.

    Args:
        own_groups: that of all ranks is a new one too.
    """
    own: Axis | None = None
    made: list[dist.ProcessGroup] = []
    for start in range(world.size):
        if (start // stride) % size:
            continue
        ranks = list(range(start, start + size * stride, stride))
        whole = size == world.size and not own_groups
        group = dist.group.WORLD if whole else dist.new_group(ranks)
        if world.rank in ranks:
            assert isinstance(group, dist.ProcessGroup), "this rank is a member"
            own = Axis(size, stride, ranks.index(world.rank), group)
            if not whole:
                made.append(group)
    assert own is not None, "every rank is in one group of an axis"
    try:
        yield own
    finally:
        for group in made:
            dist.destroy_process_group(group)


def collective_cases(axis: Axis, sizes: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """All kinds of communication on an axis, each from the smallest message on."""
    for (name, how), set_up in _KINDS.items():
        for nbytes in sizes:
            yield _case(name, how, "f32", nbytes, axis, set_up, device)
    if axis.size == 2:
        for nbytes in sizes:
            yield _one_way(nbytes, axis, device)
    for nbytes in sizes[1::2]:  # a sum of halves is another kernel on the host, and as fast as one of words on a device
        yield _case("all_reduce", "", "bf16", nbytes, axis, _all_reduce, device)


def collective_case(name: str, nbytes: int, axis: Axis, device: torch.device) -> Case | None:
    """One communication of so many bytes in which all ranks of an axis take part; None if it is of another kind."""
    set_up = _KINDS.get((name, ""))
    return None if set_up is None else _case(name, "", "f32", nbytes, axis, set_up, device)


def starter(name: str, how: str, axis: Axis, nbytes: int, device: torch.device) -> Start:
    """What starts a kind of communication of so many bytes on an axis."""
    return _KINDS[name, how](_whole("f32", nbytes, axis, device), axis)


def _case(name: str, how: str, dtype: str, nbytes: int, axis: Axis, set_up: SetUp, device: torch.device) -> Case:
    def prepare() -> Call:
        starts = [set_up(_whole(dtype, nbytes, axis, device), axis) for _ in range(turns_of(2 * nbytes))]
        following = cycle(starts).__next__
        return lambda: following()().wait()

    sizes = sizes_of(group=axis.size, stride=axis.stride, bytes=nbytes)
    return Case(name, how, dtype, sizes, float(nbytes), 2.0 * nbytes, prepare, in_step=True)


def _one_way(nbytes: int, axis: Axis, device: torch.device) -> Case:
    """A message one way between the ranks of a pair, and a shortest one back, since a sender need not wait for its
    receiver. So all pairs send the same way at once, as stages do: were it sent back whole, pairs would drift apart
    until they use the two directions of a link in turns."""
    other = 1 - axis.index
    shortest = min(nbytes, ANSWER_BYTES)

    def prepare() -> Call:
        wholes = [_whole("f32", nbytes, axis, device) for _ in range(turns_of(nbytes))]
        following = cycle(wholes).__next__
        answer = wholes[0][: max(1, shortest // wholes[0].element_size())].clone()

        def send(tensor: Tensor) -> None:
            comm.send((tensor,), axis.group, other, phase="a measurement").wait()

        def receive(tensor: Tensor) -> None:
            comm.receive((tensor,), axis.group, other, phase="a measurement").wait()

        def ask() -> None:
            send(following())
            receive(answer)

        def reply() -> None:
            receive(following())
            send(answer)

        return reply if axis.index else ask

    sizes = sizes_of(group=2, stride=axis.stride, bytes=nbytes)
    calls = 2 if nbytes == shortest else 1
    return Case("p2p", "one way", "f32", sizes, float(nbytes), float(nbytes), prepare, calls=calls, in_step=True)


ANSWER_BYTES = 2**10
"""At the most, of what says that a message has come."""


def _whole(dtype: str, nbytes: int, axis: Axis, device: torch.device) -> Tensor:
    """A tensor of about so many bytes that is as long for every rank of the axis."""
    length = max(1, nbytes // DTYPE_BYTES[dtype] // axis.size) * axis.size
    return torch.zeros(length, dtype=torch_type(dtype), device=device)


SetUp = Callable[[Tensor, Axis], Start]
"""From the whole tensor as one rank sees it, of which it may have a part, and the axis."""


def _all_reduce(whole: Tensor, axis: Axis) -> Start:
    return lambda: comm.all_reduce(whole, axis.group, phase="a measurement")


def _all_gather(whole: Tensor, axis: Axis) -> Start:
    part = whole.new_zeros(whole.numel() // axis.size)
    return lambda: comm.all_gather(whole, part, axis.group, phase="a measurement")


def _reduce_scatter(whole: Tensor, axis: Axis) -> Start:
    part = whole.new_zeros(whole.numel() // axis.size)
    return lambda: comm.reduce_scatter(part, whole, axis.group, phase="a measurement")


def _all_to_all(whole: Tensor, axis: Axis) -> Start:
    received = torch.zeros_like(whole)
    return lambda: comm.all_to_all(received, whole, axis.group, phase="a measurement")


def _broadcast(whole: Tensor, axis: Axis) -> Start:
    return lambda: comm.broadcast(whole, axis.group, 0, phase="a measurement")


def _both_ways(whole: Tensor, axis: Axis) -> Start:
    """Every rank sends to the next one, and so a pair to each other."""
    received = torch.zeros_like(whole)
    before, after = (axis.index - 1) % axis.size, (axis.index + 1) % axis.size
    return lambda: comm.exchange(whole, received, axis.group, after, before, phase="a measurement")


_KINDS: dict[tuple[str, str], SetUp] = {
    ("all_reduce", ""): _all_reduce,
    ("all_gather", ""): _all_gather,
    ("reduce_scatter", ""): _reduce_scatter,
    ("all_to_all", ""): _all_to_all,
    ("broadcast", ""): _broadcast,
    ("p2p", "both ways"): _both_ways,
}
