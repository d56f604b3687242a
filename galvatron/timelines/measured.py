"""What all ranks recorded of their steps as a timeline, in the names and tracks of the predicted one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from galvatron.ir.program import LayerKind, Program
from galvatron.runtime import recording
from galvatron.runtime.clock_offset import differ_by_at_most
from galvatron.runtime.recording import Record
from galvatron.schedules import Kind
from galvatron.timelines import timeline as names
from galvatron.timelines.timeline import Level, Slice, Timeline, computation, in_turn, message, of_layer

CLOCKS_DIFFER = "clocks_differ_by_at_most_s"
"""Seconds, of any two ranks: something that is known about a timeline."""

LayerNames = Mapping[tuple[int, str], str]
"""By stage, and the name of a layer in the code of it: the name of the layer of the model."""


@dataclass(frozen=True)
class RankRecords:
    """What a rank recorded, in seconds of the clock of rank 0, which may be wrong by `error_s`.

    Attributes:
        pipeline_rank, place: where it stands in the pipeline, and among the ranks of its pipeline rank.
        levels: bytes in use from a moment on.
    """

    pipeline_rank: int
    place: int
    records: tuple[Record, ...]
    levels: tuple[tuple[float, float], ...]
    error_s: float


def layer_names(staged: Program, attributes: Mapping[int, Mapping[str, str]]) -> dict[tuple[int, str], str]:
    """What layers are called. A conversion counts to the layer of the plan behind it, as it does in the prediction.

    Args:
        attributes: by stage, the attribute of a stage's code that each layer is.
    """
    found: dict[tuple[int, str], str] = {}
    following = ""
    for stage in reversed(staged.stages):
        for layer in reversed(stage.layers):
            following = layer.name if layer.kind is LayerKind.PLANNED else following
            shown = following if layer.kind is LayerKind.CONVERSION and following else layer.name
            found[stage.index, attributes[stage.index][layer.name]] = shown
    return found


def measured_timeline(ranks: Sequence[RankRecords], layers: LayerNames, steps: int) -> Timeline:
    """The timeline of some steps.

    Args:
        ranks: in order.
    """
    begin_s = min(record.begin_s for rank in ranks for record in rank.records)
    sent = {
        (rank.place, record.name, record.stage, record.micro_batch, record.step): record.begin_s
        for rank in ranks
        for record in rank.records
        if record.what == recording.SENT
    }
    slices: list[Slice] = []
    levels: list[Level] = []
    for process, rank in enumerate(ranks):
        slices += _Measured(process, rank, layers, sent, begin_s).slices()
        levels += [Level(process, at_s - begin_s, {"in use": used}) for at_s, used in rank.levels if at_s >= begin_s]
    about = {CLOCKS_DIFFER: differ_by_at_most([rank.error_s for rank in ranks])}
    return Timeline(
        names.MEASURED, tuple(rank.pipeline_rank for rank in ranks), steps, tuple(slices), tuple(levels), about
    )


Sent = Mapping[tuple[int, str, int | None, int | None, int], float]
"""When a message began to be sent: by place in the pipeline rank, kind, stage, micro-batch and step."""

_SENDER = {Kind.RECV_F.name: (Kind.SEND_F.name, -1), Kind.RECV_B.name: (Kind.SEND_B.name, 1)}
"""What the other end of a message is, and how far its stage is away."""


@dataclass(frozen=True)
class _Measured:
    """The records of one rank."""

    process: int
    rank: RankRecords
    layers: LayerNames
    sent: Sent
    origin_s: float

    def slices(self) -> Iterator[Slice]:
        """Its slices; those of communications one after the other on each track."""
        beside: dict[str, list[Slice]] = {}
        computed: list[Slice] = []
        for record in self.rank.records:
            if record.what == recording.COMMUNICATION:
                one = self._communication(record)
                beside.setdefault(one.track, []).append(one)
            elif record.what != recording.SENT:
                computed.append(self._computed(record))
        yield from computed
        for own in beside.values():
            yield from in_turn(own)

    def _computed(self, record: Record) -> Slice:
        track, name = names.COMPUTE, names.OPTIMIZER
        if record.what == recording.STEP:
            track, name = names.STEPS, names.STEP
        elif record.what == recording.COMPUTATION:
            assert record.stage is not None and record.micro_batch is not None
            name = computation(Kind[record.name], record.stage, record.micro_batch)
        elif record.what == recording.LAYER:
            name = of_layer(record.name, self._layer(record))
        return self._slice(record, track, name, record.begin_s)

    def _communication(self, record: Record) -> Slice:
        if record.operation == recording.PIPELINE:
            return self._message(record)
        track = _TRACK.get(record.name, names.OTHERS)
        name = record.name if track == names.OTHERS else track
        if track == names.LAYERS:
            name = of_layer(record.phase, self._layer(record))
        return self._slice(record, track, name, record.begin_s, record.waited_s)

    def _message(self, record: Record) -> Slice:
        """What is received takes time from when it was sent: before that its rank waits for the other one."""
        name, waiting_s = names.SENDING, record.end_s - record.waited_s
        if record.name in _SENDER:
            kind, away = _SENDER[record.name]
            assert record.stage is not None and record.micro_batch is not None
            key = self.rank.place, kind, record.stage + away, record.micro_batch, record.step
            waiting_s = min(max(waiting_s, self.sent.get(key, waiting_s)), record.end_s)
            what = "values" if record.name == Kind.RECV_F.name else "gradients"
            name = message(what, record.stage + away, record.micro_batch)
        return self._slice(record, names.PIPELINE, name, waiting_s, record.end_s - waiting_s)

    def _layer(self, record: Record) -> str:
        if record.stage is None or record.layer is None:
            return "no layer"
        return self.layers.get((record.stage, record.layer), record.layer)

    def _slice(self, record: Record, track: str, name: str, begin_s: float, exposed_s: float | None = None) -> Slice:
        known = {"stage": record.stage, "micro_batch": record.micro_batch, "step": record.step}
        known["layer"] = None if record.layer is None else self._layer(record)
        if record.what == recording.COMMUNICATION:
            known |= {"operation": record.operation, "bytes": record.nbytes}
        args = {key: value for key, value in known.items() if value is not None}
        return Slice(self.process, track, name, begin_s - self.origin_s, record.end_s - begin_s, exposed_s, args)


_TRACK = {"layers": names.LAYERS, "parameters": names.PARAMETERS, "gradients": names.GRADIENTS}
"""What ranks wait for, and the tracks that show it; all else is on one of its own."""
