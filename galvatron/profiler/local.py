"""The hardware of this job as a cluster: by the profile that is kept of it, or else by one that is quickly taken."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.profiler import store
from galvatron.profiler.clusters import cluster_of
from galvatron.profiler.environment import environment_of
from galvatron.profiler.hardware import AT_A_GLANCE, measured_again, profile_hardware
from galvatron.profiler.meter import GLANCE, Effort
from galvatron.profiler.profile import Environment, Measurement, Profile
from galvatron.runtime import comm
from galvatron.runtime.mesh import World

_LOG = logging.getLogger("galvatron")

_OTHERS = 4
"""Profiles of other environments that are told about when there is none of this one."""

_DRIFT = 3.0
"""By what a profile may be wrong, one way or the other, before it is said that it is."""


def local_cluster(
    world: World | None = None, *, cache_dir: str | os.PathLike[str] | None = None, effort: Effort | None = None
) -> Cluster:
    """The devices of this job as a cluster named `local:NODESxDEVICES`, the same one on every rank. Collective.

    Args:
        world: default: the process group that there is, or this process alone.
        cache_dir: where profiles are kept; default: the user's cache directory.
        effort: to measure with now, whatever is kept; nothing is kept then.
    """
    world = world or _world()
    if effort is not None:
        return cluster_of(profile_hardware(world, effort))
    return cluster_of(local_profile(world, cache_dir))


def local_profile(world: World, cache_dir: str | os.PathLike[str] | None = None) -> Profile:
    """The profile that is kept of this job's environment; where there is none, or one that was quickly taken while
    others used the device, one that is quickly taken now, and kept.

    Collective. Rank 0 reads, writes, and logs what it did.
    """
    environment = environment_of(world)
    found = _kept(environment, cache_dir) if world.rank == 0 else None
    if world.size > 1:
        found = comm.broadcast_object(found, comm.all_ranks(), 0, phase="the profile")
    was = "no profile of this hardware was found"
    if found is not None and found.of("product"):
        drift = _drift(world, found)
        if not (found.fact(AT_A_GLANCE) and any(ratio < 1 / _DRIFT for _, ratio in drift)):
            _tell_drift(world, found, drift)
            return found
        was = f"the profile of {found.taken} was taken while others used this hardware, which is faster now"
    begun = time.perf_counter()
    profile = profile_hardware(world, GLANCE)
    if found is not None:  # of layers alone, as `galvatron profile model` leaves it
        profile = found.updated(profile)
    if world.rank == 0:
        taken_s = time.perf_counter() - begun
        _LOG.warning(
            "%s: it was measured for %.1f s%s; `galvatron profile hardware` takes longer and says more",
            was,
            taken_s,
            _keep(profile, cache_dir),
        )
    return profile


def _world() -> World:
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if not dist.is_initialized():
        return World(0, 1, device)
    return World(dist.get_rank(), dist.get_world_size(), device)


def _kept(environment: Environment, cache_dir: str | os.PathLike[str] | None) -> Profile | None:
    """What is kept of an environment; logs where it comes from, or why others do not count."""
    try:
        own = store.store_file(environment, cache_dir)
        found = store.find([own] if own.exists() else store.stored_files(cache_dir)[:_OTHERS], environment)
    except OSError as error:
        _LOG.info("kept profiles cannot be read: %s", error)
        return None
    for reason in found.reasons:
        _LOG.info("not used: %s", reason)
    if found.profile is not None:
        _LOG.info("costs are those of the profile of %s in %s", found.profile.taken, own)
    return found.profile


def _keep(profile: Profile, cache_dir: str | os.PathLike[str] | None) -> str:
    """Keeps a profile; returns in words where, or why not: a job can do without."""
    path = Path()
    try:
        path = store.store_file(profile.environment, cache_dir)
        store.save(path, profile)
    except (OSError, GalvatronError) as error:
        return f", and is not kept: {error}"
    return f", and is kept in {path}"


def _drift(world: World, profile: Profile) -> list[tuple[Measurement, float]]:
    """Of little of a kept profile, how many times as long it takes now, where that is no longer so: networks change,
    and machines are shared. Collective, and alike on every rank."""
    found = [(before, now_s / before.seconds) for before, now_s in measured_again(world, profile)]
    return [(before, ratio) for before, ratio in found if not 1 / _DRIFT < ratio < _DRIFT]


def _tell_drift(world: World, profile: Profile, drift: list[tuple[Measurement, float]]) -> None:
    for before, ratio in drift:
        if world.rank == 0:
            _LOG.warning(
                "the profile of %s may be out of date: %s takes %.2g times as long now; measure again with "
                "`galvatron profile hardware`",
                profile.taken,
                before.name,
                ratio,
            )
