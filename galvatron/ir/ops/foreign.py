"""Operators of other libraries: what PyTorch knows of one that is registered with it, and the user of how it splits.

One becomes part of programs when a model that calls it is captured, or by `register_rule`. The text of a program alone
makes nothing known: it cannot have an operator run that nobody in this process has asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from galvatron.errors import GalvatronError, did_you_mean
from galvatron.ir.graph import Graph, Ref
from galvatron.ir.ops.call import Call
from galvatron.ir.ops.notation import Notation, OpDims, parse_notation
from galvatron.ir.ops.operator import Operator
from galvatron.ir.ops.schemas import ADDED, REQUIRED, Schema, parse_schema, schema_of
from galvatron.ir.ops.table import add, know
from galvatron.ir.ops.targets import parsed

RULES: dict[str, str] = {}
"""The lines of `register_rule`, by target."""

_OURS = ("aten", "random", "spmd", "comm", "function", "step", "galvatron")
_OF_TORCH = ("prim", "prims", "c10d", "c10d_functional", "_c10d_functional", "_c10d_functional_autograd", "_dtensor",
             "inductor", "profiler", "rngprims", "symm_mem")  # fmt: skip
"""Namespaces of torch whose operators communicate, or stand for others inside of its compiler."""

_KINDS = ("Tensor", "SymInt", "int", "float", "bool", "Scalar", "str", "ScalarType", "MemoryFormat")
_NAME = re.compile(r"(?P<namespace>[A-Za-z_]\w*)(::|\.)(?P<name>[A-Za-z_]\w*)(\.(?P<overload>\w+))?", re.ASCII)
_DIM = re.compile(r"[A-Za-z]\w*\*?!?|1|\((?:[A-Za-z]\w*!?\s*)+\)", re.ASCII)


def is_foreign(target: str) -> bool:
    """Whether a target names an operator that is none of torch's own or of this compiler."""
    return parsed(target).namespace not in _OURS


def qualified(target: str) -> str:
    """A target as torch writes it and `register_rule` takes it: `mylib::scale_rows`."""
    called = parsed(target)
    overload = "" if called.overload in ("", "default") else f".{called.overload}"
    return f"{called.namespace}::{called.name}{overload}"


def foreign_targets(graphs: Iterable[Graph]) -> dict[str, str]:
    """The foreign operators that ops of the graphs call, each with the rule that was registered for it, or nothing."""
    targets = dict.fromkeys(op.target for graph in graphs for op in graph.ops if is_foreign(op.target))
    return {target: RULES.get(target, "") for target in targets}


def whole_note(target: str) -> str:
    """That a foreign operator without a rule runs whole, and what to do about it."""
    name = qualified(target)
    return (
        f"{name} runs whole on every rank, on the whole batch: if it can be computed in parts, say along which "
        f"dimensions, as in galvatron.register_rule({name!r}, 'b* k -> b* k')"
    )


def admit(target: str) -> None:
    """Makes a foreign operator part of programs, if it is not yet: whole on every rank until a rule says more.

    Raises:
        GalvatronError: torch knows no such operator, or it is no function of tensors; says why.
    """
    if target not in ADDED:
        signature, random = _signature(target)
        add(target, signature + ("  # random" if random else ""), Operator())


def adopt(targets: Mapping[str, str]) -> None:
    """Makes the foreign operators of another process part of programs here, each with the rule that it has there.

    Raises:
        GalvatronError: torch does not know one here, or another rule was registered for it.
    """
    for target, rule in targets.items():
        admit(target)
        if RULES.get(target, "") != rule:
            name = qualified(target)
            raise GalvatronError(
                f"the rule of {name} is {RULES.get(target, '')!r} on this rank, but {rule!r} on rank 0: call "
                "galvatron.register_rule alike on every rank"
            )


def _signature(target: str) -> tuple[str, bool]:
    """The signature of an operator that torch knows, and whether it draws random numbers.

    Raises:
        GalvatronError: there is none, or it is of no use to a program.
    """
    import torch

    called = parsed(target)
    name = qualified(target)
    if called.namespace in (*_OURS, *_OF_TORCH):
        raise GalvatronError(f"{name} is an operator of torch itself, and no function of tensors")
    packet = getattr(getattr(torch.ops, called.namespace), called.name, None)
    operator = getattr(packet, called.overload, None)
    if operator is None:
        raise GalvatronError(f"torch has no operator {name}: import the library that registers it first")
    schema = operator._schema
    if schema.is_mutable:
        raise GalvatronError(f"{name} changes its operands in place: use one that returns new tensors")
    if any(value.alias_info is not None for value in (*schema.arguments, *schema.returns)):
        raise GalvatronError(f"{name} returns views of its operands: use one that returns new tensors")
    kinds = [str(value.type) for value in schema.returns]
    if not kinds or not (set(kinds) == {"Tensor"} or kinds == ["List[Tensor]"]):
        raise GalvatronError(f"{name} returns something other than tensors")
    text = str(schema)
    text = text[text.index("(") :]
    try:
        strange = [p for p in parse_schema(f"{name}{text}").parameters if p.kind not in _KINDS]
    except ValueError as error:
        raise GalvatronError(f"{name} has a parameter that a program cannot write: {error}") from None
    if needed := next((p for p in strange if p.default is REQUIRED and not p.optional), None):
        raise GalvatronError(f"{name} needs {needed.name}, a {needed.kind}, which a program cannot write")
    return text, torch.Tag.nondeterministic_seeded in operator.tags


def register_rule(operator: str, rule: str) -> None:
    """Says how an operator of another library splits: along which dimensions it may run on parts of its operands.

    Without a rule such an operator runs whole: every rank gathers its operands, computes all of it, and several
    micro-batches are refused, since they would give it a part of the batch. A rule has a term for each tensor among
    the operator's parameters, then, after `->`, one for each result:

        galvatron.register_rule("mylib::scale_rows", "b* k, k -> b* k")

    A name stands for one dimension, the same wherever it appears, and `b*` for any number of leading ones. Along each
    the operator must compute a part of its results from the same part of its operands. A name that only operands have
    is summed over: parts give terms of that sum. `k!` is never split, `(h d)` is one dimension that is the product of
    two, `1` one of size one. `~` before a term marks operands that the operator multiplies (it is linear in each, given
    the others), `+` operands that it adds; `?` after a term marks a tensor that may be absent. The rule is about the
    backward too: the gradient of an operand that lacks a dimension must be a sum over it. It is taken on trust.

    Call it before the model is captured, in every process of a job alike; the operator's own library must be imported.

    Args:
        operator: as torch calls it, `namespace::name` or `namespace::name.overload`.
        rule: empty to let the operator run whole, which is what it does anyway once a captured model calls it.

    Raises:
        GalvatronError: there is no such operator, it is no function of tensors, or the rule does not fit it.
    """
    match = _NAME.fullmatch(operator) if isinstance(operator, str) else None
    if match is None:
        raise GalvatronError(
            f"{operator!r} is no name of an operator: write namespace::name, as in 'mylib::scale_rows'"
        )
    target = f"{match['namespace']}.{match['name']}.{match['overload'] or 'default'}"
    admit(target)
    if not isinstance(rule, str):
        raise GalvatronError(f"the rule of {operator} is a text such as 'b* k, k -> b* k', not {type(rule).__name__}")
    if not rule.strip():
        RULES.pop(target, None)
        dims = None
    else:
        dims = _dims(operator, schema_of(target), rule)
        RULES[target] = rule
    know(target, Operator(dims))


def _dims(operator: str, schema: Schema, rule: str) -> Any:
    """The rule as a function of a call, which has the tensors among its parameters in order."""
    tensors = [p.name for p in schema.parameters if p.kind == "Tensor"]

    def refuse(problem: str) -> GalvatronError:
        return GalvatronError(f"the rule {rule!r} of {operator}: {problem}")

    if any(p.kind == "Tensor" and p.length is not None for p in schema.parameters) or schema.results is None:
        raise refuse("an operator with lists of tensors has no rule")
    if rule.count("->") != 1:
        raise refuse("it has operands and results on the two sides of one '->'")
    for side in rule.split("->"):
        for term in side.split(","):
            rest = _DIM.sub(" ", term.strip().lstrip("~+").rstrip("?"))
            if rest.strip():
                raise refuse(f"{rest.strip().split()[0]!r} means nothing in it")
    notation = parse_notation(rule)
    if len(notation.operands) != len(tensors):
        raise refuse(f"it has {len(notation.operands)} operands, but the operator has {', '.join(tensors) or 'none'}")
    if len(notation.results) != schema.results:
        raise refuse(f"it has {len(notation.results)} results, but the operator gives {schema.results}")
    known = {name for term in notation.operands for names in term.dims for name in names}
    for name in (name for term in notation.results for names in term.dims for name in names):
        if name not in known:
            raise refuse(f"no operand has the dimension {name!r} of a result; {did_you_mean(name, known)}")
    return lambda call: _resolved(call, notation, tensors)


def _resolved(call: Call, notation: Notation, tensors: list[str]) -> OpDims:
    arguments = [call.arguments[name] for name in tensors]
    return notation.resolve(
        tuple(call.types[arg.name].shape if isinstance(arg, Ref) else None for arg in arguments), call.results
    )
