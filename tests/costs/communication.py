"""What a rank sends: the collectives of a sharded program, counted by kind and mesh axis.

They are the events of `profile_graph`, so the numbers are those that the cost model prices, forward and adjoint.
`galvatron.runtime.CommunicationCounter` counts the same at run time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from galvatron.costs.events import CollectiveCall
from galvatron.costs.profile import profile_graph
from galvatron.costs.state import LocalParameter, StateCollectives, local_parameter, state_collectives
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.gradients import gradients
from galvatron.ir.program import Form, Layer, LayerKind, Program
from galvatron.ir.recompute import rereads
from galvatron.partition import Partitioner

Counts = Counter[tuple[str, tuple[int, int]]]
"""Collectives by kind (as in `ir.collectives.MESSAGES`) and by size and stride of their axis."""


@dataclass(frozen=True)
class Communication:
    """The collectives that one rank of a stage takes part in.

    `forward` and `backward` are those of one micro-batch, in order; `state` are those of the parameters and their
    gradients. How many messages carry what is sent once per step is up to the runtime. `kept` are those of `state` that
    a micro-batch does not send whose forward the backward of the last layer follows at once.
    """

    forward: tuple[CollectiveCall, ...]
    backward: tuple[CollectiveCall, ...]
    state: StateCollectives = StateCollectives((), (), ())
    kept: tuple[CollectiveCall, ...] = ()


def counts(collectives: tuple[CollectiveCall, ...]) -> Counts:
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
    layers = [layer for layer in program.stages[stage].layers if layer.kind is not LayerKind.STEP]
    levels = {kept.state: kept.zero for kept in program.stages[stage].state}
    parts = [reader.layer(layer.cls) for layer in layers]
    return Communication(
        forward=tuple(event for part in parts for event in part.forward),
        backward=tuple(event for part in reversed(parts) for event in part.backward),
        state=_state_collectives(program, layers, levels),
        kept=_kept(program, layers[-1], levels) if stage == len(program.stages) - 1 else (),
    )


class _Reader:
    """Reads each class of a program once."""

    def __init__(self, program: Program) -> None:
        if program.form < Form.SHARDED:
            raise GalvatronError(f"a {program.form} program has no collectives yet; shard it first")
        self.program = program
        # Where gradients flow is decided by the layers alone, so the partitioner of any cluster knows.
        self._borders = Partitioner(program, Cluster.parse("a100-80g:1x1")).borders
        self._known: dict[str, Communication] = {}

    def layer(self, name: str) -> Communication:
        if name not in self._known:
            cls = self.program.class_of[name]
            recompute = cls.strategy.recompute if cls.strategy else "none"
            profile = profile_graph(cls.graph, cls.mesh, self._borders[name].differentiable, recompute)
            self._known[name] = Communication(
                tuple(e for e in profile.forward if isinstance(e, CollectiveCall)),
                tuple(e for e in profile.backward if isinstance(e, CollectiveCall)),
            )
        return self._known[name]


def _parameters(program: Program, layer: Layer, levels: Mapping[str, int]) -> dict[str, LocalParameter]:
    cls = program.class_of[layer.cls]
    formals = {n: v for n, v in zip(layer.state, cls.graph.state, strict=True) if n in program.parameters}
    recompute = cls.strategy.recompute if cls.strategy else "none"
    differentiable = gradients(program).formals[cls.origin_name]
    reread = rereads(cls.graph, [value.name for value in formals.values()], differentiable, recompute)
    return {
        name: replace(local_parameter(program.state_of[name], value, cls.mesh, levels[name]), reread=reread)
        for name, value in formals.items()
    }


def _kept(program: Program, last: Layer, levels: Mapping[str, int]) -> tuple[CollectiveCall, ...]:
    return _gathered(_parameters(program, last, levels).values())


def _gathered(states: Iterable[LocalParameter]) -> tuple[CollectiveCall, ...]:
    """What is gathered for a backward."""
    return tuple(event for event in state_collectives(states).backward if event.kind == "all_gather")


def _state_collectives(program: Program, layers: Sequence[Layer], levels: Mapping[str, int]) -> StateCollectives:
    """What is sent for parameters, layer by layer.

    One that several layers read is summed with the first of them, and stays whole between their backwards, of which
    some may not read it.
    """
    parts: list[StateCollectives] = []
    seen: set[str] = set()
    gathered: set[str] = set()
    for layer in layers:
        parameters = _parameters(program, layer, levels)
        own = [state for name, state in parameters.items() if name not in seen]
        again = [state for name, state in parameters.items() if name in seen]
        late = [state for name, state in parameters.items() if name in seen - gathered]
        seen.update(parameters)
        gathered.update(name for name, state in parameters.items() if state.reread)
        parts += [state_collectives(own), StateCollectives(state_collectives(again).forward, _gathered(late), ())]
    return StateCollectives(
        tuple(event for part in parts for event in part.forward),
        tuple(event for part in parts for event in part.backward),
        tuple(event for part in parts for event in part.step),
        tuple(event for part in parts for event in part.update),
    )
