"""View algebra: the names that a reshape gives its dimensions, and that they mean what they say."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.ir.ops.views import view_dims
from galvatron.ir.types import BATCH, Dim, evaluate, simplify_dim


def parts(operand: tuple[Dim, ...], result: tuple[Dim, ...]) -> tuple[list[tuple[Dim, ...]], list[tuple[Dim, ...]]]:
    """Sizes of the named factors of each dimension."""
    dims = view_dims(operand, result)
    (left,), (right,) = dims.operands, dims.results
    return [tuple(dims.sizes[n] for n in d) for d in left], [tuple(dims.sizes[n] for n in d) for d in right]


def test_heads_are_split_off_and_the_sequence_is_joined() -> None:
    assert parts((BATCH, 128, 768), (BATCH * 128, 12, 64)) == (
        [(BATCH,), (128,), (12, 64)],
        [(BATCH, 128), (12,), (64,)],
    )


def test_equal_dimensions_stay_themselves() -> None:
    assert parts((BATCH, 3, 5), (BATCH, 3, 5)) == ([(BATCH,), (3,), (5,)], [(BATCH,), (3,), (5,)])


def test_dimensions_of_size_one_come_and_go() -> None:
    assert parts((1, 4, 1), (4,)) == ([(), (4,), ()], [(4,)])
    assert parts((4,), (1, 4, 1)) == ([(4,)], [(), (4,), ()])
    assert parts((1, 1), ()) == ([(), ()], [])


def test_both_sides_are_refined() -> None:
    assert parts((6, 4), (3, 8)) == ([(3, 2), (4,)], [(3,), (2, 4)])


def test_what_has_no_common_refinement_is_indivisible() -> None:
    dims = view_dims((4, 6, 5), (6, 4, 5))
    assert dims.operands[0][:2] == ((), ())
    assert dims.operands[0][2] == dims.results[0][2] != ()
    assert len(dims.indivisible) == 1


@settings(max_examples=80, deadline=None)
@given(data=st.data(), cut=st.lists(st.sampled_from([1, 2, 3, 4, BATCH]), min_size=1, max_size=5))
def test_a_name_stands_for_the_same_digit_on_both_sides(data: st.DataObject, cut: list[Dim]) -> None:
    """Elements are numbered: the digit of each factor is the same wherever an element ends up."""
    if cut.count(BATCH) > 1:
        return

    def joined() -> tuple[Dim, ...]:
        dims: list[Dim] = [cut[0]]
        for size in cut[1:]:
            if data.draw(st.booleans()):
                dims[-1] = simplify_dim(dims[-1] * size)
            else:
                dims.append(size)
        return tuple(dims)

    operand, result = joined(), joined()
    dims = view_dims(operand, result)
    assert not dims.indivisible
    for name, size in dims.sizes.items():
        digits: list[torch.Tensor] = []
        for shape, (names,) in ((operand, dims.operands), (result, dims.results)):
            concrete = [evaluate(d, 5) for d in shape]
            (dim,) = (i for i, of_dim in enumerate(names) if name in of_dim)
            inside = 1
            for other in names[dim][names[dim].index(name) + 1 :]:
                inside *= evaluate(dims.sizes[other], 5)
            index = torch.arange(concrete[dim]) // inside % evaluate(size, 5)
            digits.append(index.reshape([-1 if i == dim else 1 for i in range(len(shape))]).expand(concrete).flatten())
        assert torch.equal(*digits)
