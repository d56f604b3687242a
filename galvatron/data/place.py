"""Where a loader is: all that a run needs to go on with the next sample, on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from galvatron.errors import GalvatronError

_VERSION = 2


@dataclass(frozen=True)
class Place:
    """Plain values that are equal on every rank.

    Attributes:
        epoch: that of the next sample.
        position: samples of the epoch so far.
        seed: of the order and of all random numbers.
        shuffle: whether each epoch has an order of its own.
        length: samples of an epoch; None for an iterable data set.
        streams: what each share of such a data set says of itself (`state_dict`), as JSON; None where it says nothing,
            or this rank does not read it.
    """

    epoch: int
    position: int
    seed: int
    shuffle: bool
    length: int | None
    streams: tuple[str | None, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For `json`; `read` reads it back."""
        return {"version": _VERSION, **asdict(self), "streams": list(self.streams)}

    @staticmethod
    def read(name: str, state: Any) -> Place:
        """
        Raises:
            GalvatronError: this is no place of a loader.
        """
        known = {"version", *Place.__dataclass_fields__}
        if not isinstance(state, Mapping) or state.keys() != known or state["version"] != _VERSION:
            raise GalvatronError(f"the place of loader {name!r} is none that this version of Galvatron has written")
        numbers = [state[key] for key in ("epoch", "position", "seed")]
        if state["length"] is not None:
            numbers.append(state["length"])
        if not all(type(n) is int and n >= 0 for n in numbers) or type(state["shuffle"]) is not bool:
            raise GalvatronError(f"the place of loader {name!r} is damaged: {str(dict(state))[:200]}")
        streams = state["streams"]
        if type(streams) is not list or not all(text is None or type(text) is str for text in streams):
            raise GalvatronError(f"the place of loader {name!r} is damaged: its streams are no texts")
        found = {key: state[key] for key in Place.__dataclass_fields__}
        return Place(**{**found, "streams": tuple(streams)})

    def check_follows(self, name: str, own: Place) -> None:
        """
        Raises:
            GalvatronError: a loader that is at `own` cannot go on from here.
        """
        if self.length != own.length:
            here, there = (
                f"{n} samples" if n is not None else "an iterable data set" for n in (own.length, self.length)
            )
            raise GalvatronError(
                f"loader {name!r} was saved with {there}, but has {here}: pass the same data set, or another name= for "
                "a new one"
            )
        if len(self.streams) != len(own.streams):
            raise GalvatronError(
                f"loader {name!r} was saved with shards={len(self.streams)}, which says what order its samples have: "
                "pass that"
            )
        if self.shuffle != own.shuffle:
            raise GalvatronError(f"loader {name!r} was saved with shuffle={self.shuffle}: pass that")
        if self.length is not None and self.position > self.length:
            raise GalvatronError(f"the place of loader {name!r} is behind the end of its data set")
