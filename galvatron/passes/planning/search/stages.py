"""The outer dynamic program: layers into stages, for one pipeline degree, number of micro-batches and schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from galvatron.costs.model import CostModel
from galvatron.costs.objective import Setting
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.search.pareto import frontier
from galvatron.passes.planning.search.segments import Segment, Segments

SUM_S, TRANSFER_S, STEP_S = 0, 1, -1
"""The first columns of a label and the last one: the sums over stages of seconds per micro-batch, of computing and of
messages between stages, and the maximum of seconds per step. Between them is, for each phase of the schedule, the
maximum of seconds per micro-batch, messages included."""


@dataclass(frozen=True)
class _Origin:
    """Where a block of labels came from: the segment that was added and the label it was added to."""

    begin: int
    previous: int | None
    first: int | None
    segment: Segment


@dataclass
class _State:
    """Labels of plans for the first layers that end in one strategy; `block` and `pick` lead into `origins`."""

    values: np.ndarray
    block: np.ndarray
    pick: np.ndarray
    origins: list[_Origin]


def search_stages(
    model: CostModel,
    setting: Setting,
    candidates: Sequence[Sequence[Strategy]],
    budget_bytes: float,
    *,
    resolution: float = 0.0,
    worst_s: float = float("inf"),
) -> tuple[float, tuple[tuple[Strategy, ...], ...]] | None:
    """The fastest stages that fit the budget, with their step time in seconds; None if none fits and beats `worst_s`.

    Args:
        candidates: the strategies each layer may have; an empty list means that no plan exists.
        resolution: plans whose memory or seconds per step differ by less than this share of the budget, or of the step
            time, count as equal at every layer; 0 makes the result exactly optimal.
        worst_s: a step time that must be beaten.
    """
    layers, degree = len(candidates), setting.pipeline_degree
    if degree > layers or not all(candidates):
        return None
    segments = Segments(model, setting, candidates, budget_bytes, resolution, worst_s)
    waves: list[dict[tuple[int, int], _State]] = [{}]
    for stage in range(degree):
        wave: dict[tuple[int, int], _State] = {}
        for end in range(stage + 1, layers - (degree - stage - 1) + 1):
            if stage == degree - 1 and end != layers:
                continue
            for last in range(len(candidates[end - 1])):
                state = _state(model, segments, waves[-1], stage, end, last)
                if state is not None:
                    wave[end, last] = state
        waves.append(wave)
    finals = [(key, state) for key, state in waves[-1].items() if key[0] == layers]
    if not finals:
        return None
    times = [_step_time_s(state.values, setting) for _, state in finals]
    which = min(range(len(finals)), key=lambda i: times[i].min())
    row = int(times[which].argmin())
    return float(times[which][row]), _traced(segments, waves, finals[which][0], row)


def _step_time_s(values: np.ndarray, setting: Setting, rest_s: float = 0.0) -> np.ndarray:
    """Step times of labels, if the layers behind them take at least `rest_s` per micro-batch."""
    total_s, slowest_s = values[:, SUM_S] + rest_s, values[:, TRANSFER_S + 1 : STEP_S].sum(axis=1)
    return setting.pipeline_s(total_s, slowest_s, values[:, TRANSFER_S]) + values[:, STEP_S]


def _state(
    model: CostModel, segments: Segments, wave: dict[tuple[int, int], _State], stage: int, end: int, last: int
) -> _State | None:
    """All ways to end stage `stage` after layer `end - 1` in strategy `last`."""
    setting, candidates = segments.setting, segments.candidates
    blocks: list[np.ndarray] = []
    origins: list[_Origin] = []
    if stage == 0:
        for (first, final), segment in segments.segments(0, 0, end).items():
            if final == last:
                total_s = segment.times[:, :-1].sum(axis=1)
                blocks.append(np.column_stack([total_s, np.zeros_like(total_s), segment.times]))
                origins.append(_Origin(0, None, first, segment))
    else:
        for begin in dict.fromkeys(begin for begin, _ in wave if begin < end):
            for (first, final), segment in segments.segments(stage, begin, end).items():
                if final != last or first is None:
                    continue
                for previous, before in enumerate(candidates[begin - 1]):
                    state = wave.get((begin, previous))
                    if state is not None:
                        transfer_s = model.transfer_s(begin, before, setting.micro_batch)
                        entry_s = model.conversion_s(begin, before, candidates[begin][first], setting.micro_batch)
                        if math.isfinite(entry_s + transfer_s):
                            beside_s = setting.shared_pace.beside(transfer_s)
                            blocks.append(_joined(state.values, segment.times, entry_s, transfer_s, beside_s))
                            origins.append(_Origin(begin, previous, first, segment))
    if not blocks:
        return None
    values = np.concatenate(blocks)
    block = np.concatenate([np.full(len(b), i) for i, b in enumerate(blocks)])
    pick = np.concatenate([np.arange(len(b)) for b in blocks])
    rest_s = segments.fastest_s[-1] - segments.fastest_s[end]
    alive = np.flatnonzero(_step_time_s(values, setting, rest_s) < segments.worst_s)
    keep = alive[frontier(values[alive], np.zeros(values.shape[1]))]
    return _State(values[keep], block[keep], pick[keep], origins) if len(keep) else None


def _joined(before: np.ndarray, times: np.ndarray, entry_s: float, transfer_s: float, beside_s: float) -> np.ndarray:
    """Labels of every pair of a label and a segment, label by label.

    Args:
        entry_s: of conversions, as long in every phase.
        transfer_s, beside_s: of messages, likewise, and what counts for them beside computing (`Pace.beside`).
    """
    phases = times.shape[1] - 1
    micro_s = times[None, :, :-1] + entry_s / phases
    largest_s = np.concatenate([micro_s + beside_s / phases, times[None, :, -1:]], axis=2)
    sums_s = before[:, None, : TRANSFER_S + 1] + np.concatenate(
        [micro_s.sum(axis=2, keepdims=True), np.full((1, len(times), 1), transfer_s)], axis=2
    )
    return np.concatenate(
        [sums_s, np.maximum(before[:, None, TRANSFER_S + 1 :], largest_s)],
        axis=2,
    ).reshape(-1, before.shape[1])


def _traced(
    segments: Segments, waves: list[dict[tuple[int, int], _State]], key: tuple[int, int], row: int
) -> tuple[tuple[Strategy, ...], ...]:
    stages: list[tuple[Strategy, ...]] = []
    for stage in reversed(range(len(waves) - 1)):
        state = waves[stage + 1][key]
        origin, pick = state.origins[state.block[row]], int(state.pick[row])
        label, choice = divmod(pick, len(origin.segment.times))
        chosen = int(origin.segment.rows[choice])
        end, last = key
        stages.append(segments.strategies(stage, origin.begin, end, origin.first, last, chosen))
        if origin.previous is not None:
            key, row = (origin.begin, origin.previous), label
    return tuple(reversed(stages))
