"""Which layer classes are timed: every local graph that a rank may run of them, once, at a few batch sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from galvatron.costs.local import LocalClass, local_class
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Graph
from galvatron.ir.plan import Plan, Ties
from galvatron.ir.planned import in_pieces, tied_layers
from galvatron.ir.program import Form, Program
from galvatron.ir.strategy import AxisRole, Strategy
from galvatron.ir.types import evaluate
from galvatron.partition import Partitioner
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline


@dataclass(frozen=True)
class LayerCase:
    """A layer class as a rank runs it, to be timed.

    Attributes:
        name: of class and strategy, for readers; of strategies that leave the same to a rank, the first.
        only_given: its outputs that a training step does not compute.
        samples: of a micro-batch on the rank, ascending.
    """

    name: str
    local: LocalClass
    only_given: frozenset[str]
    samples: tuple[int, ...]


def layer_cases(program: Program, cluster: Cluster, plans: Sequence[Plan] = ()) -> list[LayerCase]:
    """What to time of a program for some plans on a cluster; without plans, for the strategies of `common_strategies`.

    Args:
        program: captured, or any later form up to planned; its batch size is that of a step.

    Raises:
        GalvatronError: the program is sharded already, or a plan does not fit it.
    """
    if program.form > Form.PLANNED:
        raise GalvatronError(f"the program is {program.form} already; start from one that is {Form.PLANNED} at most")
    if program.form is Form.CAPTURED:
        program = Pipeline.of(FRONT_END).run(program)
    program = replace(program, form=Form.CLUSTERED, candidates=(), cuts=(), plan=None, cluster=cluster)
    found: dict[str, LayerCase] = {}
    for case in _of_plans(program, cluster, plans) if plans else _of_strategies(program, cluster):
        same = found.get(case.local.fingerprint, case)
        samples = tuple(sorted({*same.samples, *case.samples}))
        found[case.local.fingerprint] = replace(same, samples=samples)
    return [case for case in found.values() if case.samples]


def common_strategies(cluster: Cluster) -> tuple[Strategy, ...]:
    """Tensor parallelism of every degree within a node, with data parallelism over all other devices, and without."""
    devices, within = cluster.world_size, cluster.levels[0].parts
    degrees = [degree for degree in range(1, within + 1) if devices % degree == 0]
    return tuple(
        Strategy((AxisRole("dp", copies), AxisRole("tp", degree)))
        for degree in degrees
        for copies in sorted({1, devices // degree})
    )


def _of_plans(program: Program, cluster: Cluster, plans: Iterable[Plan]) -> Iterator[LayerCase]:
    for plan in plans:
        cut = in_pieces(program, plan)
        partitioner = Partitioner(cut, cluster)
        micro_batch = plan.global_batch_size // plan.micro_batches
        for layer, strategy in dict.fromkeys(
            (layer.cls, strategy) for layer, strategy in zip(cut.planned_layers, plan.strategies, strict=True)
        ):
            yield _case(cut, partitioner, layer, strategy, plan.ties, micro_batch)


def _of_strategies(program: Program, cluster: Cluster) -> Iterator[LayerCase]:
    partitioner = Partitioner(program, cluster)
    for strategy in common_strategies(cluster):
        ties = tuple((name, strategy.keeping) for name in tied_layers(program))
        for cls in dict.fromkeys(layer.cls for layer in program.planned_layers):
            yield _case(program, partitioner, cls, strategy, ties, program.batch_size)


def _case(
    program: Program, partitioner: Partitioner, cls: str, strategy: Strategy, ties: Ties, micro_batch: int
) -> LayerCase:
    local = local_class(program, partitioner, cls, strategy, ties)
    whole = program.class_of[cls]
    given = program.only_given(whole)
    pairs = zip(local.cls.graph.outputs, whole.graph.outputs, strict=True)
    return LayerCase(
        name=f"{cls} under {local.cls.strategy}",
        local=local,
        only_given=frozenset(name for name, formal in pairs if formal in given),
        samples=_sizes(local.graph, micro_batch // strategy.sample_shards),
    )


def _sizes(graph: Graph, most: int) -> tuple[int, ...]:
    """One sample, as many as a micro-batch may have, and what lies in the middle of them; less what the graph is not
    for."""
    wanted = {1, 2 ** round(most.bit_length() / 2), most} if most > 2 else {1, max(1, most)}
    return tuple(sorted(size for size in wanted if size <= max(1, most) and _is_for(graph, size)))


def _is_for(graph: Graph, samples: int) -> bool:
    try:
        return all(evaluate(size, samples) > 0 for value in graph.values.values() for size in value.type.shape)
    except GalvatronError:
        return False
