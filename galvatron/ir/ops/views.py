"""The algebra of views: which factors of the operand's dimensions make up the result's."""

from __future__ import annotations

from galvatron.ir.ops.notation import DimNames, OpDims, Shape
from galvatron.ir.types import Dim, divides, exact_quotient, simplify_dim


def view_dims(operand: Shape, result: Shape) -> OpDims:
    """The named dimensions of a reshape from `operand` to `result`, equal in number of elements.

    The shapes are cut into the shortest groups of equal product; inside a group both sides are refined to common
    factors (`(B, S, H·D) → (B·S, H, D)` gives `b s (h d) -> (b s) h d`). Where the sides have no common refinement, as
    in `(4, 6) → (6, 4)`, the group is indivisible.
    """
    operand_names: list[DimNames] = []
    result_names: list[DimNames] = []
    sizes: dict[str, Dim] = {}
    indivisible: set[str] = set()
    for left, right in _groups(operand, result):
        cuts = _common_cuts(left, right)
        prefix = f"v{len(operand_names)}.{len(result_names)}"
        if cuts is None:
            operand_names += [()] * len(left)
            result_names += [()] * len(right)
            sizes[prefix] = _product(left)
            indivisible.add(prefix)
            continue
        names = {}
        for i, (inner, outer) in enumerate(zip(cuts, cuts[1:], strict=False)):
            size = exact_quotient(outer, inner)
            assert size is not None
            names[inner] = f"{prefix}.{i}"
            sizes[names[inner]] = size
        operand_names += _names_of(left, names, cuts)
        result_names += _names_of(right, names, cuts)
    return OpDims((tuple(operand_names),), (tuple(result_names),), sizes, frozenset(indivisible), sums=frozenset({0}))


def _product(shape: Shape) -> Dim:
    total: Dim = 1
    for size in shape:
        total = simplify_dim(total * size)
    return total


def _groups(operand: Shape, result: Shape) -> list[tuple[Shape, Shape]]:
    """The shapes cut into the shortest runs of equal product; dimensions of size one join the run at hand."""
    groups: list[tuple[Shape, Shape]] = []
    i = j = 0
    while i < len(operand) or j < len(result):
        left: list[Dim] = []
        right: list[Dim] = []
        while True:
            left_size, right_size = _product(tuple(left)), _product(tuple(right))
            if (left or right) and left_size == right_size:
                break
            grow_left = i < len(operand) and (
                j >= len(result) or divides(left_size, right_size) or not divides(right_size, left_size)
            )
            if grow_left or j >= len(result):
                left.append(operand[i])
                i += 1
            else:
                right.append(result[j])
                j += 1
        groups.append((tuple(left), tuple(right)))
    return groups


def _cuts(shape: Shape) -> list[Dim]:
    """The products of trailing dimensions: 1, last, last two, …, all."""
    cuts: list[Dim] = [1]
    for size in reversed(shape):
        cuts.append(simplify_dim(cuts[-1] * size))
    return cuts


def _common_cuts(left: Shape, right: Shape) -> list[Dim] | None:
    """Both sides' cuts in one chain, each dividing the next; None where there is no such chain."""
    chain: list[Dim] = []
    for cut in [*_cuts(left), *_cuts(right)]:
        if cut in chain:
            continue
        position = sum(1 for c in chain if divides(c, cut))
        if not all(divides(c, cut) for c in chain[:position]) or not all(divides(cut, c) for c in chain[position:]):
            return None
        chain.insert(position, cut)
    return chain


def _names_of(shape: Shape, names: dict[Dim, str], cuts: list[Dim]) -> list[DimNames]:
    """The factors that each dimension spans, outermost first."""
    dims: list[DimNames] = []
    edges = _cuts(shape)
    for inner, outer in zip(edges, edges[1:], strict=False):
        span = [c for c in cuts if divides(inner, c) and divides(c, outer) and c != outer]
        dims.append(tuple(names[c] for c in reversed(span)))
    return list(reversed(dims))
