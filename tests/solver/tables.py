"""Random tables for the solver, and every choice from them, priced as its words say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from galvatron.solver import Chain, Opening, Pipeline


def whole(*shape: int, most: int = 9) -> st.SearchStrategy[np.ndarray]:
    """Tables of small whole numbers, in which ties are common and sums are exact."""
    return arrays(np.float64, shape, elements=st.integers(0, most).map(float))


@st.composite
def chains(draw: st.DrawFn, most_layers: int = 5) -> Chain:
    layers = draw(st.integers(1, most_layers))
    kinds, strategies, phases = draw(st.integers(1, layers)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    shape, steps = (kinds, strategies), draw(st.integers(1, 2))
    micro_s = draw(whole(kinds, phases, strategies))
    missing = draw(arrays(np.bool_, (kinds, phases, strategies), elements=st.sampled_from([False] * 7 + [True])))
    micro_s[missing] = np.inf
    opening = draw(st.none() | st.builds(Opening, st.integers(1, 9), whole(*shape), whole(*shape), whole(*shape)))
    state = draw(whole(*shape))
    return Chain(
        kinds=np.array(draw(st.lists(st.integers(0, kinds - 1), min_size=layers, max_size=layers))),
        moves=np.array(draw(st.lists(st.integers(0, steps - 1), min_size=layers, max_size=layers))),
        micro_s=micro_s,
        step_s=draw(whole(*shape)),
        state=state,
        kept=draw(whole(*shape, most=3)),
        late=np.minimum(state, draw(whole(*shape, most=3))),
        transient=draw(st.just(np.zeros(shape)) | whole(*shape)),
        update=draw(st.just(np.zeros(shape)) | whole(*shape)),
        move_s=draw(whole(steps, strategies, strategies, most=4)),
        move_kept=draw(whole(steps, strategies, strategies, most=2)),
        opening=opening,
    )


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    chain = draw(chains())
    stages = draw(st.integers(1, min(3, chain.layers)))
    weight = st.integers(0, 8).map(float)
    return Pipeline(
        chain=chain,
        lines=tuple(draw(st.lists(st.tuples(weight, weight), min_size=1, max_size=2))),
        budget=draw(arrays(np.float64, stages, elements=st.integers(0, 80).map(float))),
        in_flight=draw(arrays(np.float64, stages, elements=st.integers(1, 4).map(float))),
        enter_s=draw(whole(*chain.move_s.shape)),
        begin=draw(whole(stages, *chain.state.shape, most=4)),
        end=draw(whole(stages, *chain.state.shape, most=4)),
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


def as_pipeline(time: np.ndarray, memory: np.ndarray, transition: np.ndarray, budget: float) -> Pipeline:
    """What `solve` is asked."""
    nothing = np.zeros_like(time)
    layers = np.arange(len(time))
    chain = Chain(
        layers, layers, time[:, None], nothing, memory, nothing, nothing, nothing, nothing, transition, 0 * transition
    )
    return Pipeline(chain, ((1.0, 0.0),), np.array([budget]), np.ones(1), transition, nothing[None], nothing[None])


def roomier(pipeline: Pipeline, more: float) -> Pipeline:
    """The same with larger budgets."""
    return replace(pipeline, budget=pipeline.budget + more)
