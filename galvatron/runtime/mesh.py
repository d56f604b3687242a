"""Ranks, devices and process groups: the world, a pipeline rank's device mesh, and its axes."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from galvatron.errors import ClusterError, GalvatronError, PlanError
from galvatron.runtime import comm, failure
from galvatron.runtime.limit import DEFAULT_TIMEOUT_S
from galvatron.runtime.starts import own_store
from galvatron.runtime.talking import wait_for_work


@dataclass(frozen=True)
class World:
    """All ranks of the job and the device of this one."""

    rank: int
    size: int
    device: torch.device


@dataclass(frozen=True)
class Axis:
    """One mesh axis as this rank sees it: `index` is its coordinate, `group` the ranks that differ only in it.

    Axes of equal size and stride are the same groups of ranks, so they compare equal.
    """

    size: int
    stride: int
    index: int = field(compare=False)
    group: dist.ProcessGroup = field(compare=False, repr=False)


@dataclass(frozen=True)
class Mesh:
    """The device group of one pipeline rank, which all stages that it holds share, seen from one of its ranks.

    Attributes:
        world: the whole job.
        pipeline_rank: this rank's place in the pipeline.
        holders: for each stage, the pipeline rank that holds it.
        ranks: the group's ranks, ascending; coordinates count inside this tuple.
        pipeline: rank `i` of every pipeline rank for this rank's `i`, in order; None with one pipeline rank.
    """

    world: World
    pipeline_rank: int
    holders: tuple[int, ...]
    ranks: tuple[int, ...]
    pipeline: dist.ProcessGroup | None
    axes: tuple[Axis, ...]

    def axis(self, size: int, stride: int) -> Axis:
        """The axis of `size` ranks that lie `stride` apart.

        Raises:
            PlanError: it was not named when the mesh was built, so its groups do not exist.
        """
        for axis in self.axes:
            if (axis.size, axis.stride) == (size, stride):
                return axis
        known = ", ".join(f"(size={axis.size}, stride={axis.stride})" for axis in self.axes) or "none"
        raise PlanError(
            f"pipeline rank {self.pipeline_rank} asks for axis (size={size}, stride={stride}); its mesh has: {known}"
        )

    @property
    def pipeline_degree(self) -> int:
        """The number of pipeline ranks."""
        return max(self.holders) + 1

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that this pipeline rank holds, ascending."""
        return tuple(stage for stage, holder in enumerate(self.holders) if holder == self.pipeline_rank)

    def rank_of(self, pipeline_rank: int) -> int:
        """The rank at this rank's place inside another pipeline rank."""
        return pipeline_rank * len(self.ranks) + self.index

    @property
    def index(self) -> int:
        """This rank's place inside its pipeline rank."""
        return self.world.rank - self.ranks[0]


def initialize(device: str | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> World:
    """Join the job that `torchrun` described in the environment, or be a world of one rank without it.

    Starts the default process group (NCCL on CUDA, gloo on the CPU) unless the caller already did, and the watch that
    ends this process when another rank fails. What is started here is ended when the interpreter exits.

    Args:
        device: "cuda" or "cpu"; default: CUDA when present.
        timeout_s: the longest a rank may wait for others in one communication of a step, before the job is ended with
            an error that says who did not come. Of a job that has several limits the last one counts.

    Raises:
        ClusterError: this machine has more ranks than GPUs.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    target = torch.device("cuda", _gpu_of_rank()) if kind == "cuda" else torch.device(kind)
    if target.type == "cuda":
        torch.cuda.set_device(target)
    global _patience
    _patience = timedelta(seconds=min(max(1800.0, 2 * timeout_s), 1e7))
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return World(0, 1, target)
        backend = "cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo"
        atexit.register(shutdown)
        try:
            _join(backend, timeout_s)
        except (KeyError, ValueError, RuntimeError) as error:
            raise GalvatronError(f"this process cannot join its job: {error}; start it with torchrun") from error
    else:
        atexit.register(failure.stop)
    world = World(dist.get_rank(), dist.get_world_size(), target)
    if world.size > 1:
        store: Any = dist.distributed_c10d._get_default_store()  # `clone` is missing from torch's type stubs
        failure.watch(store, world.rank, world.size, timeout_s)
    return world


def _join(backend: str, timeout_s: float) -> None:
    store = own_store(_patience)
    if store is None:
        dist.init_process_group(backend, timeout=_patience)
        return
    rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    failure.watch(store, rank, size, timeout_s)  # ranks wait for each other already
    with failure.guarded("joining the job"):
        dist.init_process_group(backend, timeout=_patience, store=store, rank=rank, world_size=size)
    failure.take_uncaught_errors()


def _gpu_of_rank() -> int:
    """The GPU of this rank: the one with its number on this machine, or the only one that its launcher lets it see.

    Raises:
        ClusterError: there is none.
    """
    local_rank, visible = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_rank < visible:
        return local_rank
    if visible == 1 and os.environ.get("CUDA_VISIBLE_DEVICES", "").strip():
        return 0
    raise ClusterError(
        f"local rank {local_rank} has no GPU: {visible} can be seen on this machine; start at most {visible} processes "
        "per machine (torchrun --nproc-per-node), or hide the GPUs to run on the CPU (CUDA_VISIBLE_DEVICES=)"
    )


def shutdown() -> None:
    """Destroy the process groups, when work beside the training has ended; after a failure abort them, because peers
    no longer answer.
    """
    wait_for_work()
    failed = failure.stop()
    _groups.clear()
    if not dist.is_initialized():
        return
    if failed:
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()
    failure.release_signals()


# What `torch.distributed` gives for each set of ranks: a group, or its mark for "not a member".
_groups: dict[tuple[int, ...], Any] = {}

_patience = timedelta(seconds=1800)
"""After which a communication library gives a rank up: later than our own limit, which can say why. Waiting for a plan
may take longer than any collective."""


def process_group(ranks: Iterable[int]) -> dist.ProcessGroup | None:
    """The group of `ranks`, made once per process. Collective: every rank of the world asks for the same groups in the
    same order, members or not. None on a rank outside it.
    """
    key = tuple(sorted(ranks))
    if key not in _groups:
        if len(key) == dist.get_world_size():
            _groups[key] = dist.group.WORLD
        else:
            _groups[key] = dist.new_group(key, timeout=_patience)
    group = _groups[key]
    return None if group is dist.GroupMember.NON_GROUP_MEMBER else group


def build_mesh(
    world: World, stage_axes: Sequence[Iterable[tuple[int, int]]], holders: Sequence[int] | None = None
) -> Mesh:
    """The mesh of this rank. Pipeline rank `r` of `n` is the `r`-th block of `world.size / n` consecutive ranks.

    Collective: every rank passes the axes of *all* stages and creates all groups in the same order.

    Args:
        stage_axes: for each stage, the (size, stride) of every axis that its layers use; size 1 is left out.
        holders: for each stage, the pipeline rank that holds it; default: one stage each.

    Raises:
        PlanError: the world does not divide into the pipeline ranks, or one of those into one of its axes.
    """
    holders = tuple(range(len(stage_axes)) if holders is None else holders)
    degree = max(holders, default=-1) + 1
    if degree == 0 or world.size % degree:
        raise PlanError(f"{world.size} ranks do not divide into {degree} pipeline ranks of equal size")
    per_place = world.size // degree
    own_place = world.rank // per_place
    own_axes: list[Axis] = []
    for place in range(degree):
        used = {axis for holder, axes in zip(holders, stage_axes, strict=True) if holder == place for axis in axes}
        for size, stride in sorted(used):
            if size < 2 or per_place % (size * stride):
                raise PlanError(
                    f"pipeline rank {place} of {per_place} ranks has no axis (size={size}, stride={stride})"
                )
            for group_ranks in _axis_groups(place * per_place, per_place, size, stride):
                group = process_group(group_ranks)
                if world.rank in group_ranks:
                    assert group is not None
                    own_axes.append(Axis(size, stride, group_ranks.index(world.rank), group))
    pipeline = None
    if degree > 1:
        for first in range(per_place):
            members = range(first, world.size, per_place)
            group = process_group(members)
            if world.rank in members:
                pipeline = group
    ranks = tuple(range(own_place * per_place, (own_place + 1) * per_place))
    return Mesh(world, own_place, holders, ranks, pipeline, tuple(own_axes))


def joint_groups(mesh: Mesh, wanted: Iterable[tuple[Axis, ...]]) -> dict[tuple[Axis, ...], dist.ProcessGroup]:
    """For each set of axes the group of the ranks of this pipeline rank that differ from this one in these axes only.

    Collective: the ranks of a pipeline rank ask for the same sets; others may ask for different ones.
    """
    own = sorted({tuple((axis.size, axis.stride) for axis in axes) for axes in wanted})
    asked: list[list[tuple[tuple[int, int], ...]]] = [own]
    if mesh.pipeline is not None:
        asked = comm.gather_objects(own, mesh.pipeline, phase="groups of ranks")
    found: dict[tuple[tuple[int, int], ...], dist.ProcessGroup] = {}
    per_place = len(mesh.ranks)
    for place, sets in enumerate(asked):
        for axes in sets:
            blocks: dict[int, list[int]] = {}
            for index in range(per_place):
                corner = index - sum((index // stride) % size * stride for size, stride in axes)
                blocks.setdefault(corner, []).append(place * per_place + index)
            for ranks in blocks.values():
                group = process_group(ranks)
                if mesh.world.rank in ranks:
                    assert group is not None
                    found[axes] = group
    return {axes: found[tuple((axis.size, axis.stride) for axis in axes)] for axes in wanted}


def _axis_groups(first: int, count: int, size: int, stride: int) -> list[tuple[int, ...]]:
    """Every group of one axis over `count` ranks from `first` on."""
    return [
        tuple(range(first + start, first + start + size * stride, stride))
        for start in range(count)
        if (start // stride) % size == 0
    ]
