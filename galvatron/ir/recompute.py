"""What recomputation computes again: `Strategy.recompute` of a sharded class says whether, the table of operators what.

Under `recompute=attention` only the cores of attention are computed again (see `ir.attention`), and all else is kept
that autograd saves. Under `recompute` a layer keeps what goes into it, and its backward begins with its forward, up to
the last op of which autograd saves something. What is chosen by comparing numbers is not chosen again (`chooses`): sums
of the numbers may come out otherwise in their last bit, and with them who is sent how many rows. Under
`recompute=selective` some ops run in the forward only: those whose time is in arithmetic (`Operator.kept`), and those
that communicate. What is computed again is bound by memory traffic. Of an `spmd.` op that is not kept, what its
collectives return is kept all the same. Under `recompute=alternate` the same holds, but every second product of
matrices is computed again as well, for half of the memory of their results.

What a backward reads besides what was kept are values of parameters, and for some layers not even these (`rereads`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

from galvatron.ir.collectives import COLLECTIVES, WAIT
from galvatron.ir.gradients import spread
from galvatron.ir.graph import Graph, Op
from galvatron.ir.ops.table import operator_of

Step = Literal["keep", "once"]
"""How the runtime calls an op that runs in the forward only: `rt.keep` keeps its results, `rt.once` does not."""


IN_STEPS = ("selective", "alternate")
"""Kinds of recomputation under which ops whose time is in arithmetic, and those that communicate, run in the forward
only."""

_INTEGERS = frozenset(("i8", "u8", "i16", "i32", "i64"))


def replays(recompute: str) -> bool:
    """Whether the backward of a layer begins with its forward."""
    return recompute == "full" or recompute in IN_STEPS


def chooses(graph: Graph, op: Op) -> bool:
    """Whether an op makes whole numbers of floating ones, as `topk`, `argmax` and `sort` do: a small difference of the
    latter may be a large one of the former."""
    if op.namespace == "comm" or op.function is not None:
        return False
    reads = any(graph.values[name].type.is_floating for name in op.operands)
    return reads and any(value.type.dtype in _INTEGERS for value in op.results)


def in_steps(graph: Graph, recompute: str) -> bool:
    """Whether a layer that is recomputed has ops that run in the forward only."""
    return recompute in IN_STEPS or bool(selective_steps(graph, recompute))


def runs_once(op: Op) -> bool:
    """Whether selective recomputation leaves the op out for what it takes."""
    if op.namespace == "comm":
        return op.target == WAIT or bool(COLLECTIVES[op.target].sent)
    return operator_of(op).kept


def selective_steps(graph: Graph, recompute: str) -> dict[int, Step]:
    """By number, the ops of a sharded graph that run in the forward only under a kind of recomputation.

    What only collectives read need not be kept, since they are not called again and save nothing: a partial sum that is
    reduced, or a value that only leaves the layer.
    """
    if not replays(recompute):
        return {}
    once = [(recompute in IN_STEPS and runs_once(op)) or chooses(graph, op) for op in graph.ops]
    if recompute == "alternate":
        products = [index for index, op in enumerate(graph.ops) if once[index] and _is_product(op)]
        for index in products[1::2]:
            once[index] = False
    read = {
        name
        for op, skipped in zip(graph.ops, once, strict=True)
        if not (skipped and op.namespace == "comm")
        for name in op.operands
    }
    return {
        index: "keep" if any(value.name in read for value in op.results) else "once"
        for index, op in enumerate(graph.ops)
        if once[index]
    }


def _is_product(op: Op) -> bool:
    return op.namespace != "comm" and operator_of(op).contracts and not operator_of(op).attends


def rereads(graph: Graph, parameters: Collection[str], differentiable: Iterable[str], recompute: str) -> bool:
    """Whether the backward of a sharded graph reads values of its `parameters`, trained or not.

    It does not where they are only looked up: that makes new tensors, and its gradient needs the indices alone. Nor
    where what is made of them has no gradient. What is computed again is taken to read all.

    Args:
        differentiable: the inputs and state that have a gradient.
    """
    found = set(differentiable)
    spread(graph, found)
    if found.isdisjoint(graph.outputs):
        return False

    def looks_up(op: Op) -> bool:
        others = [graph.values[name] for name in op.operands if name not in parameters]
        return operator_of(op).looks_up and not any(value.type.is_floating for value in others)

    readers = [
        op
        for op in graph.ops
        if any(name in parameters for name in op.operands) and any(value.name in found for value in op.results)
    ]
    passed_on = any(name in parameters and name in found for name in graph.outputs)
    return recompute != "none" or passed_on or not all(map(looks_up, readers))
