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

from dataclasses import replace

from galvatron.ir.graph import Arg, Op, Value
from galvatron.ir.layout import Mesh, Partial, Shard
from galvatron.ir.ops.schemas import is_operator, schema_of
from galvatron.ir.ops.table import of_target, operator_of
from galvatron.ir.ops.targets import parsed
from galvatron.ir.types import has_samples

KEYWORDS = ("site", "axes", "per_step")


def is_random(op: Op) -> bool:
    """Whether the op, called as it is, draws random numbers."""
    draws = operator_of(op).draws
    if op.namespace != "aten" or draws is None:
        return op.namespace == "random"
    return draws.switch is None or bool(op.get(draws.switch))


def draws_as_a_whole(op: Op) -> bool:
    """Whether an op, called as it is, draws random numbers otherwise than each element by itself.

    Recurrent networks do in training, with dropout between their layers.
    """
    plain = without_site(op)
    if not is_operator(plain.target) or operator_of(plain).draws is not None:
        return False
    switches = [plain[name] for name in ("train", "dropout") if name in plain.arguments]
    return schema_of(plain.target).random and all(switches)


def is_random_target(target: str) -> bool:
    """Whether `target` is the sharded counterpart of an op of the table."""
    return parsed(target).namespace == "random" and of_target(target).draws is not None


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


def drawn_axes(result: Value, mesh: Mesh) -> tuple[str, ...]:
    """The axes on which the ranks' results are different elements of one tensor."""
    placed = zip(mesh, result.layout or (), strict=True)
    return tuple(axis.name for axis, placement in placed if isinstance(placement, Shard))


def random_problem(op: Op, mesh: Mesh) -> str:
    """What is wrong with the site of a `random.` op; empty if nothing is."""
    keywords = dict(op.kwargs)
    if tuple(keywords)[-len(KEYWORDS) :] != KEYWORDS:
        return f"the last keyword arguments must be {', '.join(KEYWORDS)}, in this order"
    if type(keywords["site"]) is not int or keywords["site"] < 0 or type(keywords["per_step"]) is not bool:
        return "site must be a number, per_step true or false"
    samples = any(has_samples(dim) for value in op.results for dim in value.type.shape)
    if keywords["per_step"] == samples:
        return (
            f"what is drawn has {'' if samples else 'no '}samples in it, so per_step must be {str(not samples).lower()}"
        )
    draws = operator_of(op).draws
    for value in op.results:
        if any(isinstance(p, Partial) for p in value.layout or ()) and not (draws and draws.linear):
            return f"%{value.name} is a partial sum of draws"
        if keywords["axes"] != drawn_axes(value, mesh):
            wanted = ", ".join(drawn_axes(value, mesh)) or "no axis"
            return f"%{value.name} is sharded on {wanted}, and so must be the draws"
    return ""
