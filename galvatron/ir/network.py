"""Networks: the levels of links that join devices, and collectives that were measured on them."""

from __future__ import annotations

from dataclasses import dataclass

from galvatron.ir.contention import Contention
from galvatron.ir.curves import Points


@dataclass(frozen=True)
class Level:
    """One level of the network: links that join `parts` parts, which are devices or what the level below joins.

    A collective takes the time of the faster of two protocols, as NCCL's do: one of full rate, and, where `quick_…` are
    given, one for short messages. In either it takes `start_s`, one step for each hop of its ring, and its bytes.

    Attributes:
        name: what the level joins them to, such as `node`, `rack` or `network`.
        parts: how many parts it joins.
        bytes_per_s: what one device or, where `cards` are given, one card sends at this level while it receives as
            much. What a long message gets, not what a datasheet says.
        latency_s: time of a shortest message from one device to another (`p2p`).
        cards: network cards of each part, shared by its devices; 0 where each device has a link of its own.
        start_s: what a collective takes that reaches this level, beside its steps and bytes.
        step_s: time of a step of a ring at this level, beside its bytes; `latency_s` if it is not known.
        quick_bytes_per_s: the same as `bytes_per_s` for the protocol of short messages, less.
        quick_step_s: the same as `step_s` for the protocol of short messages, less.
        pair_bytes_per_s: what any two parts exchange at most, where each two have a link of their own.
        contention: what kernels and a collective that reaches this level leave each other of their speed.
    """

    name: str
    parts: int
    bytes_per_s: float
    latency_s: float
    cards: int = 0
    start_s: float = 0.0
    step_s: float | None = None
    quick_bytes_per_s: float | None = None
    quick_step_s: float | None = None
    pair_bytes_per_s: float | None = None
    contention: Contention = Contention()


@dataclass(frozen=True)
class MeasuredCollective:
    """Seconds of one collective on groups of one shape, as they were measured: these count before any formula.

    To measure: cut the ranks into groups of `size` ranks, `stride` apart, as a mesh axis does (rank `r` is with those
    of equal `r // (size·stride)` and `r % stride`), let *all groups run at once*, since they share links in training,
    and take the median over repeats of the slowest rank's time from a common start to its end. For `p2p` each rank
    of the first half of a group's axis sends to the one `stride` further, all pairs at once.

    Attributes:
        name: the collective, as in `galvatron.ir.collectives.MESSAGES`.
        size: ranks of a group.
        stride: distance between neighbours in a group.
        points: (payload in bytes, seconds), both rising. The payload is the whole tensor as one rank sees it: what
            `all_reduce` reduces, what `all_gather` returns, what `reduce_scatter` and `all_to_all` take, what
            `broadcast` sends, and the message of `p2p`.
        beyond_bytes_per_s: payload bytes per second beyond the last point: the slope of a fit of latency and rate to
            the points; None for the slope between the last two.
    """

    name: str
    size: int
    stride: int
    points: Points
    beyond_bytes_per_s: float | None = None
