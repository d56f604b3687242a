"""What a planned job is made of, measured where it runs and kept in its profile: its layers as they are sharded, at its
micro-batches, and its collectives, of the sizes that it sends.

What is kept are facts of parts, never a factor on the whole: a prediction gets better by them for other plans, too.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from galvatron.calibration.cases import LayerCase, layer_cases
from galvatron.calibration.layers import measure_layers
from galvatron.costs.events import CollectiveCall
from galvatron.costs.profile import profile_graph
from galvatron.errors import GalvatronError
from galvatron.ir.program import Program
from galvatron.profiler import store
from galvatron.profiler.collectives import axis_of, collective_case
from galvatron.profiler.meter import QUICK, Meter
from galvatron.profiler.profile import Measurement
from galvatron.runtime import World, failure

_LOG = logging.getLogger("galvatron")

EFFORT = replace(QUICK, total_s=20.0)
"""For the layers of a plan; its collectives may take half as long on top."""

SMALL_BYTES = 1 << 10
"""Of a message that is measured beside those of the plan, so that the time of a smaller one follows from both."""

Message = tuple[str, int, int, int]
"""Kind, ranks in a group, how far apart, and bytes of the whole tensor."""


def calibrate(world: World, planned: Program, cache_dir: str | os.PathLike[str] | None = None) -> None:
    """Measures the layers and the collectives of a plan, and keeps them in the profile of this job. Collective.

    A layer that cannot run by itself is predicted by its kernels, with a warning that names it.

    Raises:
        RankError: another rank failed first.
    """
    begun, plan = time.perf_counter(), planned.required_plan
    cases = layer_cases(planned, planned.required_cluster, [plan])
    layers = measure_layers(world, cases, EFFORT)
    kind = planned.required_cluster.device.kind
    sent = {message for case in cases for message in _messages(case, kind)}
    sent |= {(name, size, stride, SMALL_BYTES) for name, size, stride, _ in sent}
    profile = replace(layers.profile, measurements=tuple(_measured(world, sorted(sent))))
    if world.rank != 0:
        return
    for what, reason in layers.unfit:
        _LOG.warning("layer class %s is not measured but predicted by its kernels: %s", what, reason)
    for what, reason in layers.left_out:
        _LOG.info("not measured: %s: %s", what, reason)
    path = store.store_file(profile.environment, cache_dir)
    try:
        store.save(path, profile)
    except (OSError, GalvatronError) as error:
        _LOG.warning("what was measured of the plan is not kept: %s", error)
        return
    _LOG.info(
        "measured %d times of layers and %d of collectives of the plan in %.1f s, kept in %s",
        len(profile.classes),
        len(profile.measurements),
        time.perf_counter() - begun,
        path,
    )


def _messages(case: LayerCase, kind: str) -> Iterator[Message]:
    """What a layer sends in a micro-batch, on a kind of device."""
    local, samples = case.local, case.samples[-1]
    observed = profile_graph(local.graph, local.cls.mesh, local.differentiable, local.recompute, kind=kind)
    for event in (*observed.forward, *observed.backward):
        if isinstance(event, CollectiveCall):
            yield event.kind, event.axis.size, event.axis.stride, round(event.payload_bytes(samples))


def _measured(world: World, sent: Sequence[Message]) -> Iterator[Measurement]:
    """Each message, on all axes of its shape at once. Collective."""
    meter = Meter(world, EFFORT)
    share_s = EFFORT.total_s / 2 / max(1, len(sent))
    with failure.guarded("measuring the collectives of the plan"):
        for kind, size, stride, nbytes in sent:
            with axis_of(world, size, stride) as axis:
                case = collective_case(kind, nbytes, axis, world.device)
                if case is not None:
                    t = meter.in_step(case.prepare(), share_s)
                    yield Measurement(case.name, case.how, case.dtype, case.sizes, t.seconds, t.spread, t.repeats)
