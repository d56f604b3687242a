"""Choices for stages that share devices: borders, and for each device the best strategies of all its layers together.

With borders given, what devices do touches only at the moves between them, so that each is a problem of a single stage
with the memory of the whole device. Borders then move away from the device that takes longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from galvatron.solver.charges import at_end
from galvatron.solver.duals import Dual, dual
from galvatron.solver.hulls import Hull, shared_out
from galvatron.solver.ranks import Ranks, balanced, rank_bounds
from galvatron.solver.tables import Chain, Pipeline

Price = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]
"""Of a choice and its borders: seconds of a step, and (R,) bytes over the budget of each device."""

_FITTING = 3
"""How often a device whose layers do not fit is tried with less memory."""

_MOVES = 8
"""How often a border is moved."""

_TRANSIENT = 8
"""So many amounts of bytes are tried that layers of a device may take while they run."""


def placed_best(
    ranks: Ranks, price: Price, known_s: float, gap: float = 0.0
) -> tuple[tuple[float, np.ndarray, np.ndarray] | None, float]:
    """Something faster than what is known, if it is found: its seconds, choice and borders; and seconds that nothing
    takes less than, but for what is known."""
    wanted_s = known_s * (1 - gap)
    bounds = rank_bounds(ranks, wanted_s)
    if bounds.least_s >= wanted_s:
        return None, bounds.least_s
    columns = bounds.columns(wanted_s)
    if not len(columns):
        return None, wanted_s
    placer, best = Placer(ranks.only(columns)), None
    for start in placer.starts():
        seconds, placed = placer.fitted(start, lambda choice, borders: price(columns[choice], borders), known_s)
        if seconds < known_s:
            best, known_s = (seconds, columns[placed.choice], placed.borders), seconds
        if np.isfinite(seconds):
            break
    return best, bounds.least_s


@dataclass(frozen=True, eq=False)
class Sketch:
    """What devices take with some borders.

    Attributes:
        seconds: (R,) what each device takes at least; infinite where nothing fits.
        lacking: (R,) bytes that are missing for the smallest choice.
    """

    borders: np.ndarray
    seconds: np.ndarray
    lacking: np.ndarray

    @property
    def worth(self) -> tuple[float, float, float]:
        """What is compared: bytes that are missing, the slowest device, all of them."""
        return float(self.lacking.sum()), float(self.seconds.max()), float(self.seconds.sum())


@dataclass(frozen=True, eq=False)
class Placed(Sketch):
    """A choice with its borders."""

    choice: np.ndarray


@dataclass
class Placer:
    """Finds choices for a problem; what one device does is kept.

    A device keeps some bytes free for the layer that runs, and all of its layers are such that they take no more.
    """

    ranks: Ranks
    budget: np.ndarray = field(init=False)
    _known: dict[tuple[object, ...], Dual] = field(default_factory=dict)
    _shared: dict[tuple[object, ...], tuple[float, float, float]] = field(default_factory=dict)
    _hulls: dict[tuple[object, ...], Hull] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.budget = self.ranks.budget

    def starts(self) -> Iterator[Placed]:
        """Good choices, with stages of about equal time, and of about equal bytes."""
        pipeline = self.ranks.pipeline
        chain, stages = pipeline.chain, pipeline.stages
        times = chain.total_s.min(axis=1)[chain.kinds]
        first = self.moved(balanced(times, [1.0] * stages))
        yield self.placed(first)
        bytes_ = np.where(np.isfinite(chain.total_s), pipeline.full.mean(axis=0), np.inf).min(axis=1)[chain.kinds]
        held = pipeline.full.sum(axis=(1, 2))
        shares = np.divide(1.0, held, out=np.ones(stages), where=held > 0)
        second = self.moved(balanced(bytes_, shares.tolist()))
        if (second != first).any():
            yield self.placed(second)

    def moved(self, borders: np.ndarray) -> np.ndarray:
        """Borders that no single step away from the slowest device, or one that lacks memory, makes better, by what
        layers take without moves."""
        best = self.sketched(borders)
        for _ in range(_MOVES):
            worst = int((best.lacking if best.lacking.any() else best.seconds).argmax())
            others = [self.sketched(other) for other in self._around(best.borders, worst)]
            other = min(others, key=lambda other: other.worth, default=best)
            if other.worth >= best.worth:
                break
            best = other
        return best.borders

    def _around(self, borders: np.ndarray, device: int) -> Iterator[np.ndarray]:
        """Borders that take a layer from a device, or give it one."""
        edges = {edge for stage in np.flatnonzero(self.ranks.holders == device) for edge in (stage, stage + 1)}
        for edge in sorted(edges & set(range(1, len(borders) - 1))):
            for step in (-1, 1):
                other = borders.copy()
                other[edge] += step
                if (np.diff(other) > 0).all():
                    yield other

    def sketched(self, borders: np.ndarray) -> Sketch:
        """What devices take with some borders, without moves."""
        found = [self._sketched(device, borders)[:2] for device in range(self.ranks.devices)]
        return Sketch(borders, *np.array(found).T)

    @cached_property
    def _transient(self) -> np.ndarray:
        """Bytes that may be kept free for a layer that runs, by stages of a device."""
        chain = self.ranks.pipeline.chain
        return np.unique(
            np.quantile(chain.transient[np.isfinite(chain.total_s)], np.linspace(0, 1, _TRANSIENT), method="higher")
        )

    def _sketched(self, device: int, borders: np.ndarray) -> tuple[float, float, float]:
        """Seconds, bytes that are missing, and those that are kept free for a layer that runs."""
        own = np.flatnonzero(self.ranks.holders == device)
        kinds = [self.ranks.pipeline.chain.kinds[its] for its in layers_of(self.ranks, device, borders)]
        parts = [(stage, kind, False, False) for stage, its in zip(own.tolist(), kinds, strict=True) for kind in its]
        parts[0], parts[-1] = (*parts[0][:2], True, parts[0][3]), (*parts[-1][:3], True)
        layers, budget = Counter(parts), float(self.budget[device])
        key = device, budget, *layers.items()
        if key not in self._shared:
            found = []
            for bytes_ in self._transient.tolist():
                hulls = [(self._hull(bytes_, device, *part), count) for part, count in layers.items()]
                found.append((*shared_out(hulls, budget - len(own) * bytes_), bytes_))
            self._shared[key] = min(found, key=lambda each: (each[1], each[0]))
        return self._shared[key]

    def _hull(self, most: float, device: int, stage: int, kind: int, begins: bool, ends: bool) -> Hull:
        """Of a layer of a device that takes no more than so much while it runs, by whether it is the first or the last
        one there; see `device_alone`."""
        key = most, device, stage, kind, begins, ends
        if key not in self._hulls:
            pipeline, chain = self.ranks.pipeline, self.ranks.pipeline.chain
            times = int((self.ranks.holders == device).sum())
            seconds = self.ranks.paths[device].own[stage] @ chain.micro_s[kind] + chain.step_s[kind]
            bytes_ = pipeline.full[stage, kind] + pipeline.late[stage, kind]
            bytes_ = bytes_ + begins * pipeline.begin[stage, kind]
            bytes_ = bytes_ + ends * times * pipeline.end[stage, kind, chain.place]
            self._hulls[key] = Hull.of(bytes_, np.where(chain.transient[kind] <= most, seconds, np.inf))
        return self._hulls[key]

    def placed(self, borders: np.ndarray) -> Placed:
        """The choice of some borders."""
        ranks, choice = self.ranks, np.empty(self.ranks.pipeline.chain.layers, dtype=int)
        seconds = np.full(ranks.devices, np.inf)
        for device in range(ranks.devices):
            found = self._alone(device, borders, float(self.budget[device]))
            choice[np.concatenate(layers_of(ranks, device, borders))] = found.choice
            if found.fits:
                seconds[device] = _seconds(device_alone(ranks, device, borders), found.choice)
        return Placed(borders, seconds, self.sketched(borders).lacking, choice)

    def fitted(self, placed: Placed, price: Price, known_s: float) -> tuple[float, Placed]:
        """What a choice takes as it is priced, with less memory for devices where it does not fit; infinite if that
        does not help, or if some device alone takes as long as what is known."""
        for _ in range(_FITTING):
            if placed.seconds.max() >= known_s:
                break
            seconds, over = price(placed.choice, placed.borders)
            if (over <= 0).all():
                return seconds, placed
            self.budget = self.budget - 1.25 * np.maximum(0.0, over)
            placed = self.placed(self.moved(placed.borders))
        self.budget = self.ranks.budget
        return np.inf, placed

    def _alone(self, device: int, borders: np.ndarray, budget: float) -> Dual:
        chain = self.ranks.pipeline.chain
        layers = layers_of(self.ranks, device, borders)
        runs = [(chain.kinds[its].tobytes(), chain.moves[its[1:]].tobytes()) for its in layers]
        most = self._sketched(device, borders)[2]
        key = (device, budget, most, *runs)
        if key not in self._known:
            alone = device_alone(self.ranks, device, borders)
            taken = len(layers) * most
            fits = alone.chain.transient <= taken
            free = replace(
                alone.chain,
                micro_s=np.where(fits[:, None], alone.chain.micro_s, np.inf),
                transient=np.zeros_like(alone.chain.transient),
            )
            alone = replace(alone, chain=free, budget=np.array([budget - taken]))
            self._known[key] = dual(alone, at_end(alone))
        return self._known[key]


def layers_of(ranks: Ranks, device: int, borders: np.ndarray) -> list[np.ndarray]:
    """The layers of each stage of a device."""
    own = np.flatnonzero(ranks.holders == device)
    return [np.arange(int(borders[stage]), int(borders[stage + 1])) for stage in own]


def device_alone(ranks: Ranks, device: int, borders: np.ndarray) -> Pipeline:
    """All layers of a device as a single stage: its seconds are those of its path. What
    only one of its stages has at a time is there in full, and no gradients are late."""
    pipeline, chain, path = ranks.pipeline, ranks.pipeline.chain, ranks.paths[device]
    own = np.flatnonzero(ranks.holders == device)
    layers = layers_of(ranks, device, borders)
    rows, steps = len(chain.state), len(chain.move_s)
    missing = np.isinf(chain.total_s)
    seconds = np.tensordot(path.own[own], np.where(missing[:, None], 0.0, chain.micro_s), axes=(1, 1))
    times = (len(own), 1)
    held = pipeline.in_flight[own, None, None, None]
    free = np.zeros((1, chain.places, chain.places))
    moved = [[len(own) * steps, *(chain.moves[its[1:]] + place * steps)] for place, its in enumerate(layers)]
    joint = Chain(
        kinds=np.concatenate([chain.kinds[its] + place * rows for place, its in enumerate(layers)]),
        moves=np.concatenate(moved),
        place=chain.place,
        micro_s=np.where(missing, np.inf, seconds).reshape(-1, 1, chain.strategies),
        step_s=np.tile(chain.step_s, times),
        state=(pipeline.full + pipeline.late)[own].reshape(-1, chain.strategies),
        kept=np.zeros((len(own) * rows, chain.strategies)),
        transient=len(own) * np.tile(chain.transient, times),
        update=np.zeros((len(own) * rows, chain.strategies)),
        move_s=np.concatenate([(path.moved[own, None, None, None] * chain.move_s).reshape(-1, *free.shape[1:]), free]),
        move_kept=np.concatenate([(held * chain.move_kept).reshape(-1, *free.shape[1:]), free]),
    )
    return Pipeline(
        chain=joint,
        lines=((1.0, 0.0),),
        wait=0.0,
        budget=ranks.budget[device : device + 1],
        in_flight=np.ones(1),
        late=np.zeros((1, len(joint.state), chain.strategies)),
        enter_s=joint.move_s,
        receive_s=np.zeros_like(joint.move_s),
        begin=pipeline.begin[own].reshape(1, -1, chain.strategies),
        end=len(own) * pipeline.end[own].reshape(1, -1, chain.places),
    )


def _seconds(alone: Pipeline, choice: np.ndarray) -> float:
    chain = alone.chain
    places = chain.place[choice]
    moved_s = chain.move_s[chain.moves[1:], places[:-1], places[1:]].sum()
    return float((chain.total_s + chain.step_s)[chain.kinds, choice].sum() + moved_s)
