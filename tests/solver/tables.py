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
    shape, steps = (kinds, strategies), draw(st.integers(1, 2))
    micro_s = np.where(tables.rarely(kinds, phases, strategies), np.inf, tables.whole(kinds, phases, strategies))
    state, nothing = tables.whole(*shape), np.zeros(shape)
    opening = Opening(float(tables.whole(least=1)), *(tables.whole(*shape) for _ in range(3)))
    return Chain(
        kinds=tables.random.integers(0, kinds, layers),
        moves=tables.random.integers(0, steps, layers),
        micro_s=micro_s,
        step_s=tables.whole(*shape),
        state=state,
        kept=tables.whole(*shape, most=3),
        late=np.minimum(state, tables.whole(*shape, most=3)),
        transient=tables.whole(*shape) if draw(st.booleans()) else nothing,
        update=tables.whole(*shape) if draw(st.booleans()) else nothing,
        move_s=tables.whole(steps, strategies, strategies, most=4),
        move_kept=tables.whole(steps, strategies, strategies, most=2),
        opening=opening if draw(st.booleans()) else None,
    )


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    chain, tables = draw(chains()), draw(drawn())
    stages = draw(st.integers(1, min(3, chain.layers)))
    most = draw(st.sampled_from([20, 50, 90, None]))
    lines = [tuple(tables.whole(2, most=8).tolist()) for _ in range(draw(st.integers(1, 2)))]
    return Pipeline(
        chain=chain,
        lines=tuple(lines),
        budget=np.full(stages, np.inf) if most is None else tables.whole(stages, most=most),
        in_flight=tables.whole(stages, most=4, least=1),
        enter_s=tables.whole(*chain.move_s.shape),
        begin=tables.whole(stages, *chain.state.shape, most=4),
        end=tables.whole(stages, *chain.state.shape, most=4),
    )


def every_choice(pipeline: Pipeline) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Strategies and borders."""
    layers = pipeline.chain.layers
    for cuts in itertools.combinations(range(1, layers), pipeline.stages - 1):
        for choice in itertools.product(range(pipeline.chain.strategies), repeat=layers):
            yield choice, (0, *cuts, layers)


def priced(pipeline: Pipeline, choice: tuple[int, ...], borders: tuple[int, ...]) -> tuple[float, list[float]]:
    """Seconds of a step and bytes of each stage."""
    chain, by_phase, once_s, peaks = pipeline.chain, [], [], []
    for index, (first, end) in enumerate(itertools.pairwise(borders)):
        own_s, step_s, held = [0.0] * chain.phases, 0.0, pipeline.in_flight[index]
        rows = [(chain.kinds[layer], choice[layer]) for layer in range(first, end)]
        added = [0.0] * len(rows)
        for place, layer in enumerate(range(first, end)):
            if layer:
                steps = (chain.moves[layer], choice[layer - 1], choice[layer])
                moved_s = pipeline.enter_s[steps] if layer == first else chain.move_s[steps]
                added[place] = 0.0 if layer == first else chain.move_kept[steps]
                own_s = [s + moved_s / chain.phases for s in own_s]
            kind, strategy = rows[place]
            own_s = [s + chain.micro_s[kind, phase, strategy] for phase, s in enumerate(own_s)]
            step_s += chain.step_s[kind, strategy]
        running = []
        for now, here in enumerate(rows):
            bytes_ = pipeline.begin[index][rows[0]] + pipeline.end[index][rows[-1]] + chain.transient[here]
            for place, row in enumerate(rows):
                gone = place > now
                micro_batches = held - 1 if gone else held
                bytes_ += chain.state[row] + micro_batches * (chain.kept[row] + added[place])
                bytes_ -= 0.0 if gone else chain.late[row]
            running.append(bytes_)
        updating = sum(chain.state[row] + chain.update[row] for row in rows)
        by_phase.append(own_s)
        once_s.append(step_s + opening_s(chain, rows))
        peaks.append(float(max(*running, updating)))
    total_s, slowest_s = sum(map(sum, by_phase)), sum(map(max, zip(*by_phase, strict=True)))
    if not np.isfinite(total_s):
        return np.inf, peaks
    return max(a * total_s + b * slowest_s for a, b in pipeline.lines) + max(once_s), peaks


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


def roomier(pipeline: Pipeline, more: float) -> Pipeline:
    """The same with larger budgets."""
    return replace(pipeline, budget=pipeline.budget + more)
