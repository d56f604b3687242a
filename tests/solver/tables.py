"""Random tables for the solver, and every choice from them, priced as its words say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from galvatron.solver import Chain, Opening, Pipeline


class Drawn:
    """Tables of small whole numbers, in which ties are common and sums are exact."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def whole(self, *shape: int, most: int = 9, least: int = 0) -> np.ndarray:
        return self.random.integers(least, most, shape, endpoint=True).astype(float)

    def rarely(self, *shape: int) -> np.ndarray:
        return self.random.random(shape) < 0.15


def drawn() -> st.SearchStrategy[Drawn]:
    return st.builds(Drawn, st.integers(0, 2**32 - 1))


@st.composite
def chains(draw: st.DrawFn, most_layers: int = 5) -> Chain:
    tables, layers = draw(drawn()), draw(st.integers(1, most_layers))
    kinds, strategies, phases = draw(st.integers(1, layers)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    place = np.cumsum([0, *draw(st.lists(st.integers(0, 1), min_size=strategies - 1, max_size=strategies - 1))])
    places = int(place[-1]) + 1
    shape, steps = (kinds, strategies), draw(st.integers(1, 2))
    micro_s = np.where(tables.rarely(kinds, phases, strategies), np.inf, tables.whole(kinds, phases, strategies))
    state, nothing = tables.whole(*shape), np.zeros(shape)
    opening = Opening(float(tables.whole(least=1)), *(tables.whole(*shape) for _ in range(3)))
    return Chain(
        kinds=tables.random.integers(0, kinds, layers),
        moves=tables.random.integers(0, steps, layers),
        place=place,
        micro_s=micro_s,
        step_s=tables.whole(*shape),
        state=state,
        kept=tables.whole(*shape, most=3),
        transient=tables.whole(*shape) if draw(st.booleans()) else nothing,
        update=tables.whole(*shape) if draw(st.booleans()) else nothing,
        move_s=tables.whole(steps, places, places, most=4),
        move_kept=tables.whole(steps, places, places, most=2),
        opening=opening if draw(st.booleans()) else None,
    )


@st.composite
def pipelines(draw: st.DrawFn, alike: bool = False) -> Pipeline:
    """
    Args:
        alike: whether moves between places are often as long, so that places may stand in for each other.
    """
    chain, tables = draw(chains()), draw(drawn())
    stages = draw(st.integers(1, min(3, chain.layers)))
    most = draw(st.sampled_from([20, 50, 90, None]))
    lines = [tuple(tables.whole(2, most=8).tolist()) for _ in range(draw(st.integers(1, 2)))]
    pipeline = Pipeline(
        chain=chain,
        lines=tuple(lines),
        wait=float(tables.whole(most=3)),
        budget=np.full(stages, np.inf) if most is None else tables.whole(stages, most=most),
        in_flight=tables.whole(stages, most=4, least=1),
        late=np.minimum(chain.state, tables.whole(stages, *chain.state.shape, most=3)),
        enter_s=tables.whole(*chain.move_s.shape),
        receive_s=tables.whole(*chain.move_s.shape, most=3),
        begin=tables.whole(stages, *chain.state.shape, most=4),
        end=tables.whole(stages, len(chain.state), chain.places, most=4),
    )
    if not alike:
        return pipeline
    chain = replace(chain, move_s=np.minimum(chain.move_s, 1.0), move_kept=0.0 * chain.move_kept)
    entering = {name: np.minimum(getattr(pipeline, name), 1.0) for name in ("enter_s", "receive_s")}
    return replace(pipeline, chain=chain, end=0.0 * pipeline.end, **entering)


def every_choice(pipeline: Pipeline) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Strategies and borders."""
    layers = pipeline.chain.layers
    for cuts in itertools.combinations(range(1, layers), pipeline.stages - 1):
        for choice in itertools.product(range(pipeline.chain.strategies), repeat=layers):
            yield choice, (0, *cuts, layers)


def priced(pipeline: Pipeline, choice: tuple[int, ...], borders: tuple[int, ...]) -> tuple[float, list[float]]:
    """Seconds of a step and bytes of each stage."""
    chain, by_phase, once_s, peaks, received_s = pipeline.chain, [], [], [], 0.0
    places = chain.place[list(choice)]
    for index, (first, end) in enumerate(itertools.pairwise(borders)):
        own_s, step_s, held = [0.0] * chain.phases, 0.0, pipeline.in_flight[index]
        rows = [(chain.kinds[layer], choice[layer]) for layer in range(first, end)]
        added = [0.0] * len(rows)
        for place, layer in enumerate(range(first, end)):
            if layer:
                steps = (chain.moves[layer], places[layer - 1], places[layer])
                moved_s = chain.move_s[steps]
                if layer == first:
                    moved_s = pipeline.enter_s[steps] + pipeline.receive_s[steps]
                    received_s += pipeline.receive_s[steps]
                added[place] = 0.0 if layer == first else float(chain.move_kept[steps])
                own_s = [s + moved_s / chain.phases for s in own_s]
            kind, strategy = rows[place]
            own_s = [s + chain.micro_s[kind, phase, strategy] for phase, s in enumerate(own_s)]
            step_s += chain.step_s[kind, strategy]
        running = []
        for now, here in enumerate(rows):
            bytes_ = pipeline.begin[index][rows[0]] + pipeline.end[index][rows[-1][0], places[end - 1]]
            bytes_ += chain.transient[here]
            for place, row in enumerate(rows):
                gone = place > now
                micro_batches = held - 1 if gone else held
                bytes_ += chain.state[row] + micro_batches * (chain.kept[row] + added[place])
                bytes_ -= 0.0 if gone else pipeline.late[index][row]
            running.append(bytes_)
        updating = sum(chain.state[row] + chain.update[row] for row in rows)
        by_phase.append(own_s)
        once_s.append(step_s + opening_s(chain, rows))
        peaks.append(float(max(*running, updating)))
    total_s, slowest_s = sum(map(sum, by_phase)), sum(map(max, zip(*by_phase, strict=True)))
    if not np.isfinite(total_s):
        return np.inf, peaks
    longest_s = max(a * (total_s - received_s) + b * slowest_s for a, b in pipeline.lines)
    return longest_s + pipeline.wait * received_s + max(once_s), peaks


def opening_s(chain: Chain, rows: list[tuple[int, int]]) -> float:
    if chain.opening is None:
        return 0.0
    missing, seconds, started = chain.opening.capacity, 0.0, False
    for row in rows:
        if amount := chain.opening.amount[row]:
            seconds += chain.opening.toll_s[row] * min(1.0, missing / amount)
            seconds += 0.0 if started else chain.opening.start_s[row]
            missing, started = max(0.0, missing - amount), True
    return seconds


def best_of(pipeline: Pipeline) -> float:
    """Seconds of the fastest choice that fits; infinite if none does."""
    found = (priced(pipeline, *way) for way in every_choice(pipeline))
    return min((s for s, peaks in found if (peaks <= pipeline.budget).all()), default=np.inf)


def roomier(pipeline: Pipeline, more: float) -> Pipeline:
    """The same with larger budgets."""
    return replace(pipeline, budget=pipeline.budget + more)
