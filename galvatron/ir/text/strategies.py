"""What a plan and a search say of strategies as text: `dp2-tp2 ×3, dp4`, ties, stages, candidates and cuts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from galvatron.errors import StrategyError
from galvatron.ir import limits
from galvatron.ir.plan import WHOLE, Ties, runs
from galvatron.ir.program import Candidates, Cut
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import tokens
from galvatron.ir.text.scanner import Scanner, token

_STRATEGY = token(tokens.STRATEGY)
_PIPELINE = token("pp[0-9]+")
_NEXT = re.compile(rf"stage(?![\w.])|pp[0-9]+{tokens.BLANKS}@|\}}")
"""What follows where there are no strategies."""


def read_runs(s: Scanner) -> tuple[Strategy, ...]:
    """Strategies with commas between them, `dp4 ×3` for three of them; perhaps none."""
    start = s.at
    if _NEXT.match(s.text, start):
        return ()
    strategies: list[Strategy] = []
    while True:
        at = s.at
        strategy, times = read_strategy(s), 1
        if s.accept("×"):
            times = s.integer()
            s.pay(("",), times, at)
        if len(strategies) + times > limits.REPEATS:
            s.refuse(f"more than {limits.REPEATS} strategies", start)
        strategies += [strategy] * times
        if not s.more():
            return tuple(strategies)


def read_strategy(s: Scanner) -> Strategy:
    """A strategy; `()` in place of its degrees where it has none."""
    at = s.at
    text = s.expected(_STRATEGY, "a strategy")
    try:
        return _parsed(text)
    except StrategyError as error:
        s.refuse(str(error), at)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Strategy:
    if any(len(number) > limits.DIGITS for number in re.findall(r"[0-9]+", text)):
        raise StrategyError(f"a number of more than {limits.DIGITS} digits")
    if text.startswith("()"):
        strategy = Strategy.parse("dp1" + text[2:])
        if len(strategy.axes) > 1:
            raise StrategyError(f"strategy {text!r}: '()' stands for no degrees, and there are some")
        return replace(strategy, axes=())
    return Strategy.parse(text)


def format_strategy(strategy: Strategy) -> str:
    """What `read_strategy` makes it from."""
    text = str(strategy)
    return text if strategy.axes else "()" + text.removeprefix("dp1")


def format_runs(strategies: Sequence[Strategy]) -> str:
    """What `read_runs` makes them from."""
    counted = ((format_strategy(strategy), count) for strategy, count in runs(strategies))
    return ", ".join(text if count == 1 else f"{text} ×{count}" for text, count in counted)


def read_ties(s: Scanner) -> Ties:
    """Lines such as `tie table.weight = whole`."""
    ties: dict[str, Strategy | None] = {}
    while s.accept("tie"):
        at = s.at
        name = s.name()
        if name in ties:
            s.refuse(f"a second line for the tie {name!r}", at)
        s.expect("=")
        ties[name] = None if s.accept(WHOLE) else read_strategy(s).keeping
    return tuple(ties.items())


def read_stages(s: Scanner) -> tuple[tuple[Strategy, ...], ...]:
    """Lines such as `stage 0 = dp2-tp2 ×16`, in their order."""
    stages = []
    while s.accept("stage"):
        at = s.at
        index = s.integer()
        if index != len(stages):
            s.refuse(f"stage {index} stands where stage {len(stages)} should", at)
        s.expect("=")
        stages.append(read_runs(s))
    return tuple(stages)


def read_candidates(s: Scanner) -> tuple[Candidates, ...]:
    """The strategies of layer classes that are left, by pipeline degree."""
    s.expect("candidates", "{")
    found: list[Candidates] = []
    while not s.accept("}"):
        at = s.at
        degree = s.number(s.expected(_PIPELINE, "a pipeline degree such as pp2")[2:], at)
        name = s.class_name()
        s.expect(":")
        found.append(Candidates(degree, name, read_runs(s)))
    return tuple(found)


def read_cuts(s: Scanner) -> tuple[Cut, ...]:
    """Branches of the decision tree that a rule cut, and why."""
    s.expect("cuts", "{")
    found: list[Cut] = []
    while not s.accept("}"):
        s.expect("cut")
        branch = s.name()
        s.expect("by")
        rule = s.name()
        s.expect("because")
        found.append(Cut(branch, rule, s.name()))
    return tuple(found)
