"""How unevenly rows choose: of rows that go to the ranks of what they choose, how many one rank may have.

Which rank gets how many rows is data. What is known of it:

- Types say how many each rank has where all choose evenly, `mean`.
- No rank has more than all rows of the axis: `ranks` times the mean. That is the bound, and it is met where all rows
  choose something of one rank.
- Between the two lies what a plan is made for, its skew: the rows of the rank that has most over the mean. Time and
  memory of a plan are those of that rank, for which the others wait where rows come back.

The local sizes of such rows follow from `most_rows` at the ops that make them, and from nothing else.
"""

from __future__ import annotations

import math

SKEW = 1.25
"""What a plan is made for unless told otherwise: the capacity over the mean with which Switch Transformers (Fedus et
al. 2022) and ST-MoE (Zoph et al. 2022) train their experts, which, under a balance loss, few tokens exceed. A rank with
several experts is nearer to the mean than each of them."""

EVEN = 1.0
"""The skew where all choose evenly."""

ALL = math.inf
"""That where all rows choose something of one rank, whatever the number of ranks."""


def most_rows(mean: float, ranks: int, skew: float) -> int:
    """How many rows the rank has that has most, of an axis of so many ranks."""
    return math.ceil(mean * min(skew, ranks))


def skew_problem(skew: object) -> str:
    """Why a number is no skew that a plan can be made for; empty if it is one."""
    right = type(skew) in (int, float) and 1 <= skew < math.inf  # type: ignore[operator]  # a number by then
    return "" if right else "must be a number of at least 1: rows of the rank that has most, over the mean"
