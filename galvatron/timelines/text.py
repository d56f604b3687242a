"""Timelines as text: trace events in JSON, one on each line.

The format is that of the Trace Event Format's complete events (`X`), counters (`C`), flows (`s`, `f`) and metadata
(`M`), in microseconds, to the nanosecond; what it has no word for stands under `otherData`. Flows are for those who
look at it: what is read has them from its slices. Lines are read one by one, so that a file of a stranger takes no more
memory than what it says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from galvatron.errors import ParseError
from galvatron.ir.documents import is_text, read_json, shown
from galvatron.ir.limits import FILE_CHARACTERS, LINE_CHARACTERS, TIMELINE_CHARACTERS, TIMELINE_EVENTS
from galvatron.timelines.arrows import Arrow, arrows
from galvatron.timelines.nanoseconds import in_nanoseconds, microseconds, nanoseconds
from galvatron.timelines.shortened import shortened
from galvatron.timelines.timeline import MEASURED, MEMORY, PREDICTED, TRACKS, Level, Slice, Timeline

_METADATA_OF_PROCESS = 2 + 2 * len(TRACKS)
_ARGUMENTS = 16
"""Of one event."""

_INSIDE = 100
"""How many nanoseconds within a slice the end of an arrow is, at the most."""

_SMALLEST, _LARGEST = 1e-24, 1e24
"""Seconds of a step are more; and they, microseconds and bytes are less: sums of so many still are numbers."""

_MICRO_BATCHES = 2**31

_OTHER_FORM = 'is no timeline as galvatron writes it: a line that ends in "traceEvents": [, one for each event, and ]}'


def timeline_text(own: Timeline, most: int = TIMELINE_EVENTS) -> str:
    """The text of a file. On each track slices are in each other or apart, in the order of their beginnings, also for
    those who count in whole nanoseconds.

    Args:
        most: events that there are at the most: of a longer timeline a part is written.
    """
    own = shortened(own, most, _METADATA_OF_PROCESS)
    placed = _placed(own.slices)
    slices = (_event(one, *spans) for one, spans in placed.values())
    flows = (event for number, arrow in enumerate(arrows(own)) for event in _flow(number, arrow, placed))
    events = (*_metadata(own), *slices, *flows, *map(_counter, own.levels))
    about = {"kind": own.kind, "pipeline_ranks": list(own.pipeline_ranks), "steps": own.steps, **own.about}
    head = json.dumps({"displayTimeUnit": "ms", "otherData": {"galvatron": about}}, allow_nan=False)
    lines = ",\n".join(json.dumps(event, allow_nan=False) for event in events)
    return f'{head[:-1]}, "traceEvents": [\n{lines}\n]}}\n'


def read_timeline(text: str, what: str) -> Timeline:
    """Reads what `timeline_text` wrote.

    Raises:
        ParseError: it is no such text.
    """
    if len(text) > TIMELINE_CHARACTERS:
        raise ParseError(f"{what} has more than {TIMELINE_CHARACTERS} characters")
    lines = _lines(text)
    first = next(lines, "")
    if not first.endswith('"traceEvents": ['):
        raise ParseError(f"{what} {_OTHER_FORM}")
    data = read_json(f"{first}]}}", what, FILE_CHARACTERS)
    own = _member(_member(data, "otherData", dict, what), "galvatron", dict, what)
    kind, steps = _member(own, "kind", str, what), _member(own, "steps", int, what)
    ranks = _member(own, "pipeline_ranks", list, what)
    about = {key: value for key, value in own.items() if key not in ("kind", "steps", "pipeline_ranks")}
    known = kind in (PREDICTED, MEASURED) and 1 <= steps <= TIMELINE_EVENTS and _is_about_a_step(about)
    if not known or not ranks or any(type(rank) is not int or abs(rank) > _LARGEST for rank in ranks):
        raise ParseError(f"{what} is no timeline of galvatron: otherData.galvatron says {shown(own)}")
    slices: list[Slice] = []
    levels: list[Level] = []
    for number, event in enumerate(_events(lines, what)):
        where = f"{what}, event {number}"
        phase = _member(event, "ph", str, where)
        if phase == "X":
            slices.append(_slice(event, where, len(ranks)))
        elif phase == "C":
            args = {key: _number(value, where) for key, value in _arguments(event, where).items()}
            levels.append(Level(_process(event, where, len(ranks)), _seconds(event, "ts", where), args))
    return Timeline(kind, tuple(ranks), steps, tuple(slices), tuple(levels), about)


def _lines(text: str) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        yield text[begin:end]
        begin = end + 1


def _events(lines: Iterator[str], what: str) -> Iterator[Any]:
    """What the lines between the first and the last one say."""
    is_last = False
    for number, line in enumerate(lines):
        where = f"{what}, event {number}"
        if is_last:
            if line != "]}" or next(lines, None) is not None:
                raise ParseError(f"{where} is behind the last one, which no comma follows")
            return
        if number == TIMELINE_EVENTS:
            raise ParseError(f"{what} has more than {TIMELINE_EVENTS} events")
        is_last = not line.endswith(",")
        yield read_json(line.removesuffix(","), where, LINE_CHARACTERS)
    raise ParseError(f"{what} {_OTHER_FORM}")


def _is_about_a_step(about: dict[str, Any]) -> bool:
    """Whether all is of its kind that `Timeline.about` may have."""
    if not all(is_text(value) or _is_number(value) for value in about.values()):
        return False
    every, some = about.get("micro_batches", 1), about.get("micro_batches_shown", 1)
    if type(every) is not int or type(some) is not int or not 1 <= some <= every <= _MICRO_BATCHES:
        return False
    if about.keys() & {"micro_batches", "micro_batches_shown"} not in (set(), {"micro_batches", "micro_batches_shown"}):
        return False
    times = (about.get(name, 1.0) for name in ("predicted_s", "played_s"))
    return all(_is_number(time) and time >= _SMALLEST for time in times)


def _metadata(own: Timeline) -> Iterator[dict[str, Any]]:
    for process, pipeline_rank in enumerate(own.pipeline_ranks):
        rank = f", rank {process}" if own.kind == MEASURED else ""
        yield _named("process_name", process, 0, name=f"pipeline rank {pipeline_rank}{rank}")
        yield _named("process_sort_index", process, 0, sort_index=process)
        for place, track in enumerate(TRACKS):
            yield _named("thread_name", process, place, name=track)
            yield _named("thread_sort_index", process, place, sort_index=place)


_Placed = dict[int, tuple[Slice, tuple[int, int]]]
"""By identity, slices with the nanoseconds at which they begin and end, in the order of a file."""


def _placed(slices: Iterable[Slice]) -> _Placed:
    """Track by track; of slices that begin together the one around the others first."""

    def track(one: Slice) -> tuple[int, int]:
        return one.process, TRACKS.index(one.track)

    found: _Placed = {}
    for _, own in groupby(sorted(slices, key=track), track):
        for one, *span in in_nanoseconds(sorted(own, key=lambda one: (one.begin_s, -one.seconds))):
            found[id(one)] = one, (span[0], span[1])
    return found


def _event(one: Slice, begin: int, end: int) -> dict[str, Any]:
    exposed = {} if one.exposed_s is None else {"exposed_us": one.exposed_s * 1e6}
    return {
        "ph": "X",
        "pid": one.process,
        "tid": TRACKS.index(one.track),
        "name": one.name,
        "cat": one.track,
        "ts": microseconds(begin),
        "dur": microseconds(end - begin),
        "args": {**one.args, **exposed},
    }


def _counter(one: Level) -> dict[str, Any]:
    at = microseconds(max(0, nanoseconds(one.at_s)))
    return {"ph": "C", "pid": one.process, "tid": 0, "name": MEMORY, "ts": at, "args": dict(one.bytes_of)}


def _flow(number: int, arrow: Arrow, placed: _Placed) -> Iterator[dict[str, Any]]:
    """The two ends of an arrow, each within its slice, so that it is found there."""
    (began, sent), (reads, ended) = (placed[id(one)][1] for one in (arrow.sender, arrow.receiver))
    for phase, one, at in (
        ("s", arrow.sender, max(began, sent - _INSIDE)),
        ("f", arrow.receiver, min(reads + _INSIDE, max(reads, ended - 1))),
    ):
        yield {
            "ph": phase,
            "bp": "e",
            "id": number,
            "pid": one.process,
            "tid": TRACKS.index(one.track),
            "name": arrow.what,
            "cat": "message",
            "ts": microseconds(at),
            "args": {},
        }


def _named(what: str, process: int, track: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": track, "name": what, "args": args}


def _slice(event: Any, where: str, processes: int) -> Slice:
    track, args = _member(event, "cat", str, where), _arguments(event, where)
    if track not in TRACKS or not all(is_text(v) or isinstance(v, (int, float)) for v in args.values()):
        raise ParseError(
            f"{where} is on a track that no timeline has, or has arguments of another kind: {shown(event)}"
        )
    micro_batch = args.get("micro_batch", 0)
    if not is_text(micro_batch) and not 0 <= micro_batch < _MICRO_BATCHES:
        raise ParseError(f"{where} is of micro-batch {shown(micro_batch)}")
    exposed = args.pop("exposed_us", None)
    return Slice(
        _process(event, where, processes),
        track,
        _member(event, "name", str, where),
        _seconds(event, "ts", where),
        _not_negative(_seconds(event, "dur", where), where),
        None if exposed is None else _not_negative(_number(exposed, where) / 1e6, where),
        args,
    )


def _arguments(event: Any, where: str) -> dict[str, Any]:
    args = _member(event, "args", dict, where)
    if len(args) > _ARGUMENTS:
        raise ParseError(f"{where} has {len(args)} arguments, and at most {_ARGUMENTS} are read")
    return args


def _process(event: Any, where: str, processes: int) -> int:
    process = _member(event, "pid", int, where)
    if not 0 <= process < processes:
        raise ParseError(f"{where} is of process {process}, and there are {processes}")
    return process


def _member(data: Any, name: str, kind: type, where: str) -> Any:
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is str and not is_text(value)):
        raise ParseError(f"{where} is no part of a timeline of galvatron: {name!r} is {shown(value)}")
    return value


def _seconds(event: Any, name: str, where: str) -> float:
    return _number(event.get(name), where) / 1e6


def _not_negative(seconds: float, where: str) -> float:
    if seconds < 0:
        raise ParseError(f"{where} takes less than no time")
    return seconds


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _number(value: Any, where: str) -> float:
    if not _is_number(value):
        raise ParseError(f"{where} has {shown(value)} where a number is needed")
    return float(value)
