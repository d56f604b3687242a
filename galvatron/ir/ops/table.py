"""The table of operators: what is known of each (`operator.Operator`), an entry of a line or two, by family.

An entry is of all overloads of an operator (`add`) or of one (`div.Tensor`), which then goes first. `aten.X`,
`random.X` and `spmd.X` are one entry. To add an operator is to add an entry; one without an entry is computed whole on
every rank: right, and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Op
from galvatron.ir.ops import (
    attention,
    convolutions,
    creation,
    indexing,
    losses,
    matrices,
    norms,
    parts,
    pointwise,
    products,
    random,
    rearrangements,
    recurrent,
    reductions,
    steps,
)
from galvatron.ir.ops.call import Call, Types, by_line
from galvatron.ir.ops.call import pointwise as element_by_element
from galvatron.ir.ops.functions import function_dims
from galvatron.ir.ops.notation import OpDims, parse_notation
from galvatron.ir.ops.operator import UNKNOWN, Moves, Operator
from galvatron.ir.ops.schemas import ADDED, is_operator, parse_schema, schema_of, whole_target
from galvatron.ir.ops.targets import parsed
from galvatron.ir.ops.work import Work

OPERATORS: dict[str, Operator] = (
    products.OPERATORS
    | matrices.OPERATORS
    | attention.OPERATORS
    | convolutions.OPERATORS
    | recurrent.OPERATORS
    | norms.OPERATORS
    | losses.OPERATORS
    | pointwise.OPERATORS
    | reductions.OPERATORS
    | rearrangements.OPERATORS
    | parts.OPERATORS
    | indexing.OPERATORS
    | creation.OPERATORS
    | random.OPERATORS
    | steps.OPERATORS
)
"""Name of an operator, perhaps with an overload → what is known of it; `namespace::name` of one that was added."""

_Derived = TypeVar("_Derived", bound=Callable[..., Any])
_FORGET: list[Callable[[], None]] = []
"""What empties the caches of what was derived from the table."""
_TOLD: list[str] = []
"""The operators of which others have said something."""


def derived(maxsize: int) -> Callable[[_Derived], _Derived]:
    """An `lru_cache` for a function whose result follows from its arguments and the table, and so only until that
    changes."""

    def cached(function: _Derived) -> _Derived:
        cache = lru_cache(maxsize=maxsize)(function)
        _FORGET.append(cache.cache_clear)
        return cache  # type: ignore[return-value]  # is called as the function is

    return cached


def know(target: str, operator: Operator) -> None:
    """Says what is known of an operator of another library, in place of what was before."""
    called = parsed(target)
    OPERATORS[f"{called.namespace}::{called.name}"] = operator
    _TOLD.append(target)
    for forget in _FORGET:
        forget()


def as_shipped(text: str) -> bool:
    """Whether all operators in the text of a program are as this package knows them, so that what follows from that
    may be kept for other processes."""
    return not any(f"{called.namespace}.{called.name}" in text for called in map(parsed, _TOLD))


def add(target: str, schema: str, operator: Operator) -> None:
    """Adds an operator of another library, which programs may then contain: a pure function of tensors.

    Args:
        target: as torch calls it, `<namespace>.<name>.<overload>`.
        schema: its parameters and results in torch's notation: `(Tensor x, Tensor scale) -> Tensor`.

    Raises:
        GalvatronError: the entry says what only one of torch's operators can be.
    """
    called = parsed(target)
    if operator.draws or operator.on_slices:
        raise GalvatronError(f"{target}: only operators of torch draw random numbers, or have a counterpart on slices")
    ADDED[target] = parse_schema(f"{called.short}{schema}")
    know(target, operator)


def operator_of(op: Op) -> Operator:
    """What is known of the operator that an op calls."""
    return of_target(op.target)


def of_target(target: str) -> Operator:
    """What is known of the operator of a target; nothing of a collective, which is none."""
    called = parsed(whole_target(target))
    if called.namespace != "aten":
        return OPERATORS.get(f"{called.namespace}::{called.name}", UNKNOWN)
    return OPERATORS.get(called.short) or OPERATORS.get(called.name) or UNKNOWN


def differentiated(op: Op) -> tuple[str, ...]:
    """The operands that an op gives a gradient to, as far as they are floating and their results have one."""
    if op.function is not None:
        return tuple(op.operands[place] for place in op.function.differentiated)
    return () if operator_of(op).stops_gradient else op.operands


def kernel_work(kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Work | None:
    """The arithmetic of one call of a kernel that torch dispatches; None of one that memory bounds."""
    work = of_target(str(kernel)).work
    return work(out, *args, **kwargs) if work else None


@derived(maxsize=4096)
def kernel_moves(name: str) -> Moves:
    """How a kernel of a name goes through memory: an operator's, or `X_backward`, its gradient's."""
    own = OPERATORS.get(name) or OPERATORS.get(name.removesuffix("_"))
    return (own or OPERATORS.get(name.removesuffix("_backward"), UNKNOWN)).moves


def is_pointwise(op: Op) -> bool:
    """Whether each element of the result follows from those at its place, after broadcasting."""
    return operator_of(op).pointwise or (is_operator(op.target) and schema_of(op.target).pointwise)


def op_dims(op: Op, types: Types) -> OpDims | None:
    """The named dimensions of `op` on operands of these types, or None for an op without a rule."""
    if op.function is not None:
        return function_dims(op.function, [types[name] for name in op.operands])
    rule = operator_of(op).dims
    if rule is None and is_pointwise(op):
        rule = element_by_element
    if rule is None:
        return None
    call = Call(op, types)
    if callable(rule):
        return rule(call)
    dims = by_line(call, rule)
    return dims if len(dims.operands) == len(op.operands) else None


def summands(op: Op) -> list[int]:
    """The positions of the arguments that an op adds, as its line says."""
    rule = operator_of(op).dims
    terms = parse_notation(rule).operands if isinstance(rule, str) else ()
    return [i for i, term in enumerate(terms) if term.mark == "+"]


def takes_size(op: Op, argument: int | str) -> bool:
    """Whether an argument, by its position or name, is a size, of which a rank has its part, and not a number, which
    means the same everywhere: sizes are integers, while numbers stand where a tensor could."""
    if not is_operator(op.target) or operator_of(op).counts:
        return True
    parameters = enumerate(schema_of(op.target).parameters)
    return any(argument in (i, p.name) and p.kind in ("int", "SymInt") for i, p in parameters)


def named(holds: Callable[[Operator], object]) -> list[str]:
    """The names of the operators of which something holds, in order."""
    return sorted(
        {name.rpartition("::")[2].partition(".")[0] for name, operator in OPERATORS.items() if holds(operator)}
    )
