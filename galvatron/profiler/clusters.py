"""A profile as a cluster: what was measured, in the words in which the machine prices."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from galvatron.errors import ClusterError
from galvatron.ir.cluster import Cluster
from galvatron.ir.contention import Contention
from galvatron.ir.curves import Curve, Points
from galvatron.ir.device import ODD_BYTES, Device, Measured, Products, alignment
from galvatron.ir.kernel_figures import products_of
from galvatron.ir.network import Level, MeasuredCollective
from galvatron.ir.presets import PRESETS, gpu_workspace_bytes
from galvatron.ir.records import Rows
from galvatron.profiler import store
from galvatron.profiler.profile import Measurement, Profile

_MOVING = ("pointwise", "norm", "softmax", "reduction", "copy", "gather", "scatter", "optimizer")
_PLAIN = ("add", "accumulate")
"""Kernels that go over elements one by one and do as good as nothing with them: what bandwidth is told from."""


def cluster_of(profile: Profile) -> Cluster:
    """The cluster that a profile was taken on.

    Raises:
        ClusterError: it has too little of what a cluster needs; says what.
    """
    environment = profile.environment
    per_node, nodes = environment.devices_per_node, environment.nodes
    if environment.device in PRESETS and not profile.of("product"):
        cluster = _with_links(profile)
    else:
        levels = [_level(profile, "node", per_node, 1)]
        if nodes > 1:
            levels.append(_level(profile, "network", nodes, per_node))
        collectives = tuple(_collectives(profile))
        cluster = Cluster(profile.name, _device(profile), tuple(levels), collectives, _sharing(profile))
    cluster.check()
    return cluster


def named_cluster(text: str) -> Cluster:
    """The cluster that a text names: a preset such as `a100-80g:2x8`, or a file with a profile, whose name ends in
    `.json`.

    Raises:
        ClusterError: neither; see `Cluster.parse` and `cluster_in`.
        ParseError, OSError: see `cluster_in`.
    """
    return cluster_in(text) if text.endswith(".json") else Cluster.parse(text)


def cluster_in(path: str | os.PathLike[str]) -> Cluster:
    """The cluster of the one profile in a file.

    Raises:
        ClusterError: it has none or several, or see `cluster_of`.
        ParseError, OSError: see `store.load`.
    """
    profiles = store.load(path)
    if len(profiles) != 1:
        names = ", ".join(f"{p.name} ({p.environment.device}, torch {p.environment.torch})" for p in profiles) or "none"
        raise ClusterError(f"{path} must have one profile to be a cluster, and has {len(profiles)}: {names}")
    return cluster_of(profiles[0])


def _device(profile: Profile) -> Device:
    environment = profile.environment
    rates = {dtype: max(_flop(m) / m.seconds for m in found) for dtype, found in _products(profile)}
    if not rates:
        raise ClusterError(f"profile {profile.name!r} has no products of matrices")
    bandwidth = _bandwidth(profile)
    moving = dict(_moving(profile))
    launches = [m.seconds for m in profile.of("launch")]
    is_hopper = 9 <= (profile.fact("capability") or 0.0) < 10
    return Device(
        name=environment.device,
        memory_bytes=environment.memory_bytes,
        matmul_flop_per_s=tuple(rates.items()),
        memory_bytes_per_s=bandwidth,
        kernel_launch_s=min(launches, default=0.0),
        products=_tiles(profile),
        kind=environment.kind,
        host_op_s=_host_op_s(profile),
        host_backward_s=_backward_s(profile),
        host_view_s=min((m.seconds for m in profile.of("host", "view")), default=0.0),
        reserved_bytes=_reserved_bytes(profile),
        workspace_bytes=gpu_workspace_bytes(hopper=is_hopper) if environment.kind == "cuda" else 0,
        moving_share=tuple(
            (name, min(1.0, rows[-1][0] / rows[-1][1] / bandwidth)) for name, rows in moving.items() if name in _MOVING
        ),
        measured=Measured(
            products=tuple((dtype, _product_rows(found)) for dtype, found in _products(profile)),
            moving=tuple(moving.items()),
            attention=tuple(_attention(profile)),
            layers=tuple(_layers(profile)),
        ),
    )


def _tiles(profile: Profile) -> Products:
    """How a GPU computes products, as far as its kind says it, and what odd sizes were seen to cost."""
    multiprocessors, capability = (profile.fact(name) for name in ("multiprocessors", "capability"))
    if not multiprocessors or not capability:
        return Products()
    return replace(products_of(capability, round(multiprocessors)), odd_share=tuple(_odd_shares(profile)))


def _odd_shares(profile: Profile) -> Iterator[tuple[str, float]]:
    """By alignment in bytes what products with one odd size reach, relative to the best rate of their element type."""
    rates: dict[str, list[float]] = {}
    for m in (m for how in ("odd columns", "odd inner") for m in profile.of("product", how)):
        best = max((_flop(even) / even.seconds for even in profile.of("product", "nn", m.dtype)), default=0.0)
        if not best:
            continue
        aligned_bytes = min(alignment(m.dtype, m.size(name)) for name in ("columns", "inner"))
        rates.setdefault(str(aligned_bytes), []).append(_flop(m) / m.seconds / best)
    yield from ((name, min(1.0, max(rates[name]))) for name in ODD_BYTES if name in rates)


def _host_op_s(profile: Profile) -> float:
    """What the process takes for an op that autograd records, among unlike ones; a profile from before these were
    measured has the same op again and again."""
    if unlike := profile.of("host", "unlike ops"):
        copies_s = min((m.seconds for m in profile.of("host", "copies")), default=0.0)
        return max(0.0, min((m.seconds - copies_s) / m.size("ops") for m in unlike))
    return min((m.seconds for m in profile.of("host", "recorded op")), default=0.0)


def _backward_s(profile: Profile) -> float | None:
    """What the process takes for an op of a backward."""
    unlike, with_backward = (profile.of("host", how) for how in ("unlike ops", "unlike ops and backward"))
    if unlike and with_backward:
        later_s = min(m.seconds for m in with_backward) - min(m.seconds for m in unlike)
        return max(0.0, later_s / (with_backward[0].size("ops_and_backward") - with_backward[0].size("ops")))
    both, forward = (profile.of("host", how) for how in ("recorded op and backward", "recorded op"))
    if not both or not forward:
        return None
    return max(0.0, min(m.seconds for m in both) - min(m.seconds for m in forward))


def _contention(profile: Profile, parts: int, stride: int) -> Contention:
    """What kernels and collectives between so many parts leave each other: medians of what was measured at once on
    groups that reach as far, or else on any; with nothing measured, all."""
    known = [o for o in profile.overlaps if o.collective.split()[0] != "p2p"]
    reaching = [o for o in known if stride < o.group * o.stride <= stride * parts]
    found = reaching or known
    if not found:
        return Contention()
    kernel, collective = (
        statistics.median(speeds) for speeds in zip(*((o.kernel_speed, o.collective_speed) for o in found), strict=True)
    )
    return Contention(max(LEAST_SPEED, kernel), max(LEAST_SPEED, collective))


LEAST_SPEED = 0.01
"""What is left of the speed of something that was not seen to go on."""


def _sharing(profile: Profile) -> Points:
    """`Cluster.sharing`: ranks that take turns on cores are as fast as alone while there is a core for each."""
    ranks, cores = profile.fact("sharing_ranks"), profile.fact("sharing_cores")
    threads, world_size = profile.environment.threads, profile.environment.world_size
    undisturbed = max(1.0, (cores or 0.0) / threads)
    if not ranks or not cores or ranks <= undisturbed:
        return ()
    points = ((undisturbed, undisturbed / ranks), (ranks, 1.0))
    return points if ranks == world_size else (*points, (float(world_size), 1.0))


_COMMUNICATORS = 2
"""Process groups beside that of all ranks, in a plan of two axes."""


def _reserved_bytes(profile: Profile) -> int:
    """What a process of a plan has taken before its first tensor."""
    communicators = _COMMUNICATORS * (profile.fact("communicator_bytes") or 0.0)
    return round(min((profile.fact("context_bytes") or 0.0) + communicators, profile.environment.memory_bytes / 2))


def _products(profile: Profile) -> Iterator[tuple[str, list[Measurement]]]:
    """Products of contiguous matrices by element type."""
    found = sorted(profile.of("product", "nn"), key=lambda m: m.dtype)
    yield from ((dtype, list(group)) for dtype, group in groupby(found, key=lambda m: m.dtype))


def _flop(m: Measurement) -> float:
    return 2 * m.size("count") * m.size("rows") * m.size("columns") * m.size("inner")


def _product_rows(found: Sequence[Measurement]) -> Rows:
    rows = (tuple(m.size(name) for name in ("count", "rows", "columns", "inner")) for m in found)
    return tuple(sorted((*row, m.seconds) for row, m in zip(rows, found, strict=True)))


def _bandwidth(profile: Profile) -> float:
    """Bytes per second of the largest plain kernels."""
    plain = [m for how in _PLAIN for m in profile.of("pointwise", how)]
    if not plain:
        raise ClusterError(f"profile {profile.name!r} has no kernels that memory bounds")
    largest = max(m.size("bytes") for m in plain)
    return statistics.median(m.size("bytes") / m.seconds for m in plain if m.size("bytes") >= largest / 2)


def _moving(profile: Profile) -> Iterator[tuple[str, Rows]]:
    """(bytes, seconds) of each class, of 32-bit numbers under its name and of others under `class.type`, backward under
    `class.backward` likewise; and of single kernels that are unlike others of their class, under theirs."""
    for name in _MOVING:
        plain = [m for m in profile.of(name) if name != "pointwise" or m.how in _PLAIN]
        for suffix in ("", ".backward"):
            found = [m for m in plain if (m.how == "backward") == bool(suffix)]
            for dtype in sorted({m.dtype for m in found}):
                own = [m for m in found if m.dtype == dtype]
                yield f"{name}{suffix}" + ("" if dtype == "f32" else f".{dtype}"), _middle(own)
    for how in sorted({m.how for m in profile.of("pointwise")} - {*_PLAIN}):
        for dtype in sorted({m.dtype for m in profile.of("pointwise", how)}):
            kernel = how.replace(" ", "_")
            yield (kernel if dtype == "f32" else f"{kernel}.{dtype}"), _middle(profile.of("pointwise", how, dtype))


def _middle(found: Sequence[Measurement]) -> Rows:
    """One row of (bytes, seconds) for each size, the geometric mean of several variants that were measured."""
    variants: dict[str, list[tuple[float, float]]] = {}
    for m in found:
        variants.setdefault(m.how, []).append((m.size("bytes"), m.seconds))
    curves = [Curve.through(points) for points in variants.values()]
    sizes = sorted({size for points in variants.values() for size, _ in points})
    return _rising((size, math.exp(statistics.mean(math.log(curve(size)) for curve in curves))) for size in sizes)


def _rising(points: Iterable[tuple[float, float]]) -> Points:
    return Curve.through(list(points)).points


def _attention(profile: Profile) -> Iterator[tuple[str, Rows]]:
    for how in ("forward", "backward", "causal forward", "causal backward"):
        for dtype in sorted({m.dtype for m in profile.of("attention", how)}):
            found = profile.of("attention", how, dtype)
            rows = sorted((m.size("count"), m.size("length"), m.size("width"), m.seconds) for m in found)
            yield ".".join((dtype, *how.split())), tuple(rows)


def _layers(profile: Profile) -> Iterator[tuple[str, Rows]]:
    """(samples, seconds) of each layer class and direction."""
    named = sorted(profile.classes, key=lambda time: (time.fingerprint, time.how))
    for (fingerprint, how), found in groupby(named, key=lambda time: (time.fingerprint, time.how)):
        yield f"{fingerprint}.{how}", tuple(sorted((float(time.samples), time.seconds) for time in found))


def _level(profile: Profile, name: str, parts: int, stride: int) -> Level:
    """A level of the network, as all-reduces between its parts and messages between two of them show it."""
    if parts == 1:
        return Level(name, parts, _bandwidth(profile), 0.0)
    rate, step_s = _ring(profile, parts, stride)
    one_way = [m.seconds for m in profile.of("p2p", "one way") if m.size("stride") == stride]
    contention = _contention(profile, parts, stride)
    return Level(name, parts, rate, min(one_way, default=step_s), step_s=step_s, contention=contention)


def _ring(profile: Profile, parts: int, stride: int) -> tuple[float, float]:
    """Bytes per second on each link of a ring, and seconds of a hop, as all-reduces show them."""
    reduced = [m for m in profile.of("all_reduce", dtype="f32") if m.is_among(parts, stride)]
    if not reduced:
        raise ClusterError(f"profile {profile.name!r} has no all-reduces of {parts} ranks, {stride} apart")
    hops = 2 * (parts - 1)
    points = _rising((m.size("bytes"), m.seconds) for m in reduced)
    (least, least_s), s_per_byte = points[0], _s_per_byte(points)
    return hops / parts / s_per_byte, max(0.0, least_s - least * s_per_byte) / hops


def _with_links(profile: Profile) -> Cluster:
    """A preset with the links that a profile measured, which names the preset as its device and has no kernels."""
    environment = profile.environment
    published = Cluster.parse(f"{environment.device}:{environment.nodes}x{environment.devices_per_node}")
    levels, stride = [], 1
    slowdown = profile.fact("overlap_slowdown")
    for level in published.levels:
        measured = _measured_level(profile, level, stride)
        if slowdown:
            measured = replace(measured, contention=Contention(min(1.0, 1 / slowdown), min(1.0, 1 / slowdown)))
        levels.append(measured)
        stride *= level.parts
    return replace(published, name=profile.name, levels=tuple(levels), collectives=tuple(_collectives(profile)))


def _measured_level(profile: Profile, level: Level, stride: int) -> Level:
    """A level of a preset as all-reduces between its parts show it. Those of one size say only the rate."""
    shape = (level.parts, stride)
    sizes = {m.size("bytes") for m in profile.of("all_reduce", dtype="f32") if m.is_among(*shape)}
    if level.parts == 1 or not sizes:
        return level
    rate, step_s = _ring(profile, *shape)
    pair = _pair(profile, level.parts) if stride == 1 else None
    measured = replace(
        level, bytes_per_s=rate, cards=0, pair_bytes_per_s=pair, quick_bytes_per_s=None, quick_step_s=None
    )
    return measured if len(sizes) == 1 else replace(measured, start_s=0.0, step_s=step_s)


def _pair(profile: Profile, parts: int) -> float | None:
    """Bytes per second of the largest message between two of the devices that the innermost level joins."""
    sent = [m for m in profile.of("p2p", "one way") if m.size("stride") < parts]
    largest = max(sent, key=lambda m: m.size("bytes"), default=None)
    return None if largest is None else largest.size("bytes") / largest.seconds


def _collectives(profile: Profile) -> Iterator[MeasuredCollective]:
    """Every kind on every shape of groups that was measured at several sizes. Pairs send one way, and longer rings all
    at once."""

    def shape(m: Measurement) -> tuple[str, int, int]:
        return m.name, int(m.size("group")), int(m.size("stride"))

    found = [m for m in profile.measurements if m.size("group") and m.dtype == "f32"]
    found = [m for m in found if m.name != "p2p" or m.how == ("one way" if m.size("group") == 2 else "both ways")]
    for (name, size, stride), group in groupby(sorted(found, key=shape), key=shape):
        points = _rising((m.size("bytes"), m.seconds) for m in group)
        if len(points) == 1:
            continue  # a rate, which levels have, and nothing about other messages
        yield MeasuredCollective(name, size, stride, points, 1 / _s_per_byte(points))


_FITTED = 3
"""Points, the last ones of a curve, that say how it goes on: what is told of larger sizes must not hang on one."""


def _s_per_byte(points: Sequence[tuple[float, float]]) -> float:
    """Seconds of each byte beyond the last of some (bytes, seconds), by a fit of latency and rate (Hockney 1994,
    `t = α + β·bytes`) to the last ones: of least squares, so that the largest count most. Where they do not rise it is
    what each byte of the last one took."""
    last = points[-_FITTED:]
    size, seconds = (statistics.mean(column) for column in zip(*last, strict=True))
    rise = sum((b - size) * (t - seconds) for b, t in last)
    return rise / sum((b - size) ** 2 for b, _ in last) if rise > 0 else last[-1][1] / last[-1][0]
