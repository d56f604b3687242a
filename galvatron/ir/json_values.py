"""Values that JSON cannot say: left out of figures, or said in words, so that they come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """Figures as JSON can say them, whatever they lie in: None for a number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_words(value: Any) -> Any:
    """The value as JSON can say it, where it has what schedulers and data sets keep and JSON has not: numbers that are
    not finite, tuples, and mappings from something else than text."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not value.keys() & set(_WORDS):
            return {key: with_words(own) for key, own in value.items()}
        return {_PAIRS: [[with_words(key), with_words(own)] for key, own in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [with_words(own) for own in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    return {_NUMBER: str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def unsayable(value: Any, place: str = "", depth: int = 0) -> tuple[str, Any] | None:
    """Where in a value is what `with_words` cannot say, as in `["last"][0]`, and what it is; None where nothing is."""
    if depth > _DEEP:
        return place, value
    if isinstance(value, Mapping):
        inside = [(f"[{key!r:.40}]", own) for key, own in value.items()]
        inside += [(f"[{key!r:.40}]", key) for key in value if not isinstance(key, str)]
    elif isinstance(value, (list, tuple)):
        inside = [(f"[{number}]", own) for number, own in enumerate(value)]
    else:
        return None if value is None or isinstance(value, (bool, int, float, str)) else (place, value)
    return next((found for at, own in inside if (found := unsayable(own, place + at, depth + 1))), None)


_DEEP = 100
"""As deep as values may lie in others."""


def with_numbers(value: Any) -> Any:
    """What was given to `with_words`.

    Raises:
        ValueError: it is not from there.
    """
    if isinstance(value, list):
        return [with_numbers(own) for own in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_NUMBER} and value[_NUMBER] in ("inf", "-inf", "nan"):
        return float(value[_NUMBER])
    if value.keys() == {_PAIRS}:
        pairs = [_listed(pair) for pair in _listed(value[_PAIRS])]
        try:
            return {with_numbers(key): with_numbers(own) for key, own in pairs}
        except (TypeError, ValueError):  # a key that is none, or no pair
            raise ValueError(f"it has {value!r:.80} where pairs belong") from None
    if value.keys() == {_TUPLE}:
        return tuple(with_numbers(own) for own in _listed(value[_TUPLE]))
    return {key: with_numbers(own) for key, own in value.items()}


_NUMBER, _PAIRS, _TUPLE = _WORDS = "(number)", "(pairs)", "(tuple)"
"""The keys of a number that is not finite, of a mapping that JSON cannot say, and of a tuple."""


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"it has {value!r:.80} where a list belongs")
    return value
