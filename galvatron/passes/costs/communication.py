"""What a rank sends: the collectives of a sharded program, counted by kind and mesh axis.

They are the events of `profile_graph`, so the numbers are those that the cost model prices, forward and adjoint.
`galvatron.runtime.CommunicationCounter` counts the same at run time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import BROADCAST, Axis, local_shape
from galvatron.ir.program import Form, Program, StateLayout, When
from galvatron.ir.types import evaluate
from galvatron.passes.costs.events import Collective
from galvatron.passes.costs.profile import profile_graph
from galvatron.passes.sharding import Partitioner

Counts = Counter[tuple[str, tuple[int, int]]]
"""Collectives by kind (as in `ir.cluster.COLLECTIVES`) and by size and stride of their axis."""


@dataclass(frozen=True)
class Communication:
    """The collectives that one rank of a stage takes part in.

    `forward` and `backward` are those of one micro-batch, in order. `gradient_bytes` are, per axis, the bytes of
    gradients that are summed over it once per step; how many messages carry them is up to the runtime.
    """

    forward: tuple[Collective, ...]
    backward: tuple[Collective, ...]
    gradient_bytes: tuple[tuple[Axis, int], ...] = ()


def counts(collectives: tuple[Collective, ...]) -> Counts:
    """How many collectives there are of each kind on each axis."""
    return Counter((event.kind, (event.axis.size, event.axis.stride)) for event in collectives)


def layer_communication(program: Program, cls: str) -> Communication:
    """The collectives inside one layer of a sharded or staged program.

    Args:
        cls: the name of the layer's class.
    """
    return _Reader(program).layer(cls)


def stage_communication(program: Program, stage: int = 0) -> Communication:
    """The collectives of all layers of one stage of a staged program; transfers between stages are not among them."""
    if program.form is not Form.STAGED:
        raise GalvatronError(f"the communication of a stage needs a staged program, not a {program.form} one")
    reader = _Reader(program)
    layers = [layer for layer in program.stages[stage].layers if layer.when is not When.STEP]
    parts = [reader.layer(layer.cls) for layer in layers]
    return Communication(
        forward=tuple(event for part in parts for event in part.forward),
        backward=tuple(event for part in reversed(parts) for event in part.backward),
        gradient_bytes=_gradient_bytes(program, program.stages[stage].state),
    )


class _Reader:
    """Reads each class of a program once."""

    def __init__(self, program: Program) -> None:
        if program.form < Form.SHARDED:
            raise GalvatronError(f"a {program.form} program has no collectives yet; shard it first")
        self.program = program
        # Where gradients flow is decided by the layers alone, so the partitioner of any cluster knows.
        layers = program.layers or tuple(layer for stage in program.stages for layer in stage.layers)
        self._borders = Partitioner(replace(program, layers=layers), Cluster.parse("a100-80g:1x1")).borders
        self._known: dict[str, Communication] = {}

    def layer(self, name: str) -> Communication:
        if name not in self._known:
            cls = self.program.class_of[name]
            profile = profile_graph(cls.graph, cls.mesh, self._borders[name].differentiable)
            self._known[name] = Communication(
                tuple(e for e in profile.forward if isinstance(e, Collective)),
                tuple(e for e in profile.backward if isinstance(e, Collective)),
            )
        return self._known[name]


def _gradient_bytes(program: Program, state: tuple[StateLayout, ...]) -> tuple[tuple[Axis, int], ...]:
    sizes: Counter[Axis] = Counter()
    for kept in state:
        declared = program.state_of[kept.state]
        shape = local_shape(declared.type.shape, kept.layout, kept.mesh)
        for axis, placement in zip(kept.mesh, kept.layout, strict=True):
            if declared.trainable and placement == BROADCAST:
                sizes[axis] += evaluate(declared.type.with_shape(shape).bytes, 1)
    return tuple(sizes.items())
