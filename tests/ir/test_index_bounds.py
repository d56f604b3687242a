"""What whole numbers are places in, and how many of them there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from galvatron.debugging.values import random_values
from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Value
from galvatron.ir.index_bounds import bounds, decided
from galvatron.ir.ops.table import OPERATORS
from galvatron.ir.types import BATCH, TensorType
from tests.ir.programs import op, value


def looked_up(target: str, args: tuple[Arg, ...]) -> dict[str, int]:
    """What bounds an op gives to `i`, which it reads moved, and to `j`, in a table of 5 × B × 7."""
    table, i, j, mask = (
        value("x", "f32", 5, BATCH, 7), value("i", "i64", 5, BATCH, 7), value("j", "i64", 5), value("m", "bool", 5),
    )  # fmt: skip
    moved = Op("aten.permute.default", (Ref("i"), (0, 1, 2)), (), (Value("moved", i.type),))
    made = op(target, args, Value("y", TensorType("f32", (5, BATCH, 7))))
    return bounds(Graph((table, i, j, mask), (), (moved, made), ("y",)), 4)


def test_places_are_counted_along_what_they_are_places_in() -> None:
    x, moved, j = Ref("x"), Ref("moved"), Ref("j")
    assert looked_up("aten.gather.default", (x, 2, moved)) == {"i": 7}
    assert looked_up("aten.gather.default", (x, -2, moved)) == {"i": 4}
    assert looked_up("aten.scatter.src", (x, 0, moved, x)) == {"i": 5}
    assert looked_up("aten.index_select.default", (x, 1, j)) == {"j": 4}
    assert looked_up("aten.index.Tensor", (x, (None, moved, j))) == {"i": 4, "j": 7}
    assert looked_up("aten.index.Tensor", (x, (Ref("m"), j))) == {"j": 4}
    assert looked_up("aten.embedding.default", (x, moved)) == {"i": 5}
    assert looked_up("aten.take.default", (x, j)) == {"j": 140}
    assert looked_up("aten.one_hot.default", (moved, 9)) == {"i": 9}
    assert looked_up("aten.relu.default", (x,)) == {}


def test_what_is_looked_up_twice_is_in_both() -> None:
    x, table = value("x", "f32", 5, 7), value("t", "f32", 3, 7)
    i = value("i", "i64", 2)
    ops = (
        op("aten.index_select.default", (Ref("x"), 0, Ref("i")), value("a", "f32", 2, 7)),
        op("aten.index_select.default", (Ref("t"), 0, Ref("i")), value("b", "f32", 2, 7)),
    )
    assert bounds(Graph((x, table, i), (), ops, ("a", "b")), 1) == {"i": 3}


def test_random_numbers_reach_all_places() -> None:
    x, i = value("x", "f32", BATCH, 40), value("i", "i64", BATCH, 40)
    graph = Graph(
        (x, i), (), (op("aten.gather.default", (Ref("x"), 1, Ref("i")), value("y", "f32", BATCH, 40)),), ("y",)
    )
    drawn = random_values(graph, 8, 1.0, 0)["i"]
    assert drawn.min() == 0 and drawn.max() == 39


def decided_beside(target: str, number: float, reader: Callable[[Ref], tuple[str, tuple[Arg, ...]]]) -> bool:
    """Whether a comparison of `i`, seen in another shape, with a number is decided, where an op reads `i` besides."""
    i, table = value("i", "i64", BATCH, 4), value("t", "f32", 7, 3)
    looks_up, args = reader(Ref("i"))
    ops = (
        Op("aten.reshape.default", (Ref("i"), (4 * BATCH,)), (), (value("moved", "i64", 4 * BATCH),)),
        op(looks_up, args, value("y", "f32", BATCH, 4, 3)),
        op(target, (Ref("moved"), number), value("c", "bool", 4 * BATCH)),
    )
    return decided(Graph((i, table), (), ops, ("y", "c"))) == {"c"}


def test_what_no_place_is_decides_a_comparison() -> None:
    def embedding(i: Ref) -> tuple[str, tuple[Arg, ...]]:
        return "aten.embedding.default", (Ref("t"), i)

    def index(i: Ref) -> tuple[str, tuple[Arg, ...]]:
        return "aten.index.Tensor", (Ref("t"), (i,))

    for target, number in (("ne", -100), ("eq", 7), ("lt", 0), ("ge", 7), ("gt", -1), ("le", 6)):
        assert decided_beside(f"aten.{target}.Scalar", number, embedding), (target, number)
    for target, number in (("ne", 0), ("eq", 6), ("lt", 6), ("ge", 1), ("gt", 5), ("le", 0)):
        assert not decided_beside(f"aten.{target}.Scalar", number, embedding), (target, number)
    assert not decided_beside("aten.ne.Scalar", -100, index), "a place may be counted from the end"
    assert decided_beside("aten.ne.Scalar", 7, index)


def test_what_another_type_makes_of_a_number_decides_nothing() -> None:
    i, table = value("i", "i64", 4), value("t", "f32", 200, 3)
    ops = (
        op("aten._to_copy.default", (Ref("i"),), value("n", "i8", 4), dtype=Const("dtype", "i8")),
        op("aten.embedding.default", (Ref("t"), Ref("i")), value("y", "f32", 4, 3)),
        op("aten.ne.Scalar", (Ref("n"), -100), value("c", "bool", 4)),
    )
    assert decided(Graph((i, table), (), ops, ("y", "c"))) == set(), "156 is -100 there"


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("embedding", lambda x, i: torch.nn.functional.embedding(i, x)), ("gather", lambda x, i: x.gather(0, i[None])),
        ("index_select", lambda x, i: x.index_select(0, i)), ("index", lambda x, i: x[i]),
        ("take", lambda x, i: x.take(i)), ("put", lambda x, i: x.put(i, x[0, :1])),
        ("take_along_dim", lambda x, i: torch.take_along_dim(x, i[None], 0)),
        ("scatter", lambda x, i: x.scatter(0, i[None], 1.0)),
        ("scatter_add", lambda x, i: x.scatter_add(0, i[None], x)),
        ("scatter_reduce", lambda x, i: x.scatter_reduce(0, i[None], x, "sum")),
        ("index_add", lambda x, i: x.index_add(0, i, x[:1])), ("index_copy", lambda x, i: x.index_copy(0, i, x[:1])),
        ("index_fill", lambda x, i: x.index_fill(0, i, 1.0)), ("index_put", lambda x, i: x.index_put((i,), x[:1])),
        ("index_reduce", lambda x, i: x.index_reduce(0, i, x[:1], "mean")),
        ("one_hot", lambda x, i: torch.nn.functional.one_hot(i, 5)),
        ("cross_entropy_loss", lambda x, i: torch.nn.functional.cross_entropy(x[:1], i)),
        ("nll_loss", lambda x, i: torch.nn.functional.nll_loss(x[:1], i)),
        ("multi_margin_loss", lambda x, i: torch.nn.functional.multi_margin_loss(x[:1], i)),
        ("multilabel_margin_loss", lambda x, i: torch.nn.functional.multilabel_margin_loss(x[0, :1], i)),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_which_ops_take_negative_numbers(target: str, read: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
    try:
        read(torch.rand(5, 2), torch.tensor([-1]))
    except (RuntimeError, IndexError):
        assert not OPERATORS[target].negative
    else:
        assert OPERATORS[target].negative
