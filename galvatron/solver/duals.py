"""The best price of a byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.charges import Charge
from galvatron.solver.relaxation import Weights
from galvatron.solver.runs import Priced
from galvatron.solver.starts import improved
from galvatron.solver.tables import Pipeline, Rates

_ROUNDS = 64
_ROUNDING = 1e-12
"""Share of a length that may be an error of rounding."""


@dataclass(frozen=True, eq=False)
class Dual:
    """The best price of a byte of a single stage.

    Attributes:
        price: seconds of a step; 0 where nothing fits.
        choice: a good one that fits; the smallest if none does.
        least_bytes: what every choice takes at least.
        fits: whether that is within the budget.
        least_s: what no choice takes less than, at the price.
        seconds, bytes: the least of each of all that is behind a layer; None where the fastest choice fits.
    """

    price: float
    choice: np.ndarray
    least_bytes: float
    fits: bool
    least_s: float = np.inf
    seconds: Priced | None = None
    bytes: Priced | None = None


def dual(pipeline: Pipeline, charge: Charge) -> Dual:
    """The best price of what is charged, for a pipeline of a single stage."""
    budget = float(pipeline.budget[0])

    def weights(seconds: float, price: float) -> Weights:
        rates = Rates.even(pipeline, seconds * pipeline.whole_s)
        return Weights.of(pipeline, rates, seconds, np.array([price]), charge)

    in_seconds, in_bytes = weights(1.0, 0.0), weights(0.0, 1.0)

    def shortest(of: Priced) -> tuple[np.ndarray, float, float]:
        path = of.weights.path(pipeline, of.completions)
        return path, in_seconds.length(pipeline, path), in_bytes.length(pipeline, path)

    seconds, bytes_ = (Priced(w, w.completions(pipeline)) for w in (in_seconds, in_bytes))
    fast, fast_s, fast_bytes = shortest(seconds)
    if np.isinf(fast_s):
        return Dual(0.0, fast, np.nan, False)
    if fast_bytes <= budget:
        return Dual(0.0, fast, fast_bytes, True, fast_s)
    small, small_s, small_bytes = shortest(bytes_)
    least_bytes = small_bytes
    if small_bytes > budget:
        return Dual(0.0, small, least_bytes, False)
    price = least_s = 0.0
    for _ in range(_ROUNDS):
        price = (small_s - fast_s) / (fast_bytes - small_bytes)
        of_price = weights(1.0, price)
        path, path_s, path_bytes = shortest(Priced(of_price, of_price.completions(pipeline)))
        on_line = fast_s + price * fast_bytes
        least_s = max(least_s, path_s + price * (path_bytes - budget))
        if path_s + price * path_bytes >= on_line - _ROUNDING * on_line:
            break
        if path_bytes <= budget:
            small, small_s, small_bytes = path, path_s, path_bytes
        else:
            fast, fast_s, fast_bytes = path, path_s, path_bytes
    choice = improved(pipeline, in_seconds, in_bytes, fast, small)
    return Dual(price, choice, least_bytes, True, least_s, seconds, bytes_)
