"""What whole numbers are places in, and how many of them there are."""

from __future__ import annotations

from galvatron.debugging.values import random_values
from galvatron.ir.graph import Arg, Graph, Op, Ref, Value
from galvatron.ir.index_bounds import bounds
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
