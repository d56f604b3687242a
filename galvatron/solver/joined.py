"""Stages that are over, joined: one of each in their order, with what moves between them cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from galvatron.solver.bounds import SLACK, Bounds
from galvatron.solver.pareto import frontier
from galvatron.solver.tables import Pipeline


@dataclass(frozen=True, eq=False)
class Ended:
    """n choices for all layers of a stage.

    Attributes:
        stage: (n,). begin, end: (n,) its layers are `begin..end - 1`. first, last: (n,) the places of these.
        own: (n, F) seconds per micro-batch of each phase, but for entering the stage.
        once: (n,) seconds per step. peak: (n,) bytes. row: (n,) the label.
    """

    stage: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    first: np.ndarray
    last: np.ndarray
    own: np.ndarray
    once: np.ndarray
    peak: np.ndarray
    row: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Ended]) -> Ended:
        """All of them."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True, eq=False)
class _Joint:
    """n choices for the first stages: (n,) of `ended` the last one, (n,) what it is joined to, and figures of all."""

    which: np.ndarray
    parent: np.ndarray
    total: np.ndarray
    received: np.ndarray
    slowest: np.ndarray
    once: np.ndarray

    def picked(self, rows: np.ndarray) -> _Joint:
        """Some of them."""
        return _Joint(*(getattr(self, field.name)[rows] for field in fields(_Joint)))


def joined(bounds: Bounds, ended: Ended, known_s: float) -> tuple[float, list[tuple[int, int]] | None]:
    """The least seconds of a step, and of each stage the layer behind it and its label; None if nothing takes less than
    what is known."""
    pipeline = bounds.pipeline
    firsts = np.flatnonzero(ended.stage == 0)
    nothing, own_s = np.zeros(len(firsts)), ended.own[firsts]
    joints = [_Joint(firsts, nothing.astype(int), own_s.sum(axis=1), nothing, own_s, ended.once[firsts])]
    for stage in range(1, pipeline.stages):
        joint = _extended(pipeline, ended, joints[-1], np.flatnonzero(ended.stage == stage))
        least_s = _least_s(bounds, ended, joint, stage)
        joint = joint.picked(np.flatnonzero(least_s <= known_s + SLACK * abs(known_s)))
        joints.append(joint.picked(_better(pipeline, ended, joint)))
    last = joints[-1]
    if not len(last.which):
        return np.inf, None
    step_s = _through_s(pipeline, last.total, last.received, last.slowest.sum(axis=1)) + last.once
    row = int(np.lexsort((ended.peak[last.which], step_s))[0])
    best_s, found = float(step_s[row]), []
    for joint in reversed(joints):
        which, row = joint.which[row], int(joint.parent[row])
        found.append((int(ended.end[which]), int(ended.row[which])))
    return best_s, found[::-1]


def _extended(pipeline: Pipeline, ended: Ended, joint: _Joint, behind: np.ndarray) -> _Joint:
    """All that can be joined with a stage behind it."""
    pairs = [np.empty((2, 0), dtype=int)]
    ends = ended.end[joint.which]
    for layer in np.unique(ends):
        before, after = np.flatnonzero(ends == layer), behind[ended.begin[behind] == layer]
        pairs.append(np.stack([np.repeat(before, len(after)), np.tile(after, len(before))]))
    parent, which = np.concatenate(pairs, axis=1)
    moved = (pipeline.chain.moves[ended.begin[which]], ended.last[joint.which[parent]], ended.first[which])
    received_s = pipeline.receive_s[moved]
    entered_s = pipeline.enter_s[moved] + received_s
    own_s = ended.own[which] + (entered_s / pipeline.chain.phases)[:, None]
    return _Joint(
        which,
        parent,
        joint.total[parent] + own_s.sum(axis=1),
        joint.received[parent] + received_s,
        np.maximum(joint.slowest[parent], own_s),
        np.maximum(joint.once[parent], ended.once[which]),
    )


def _least_s(bounds: Bounds, ended: Ended, joint: _Joint, stage: int) -> np.ndarray:
    """What all stages take at least, with what those that are still to come do."""
    assert bounds.division is not None
    ends = ended.end[joint.which]
    total_s = joint.total + bounds.division.ahead_total_s[stage + 1, ends]
    slowest_s = np.maximum(joint.slowest.sum(axis=1), bounds.division.ahead_s[stage + 1, ends])
    possible = np.isfinite(total_s)
    total_s, slowest_s = np.where(possible, total_s, 0.0), np.where(possible, slowest_s, 0.0)
    found = _through_s(bounds.pipeline, total_s, joint.received, slowest_s) + joint.once
    return np.where(possible, found, np.inf)


def _better(pipeline: Pipeline, ended: Ended, joint: _Joint) -> np.ndarray:
    """Those for which no other that ends alike is worse in nothing."""
    groups = ended.end[joint.which] * pipeline.chain.places + ended.last[joint.which]
    sums_s = [whole * (joint.total - joint.received) + pipeline.wait * joint.received for whole, _ in pipeline.lines]
    return frontier(groups, np.column_stack([*sums_s, joint.slowest, joint.once]))


def _through_s(pipeline: Pipeline, total_s: np.ndarray, received_s: np.ndarray, slowest_s: np.ndarray) -> np.ndarray:
    """What all micro-batches take; see `Pipeline`."""
    lines = [whole * (total_s - received_s) + slow * slowest_s for whole, slow in pipeline.lines]
    return np.max(lines, axis=0) + pipeline.wait * received_s
