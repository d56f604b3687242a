"""What selective recomputation leaves out: the table against the kernels that torch runs, and what need not be kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.interpreter import run_graph
from galvatron.ir.ops.table import kernel_work, named
from galvatron.ir.recompute import Step, runs_once, selective_steps
from galvatron.ir.types import TensorType
from tests.partition import every_sample  # noqa: F401  # it fills CASES
from tests.partition.samples import CASES, POINTWISE, Case, Draw

EVERY = [case for cases in (*CASES.values(), POINTWISE) for case in cases]


class Arithmetic(TorchDispatchMode):
    """Adds up the FLOPs of kernels."""

    flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        work = kernel_work(func, args, kwargs or {}, out)
        self.flop += work.flop if work else 0
        return out


@settings(max_examples=300, deadline=None)
@given(data=st.data(), case=st.sampled_from(EVERY))
def test_ops_with_arithmetic_are_kept(data: st.DataObject, case: Case) -> None:
    call = case(Draw(data, 2))
    with Arithmetic() as counted:
        run_graph(call.graph, call.tensors, batch=1)
    assert runs_once(call.op) or not counted.flop, call.op.target


@pytest.mark.parametrize("name", named(lambda operator: operator.kept))
def test_kept_ops_exist(name: str) -> None:
    own = name in ("grouped_linear",)  # of this package
    assert own != hasattr(torch.ops.aten, name)


@pytest.mark.parametrize("namespace", ["aten", "random", "spmd"])
def test_one_row_for_all_forms_of_an_op(namespace: str) -> None:
    overload = "" if namespace == "spmd" else ".default"
    assert runs_once(Op(f"{namespace}.scaled_dot_product_attention{overload}", (), (), ()))
    assert not runs_once(Op(f"{namespace}.embedding{overload}", (), (), ()))


LINEAR, SUM, SLICE, ADD = "aten.linear.default", "comm.all_reduce", "comm.slice", "aten.add.Tensor"
WEIGHT = {SUM: "", SLICE: ""}


def steps_of(outputs: tuple[str, ...], *ops: tuple[str, str, str], recompute: str = "selective") -> dict[str, Step]:
    """The steps of a graph of `(target, operand, result)`, by result."""
    value = TensorType("f32", (4, 4))
    graph = Graph(
        (Value("x", value),),
        (Value("w", value),),
        tuple(
            Op(target, tuple(map(Ref, (operand, *WEIGHT.get(target, "w")))), (), (Value(result, value),))
            for target, operand, result in ops
        ),
        outputs,
    )  # fmt: skip
    return {graph.ops[index].result.name: step for index, step in selective_steps(graph, recompute).items()}


def test_what_is_read_in_a_replay_is_kept() -> None:
    assert steps_of(("z",), (LINEAR, "x", "y"), (ADD, "y", "z")) == {"y": "keep"}
    assert steps_of(("z",), (LINEAR, "x", "y"), (LINEAR, "y", "z")) == {"y": "keep", "z": "once"}


def test_what_only_a_collective_reads_is_not_kept() -> None:
    assert steps_of(("z",), (LINEAR, "x", "y"), (SUM, "y", "s"), (ADD, "s", "z")) == {"y": "once", "s": "keep"}
    assert steps_of(("z",), (LINEAR, "x", "y"), (SUM, "y", "s"), (ADD, "y", "z")) == {"y": "keep", "s": "once"}


def test_local_collectives_run_again() -> None:
    assert steps_of(("z",), (LINEAR, "x", "y"), (SLICE, "y", "s"), (ADD, "s", "z")) == {"y": "keep"}


def test_every_second_product_runs_again_under_alternate() -> None:
    chain = ((LINEAR, "x", "y"), (LINEAR, "y", "z"), (LINEAR, "z", "u"), (LINEAR, "u", "v"))
    assert steps_of(("v",), *chain, recompute="alternate") == {"y": "keep", "u": "keep"}
    assert steps_of(("v",), *chain, recompute="full") == {}


@pytest.mark.parametrize("recompute", ["full", "selective", "alternate"])
def test_nothing_is_chosen_again(recompute: str) -> None:
    """Places of the greatest numbers are kept, and not what is made of them or of other whole numbers."""
    rows, ids = TensorType("f32", (4, 8)), TensorType("i64", (4, 2))
    ops = (
        Op("aten.exp.default", (Ref("x"),), (), (Value("scores", rows),)),
        Op(
            "aten.topk.default",
            (Ref("scores"), 2),
            (),
            (Value("weights", TensorType("f32", (4, 2))), Value("ids", ids)),
        ),
        Op("aten.add.Scalar", (Ref("ids"), 1), (), (Value("next", ids),)),
        Op("aten.gather.default", (Ref("scores"), 1, Ref("next")), (), (Value("y", TensorType("f32", (4, 2))),)),
    )
    graph = Graph((Value("x", rows),), (), ops, ("y", "weights"))
    assert selective_steps(graph, recompute) == {1: "keep"}
    assert selective_steps(graph, "attention") == selective_steps(graph, "none") == {}
