"""Tensor types of the IR: an element type and a shape whose dimensions may be symbolic in the batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

import sympy

from galvatron.errors import GalvatronError

BATCH = sympy.Symbol("B", integer=True, positive=True)
"""Samples in one global batch, as the user sees it."""

LOCAL_BATCH = sympy.Symbol("b", integer=True, positive=True)
"""Samples of one micro-batch on one data-parallel shard: the batch symbol of every sharded graph."""

MICRO_BATCHES = sympy.Symbol("m", integer=True, positive=True)
"""Micro-batches of a step: only ever a number, by which is divided what every micro-batch has alike."""

SIZE_NAMES = ("B", "b", "m", "n")
"""What no other size is called."""

NUMBER_KINDS = {"float": {"real": True}, "int": {"integer": True}}
"""What a number of the batch is in Python, and what is known of its symbol."""


@dataclass(frozen=True)
class BatchSizes:
    """The numbers of samples, or another size, for which a program is what the model computes: a range, but for a few
    in between.

    A model that branches on the size of its batch has another program on the other side. All are multiples of one.
    """

    least: int = 1
    most: int | None = None
    but: tuple[int, ...] = ()
    multiple: int = 1

    def __contains__(self, size: int) -> bool:
        within = self.least <= size and (self.most is None or size <= self.most)
        return within and size not in self.but and size % self.multiple == 0

    def __and__(self, other: BatchSizes) -> BatchSizes:
        limits = [most for most in (self.most, other.most) if most is not None]
        least, most = max(self.least, other.least), min(limits, default=None)
        gaps = (n for n in {*self.but, *other.but} if n in BatchSizes(least, most))
        return BatchSizes(least, most, tuple(sorted(gaps)), math.lcm(self.multiple, other.multiple))

    def __str__(self) -> str:
        """`from 2 to 64 by 2 but 6`."""
        most = "" if self.most is None else f" to {self.most}"
        steps = "" if self.multiple == 1 else f" by {self.multiple}"
        return f"from {self.least}{most}{steps}{''.join(f' but {n}' for n in self.but)}"


LARGE = 5040
"""A size where any is allowed, which many numbers divide."""


class Length(sympy.Symbol):
    """A size of the inputs, besides the number of samples, that may be another in every step, such as `S`.

    Two of one name are equal only if all else is: what is known of one program says nothing about another.

    Attributes:
        example: its value in the example batch, at which costs are told.
        sizes: the values for which the program holds.
    """

    __slots__ = ("example", "sizes")

    example: int
    sizes: BatchSizes

    def __new__(cls, name: str, example: int, sizes: BatchSizes) -> Length:
        found = sympy.Symbol.__xnew__(cls, name, integer=True, positive=True)
        found.example, found.sizes = example, sizes
        return found

    def __getnewargs_ex__(self) -> tuple[tuple[str, int, BatchSizes], dict[str, object]]:
        return (self.name, self.example, self.sizes), {}

    def _hashable_content(self) -> tuple[object, ...]:
        return (*super()._hashable_content(), self.example, self.sizes)

    @property
    def extremes(self) -> tuple[int, int]:
        """The smallest and the largest value for which the program holds; some large one where there is no largest."""
        sizes, step = self.sizes, self.sizes.multiple
        longest = max(LARGE, self.example) if sizes.most is None else sizes.most
        return -(-sizes.least // step) * step, longest // step * step


class BatchNumber(sympy.Symbol):
    """A Python number that comes with every batch, in text `float.temperature`: only ever a number, alike everywhere.

    Attributes:
        number_kind: what Python calls it, a key of `NUMBER_KINDS`.
        parameter: its forward name.
    """

    __slots__ = ("number_kind", "parameter")

    number_kind: str
    parameter: str

    def __new__(cls, number_kind: str, parameter: str) -> BatchNumber:
        found = sympy.Symbol.__xnew__(cls, f"{number_kind}.{parameter}", **NUMBER_KINDS[number_kind])
        found.number_kind, found.parameter = number_kind, parameter
        return found

    def __getnewargs_ex__(self) -> tuple[tuple[str, str], dict[str, object]]:
        return (self.number_kind, self.parameter), {}


Dim = int | sympy.Expr

DTYPE_BYTES: dict[str, int] = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2,
    "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "bool": 1,
    "c64": 8, "c128": 16,
}  # fmt: skip

TORCH_DTYPE_NAMES: dict[str, str] = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
    "c64": "complex64", "c128": "complex128",
}  # fmt: skip
"""IR element type → attribute of `torch`."""


def simplify_dim(dim: Dim) -> Dim:
    """The same dimension, as a plain int whenever it is one."""
    return dim if isinstance(dim, int) else _simplified(dim)


@lru_cache(maxsize=1 << 16)
def _simplified(dim: sympy.Expr) -> Dim:
    expanded = sympy.expand(dim)
    return int(expanded) if expanded.is_Integer else expanded


def divides(divisor: Dim, dim: Dim) -> bool:
    """Whether `dim / divisor` is a whole number for every batch size."""
    return exact_quotient(dim, divisor) is not None


def exact_quotient(dim: Dim, divisor: Dim) -> Dim | None:
    """`dim / divisor` where that is a whole number for every batch size, else None."""
    if isinstance(dim, int) and isinstance(divisor, int):
        return dim // divisor if divisor and dim % divisor == 0 else None
    return _symbolic_quotient(dim, divisor)


@lru_cache(maxsize=1 << 16)
def _symbolic_quotient(dim: Dim, divisor: Dim) -> Dim | None:
    quotient = sympy.cancel(sympy.sympify(dim) / divisor)
    if sympy.fraction(quotient)[1] == 1:
        return simplify_dim(quotient)
    steps = {one: one.sizes.multiple * sympy.Dummy(integer=True) for one in quotient.atoms(Length)}
    in_steps = sympy.cancel(quotient.subs(steps)) if any(one.sizes.multiple > 1 for one in steps) else quotient
    return simplify_dim(quotient) if sympy.fraction(in_steps)[1] == 1 else None


def lengths_in(expression: object) -> set[Length]:
    """The sizes in an expression that are free besides the number of samples."""
    return expression.atoms(Length) if isinstance(expression, sympy.Expr) else set()


def numbers_in(expression: object) -> set[BatchNumber]:
    """The numbers of the batch in an expression."""
    return expression.atoms(BatchNumber) if isinstance(expression, sympy.Expr) else set()


def has_samples(dim: object) -> bool:
    """Whether a size or number depends on the number of samples."""
    return isinstance(dim, sympy.Expr) and dim.has(BATCH, LOCAL_BATCH)


def evaluate(dim: Dim, batch: int, lengths: Mapping[str, int] = MappingProxyType({})) -> int:
    """The dimension at a given batch size (for `B` and `b` alike) and lengths; of lengths not given, the example's."""
    if isinstance(dim, int):
        return dim
    return _evaluated(dim, batch, tuple(lengths.items()))


@lru_cache(maxsize=1 << 16)
def _evaluated(dim: sympy.Expr, batch: int, lengths: tuple[tuple[str, int], ...]) -> int:
    given = dict(lengths)
    sizes = [(length, given.get(length.name, length.example)) for length in lengths_in(dim)]
    value = dim.subs([(BATCH, batch), (LOCAL_BATCH, batch), *sizes])
    if not value.is_Integer:
        raise GalvatronError(f"dimension {dim} is not a whole number at batch size {batch}")
    return int(value)


@dataclass(frozen=True)
class TensorType:
    """An element type (a key of `DTYPE_BYTES`) and a shape, outermost dimension first."""

    dtype: str
    shape: tuple[Dim, ...]

    @cached_property
    def numel(self) -> Dim:
        """Number of elements, symbolic in the batch size."""
        total: Dim = 1
        for dim in self.shape:
            total = total * dim
        return simplify_dim(total)

    @property
    def bytes(self) -> Dim:
        """Size in bytes, symbolic in the batch size."""
        return simplify_dim(self.numel * DTYPE_BYTES[self.dtype])

    @property
    def is_floating(self) -> bool:
        return self.dtype[0] in "fbc" and self.dtype != "bool"

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return TensorType(self.dtype, tuple(simplify_dim(d) for d in shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(d) for d in self.shape)}]"
