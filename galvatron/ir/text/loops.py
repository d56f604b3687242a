"""Run-lengths: a stretch of lines that differ only in evenly counting numbers becomes a loop over one copy of it.

layer decoder_0  %h1 = @decoder(%h0)          for i in 0..31 {
layer decoder_1  %h2 = @decoder(%h1)    →       layer decoder_{i}  %h{i+1} = @decoder(%h{i})
…                                             }
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from galvatron.ir import limits
from galvatron.ir.text.names import fill_marks, split_marks, template

_MAX_PERIOD = 128
_LOOP_LINES = 2


@dataclass(frozen=True)
class Loop:
    """`body` for the counter from `first` to `last`, both included; stands for `count * len(body)` items."""

    first: int
    last: int
    body: tuple[str, ...]

    @property
    def count(self) -> int:
        return self.last - self.first + 1


def rolled(items: Sequence[str]) -> list[str | Loop]:
    """Marked lines (see `names`), with every long enough regular stretch rolled into a `Loop`."""
    split = [split_marks(item) for item in items]
    heights = [item.count("\n") + 1 for item in items]
    skeletons = [s for s, _ in split]
    numbers = [n for _, n in split]
    rows: list[str | Loop] = []
    at = 0
    while at < len(items):
        period, length = _best_stretch(skeletons, numbers, heights, at)
        if not period:
            rows.append(items[at])
            at += 1
            continue
        start = at + _border(skeletons, numbers, at, period, length)
        count = (length - (start - at)) // period
        rows += [*items[at:start], _loop(skeletons, numbers, start, period, count)]
        at = start + period * count
    return rows


def _best_stretch(skeletons: list[str], numbers: list[tuple[int, ...]], heights: list[int], at: int) -> tuple[int, int]:
    """The (period, length) of the copies that cover most items from `at` on and save lines, the shortest period first;
    else (0, 0).

    `heights` are the lines that each item takes.
    """
    best, covered = (0, 0), 0
    for period in range(1, min(_MAX_PERIOD, (len(skeletons) - at) // 2) + 1):
        if skeletons[at] != skeletons[at + period]:
            continue
        length = _length(skeletons, numbers, at, period)
        count = length // period
        saved = sum(heights[at : at + period]) * (count - 1)
        if saved > _LOOP_LINES and period * count > covered:
            best, covered = (period, length), period * count
    return best


def _border(skeletons: list[str], numbers: list[tuple[int, ...]], at: int, period: int, length: int) -> int:
    """How many items behind `at` a loop over the copies begins, so that one round of it is about one number.

    A first block with more in it than the others looks like them from its middle on only; a loop that began there would
    mix two blocks in each round.
    """

    least = 3 if length // period > 2 else 2
    shifts = [shift for shift in range(period) if (length - shift) // period >= least]
    counting: list[int | None] = []
    for j in range(at, at + shifts[-1] + period):
        steps = _steps(skeletons, numbers, j, j + period) or ()
        counting.append(next((n for n, step in zip(numbers[j], steps, strict=False) if step), None))
    return min(shifts, key=lambda shift: (len({*counting[shift : shift + period]} - {None}), shift))


def _length(skeletons: list[str], numbers: list[tuple[int, ...]], at: int, period: int) -> int:
    """How many items from `at` on are in copies, the last perhaps begun only, of the first `period` ones, with evenly
    counting numbers."""
    steps: list[tuple[int, ...]] = []
    for j in range(at, at + period):
        step = _steps(skeletons, numbers, j, j + period)
        # Found out here already, so that irregular items cost one look each.
        if (
            step is None
            or min(step, default=0) < 0
            or (max(step, default=0) > 1 and _steps(skeletons, numbers, j + period, j + 2 * period) != step)
        ):
            return period
        steps.append(step)
    end = at + 2 * period
    while end < min(len(skeletons), at + period * limits.REPEATS):
        if _steps(skeletons, numbers, end - period, end) != steps[(end - at) % period]:
            break
        end += 1
    # Any two numbers count evenly; a pair of copies is a repetition only where they count one by one.
    if end - at < 3 * period and any(step > 1 for row in steps for step in row):
        return period
    return end - at


def _steps(skeletons: list[str], numbers: list[tuple[int, ...]], first: int, second: int) -> tuple[int, ...] | None:
    """How far each number counts from one item to another; None where they differ in more than numbers."""
    if second >= len(skeletons) or skeletons[first] != skeletons[second]:
        return None
    return tuple(b - a for a, b in zip(numbers[first], numbers[second], strict=True))


def _loop(skeletons: list[str], numbers: list[tuple[int, ...]], at: int, period: int, count: int) -> Loop:
    rows = [(numbers[j], _steps(skeletons, numbers, j, j + period) or ()) for j in range(at, at + period)]
    counting = Counter(n for row, steps in rows for n, step in zip(row, steps, strict=True) if step == 1)
    first = counting.most_common(1)[0][0] if counting else 0
    body = tuple(
        fill_marks(
            skeletons[at + j],
            tuple(template(step, n - step * first) if step else str(n) for n, step in zip(row, steps, strict=True)),
        )
        for j, (row, steps) in enumerate(rows)
    )
    return Loop(first, first + count - 1, body)
