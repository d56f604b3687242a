"""Predictions beside steps that were measured on this machine, and how far off they are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from accuracy.statistics import rank_correlation
from accuracy.steps import Measured
from galvatron.offline import Estimate


@dataclass(frozen=True)
class Comparison:
    """A plan that was measured, with its prediction."""

    network: str
    model: str
    plan: str
    measured: Measured
    estimate: Estimate

    @property
    def predicted_s(self) -> float:
        return self.estimate.step_time_s

    @property
    def error(self) -> float:
        """Predicted over measured seconds, less one."""
        return self.predicted_s / self.measured.median_s - 1

    @property
    def predicted_bytes(self) -> tuple[int, ...]:
        """By rank; the ranks of a pipeline rank follow each other."""
        peaks, ranks = self.estimate.peak_bytes, len(self.measured.peak_bytes)
        return tuple(peaks[rank * len(peaks) // ranks] for rank in range(ranks))

    @property
    def peaks(self) -> tuple[tuple[int, int], ...]:
        """By pipeline rank the predicted peak and the measured one: of the rank that has most, where rows go to ranks
        by what they choose."""
        predicted, measured = self.estimate.peak_bytes, self.measured.peak_bytes
        each = len(measured) // len(predicted)
        return tuple((peak, max(measured[i * each : (i + 1) * each])) for i, peak in enumerate(predicted))

    @property
    def memory_errors(self) -> tuple[float, ...]:
        """Predicted over measured peaks, less one, by pipeline rank."""
        return tuple(predicted / measured - 1 for predicted, measured in self.peaks)


@dataclass(frozen=True)
class Summary:
    """The errors of some plans, as shares.

    Attributes:
        bias: the median with its sign.
        order: Spearman's rank correlation of predicted and measured seconds, the least over the models of three plans
            and more; None if there are none.
        memory_median: of the sizes of errors of all pipeline ranks.
        memory_low: the least error of one: by how much a peak is too low at worst.
        spread: the median over the plans of how far apart the middle half of the measured steps is.
    """

    network: str
    plans: int
    median: float
    worst: float
    bias: float
    order: float | None
    memory_median: float
    memory_low: float
    spread: float


def summary(network: str, found: Sequence[Comparison]) -> Summary:
    """The errors of at least one plan."""
    errors = [one.error for one in found]
    memory = [error for one in found for error in one.memory_errors]
    groups = [[one for one in found if one.model == model] for model in {one.model for one in found}]
    orders = [
        rank_correlation([(one.predicted_s, one.measured.median_s) for one in group])
        for group in groups
        if len(group) >= 3
    ]
    return Summary(
        network=network,
        plans=len(found),
        median=statistics.median(map(abs, errors)),
        worst=max(map(abs, errors)),
        bias=statistics.median(errors),
        order=min(orders, default=None),
        memory_median=statistics.median(map(abs, memory)),
        memory_low=min(memory),
        spread=statistics.median(one.measured.spread for one in found),
    )
