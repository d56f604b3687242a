"""The loaders of a program, by name, and their places in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from galvatron.data.loader import Loader, Serves
from galvatron.data.options import Options, length_of
from galvatron.data.place import Place
from galvatron.errors import GalvatronError
from galvatron.runtime import Calls, World, together


class Loaders:
    """Those that were made, and places of those that are still to be made."""

    def __init__(self) -> None:
        self._made: dict[str, Loader] = {}
        self._waiting: dict[str, Place] = {}

    def made(self, calls: Calls, world: World, serves: Callable[[], Serves], dataset: Any, options: Options) -> Loader:
        """A new loader, where it was when a checkpoint that was loaded before had one of its name. Collective.

        Args:
            serves: is called on all ranks, once they agree on the arguments.

        Raises:
            GalvatronError: see `CompiledModel.dataloader`.
        """
        with calls.agreeing("dataloader") as facts:
            options.check(dataset)
            if options.name in self._made:
                raise GalvatronError(f"there is a loader {options.name!r}: give this one another name=")
            alike = ("name", "batch_size", "shuffle", "seed", "drop_last", "whole_batches", "shards")
            facts |= {argument: str(getattr(options, argument)) for argument in alike}
            facts["the length of the data set"] = str(length_of(dataset))
        serving = serves()
        with together(world, "dataloader"):
            loader = Loader(serving, dataset, options)
            if (place := self._waiting.get(options.name)) is not None:
                loader.check_place(place)
                loader.go_to(place)
        self._waiting.pop(options.name, None)
        self._made[options.name] = loader
        return loader

    def facts(self) -> dict[str, str]:
        """What ranks that save must have in common."""
        places = self._waiting | {name: loader.place() for name, loader in self._made.items()}
        return {f"the place of loader {name!r}": str(replace(place, streams=())) for name, place in places.items()}

    def states(self) -> dict[str, dict[str, Any]]:
        """The places of all, for a checkpoint. Collective."""
        places = self._waiting | {name: loader.whole_place() for name, loader in self._made.items()}
        return {name: place.to_dict() for name, place in places.items()}

    def check(self, states: Mapping[str, Any]) -> None:
        """
        Raises:
            GalvatronError: a loader cannot go on from its place in a checkpoint.
        """
        for name, state in states.items():
            place = Place.read(name, state)
            if name in self._made:
                self._made[name].check_place(place)

    def load(self, states: Mapping[str, Any]) -> None:
        """All loaders go on from their places in a checkpoint, which were checked; those that are not there yet when
        they are made."""
        for name, state in states.items():
            place = Place.read(name, state)
            if name in self._made:
                self._made[name].go_to(place)
            else:
                self._waiting[name] = place
