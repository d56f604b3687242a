"""Ops that draw random numbers, and how a sharded graph says which ranks draw the same ones.

A draw is a pure function of a key, so that no generator state travels between ranks, micro-batches or recomputed
layers. In a sharded graph `random.X` takes the arguments of `aten.X` and three more keyword arguments, which with the
job's seed, the step, the micro-batch and the layer make the key:

- `site`: the op's number among the draws of its layer;
- `axes`: the names of the mesh axes on which the result is sharded. Ranks that differ in a coordinate there draw
  independent numbers, all others equal ones: replicas agree, slices do not repeat each other;
- `per_step`: the result has no samples in it, so that all micro-batches of a step share one draw, as on one device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from galvatron.ir.graph import Arg, Op, Value
from galvatron.ir.layout import Axis, Partial, Shard
from galvatron.ir.ops.schemas import is_operator, schema_of
from galvatron.ir.ops.targets import parsed

KEYWORDS = ("site", "axes", "per_step")


@dataclass(frozen=True)
class RandomOp:
    """One op of the table: each element of its result is drawn by itself, given the operands.

    `switch` is the argument that turns the drawing on; None for an op that always draws. `linear`
    says that partial sums may pass: with its draws given, the op is linear in its operand.
    """

    switch: str | None = None
    linear: bool = False


RANDOM_OPS: dict[str, RandomOp] = {
    "dropout": RandomOp("train", linear=True),
    "rrelu": RandomOp("training"),
    "scaled_dot_product_attention": RandomOp("dropout_p"),
    "native_dropout": RandomOp(),
    "bernoulli": RandomOp(),
    "cauchy": RandomOp(),
    "exponential": RandomOp(),
    "geometric": RandomOp(),
    "log_normal": RandomOp(),
    "normal": RandomOp(),
    "normal_functional": RandomOp(),
    "poisson": RandomOp(),
    "rand": RandomOp(),
    "rand_like": RandomOp(),
    "randint": RandomOp(),
    "randint_like": RandomOp(),
    "randn": RandomOp(),
    "randn_like": RandomOp(),
    "uniform": RandomOp(),
}
"""ATen ops that can be drawn slice by slice, by name without the overload."""


def is_random(op: Op) -> bool:
    """Whether the op, called as it is, draws random numbers."""
    if op.namespace != "aten" or op.name not in RANDOM_OPS:
        return op.namespace == "random"
    switch = RANDOM_OPS[op.name].switch
    return switch is None or bool(op.get(switch))


def draws_as_a_whole(op: Op) -> bool:
    """Whether an op, called as it is, draws random numbers otherwise than each element by itself.

    Recurrent networks do in training, with dropout between their layers.
    """
    plain = without_site(op)
    if not is_operator(plain.target) or plain.name in RANDOM_OPS:
        return False
    switches = [plain[name] for name in ("train", "dropout") if name in plain.arguments]
    return schema_of(plain.target).random and all(switches)


def is_random_target(target: str) -> bool:
    """Whether `target` is the sharded counterpart of an op of the table."""
    called = parsed(target)
    return called.namespace == "random" and called.name in RANDOM_OPS


def with_site(op: Op, site: int, axes: tuple[str, ...], per_step: bool) -> Op:
    """The sharded counterpart of an ATen op that draws."""
    values: tuple[Arg, ...] = (site, axes, per_step)
    target = replace(parsed(op.target), namespace="random")
    return replace(op, target=str(target), kwargs=(*op.kwargs, *zip(KEYWORDS, values, strict=True)))


def without_site(op: Op) -> Op:
    """The ATen op that a rank runs, whatever it draws; other ops as they are."""
    if op.namespace != "random":
        return op
    target = replace(parsed(op.target), namespace="aten")
    return replace(op, target=str(target), kwargs=tuple((k, v) for k, v in op.kwargs if k not in KEYWORDS))


def drawn_axes(result: Value, mesh: tuple[Axis, ...]) -> tuple[str, ...]:
    """The axes on which the ranks' results are different elements of one tensor."""
    placed = zip(mesh, result.layout or (), strict=True)
    return tuple(axis.name for axis, placement in placed if isinstance(placement, Shard))


def random_problem(op: Op, mesh: tuple[Axis, ...]) -> str:
    """What is wrong with the site of a `random.` op; empty if nothing is."""
    keywords = dict(op.kwargs)
    if tuple(keywords)[-len(KEYWORDS) :] != KEYWORDS:
        return f"the last keyword arguments must be {', '.join(KEYWORDS)}, in this order"
    if type(keywords["site"]) is not int or keywords["site"] < 0 or type(keywords["per_step"]) is not bool:
        return "site must be a number, per_step true or false"
    samples = any(isinstance(dim, sympy.Expr) for value in op.results for dim in value.type.shape)
    if keywords["per_step"] == samples:
        return (
            f"what is drawn has {'' if samples else 'no '}samples in it, so per_step must be {str(not samples).lower()}"
        )
    for value in op.results:
        if any(isinstance(p, Partial) for p in value.layout or ()) and not RANDOM_OPS[op.name].linear:
            return f"%{value.name} is a partial sum of draws"
        if keywords["axes"] != drawn_axes(value, mesh):
            wanted = ", ".join(drawn_axes(value, mesh)) or "no axis"
            return f"%{value.name} is sharded on {wanted}, and so must be the draws"
    return ""
