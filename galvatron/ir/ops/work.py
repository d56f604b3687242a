"""Arithmetic by kind and sizes: FLOP are counted here, and sizes are what a measured time would be looked up by.

Sizes follow from shapes, which may be fractions (of a slice that an axis does not divide) or expressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

Sizes = Sequence[Any]


def _product_flop(count: Any, rows: Any, columns: Any, inner: Any) -> Any:
    return 2 * count * rows * columns * inner


def _attention_flop(count: Any, queries: Any, keys: Any, width: Any, value_width: Any, seen: Any) -> Any:
    """Two products: scores and mixture."""
    return 2 * count * queries * keys * seen * (width + value_width)


def _attention_backward_flop(count: Any, queries: Any, keys: Any, width: Any, value_width: Any, seen: Any) -> Any:
    """Five products: the scores again, and the gradients of scores, query, key and value (Dao et al. 2022)."""
    return 2 * count * queries * keys * seen * (3 * width + 2 * value_width)


_FLOP = {
    "product": _product_flop,
    "attention": _attention_flop,
    "attention_backward": _attention_backward_flop,
}


@dataclass(frozen=True)
class Work:
    """Arithmetic that counts, by its kind and sizes.

    `product` is `count` times `(rows, inner) @ (inner, columns)`. `attention` is `count` times `queries` rows against
    `keys`, with heads of `width` and values of `value_width`; `seen` is the share of the pairs that a causal mask
    leaves. `attention_backward` has the same sizes.
    """

    kind: str
    sizes: tuple[Any, ...]

    @property
    def flop(self) -> Any:
        """Floating-point operations; a multiply-add is two."""
        return _FLOP[self.kind](*self.sizes)

    def gradient(self, position: int) -> Work:
        """Of a product, the product that is the gradient of its first or second factor."""
        count, rows, columns, inner = self.sizes
        return product(count, rows, inner, columns) if position == 0 else product(count, inner, columns, rows)


def product(count: Any, rows: Any, columns: Any, inner: Any) -> Work:
    """A batch of matrix products."""
    return Work("product", (count, rows, columns, inner))


def convolution(input_: Sizes, weight: Sizes, output: Sizes, groups: Any, *, transposed: bool) -> Work:
    """A product over windows: a row per place of the output, or of the input where that is what is spread."""
    channels = weight[1] if transposed else weight[0] / groups
    inside = weight[0] / groups if transposed else weight[1]
    places = prod((input_ if transposed else output)[2:])
    return product(groups, input_[0] * places, channels, inside * prod(weight[2:]))


def attention(query: Sizes, key: Sizes, value: Sizes, *, causal: bool, backward: bool = False) -> Work:
    """Attention of all heads, or the kernel of its gradients."""
    seen = 0.5 if causal else 1
    sizes = (prod(query[:-2]), query[-2], key[-2], query[-1], value[-1], seen)
    return Work("attention_backward" if backward else "attention", sizes)
