"""The rule notation: what a line says about operands of given shapes."""

from __future__ import annotations

import pytest

from galvatron.errors import GalvatronError
from galvatron.ir.ops.notation import OpDims, parse_notation


def resolve(line: str, *shapes: tuple[int, ...] | None, result: tuple[int, ...] = ()) -> OpDims:
    return parse_notation(line).resolve(shapes, (result,))


def test_a_linear_layer() -> None:
    dims = resolve("~b* k, ~n k, +n? -> b* n", (2, 3, 4), (5, 4), (5,), result=(2, 3, 5))
    assert dims.operands == ((("b.1",), ("b.0",), ("k",)), (("n",), ("k",)), (("n",),))
    assert dims.results == ((("b.1",), ("b.0",), ("n",)),)
    assert dims.sizes == {"b.1": 2, "b.0": 3, "k": 4, "n": 5}
    assert (dims.products, dims.sums) == ({0, 1}, {2})


def test_an_absent_operand_takes_no_place() -> None:
    dims = resolve("~b* k, ~n k, +n? -> b* n", (2, 4), (5, 4), None, result=(2, 5))
    assert len(dims.operands) == 2
    assert dims.sums == frozenset()


def test_runs_are_aligned_at_the_right_and_broadcast() -> None:
    dims = resolve("+b*, +b* -> b*", (2, 1, 4), (3, 1), result=(2, 3, 4))
    assert dims.operands == ((("b.2",), (), ("b.0",)), (("b.1",), ()))
    assert dims.results == ((("b.2",), ("b.1",), ("b.0",)),)


def test_dimensions_of_size_one_have_no_name() -> None:
    dims = resolve("~m k, ~k n -> m n", (1, 4), (4, 3), result=(1, 3))
    assert dims.operands[0] == ((), ("k",))
    assert "m" not in dims.sizes


@pytest.mark.parametrize(("q", "k", "names"), [(8, 2, ("h", "g")), (8, 8, ("h",)), (8, 1, ("g",))])
def test_a_product_has_the_factors_that_are_not_one(q: int, k: int, names: tuple[str, ...]) -> None:
    """Grouped queries, one head each, and one head for all."""
    dims = resolve("(h g) d!, h d! -> (h g) d!", (q, 5), (k, 5), result=(q, 5))
    assert dims.operands[0][0] == names
    assert dims.indivisible == {"d"}


def test_a_tensor_of_fewer_dimensions_has_the_trailing_names() -> None:
    assert resolve("+m n, ~m k, ~k n -> m n", (3,), (2, 4), (4, 3), result=(2, 3)).operands[0] == (("n",),)
    mask = resolve("b* h q k!, b* h q k!? -> b* h q k!", (2, 3, 4, 5), (4, 5), result=(2, 3, 4, 5)).operands[1]
    assert mask == (("q",), ("k",))


def test_partial_sums_do_not_pass_an_added_number() -> None:
    assert resolve("+b*, +b* -> b*", (4,), (4,), result=(4,)).sums == {0, 1}
    assert resolve("+b*, +b* -> b*", (4,), None, result=(4,)).sums == frozenset()
    assert resolve("~b*, ~b* -> b*", (4,), None, result=(4,)).products == {0}


def test_marks_of_indivisible_and_internally_communicating_dimensions() -> None:
    dims = resolve("n v^ d*!, n d*! -> ", (2, 6, 5), (2, 5))
    assert dims.spmd == {"v"}
    assert dims.indivisible == {"d.0"}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(GalvatronError, match="no '->'"):
        parse_notation("b* k, n k")
    with pytest.raises(GalvatronError, match="does not fit"):
        resolve("m k -> m", (2, 3, 4), result=(2,))
