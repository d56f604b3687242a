"""Named dimensions: which dimensions of an op's operands and results are the same dimension.

An op's legal shardings follow from one line such as `~b* k, ~n k, +n? -> b* n` (linear). Reading it:

- a name stands for one dimension, the same wherever it appears; `b*` for a run of leading dimensions, aligned at the
  right and broadcast;
- a name that operands have and results do not is *summed* over: sharding it leaves the result `Partial`;
- `k!` is indivisible: it is never sharded; `v^` may be sharded only if the op's counterpart in `ir.spmd` takes its
  place;
- `(a b)` is one dimension that is the product of two; `1` has size one;
- `~` marks operands that the op multiplies (it is linear in each with the others fixed), `+` operands that it adds:
  through these, partial sums may pass; `?` marks an operand that may be absent.

Operands are the op's arguments in order; one with fewer dimensions than its specification takes the trailing names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from galvatron.errors import GalvatronError
from galvatron.ir.types import Dim, exact_quotient, simplify_dim

DimNames = tuple[str, ...]
"""The named factors of one tensor dimension, outermost first; empty for a dimension of size one."""

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class OpDims:
    """The named dimensions of one op on operands of known shapes.

    `operands` has one entry per tensor operand (in the order of `Op.operands`), `results` one per result; `sizes` gives
    every name its size. `products` and `sums` are the positions of the operands marked `~` and `+`, `spmd` the names
    marked `^`.
    """

    operands: tuple[tuple[DimNames, ...], ...]
    results: tuple[tuple[DimNames, ...], ...]
    sizes: dict[str, Dim]
    indivisible: frozenset[str] = frozenset()
    products: frozenset[int] = frozenset()
    sums: frozenset[int] = frozenset()
    spmd: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """The line of a rule that means the same of an op of these shapes: `~b.0 k, ~n k -> b.0 n`."""
        marks = ["~" * (i in self.products) + "+" * (i in self.sums) for i in range(len(self.operands))]
        operands = (mark + self._tensor(dims) for mark, dims in zip(marks, self.operands, strict=True))
        return f"{', '.join(operands)} -> {', '.join(map(self._tensor, self.results))}".strip()

    def _tensor(self, dims: tuple[DimNames, ...]) -> str:
        marks = {name: "!" * (name in self.indivisible) + "^" * (name in self.spmd) for name in self.sizes}
        words = [" ".join(name + marks[name] for name in names) for names in dims]
        return " ".join(f"({word})" if len(names) > 1 else word or "1" for word, names in zip(words, dims, strict=True))

    def agree(self, shapes: Iterable[Shape]) -> bool:
        """Whether every dimension of tensors of these shapes, operands before results, is the product of its names:
        else the op does not mean by them what its rule says."""
        for tensor, shape in zip((*self.operands, *self.results), shapes, strict=True):
            for names, size in zip(tensor, shape, strict=True):
                total: Dim = 1
                for name in names:
                    total = total * self.sizes[name]
                if names and simplify_dim(total - size) != 0:
                    return False
        return True


@dataclass(frozen=True)
class _Term:
    dims: tuple[DimNames, ...]
    mark: str
    optional: bool


@dataclass(frozen=True)
class Notation:
    """A parsed rule line; see the module's text."""

    text: str
    operands: tuple[_Term, ...]
    results: tuple[_Term, ...]
    indivisible: frozenset[str]
    spmd: frozenset[str] = frozenset()

    def fits(self, operand_shapes: tuple[Shape | None, ...], result_shapes: tuple[Shape, ...]) -> bool:
        """Whether tensors of these shapes have as many dimensions as it tells."""
        pairs = (*zip(self.operands, operand_shapes, strict=False), *zip(self.results, result_shapes, strict=True))
        return all(shape is None or len(_expand(term, len(shape))) == len(shape) for term, shape in pairs)

    def resolve(self, operand_shapes: tuple[Shape | None, ...], result_shapes: tuple[Shape, ...]) -> OpDims:
        """The dims of an op whose arguments have these shapes, None for an argument that is absent or a number."""
        operand_shapes += (None,) * (len(self.operands) - len(operand_shapes))
        operands = [(t, s) for t, s in zip(self.operands, operand_shapes, strict=True) if s is not None]
        results = list(zip(self.results, result_shapes, strict=True))
        named = [(_expand(term, len(shape)), shape) for term, shape in (*operands, *results)]
        sizes: dict[str, Dim] = {}
        for dims, shape in named:
            if len(dims) != len(shape):
                raise GalvatronError(f"rule {self.text!r} does not fit the shape {shape}")
            for names, size in zip(dims, shape, strict=True):
                if len(names) == 1 and size != 1:
                    sizes[names[0]] = size
        single = {names[0] for dims, _ in named for names in dims if len(names) == 1}
        ones = single - sizes.keys()
        for dims, shape in named:
            for names, size in zip(dims, shape, strict=True):
                _solve_product(tuple(n for n in names if n not in ones), size, sizes)
        resolved = tuple(
            tuple(
                () if size == 1 else tuple(n for n in names if n in sizes)
                for names, size in zip(dims, shape, strict=True)
            )
            for dims, shape in named
        )
        # A number in the place of an added operand (`x + 1`) makes the op affine: partial sums may not pass.
        affine = any(
            t.mark == "+" and not t.optional and s is None for t, s in zip(self.operands, operand_shapes, strict=True)
        )
        marks = [t.mark for t, _ in operands]
        return OpDims(
            operands=resolved[: len(operands)],
            results=resolved[len(operands) :],
            sizes=sizes,
            indivisible=frozenset(n for n in sizes if n.split(".")[0] in self.indivisible),
            spmd=frozenset(n for n in sizes if n in self.spmd),
            products=frozenset(i for i, mark in enumerate(marks) if mark == "~"),
            sums=frozenset() if affine else frozenset(i for i, mark in enumerate(marks) if mark == "+"),
        )


def _expand(term: _Term, rank: int) -> tuple[DimNames, ...]:
    """The term's dims for a tensor of a rank: its run gets as many numbered names as needed, counted from the right.

    A tensor of fewer dimensions has the trailing ones.
    """
    fixed = sum(1 for names in term.dims if not _is_run(names))
    out: list[DimNames] = []
    for names in term.dims:
        if _is_run(names):
            out.extend((f"{names[0][:-1]}.{i}",) for i in reversed(range(rank - fixed)))
        else:
            out.append(names)
    return tuple(out[max(len(out) - rank, 0) :])


def _is_run(names: DimNames) -> bool:
    return bool(names) and names[0].endswith("*")


def _solve_product(names: DimNames, size: Dim, sizes: dict[str, Dim]) -> None:
    """Finds the size of the one unknown factor of a product dimension."""
    unknown = [n for n in names if n not in sizes]
    if len(unknown) != 1:
        return
    rest: Dim | None = size
    for name in names:
        if name in sizes and rest is not None:
            rest = exact_quotient(rest, sizes[name])
    if rest is not None and rest != 1:
        sizes[unknown[0]] = rest


_TOKEN = re.compile(r"\(([^)]*)\)|(\S+)")


@cache
def parse_notation(text: str) -> Notation:
    """Parses a rule line.

    Raises:
        GalvatronError: the line has no `->`.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise GalvatronError(f"rule {text!r} has no '->'")
    indivisible: set[str] = set()
    spmd: set[str] = set()

    def term(part: str) -> _Term:
        part = part.strip()
        mark = part[0] if part[:1] in ("~", "+") else ""
        optional = part.endswith("?")
        dims: list[DimNames] = []
        for group, single in _TOKEN.findall(part.removeprefix(mark).removesuffix("?")):
            names = group.split() if group else [single]
            indivisible.update(n.rstrip("!*") for n in names if n.endswith("!"))
            spmd.update(n.rstrip("^") for n in names if n.endswith("^"))
            dims.append(tuple(n.rstrip("!^") for n in names if n != "1"))
        return _Term(tuple(dims), mark, optional)

    operands = tuple(term(p) for p in left.split(",") if p.strip())
    results = tuple(term(p) for p in right.split(","))
    return Notation(text, operands, results, frozenset(indivisible), frozenset(spmd))
