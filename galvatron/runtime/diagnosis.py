"""Why a job hangs: what each rank says of itself when it is asked, and what follows from all of it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import FrameType

import torch
import torch.distributed as dist

from galvatron.runtime.comm import PIPELINE, Message, Place
from galvatron.runtime.comm.activity import Activity

_TORCH = os.path.dirname(torch.__file__) + os.sep
_RUNTIME = os.path.dirname(__file__) + os.sep


@dataclass(frozen=True)
class Whereabouts:
    """What one rank does.

    Attributes:
        state: "waiting" in a communication, "computing" in a step, "outside" of all that communicates, or "ended".
        stages: the stages of the rank, or the one that it works for.
        seconds: for how long it has been waiting.
        kind, ranks, nbytes, dtype: the communication that it waits in; `ranks` are all that take part.
        senders: the ranks whose messages it waits for, where that is not all of `ranks`.
        place: the layer that the communication belongs to, or that is computed.
        phase: "forward", "backward", or what the messages of the communication are for.
        expected: what a pipeline waits for, in words.
        code: the line of Python that the main thread runs.
    """

    rank: int
    state: str
    stages: tuple[int, ...] = ()
    seconds: float = 0.0
    kind: str = ""
    ranks: tuple[int, ...] = ()
    nbytes: int = 0
    dtype: str = ""
    senders: tuple[int, ...] = ()
    place: Place | None = None
    phase: str = ""
    expected: str = ""
    code: str = ""

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> Whereabouts:
        fields = json.loads(text)
        for name in ("stages", "ranks", "senders", "place"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        return Whereabouts(**fields)

    @property
    def peers(self) -> tuple[int, ...]:
        """The ranks that it waits for."""
        return tuple(rank for rank in self.senders or self.ranks if rank != self.rank)

    def __str__(self) -> str:
        stages = f" (stage {', '.join(map(str, self.stages))})" if self.stages else ""
        return f"rank {self.rank}{stages}"

    def same_operation(self, other: Whereabouts) -> bool:
        """Whether two ranks wait in what can be one and the same communication."""
        mine, theirs = ((w.kind, w.ranks, w.nbytes, w.dtype, w.place, w.phase, w.expected) for w in (self, other))
        return mine == theirs

    def doing(self) -> str:
        """What the rank does, to stand after its name."""
        if self.state == "ended":
            return "has ended"
        if self.state == "outside":
            return f"has left the step{_at(self.code)}"
        if self.state == "computing":
            return f"computes{self._where()}{_at(self.code)}"
        return f"is in {self.operation()}"

    def operation(self) -> str:
        """The communication that the rank waits in."""
        if self.kind == PIPELINE:
            return self.expected or f"the pipeline, sending to another stage (ranks {_listed(self.ranks)})"
        size = f" of {_size(self.nbytes)} {self.dtype}" if self.dtype else ""
        return f"{self.kind}{size} over {len(self.ranks)} ranks ({_listed(self.ranks)}){self._where()}"

    def _where(self) -> str:
        if self.place is None or self.phase == "parameters":
            if self.state == "computing" or self.phase in ("forward", "backward"):
                return f" in {self.phase}" if self.phase else ""
            return f" for {self.phase}" + (f" of layer {self.place[1]}" if self.place else "")
        _, layer, microbatch = self.place
        return f" in layer {layer}, {self.phase or 'forward'} of micro-batch {microbatch}"


def whereabouts(rank: int, activity: Activity, wait: Message | None, seconds: float, *, busy: bool) -> Whereabouts:
    """What this rank does.

    Args:
        wait: the communication that it waits in, as found by `Activity.wait`.
        busy: whether it is in work that communicates.
    """
    stages = activity.stages
    if wait is None:
        if not busy:
            return Whereabouts(rank, "outside", stages, code=_line())
        place, phase = activity.place, ""
        if activity.chunk is not None:
            stage, phase, microbatch = activity.chunk
            stages = (stage,)
            phase = phase if place is not None else f"{phase} of micro-batch {microbatch}"
        return Whereabouts(rank, "computing", stages, place=place, phase=phase, code=_line())
    ranks = tuple(dist.get_process_group_ranks(wait.group)) if wait.group is not None else ()
    if wait.kind == PIPELINE:
        expected = wait.expected or {}
        words = [f"{phase} of micro-batch {m} from rank {sender}" for (_, phase, m), sender in expected.items()]
        return Whereabouts(
            rank,
            "waiting",
            tuple(sorted({stage for stage, _, _ in expected})) or stages,
            seconds,
            PIPELINE,
            ranks,
            senders=tuple(sorted(set(expected.values()))),
            expected="the receive of " + ", ".join(words) if words else "",
        )
    place = wait.place if wait.phase in ("forward", "backward", "parameters") else None
    return Whereabouts(
        rank,
        "waiting",
        (place[0],) if place else stages,
        seconds,
        wait.kind,
        ranks,
        wait.nbytes,
        str(wait.dtype).removeprefix("torch.") if wait.dtype is not None else "",
        place=place,
        phase=wait.phase,
    )


def verdict(asker: int, answers: Mapping[int, Whereabouts]) -> str:
    """The error that a job ends with: the rank that waits for one that does not come, and what that one does.

    From the asker it follows who waits for whom, until it meets a rank that is not on its way: one that does not
    answer, that computes, has left the step or ended, or that waits in another communication among the same ranks.

    Args:
        asker: a rank that has waited too long.
        answers: what the ranks said; one that did not answer is missing.
    """
    victim, culprits = answers[asker], ()
    seen: set[int] = set()
    pending = [asker]
    while pending:
        rank = pending.pop(0)
        if rank in seen:
            continue
        seen.add(rank)
        waiting = answers[rank]
        found = tuple(peer for peer in waiting.peers if _to_blame(waiting, answers.get(peer)))
        if found:
            victim, culprits = waiting, found
            break
        pending += [p for p in waiting.peers if not waiting.same_operation(answers[p])]
    told = [
        f"rank {p} {answers[p].doing() if p in answers else 'does not answer: it is stopped, overloaded or gone'}"
        for p in culprits[:4]
    ]
    if len(culprits) > 4:
        told.append(f"so do not come {len(culprits) - 4} more ({_listed(culprits[4:])})")
    if not culprits:
        others = [answers[r] for r in sorted(seen - {victim.rank}) if not victim.same_operation(answers[r])]
        told = [f"rank {other.rank} {other.doing()}" for other in others[:4]]
        told = told or ["all of them are in it, so the network is slow or broken"]
    return f"{victim} waited {victim.seconds:.0f} s in {victim.operation()}; {'; '.join(told)}"


def _to_blame(waiting: Whereabouts, peer: Whereabouts | None) -> bool:
    """Whether a peer is not on its way to where a rank waits for it."""
    if peer is None or peer.state != "waiting":
        return True
    # Whoever waits among other ranks may come later; among the same ranks nothing else can go on first.
    return peer.kind != PIPELINE and peer.ranks == waiting.ranks and not waiting.same_operation(peer)


def _at(code: str) -> str:
    return f", at {code}" if code else ""


def _listed(ranks: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown}, ... {ranks[-1]}" if len(ranks) > 8 else shown


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"


def _line() -> str:
    """The line that the main thread runs: the innermost one that is neither torch's nor the runtime's, if any."""
    innermost = frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _RUNTIME, "<")):
        frame = frame.f_back
    return _named(frame or innermost)


def _named(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
