"""What a choice of one strategy per layer is made from: tables of seconds and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Opening:
    """What the first bytes of a stage cost on top, per step.

    Attributes:
        capacity: how many bytes are among the first.
        amount: (K, S) bytes of a layer that count.
        toll_s: (K, S) seconds per step if all bytes of the layer are among the first, else that share of it.
        start_s: (K, S) seconds per step of the first layer of a stage that has any.
    """

    capacity: float
    amount: np.ndarray
    toll_s: np.ndarray
    start_s: np.ndarray


@dataclass(frozen=True, eq=False)
class Chain:
    """L layers in their order, each of one of K kinds with S strategies: what each costs, and each move to the next.

    Layers of a kind share a row of the tables, and so do equal moves. A strategy that a kind does not have takes
    infinitely many seconds. All tables are finite otherwise, and no bytes are negative.

    Attributes:
        kinds: (L,) the row of each layer.
        moves: (L,) the row of the move to each layer from the one before; that of the first layer is not read.
        place: (S,) of each strategy, one of G and in increasing order: strategies of a place move alike.
        micro_s: (K, F, S) seconds per micro-batch in each of the F phases of a schedule.
        step_s: (K, S) seconds per step.
        state: (K, S) bytes held all the time.
        kept: (K, S) bytes of each micro-batch in flight.
        transient: (K, S) bytes beside all others while the layer runs.
        update: (K, S) bytes beside all state in the update.
        move_s: (J, G, G) seconds per micro-batch of a move from a place to another, spread evenly over the phases.
        move_kept: (J, G, G) bytes of each micro-batch in flight that the later layer keeps on top.
        opening: what the first bytes of a stage cost.
    """

    kinds: np.ndarray
    moves: np.ndarray
    place: np.ndarray
    micro_s: np.ndarray
    step_s: np.ndarray
    state: np.ndarray
    kept: np.ndarray
    transient: np.ndarray
    update: np.ndarray
    move_s: np.ndarray
    move_kept: np.ndarray
    opening: Opening | None = None

    @property
    def layers(self) -> int:
        """L."""
        return len(self.kinds)

    @property
    def strategies(self) -> int:
        """S."""
        return self.state.shape[1]

    @property
    def phases(self) -> int:
        """F."""
        return self.micro_s.shape[1]

    @property
    def places(self) -> int:
        """G."""
        return self.move_s.shape[1]

    @cached_property
    def first_of_place(self) -> np.ndarray:
        """(G,) the first strategy of each place."""
        return np.searchsorted(self.place, np.arange(self.places))

    def least_by_place(self, values: np.ndarray) -> np.ndarray:
        """(..., G) the least of (..., S) values of the strategies of each place."""
        if self.places == self.strategies:
            return values
        return np.minimum.reduceat(values, self.first_of_place, axis=-1)

    @cached_property
    def total_s(self) -> np.ndarray:
        """(K, S) seconds per micro-batch of all phases."""
        return self.micro_s.sum(axis=1)

    @cached_property
    def moves_keep(self) -> bool:
        """Whether any move keeps bytes."""
        return bool(self.move_kept.any())

    @cached_property
    def run_starts(self) -> np.ndarray:
        """(L,) for each layer the first one from which on kinds and moves are the same up to it."""
        same = (self.kinds[1:] == self.kinds[:-1]) & (self.moves[1:] == self.moves[:-1])
        starts = np.arange(self.layers)
        starts[1:][same] = 0
        return np.maximum.accumulate(starts)


@dataclass(frozen=True, eq=False)
class Rates:
    """Seconds of a step for each second per micro-batch of a stage.

    Attributes:
        own: (P, F) of each phase. moved: (P,) of moves, and of receiving what the stage does: `received` (P,).
    """

    own: np.ndarray
    moved: np.ndarray
    received: np.ndarray

    @classmethod
    def even(cls, pipeline: Pipeline, micro: float, received: float = 0.0) -> Rates:
        """The same of all stages and phases."""
        each = np.ones(pipeline.stages)
        return cls(np.full((pipeline.stages, pipeline.chain.phases), micro), micro * each, received * each)

    @classmethod
    def mean(cls, several: Sequence[Rates]) -> Rates:
        """Of several."""
        return cls(*(np.mean([getattr(each, f.name) for each in several], axis=0) for f in fields(cls)))


@dataclass(frozen=True, eq=False)
class Pipeline:
    """P stages that the layers of a chain are divided into, in their order and at least one each, and their budgets.

    A step takes `whole · Σ + slow · Σ' + wait · Σ'' + once`: Σ is the sum over stages of seconds per micro-batch, Σ'
    the sum over phases of the slowest stage, which has to wait for what it receives, Σ'' the sum of that, and `once`
    the most seconds per step; of several lines, that which takes longest.

    Attributes:
        lines: (whole, slow) of each.
        wait: the same for all lines.
        budget: (P,) bytes of each stage.
        in_flight: (P,) micro-batches whose bytes are kept at once.
        late: (P, K, S) bytes of the state that are there only when those of the first micro-batch are gone.
        enter_s: (J, G, G) seconds per micro-batch of a move that begins a stage, in place of `Chain.move_s`.
        receive_s: (J, G, G) seconds per micro-batch of what a stage receives that a move begins.
        begin: (P, K, S) bytes on top while a stage computes that begins with a layer of a kind.
        end: (P, K, G) the same of one that ends with it.
    """

    chain: Chain
    lines: tuple[tuple[float, float], ...]
    wait: float
    budget: np.ndarray
    in_flight: np.ndarray
    late: np.ndarray
    enter_s: np.ndarray
    receive_s: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    @property
    def stages(self) -> int:
        """P."""
        return len(self.budget)

    @cached_property
    def full(self) -> np.ndarray:
        """(P, K, S) bytes of a layer while itself or a later one of its stage runs for the first time backward."""
        chain = self.chain
        return chain.state - self.late + self.in_flight[:, None, None] * chain.kept

    @cached_property
    def spent(self) -> np.ndarray:
        """(P, K, S) bytes of a layer when its backward of the first micro-batch is over."""
        return self.chain.state + (self.in_flight - 1)[:, None, None] * self.chain.kept

    @cached_property
    def updating(self) -> np.ndarray:
        """(K, S) bytes of a layer in the update."""
        return self.chain.state + self.chain.update

    @cached_property
    def whole_s(self) -> float:
        """What a step takes at least for each second of each stage, if that is equally long in all of them."""
        return max(whole + slow / self.stages for whole, slow in self.lines)

    @cached_property
    def made_up_s(self) -> float:
        """Seconds per step that a stage may take more if it takes one less per micro-batch, at no loss: a step has the
        sum over stages of these, and the most of those."""
        return self.whole_s if self.stages == 1 else min(whole for whole, _ in self.lines)

    def paid_s(self, prices: np.ndarray) -> np.ndarray:
        """(P,) what the bytes of a budget come to at prices of a byte; nothing where a byte costs nothing, however many
        there are."""
        return np.multiply(prices, self.budget, out=np.zeros(self.stages), where=prices > 0)

    def only(self, columns: np.ndarray) -> Pipeline:
        """The same with some of the strategies, in increasing order."""
        chain, opening = self.chain, self.chain.opening
        places, place = np.unique(chain.place[columns], return_inverse=True)
        square = (slice(None), places[:, None], places)
        own = {name: getattr(chain, name)[..., columns] for name in _OF_STRATEGY}
        if opening is not None:
            tables = (opening.amount, opening.toll_s, opening.start_s)
            opening = Opening(opening.capacity, *(table[:, columns] for table in tables))
        return replace(
            self,
            chain=replace(
                chain,
                place=place,
                **own,
                move_s=chain.move_s[square],
                move_kept=chain.move_kept[square],
                opening=opening,
            ),
            late=self.late[..., columns],
            enter_s=self.enter_s[square],
            receive_s=self.receive_s[square],
            begin=self.begin[..., columns],
            end=self.end[..., places],
        )

    def stage(self, index: int, first: int, end: int, whole: float) -> Pipeline:
        """Stage `index` with the layers `first..end - 1` alone, with `whole` seconds per second of a micro-batch."""
        chain = replace(self.chain, kinds=self.chain.kinds[first:end], moves=self.chain.moves[first:end])
        own = slice(index, index + 1)
        return replace(
            self,
            chain=chain,
            lines=((whole, 0.0),),
            budget=self.budget[own],
            in_flight=self.in_flight[own],
            late=self.late[own],
            begin=self.begin[own],
            end=self.end[own],
        )


_OF_STRATEGY = ("micro_s", "step_s", "state", "kept", "transient", "update")
"""Tables of a chain whose last dimension is that of strategies."""


@dataclass(frozen=True)
class Worth:
    """What a choice takes: seconds per step, and bytes of each stage."""

    step_s: float
    bytes: np.ndarray


def worth(pipeline: Pipeline, choice: np.ndarray, borders: np.ndarray) -> Worth:
    """What a choice takes.

    Args:
        choice: (L,) the strategy of each layer.
        borders: (P + 1,) the first layer of each stage, and L.
    """
    micro_s, step_s, peaks, received_s = [], [], [], 0.0
    for index, (first, end) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        seconds, once_s, peak = _stage(pipeline, index, int(first), choice[first:end])
        if index:
            places = pipeline.chain.place[choice[first - 1 : first + 1]]
            move = (pipeline.chain.moves[first], *places)
            seconds = seconds + (pipeline.enter_s[move] + pipeline.receive_s[move]) / len(seconds)
            received_s += pipeline.receive_s[move]
        micro_s.append(seconds)
        step_s.append(once_s)
        peaks.append(peak)
    by_stage = np.array(micro_s)
    total_s, slowest_s = by_stage.sum(), by_stage.max(axis=0).sum()
    if not np.isfinite(total_s):
        return Worth(np.inf, np.array(peaks))
    longest_s = max(whole * (total_s - received_s) + slow * slowest_s for whole, slow in pipeline.lines)
    return Worth(float(longest_s + pipeline.wait * received_s + max(step_s)), np.array(peaks))


def _stage(pipeline: Pipeline, index: int, first: int, choice: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Of one stage: seconds per micro-batch of each phase without entering it, seconds per step, bytes."""
    chain = pipeline.chain
    kinds, moves = chain.kinds[first : first + len(choice)], chain.moves[first + 1 : first + len(choice)]
    places = chain.place[choice]
    moved = (moves, places[:-1], places[1:])
    seconds = chain.micro_s[kinds, :, choice].sum(axis=0) + chain.move_s[moved].sum() / chain.phases
    computing = running(pipeline, index, first, choice).max()
    once_s = chain.step_s[kinds, choice].sum()
    if chain.opening is not None:
        once_s += _opening_s(chain.opening, chain.opening.amount[kinds, choice], kinds, choice)
    return seconds, float(once_s), float(max(computing, pipeline.updating[kinds, choice].sum()))


def running(pipeline: Pipeline, index: int, first: int, choice: np.ndarray) -> np.ndarray:
    """Bytes of a stage that begins with layer `first` while each of its layers runs."""
    chain, held, places = pipeline.chain, pipeline.in_flight[index], pipeline.chain.place[choice]
    kinds, moves = chain.kinds[first : first + len(choice)], chain.moves[first + 1 : first + len(choice)]
    added = np.concatenate([[0.0], chain.move_kept[moves, places[:-1], places[1:]]])
    full = pipeline.full[index, kinds, choice] + held * added
    spent = pipeline.spent[index, kinds, choice] + (held - 1) * added
    ends = pipeline.begin[index, kinds[0], choice[0]] + pipeline.end[index, kinds[-1], places[-1]]
    return np.cumsum(full) + chain.transient[kinds, choice] + spent.sum() - np.cumsum(spent) + ends


def _opening_s(opening: Opening, amounts: np.ndarray, kinds: np.ndarray, choice: np.ndarray) -> float:
    missing = np.maximum(0.0, opening.capacity - np.cumsum(amounts) + amounts)
    shares = np.divide(np.minimum(amounts, missing), amounts, out=np.zeros_like(amounts), where=amounts > 0)
    some = np.flatnonzero(amounts)[:1]
    starts_s = opening.start_s[kinds[some], choice[some]].sum()
    return float((shares * opening.toll_s[kinds, choice]).sum() + starts_s)
