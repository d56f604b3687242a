"""The options of commands that search: what is tried, and what for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.errors import GalvatronError
from galvatron.ir.documents import shown
from galvatron.ir.limits import DEVICES, REPEATS

if TYPE_CHECKING:
    from galvatron.search_options import SearchOptions

Require = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        metavar="[LAYERS=]TRAITS",
        help="What strategies have, such as layers.0=tp2 or zero3-recompute; repeatable.",
    ),
]
Forbid = Annotated[
    list[str] | None,
    typer.Option("--forbid", metavar="[LAYERS=]TRAITS", help="What they do not have, such as zero3, tp>8; repeatable."),
]
MaxTp = Annotated[int | None, typer.Option("--max-tp", min=1, metavar="N", help="The most tensor parallelism.")]
PipelineDegree = Annotated[
    int | None, typer.Option("--pp", min=1, max=DEVICES, metavar="N", help="The only pipeline degree.")
]
ScheduleName = Annotated[
    str | None, typer.Option("--schedule", metavar="LIST", help="Those tried, such as 1f1b,interleaved2,zbv.")
]
MicroBatches = Annotated[
    int | None, typer.Option("--micro-batches", min=1, max=REPEATS, metavar="N", help="The only number of them.")
]
Roles = Annotated[str | None, typer.Option("--roles", metavar="LIST", help="Such as dp,tp,tp+sp,ulysses,cp,ep.")]
Zero = Annotated[str | None, typer.Option("--zero", metavar="LIST", help="Levels, such as 0,3.")]
Recompute = Annotated[str | None, typer.Option("--recompute", metavar="LIST", help="Such as none,selective,full.")]
Objective = Annotated[str, typer.Option("--objective", metavar="time|memory", help="What is to be least.")]
Width = Annotated[
    int | None,
    typer.Option("--width", min=1, max=REPEATS, metavar="N", help="Partial choices that are followed; default: 64."),
]
Skew = Annotated[
    float | None,
    typer.Option(
        "--skew", min=1, metavar="RATIO", help="Rows of the rank with most over the mean, of experts; default: 1.25."
    ),
]
NoOverlap = Annotated[bool, typer.Option("--no-overlap", help="Wait for every collective of a layer where it begins.")]
TimeLimit = Annotated[
    float | None, typer.Option("--time-limit", metavar="SECONDS", help="Then the best plan so far is taken.")
]


def search_options(
    require: list[str] | None,
    forbid: list[str] | None,
    max_tp: int | None,
    pp: int | None,
    schedule: str | None,
    micro_batches: int | None,
    roles: str | None,
    zero: str | None,
    recompute: str | None,
    objective: str,
    width: int | None,
    skew: float | None,
    time_limit: float | None,
    no_overlap: bool,
) -> SearchOptions:
    """The options that the command line says.

    Raises:
        GalvatronError: one of them says what cannot be.
    """
    from galvatron.search_options import SearchOptions

    return SearchOptions(
        require=tuple(require or ()),
        forbid=tuple(forbid or ()),
        max_tp=max_tp,
        pipeline_degree=pp,
        schedule=schedule,
        micro_batches=micro_batches,
        roles=_words(roles),
        zero=None if zero is None else tuple(map(_level, _words(zero) or ())),
        recompute=_words(recompute),
        objective=objective,
        width=width,
        skew=skew,
        time_limit_s=time_limit,
        overlap=not no_overlap,
    )


def read_batches(text: str) -> int | tuple[int, int]:
    """A number of samples, or a range of them, `8..128`.

    Raises:
        GalvatronError: neither.
    """
    first, dots, last = text.partition("..")
    if not (_is_count(first) and (_is_count(last) or not dots)):
        raise GalvatronError(f"--global-batch {shown(text)} is no number of samples, and no range such as 8..128")
    return (int(first), int(last)) if dots else int(first)


def _is_count(text: str) -> bool:
    return text.isdecimal() and text.isascii() and len(text) < 20 and int(text) > 0


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _level(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) < 20):
        raise GalvatronError(f"--zero: {text!r} is no ZeRO level; use 0 to 3, such as 0,3")
    return int(text)
