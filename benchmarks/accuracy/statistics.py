"""How far predictions of a table are from what was measured."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from accuracy.predict import Prediction
from accuracy.rows import Row


@dataclass(frozen=True)
class Outcome:
    """A row with its prediction; None where the row is refused, and then `problem` says why."""

    row: Row
    prediction: Prediction | None
    problem: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over measured seconds, less one."""
        return None if self.prediction is None else self.prediction.step_s / self.row.step_s - 1

    @property
    def memory_errors(self) -> tuple[float, ...]:
        """Predicted over measured peaks, less one: of each stage, or of the fullest one where no other is measured."""
        measured = self.row.peak_bytes
        if self.prediction is None or self.row.offloads:
            return ()
        predicted = self.prediction.peak_bytes
        if len(measured) == 1:
            predicted = (max(predicted),)
        return tuple(p / m - 1 for p, m in zip(predicted, measured, strict=True)) if measured else ()


@dataclass(frozen=True)
class Accuracy:
    """The errors of a table, as shares.

    Attributes:
        bias: the median with its sign.
        order: Spearman's rank correlation of predicted and measured steps, the median over groups of at least three
            rows that share model, devices and batch; None if there is no such group.
        groups: how many these are.
        picked: the share of them in which the plan predicted to be the fastest is measured so.
        refused_memory: the share of rows predicted not to fit the memory of the device that they ran on.
        memory_median, memory_low: of the errors of peaks: the median of their sizes, and the least one.
    """

    table: str
    rows: int
    refused: int
    median: float
    p90: float
    worst: float
    bias: float
    order: float | None
    groups: int
    picked: float | None
    refused_memory: float
    memory_median: float | None
    memory_low: float | None


def accuracy(table: str, outcomes: Sequence[Outcome]) -> Accuracy:
    """The errors of the rows that have a prediction; NaN where none has."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    sizes = sorted(map(abs, errors)) or [math.nan]
    memory = [error for outcome in outcomes for error in outcome.memory_errors]
    kept = [outcome for outcome in outcomes if not outcome.row.offloads]
    predictions = [outcome.prediction for outcome in kept if outcome.prediction is not None]
    groups = [group for group in _groups(outcomes) if len(group) >= 3]
    orders = [rank_correlation(group) for group in groups]
    return Accuracy(
        table=table,
        rows=len(errors),
        refused=len(outcomes) - len(errors),
        median=statistics.median(sizes),
        p90=sizes[math.ceil(0.9 * len(sizes)) - 1],
        worst=sizes[-1],
        bias=statistics.median(errors) if errors else math.nan,
        order=statistics.median(orders) if orders else None,
        groups=len(groups),
        picked=statistics.mean(min(g)[1] == min(m for _, m in g) for g in groups) if groups else None,
        refused_memory=statistics.mean(not p.fits for p in predictions) if predictions else math.nan,
        memory_median=statistics.median(map(abs, memory)) if memory else None,
        memory_low=min(memory) if memory else None,
    )


def _groups(outcomes: Sequence[Outcome]) -> list[list[tuple[float, float]]]:
    """Predicted and measured seconds of the rows that share model, devices and batch."""
    groups: dict[object, list[tuple[float, float]]] = defaultdict(list)
    for outcome in outcomes:
        row, prediction = outcome.row, outcome.prediction
        if prediction is not None:
            groups[row.shape, row.cluster, row.batch].append((prediction.step_s, row.step_s))
    return list(groups.values())


def rank_correlation(group: Sequence[tuple[float, float]]) -> float:
    """Spearman's, of at least two pairs."""
    ranks = [rankdata(seconds) for seconds in zip(*group, strict=True)]
    return float(np.corrcoef(*ranks)[0, 1])
