"""What every rank computes whole under each role, by the decisions of the partitioner."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from galvatron.checking.found import LeftWhole, RefusedRole
from galvatron.errors import StrategyError
from galvatron.ir.factors import FactorTable
from galvatron.ir.program import LayerClass, LayerKind, Program
from galvatron.ir.strategy import AxisRole, Strategy
from galvatron.machine import Machine
from galvatron.partition import Partitioner
from galvatron.partition.boundary import roles_of_graphs
from galvatron.partition.decisions import Decision
from galvatron.partition.prices import ClassPrices


def strategy_of(role: str, devices: int) -> Strategy:
    """One axis of so many devices."""
    return Strategy((AxisRole(role, devices),))


def found_whole(program: Program, degree: int) -> tuple[tuple[LeftWhole, ...], tuple[RefusedRole, ...]]:
    """What is whole under each role on `degree` ranks, and which roles a class cannot have.

    Args:
        program: with costs, on the cluster and for the batch at which ops are priced.
    """
    whole: list[LeftWhole] = []
    refused: list[RefusedRole] = []
    partitioner = Partitioner(program, program.required_cluster)
    planned = {layer.cls for layer in program.layers if layer.kind in (LayerKind.PLANNED, LayerKind.EPILOGUE)}
    seconds = {cls.name: _seconds(partitioner, cls) for cls in program.classes if cls.name in planned}
    for role in roles_of_graphs(cls.graph for cls in program.classes):
        strategy = strategy_of(role, degree)
        ties = tuple((tie.name, strategy.keeping) for tie in partitioner.ties)
        for cls, op_s in seconds.items():
            try:
                sharded = partitioner.sharded(cls, strategy, ties)
            except StrategyError as error:
                refused.append(RefusedRole(str(strategy), cls, str(error)))
                continue
            graph = program.class_of[cls].graph
            decided = zip(graph.ops, op_s, map(_whole_on_all, zip(*sharded.decisions, strict=True)), strict=True)
            left = [(op.name, why, time) for op, time, why in decided if why and time]
            whole += _rows(str(strategy), cls, left, sum(op_s))
    return tuple(whole), tuple(refused)


def _whole_on_all(decisions: tuple[Decision, ...]) -> str:
    """Why an op is whole on an axis; empty if a sub-axis of it shares the op."""
    return "" if any(decision.whole is None for decision in decisions) else str(decisions[-1].whole)


def _rows(role: str, cls: str, left: list[tuple[str, str, float]], total: float) -> list[LeftWhole]:
    """One row per op and reason, what takes longest first."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for op, why, time in left:
        times[op, why].append(time)
    rows = [LeftWhole(role, cls, op, why, len(each), sum(each) / total) for (op, why), each in times.items()]
    return sorted(rows, key=lambda row: -row.share)


def _seconds(partitioner: Partitioner, cls: LayerClass) -> list[float]:
    """Of each op of a class on one device, forward and backward; 0 of a view.

    Without launches, which no axis saves: of a small op nothing is left.
    """
    program, graph = partitioner.program, cls.graph
    cluster = program.required_cluster
    machine = Machine(replace(cluster, device=replace(cluster.device, kernel_launch_s=0.0)))
    table, border = FactorTable(graph), partitioner.borders[cls.name]
    prices = ClassPrices(graph, table, machine, program.batch_size, border)
    return [prices.op_s(index, ()) for index in range(len(graph.ops))]
