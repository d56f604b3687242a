"""Which plans an architecture is tried under, on two ranks: four, others for each, so that all kinds are seen."""

from __future__ import annotations

from zlib import crc32

DATA = (
    "dp2",
    "pp1/m2/1f1b/dp2",
    "dp2-zero3-recompute",
    "dp2-zero1-recompute=selective",
    "pp1/m2/gpipe/dp2-zero2",
    "dp2-zero3",
)
TENSOR = ("tp2", "tp2-recompute", "pp1/m2/1f1b/tp2", "tp2-recompute=selective")
PIPELINE = (
    "pp2/m2/gpipe/dp1",
    "pp2/m4/1f1b/dp1",
    "pp2/m4/interleaved2/dp1",
    "pp2/m4/zbv/dp1",
    "pp2/m2/1f1b/dp1-recompute",
)
SEQUENCE = ("tp2+sp", "ulysses2", "cp2", "pp1/m2/1f1b/tp2+sp-recompute")
STATE = ("dp2-zero3-recompute", "dp2-zero2-recompute=selective", "pp1/m2/1f1b/dp2-zero3-recompute", "dp2-zero1")

ANY = ("dp2-zero3-recompute", "dp2-zero2-recompute=selective", "dp2")
"""Plans that apply to nearly every program."""

Attempts = tuple[str, ...]
"""Plans of one kind, then of any, the preferred one first: the next is tried where one does not apply to a program."""


def plans_for(name: str, sequence: bool) -> tuple[Attempts, ...]:
    """The four kinds of plans that a row is tried under.

    Args:
        sequence: whether roles that shard the sequence are tried.
    """
    turn = crc32(name.encode())
    data = _from(DATA, turn, "dp2")
    fourth = _from(SEQUENCE if sequence else STATE, turn // 7, "tp2+sp" if sequence else "dp2-zero3-recompute")
    if not sequence and fourth[0] == data[0]:
        data = ("dp2",)
    return (
        data,
        _from(TENSOR, turn // 11, "tp2"),
        _from(PIPELINE, turn // 13, "pp2/m2/gpipe/dp1", "pp2/m1/gpipe/dp1"),
        fourth,
    )


def _from(plans: tuple[str, ...], turn: int, *then: str) -> Attempts:
    return tuple(dict.fromkeys((plans[turn % len(plans)], *then, *ANY)))
