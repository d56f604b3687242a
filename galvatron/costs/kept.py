"""Costs that are kept on disk, for searches and estimates of later processes.

What a cost model answers follows from its program, which says the cluster as it was measured and the batch, and from
the code of this package and of torch. All of that is in the name of the file, so that no answer is ever read for
another question. Budgets, constraints and plans are no part of it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from galvatron.costs.columns import firsts, names, shaped, taken
from galvatron.costs.model import CostModel, LayerCost, Repeated
from galvatron.costs.sheets import Key, Sheet, read, written
from galvatron.errors import GalvatronError
from galvatron.ir.files import write_bytes
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import AxisRole, Strategy

_LOG = logging.getLogger("galvatron")

MOST_BYTES = 256 << 20
"""All files together; of more, those that were used least recently go."""

_PAIRS = 1 << 31
"""A pair of meshes is numbered as the first times this plus the second."""

_Value = TypeVar("_Value")

_LAYER = LayerCost(0.0, 0.0)
_REPEATED = Repeated(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class KeptCosts(CostModel):
    """Answers as another model does, which is made only when it is asked for what nobody has asked before."""

    def __init__(self, make: Callable[[], CostModel], layers: int, name: str, folder: Path) -> None:
        """
        Args:
            make: makes the model.
            layers: how many it is of.
            name: of all that the answers follow from (`galvatron.ir.versions.digest`).
            folder: where files are.
        """
        self._make, self._layers, self._name, self._path = make, layers, name, folder / f"{name}.costs"
        self._about: _About | None = None
        self._numbers: dict[Strategy, int] = {}
        self._sheets: dict[Key, Sheet] = {}
        self._single: dict[Key, dict[int, float]] = {}
        """Single figures by the number of their strategy, which are asked for one at a time; sheets on the disk."""
        self._new = False
        self._load()

    @cached_property
    def _model(self) -> CostModel:
        return self._make()

    @cached_property
    def _layer_facts(self) -> _About:
        """What is told of the layers, whatever the strategy."""
        return self._about or _About(firsts(self._model.kinds()), dict(self._model.tied()))

    def tied(self) -> Mapping[str, tuple[int, ...]]:
        return self._layer_facts.tied

    def kinds(self) -> tuple[Hashable, ...]:
        return self._layer_facts.kinds

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        """For each layer the first of its kind, and a number for what is behind the last."""
        return *self._layer_facts.kinds, -1

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        return taken(self.under_each(index, (strategy,), micro_batch, ties), 0)

    def under_each(self, index: int, strategies: Sequence[Strategy], micro_batch: int, ties: Ties) -> LayerCost:
        def ask(missing: list[int]) -> np.ndarray:
            asked = [strategies[place] for place in missing]
            return _flat(self._model.under_each(index, asked, micro_batch, ties), len(asked))

        key = "layer", self._firsts[index], _whole(ties), micro_batch
        return _made(self._found(key, self._numbered(strategies), ask))

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        if before.axes == after.axes:
            return 0.0
        return float(self.conversions_s(index, [before], [after], micro_batch)[0, 0])

    def conversions_s(
        self, index: int, before: Sequence[Strategy], after: Sequence[Strategy], micro_batch: int
    ) -> np.ndarray:
        def ask(missing: list[int]) -> np.ndarray:
            pairs = (divmod(place, len(after)) for place in missing)
            asked = [self._model.conversion_s(index, before[row], after[column], micro_batch) for row, column in pairs]
            return np.array([asked])

        rows, columns = (self._numbered([Strategy(strategy.axes) for strategy in each]) for each in (before, after))
        asked = (rows[:, None] * _PAIRS + columns).ravel()
        found = self._found(("conversion_s", self._firsts[index], "", micro_batch), asked, ask)
        return found[0].reshape(len(before), len(after))

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        key = "boundary_bytes", self._firsts[index], "", micro_batch
        return self._one(key, strategy, lambda: self._model.boundary_bytes(index, strategy, micro_batch))

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        key = "transfer_s", self._firsts[index], "", micro_batch
        return self._one(key, strategy, lambda: self._model.transfer_s(index, strategy, micro_batch))

    def shared_bytes(self, strategy: Strategy, micro_batch: int, ties: Ties) -> float:
        key = "shared_bytes", 0, _whole(ties), micro_batch
        return self._one(key, strategy, lambda: self._model.shared_bytes(strategy, micro_batch, ties))

    def save(self) -> None:
        """Writes the file, if there is anything new; what cannot be written is only not kept."""
        if not self._new:
            return
        try:
            sheets = self._sheets | {key: Sheet.of_one(figures) for key, figures in self._single.items()}
            about = {**self._layer_facts._asdict(), "strategies": list(map(told, self._numbers))}
            write_bytes(self._path, written(self._name, about, sheets))
            make_room(self._path.parent)
            self._new = False
        except OSError as error:
            _LOG.info("the costs are not kept: %s", error)

    def _load(self) -> None:
        """Reads the file; without one, or with one that is damaged, nothing is known."""
        try:
            known, sheets = read(self._name, self._path.read_bytes())
            strategies = list(map(strategy_told, _listed(known.get("strategies"), str)))
            about = _About.told(known, self._layers)
            _check(sheets, strategies)
            os.utime(self._path)
        except FileNotFoundError:
            return
        except (OSError, GalvatronError) as error:
            _LOG.info("the costs in %s are told anew: %s", self._path, error)
            return
        self._numbers, self._sheets = {strategy: number for number, strategy in enumerate(strategies)}, sheets
        self._about = about

    def _numbered(self, strategies: Sequence[Strategy]) -> np.ndarray:
        numbers = self._numbers
        return np.array([numbers.setdefault(strategy, len(numbers)) for strategy in strategies], dtype=np.int64)

    def _one(self, key: Key, strategy: Strategy, ask: Callable[[], float]) -> float:
        """A single figure of a strategy."""
        if (known := self._single.get(key)) is None:
            sheet = self._sheets.get(key)
            known = {} if sheet is None else dict(zip(sheet.numbers.tolist(), sheet.figures[0].tolist(), strict=True))
            self._single[key] = known
        number = self._numbers.setdefault(strategy, len(self._numbers))
        if (figure := known.get(number)) is None:
            figure, self._new = float(ask()), True
            known[number] = figure
        return figure

    def _found(self, key: Key, numbers: np.ndarray, ask: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        """The columns of some numbers in a sheet, of which the missing ones are asked for by their places."""
        sheet = self._sheets.get(key)
        places = np.full(len(numbers), -1) if sheet is None else sheet.places(numbers)
        missing = np.flatnonzero(places < 0)
        if len(missing):
            _, first = np.unique(numbers[missing], return_index=True)
            figures = ask(missing[first].tolist())
            sheet = (sheet or Sheet.empty(len(figures))).with_more(numbers[missing[first]], figures)
            self._sheets[key], self._new = sheet, True
            places = sheet.places(numbers)
        assert sheet is not None
        return sheet.figures[:, places]


class _About(NamedTuple):
    """Of each layer the first of its kind, and of each tie the layers, by its name."""

    kinds: tuple[int, ...]
    tied: dict[str, tuple[int, ...]]

    @staticmethod
    def told(known: Mapping[str, Any], layers: int) -> _About:
        """What a file tells of so many layers.

        Raises:
            GalvatronError: it tells it of others, or not.
        """
        kinds, tied = tuple(_listed(known.get("kinds"), int)), known.get("tied")
        if firsts(kinds) != kinds or len(kinds) != layers or not isinstance(tied, dict):
            raise GalvatronError("it is of other layers")
        ties = {name: tuple(_listed(own, int)) for name, own in tied.items()}
        if not all(0 <= layer < layers for own in ties.values() for layer in own):
            raise GalvatronError("it has ties of other layers")
        return _About(kinds, ties)


def _listed(values: Any, of: type[_Value]) -> list[_Value]:
    """
    Raises:
        GalvatronError: it is no list of such values.
    """
    if not isinstance(values, list) or any(type(value) is not of for value in values):
        raise GalvatronError("it lacks what it should tell")
    return values


def told(strategy: Strategy) -> str:
    """A strategy to the last degree of one, which its own text does not always tell."""
    return json.dumps([strategy.axes, strategy.zero, strategy.recompute])


def strategy_told(text: str) -> Strategy:
    """What `told` was given.

    Raises:
        GalvatronError: it is none.
    """
    try:
        axes, zero, recompute = json.loads(text)
        strategy = Strategy(tuple(AxisRole(str(role), int(degree)) for role, degree in axes), int(zero), str(recompute))
    except (TypeError, ValueError, RecursionError) as error:
        raise GalvatronError(f"it has a strategy that is none: {error}") from None
    if told(strategy) != text:
        raise GalvatronError(f"it has a strategy that is none: {text}")
    return strategy


def _whole(ties: Ties) -> str:
    """Of each tie whether it is whole."""
    return "".join("1" if kept is None else "0" for _, kept in ties)


def _flat(costs: LayerCost, many: int) -> np.ndarray:
    """All figures of costs of a layer, a row each, behind them those of what it repeats."""
    parts = [costs, *costs.repeated]
    return np.stack([np.broadcast_to(row, many) for part in parts for row in attrgetter(*names(part))(part)])


def _made(figures: np.ndarray) -> LayerCost:
    """The costs of which these are the figures."""
    rows = iter(figures)
    costs = shaped(_LAYER, rows)
    repeated = [shaped(_REPEATED, rows) for _ in range((len(figures) - _OWN) // _EACH)]
    return replace(costs, repeated=tuple(replace(one, layer=int(np.min(one.layer))) for one in repeated))


_OWN, _EACH = len(names(_LAYER)), len(names(_REPEATED))


def _check(sheets: Mapping[Key, Sheet], strategies: Sequence[Strategy]) -> None:
    """
    Raises:
        GalvatronError: there are strategies that the file does not tell, or tells twice, or too few figures.
    """
    if len(set(strategies)) < len(strategies):
        raise GalvatronError("it tells a strategy twice")
    for (what, *_), sheet in sheets.items():
        rows, columns = sheet.figures.shape
        pairs = divmod(sheet.numbers, _PAIRS) if what == "conversion_s" else (sheet.numbers,)
        if any(columns and not 0 <= part.min() <= part.max() < len(strategies) for part in pairs):
            raise GalvatronError("it has figures of strategies that it does not tell")
        if (rows - _OWN) % _EACH or rows < _OWN if what == "layer" else rows != 1:
            raise GalvatronError("it has other figures")


def make_room(folder: Path, most_bytes: int = MOST_BYTES) -> None:
    """Deletes the files that were used least recently, until the others are no larger than they may be together."""
    files = sorted(((path, path.stat()) for path in folder.iterdir()), key=lambda one: one[1].st_mtime, reverse=True)
    total = 0
    for path, stat in files:
        total += stat.st_size
        if total > most_bytes:
            path.unlink(missing_ok=True)


@dataclass
class Keeping:
    """A folder of costs, and the models that use it."""

    folder: Path
    models: list[KeptCosts] = field(default_factory=list)


_KEEPING: ContextVar[Keeping | None] = ContextVar("keeping", default=None)


@contextmanager
def kept_costs(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Cost models in the block answer from files in a folder what was asked before, and leave there what is new; not
    where `folder` is None."""
    token = _KEEPING.set(None if folder is None else Keeping(Path(folder) / "costs"))
    try:
        yield
    finally:
        keeping = _KEEPING.get()
        _KEEPING.reset(token)
        for model in keeping.models if keeping else ():
            model.save()


def keeping() -> Keeping | None:
    """Where costs are kept now."""
    return _KEEPING.get()
