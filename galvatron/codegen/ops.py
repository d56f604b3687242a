"""One op of the IR as Python text."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType

import sympy

from galvatron.codegen.expressions import print_expression
from galvatron.codegen.forms import Spelling, forms
from galvatron.codegen.layout import Brackets, Text, call, list_of, prefixed, tuple_of
from galvatron.codegen.names import attribute, literal
from galvatron.errors import GalvatronError
from galvatron.ir.either import EITHER
from galvatron.ir.graph import Arg, Const, Function, Op, Ref, Value
from galvatron.ir.ops.schemas import MEANINGLESS, Required, is_operator, schema_of
from galvatron.ir.ops.table import operator_of
from galvatron.ir.random import without_site
from galvatron.ir.recompute import Step
from galvatron.ir.spmd import on_slices
from galvatron.ir.text.targets import is_known_target, unknown_target
from galvatron.ir.types import TORCH_DTYPE_NAMES, lengths_in, numbers_in

_REDUCTIONS = ("none", "mean", "sum")

_FUNCTION = re.compile(r"(F|torch|rt)\.[\w.]+\(")
"""The opening of a call of a function, not of a method."""

IN_TRAINING = "training"
"""The keyword by which a function is told whether the running step trains."""

ASKED = "asked"
"""The keyword by which a function is told whether the running step is to give what the model returns."""

_UNWRITTEN = 2**63 - 1
"""The `end` of a slice that goes to the end."""


class OpPrinter:
    """Writes ops over named values.

    Args:
        identifiers: the Python name of each value, of each mesh axis under `("axis", name)`, and of each number and
            length of the batch under `("number", name)`.
        values: every value of the graph by name.
        device: Python text for the device of tensors created from nothing.
        waiting: weights whose gradients may be computed later than those of other operands.
        own: the Python classes of functions with a backward of their own.
    """

    def __init__(
        self,
        identifiers: Callable[[Hashable], str],
        values: Mapping[str, Value],
        device: str,
        waiting: frozenset[str] = frozenset(),
        own: Mapping[Function, str] = MappingProxyType({}),
    ) -> None:
        self._identifier = identifiers
        self._values = values
        self._device = device
        self._waiting = waiting
        self._own = own

    def expression(self, op: Op) -> Text:
        """The right-hand side of the op's assignment.

        Raises:
            GalvatronError: it is not among the ops that a program may contain.
        """
        if op.function is not None:
            return call(f"{self._own[op.function]}.apply", map(self.argument, op.args))
        if not is_known_target(op.target):
            raise GalvatronError(unknown_target(op.target))
        if op.target == EITHER:
            trained, evaluated = map(self.argument, op.args)
            return f"{trained} if {IN_TRAINING} else {evaluated}"
        if op.namespace == "comm":
            return self._collective(op)
        if op.namespace == "spmd":
            return self._spmd(self._switched(op))
        if self._waits(op):
            return call(f"rt.{op.name}", [self.argument(a) for a in op.args])
        op = self._with_explicit_dtype(without_site(self._switched(op)))
        return self._by_form(op) or self._fallback(op)

    def step(self, op: Op, kind: Step) -> Text:
        """The op as a step that a recomputed layer does not compute again: `rt.keep(function, arguments, ...)`."""
        plain = without_site(self._switched(op))
        written = self.expression(op)
        if not isinstance(written, Brackets) or not _FUNCTION.fullmatch(written.opening):
            # An operator or a method: the function behind it.
            written = (
                call("torch.matmul", map(self.argument, op.args)) if "@" in str(written) else self._fallback(plain)
            )
        assert isinstance(written, Brackets)
        return call(f"rt.{kind}", [written.opening.removesuffix("("), *written.items])

    def draw(self, op: Op) -> Text:
        """The context in which an op that draws random numbers runs."""
        axes = op.kwarg("axes")
        assert isinstance(axes, tuple)
        written: list[Text] = ["seed", prefixed("site=", self.argument(op.kwarg("site")))]
        written += [prefixed("axes=", tuple_of(self._identifier(("axis", axis)) for axis in axes))] if axes else []
        written += ["per_step=True"] if op.kwarg("per_step") else []
        return call("rt.seeded", written)

    def returns_list(self, op: Op) -> bool:
        """Whether a single result must be unpacked."""
        return is_operator(op.target) and schema_of(op.target).results is None

    def argument(self, arg: Arg, *, atomic: bool = False) -> Text:
        """An argument; `atomic` makes it fit to stand beside an operator."""
        if isinstance(arg, Ref):
            return self._identifier(arg.name)
        if isinstance(arg, Const):
            return f"torch.{attribute(TORCH_DTYPE_NAMES.get(arg.name, arg.name) if arg.kind == 'dtype' else arg.name)}"
        if isinstance(arg, tuple):
            if any(isinstance(a, Ref) for a in arg):
                return list_of(self.argument(a) for a in arg)
            return tuple_of(self.argument(a) for a in arg)
        if isinstance(arg, _Written):
            return str(arg)
        if isinstance(arg, str):
            return literal(arg)
        if isinstance(arg, (bool, type(None))):
            return repr(arg)
        given: list[tuple[sympy.Symbol, str]] = [(number, number.parameter) for number in numbers_in(arg)]
        given += [(length, length.name) for length in lengths_in(arg)]
        numbers = {symbol: self._identifier(("number", name)) for symbol, name in given}
        return print_expression(arg, atomic=atomic, numbers=numbers)

    def _switched(self, op: Op) -> Op:
        """An op that is another one in training, with the seed or the running step to say whether this is training."""
        switch = operator_of(op).in_training
        if switch and op[switch] is True:
            return op.changed(**{switch: _Written(IN_TRAINING)})
        draws = operator_of(op).draws if op.namespace == "random" else None
        if draws is None or draws.switch is None:
            return op
        value = op[draws.switch]
        written = "seed.training" if value is True else f"seed.rate({self.argument(value)})"
        return op.changed(**{draws.switch: _Written(written)})

    def _waits(self, op: Op) -> bool:
        """Whether the op is a product with weights whose gradients may wait."""
        weights = [op[name] for name in operator_of(op).weights if op[name] is not None]
        plain = op.overload == "default" and not op.kwargs
        return bool(weights) and plain and all(isinstance(w, Ref) and w.name in self._waiting for w in weights)

    def _collective(self, op: Op) -> Text:
        axis = op.kwarg("axis")
        written: list[Text] = [self.argument(op.args[0]), self._identifier(("axis", axis))]
        for name, value in op.kwargs:
            if name != "axis" and not (name.endswith("outer") and value == 1):
                written.append(prefixed(f"{attribute(name)}=", self.argument(value)))
        return call("rt." + attribute(op.name), written)

    def _spmd(self, op: Op) -> Text:
        axis = prefixed("axis=", self._identifier(("axis", op.kwarg("axis"))))
        written = [self.argument(a) for a in op.args]
        written += [
            prefixed(f"{attribute(name)}=", self.argument(value)) for name, value in op.kwargs if name != "axis"
        ]
        name = on_slices(op).function or op.name
        return call("rt." + attribute(name), [*written, axis])

    def _with_explicit_dtype(self, op: Op) -> Op:
        """An op that creates a tensor with its element type spelled out, so that torch's default type plays no part."""
        if op.operands or op.kwarg("dtype") is not None:
            return op
        numbers = [a for a in (*op.args, *(v for _, v in op.kwargs)) if isinstance(a, (int, float, sympy.Expr))]
        whole = all(isinstance(n, int) or (isinstance(n, sympy.Expr) and n.is_integer) for n in numbers)
        if operator_of(op).counts and whole and op.result.type.dtype == "i64":
            return op
        kwargs = tuple((k, v) for k, v in op.kwargs if k != "dtype")
        dtype = ("dtype", Const("dtype", op.result.type.dtype))
        return Op(op.target, op.args, (*kwargs, dtype), op.results, op.source)

    def _by_form(self, op: Op) -> Text | None:
        """The op in the first form of the table that can say it, or None."""
        return next(filter(None, (self._in_form(op, form) for form in forms(op.target))), None)

    def _in_form(self, op: Op, form: Spelling) -> Text | None:
        defaults = {p.name: p.default for p in schema_of(op.target).parameters}
        given = {name: value for name, value in op.arguments.items() if not _same(value, defaults.get(name))}
        if not form.needed <= given.keys() <= form.written | MEANINGLESS:
            return None
        if form.operator:
            return self._operator(form, op)
        if form.brackets:
            return self._bracketed(form, op)
        return self._call(form, op, given)

    def _operator(self, form: Spelling, op: Op) -> Text:
        operands = [str(self.argument(op[name], atomic=True)) for name in form.positional]
        if len(operands) == 1:
            return form.operator + operands[0]
        tight = form.operator == "**" and not any("(" in o for o in operands)
        return f"{operands[0]}{form.operator if tight else f' {form.operator} '}{operands[1]}"

    def _call(self, form: Spelling, op: Op, given: dict[str, Arg]) -> Text:
        written: list[Text] = []
        positional = list(form.positional)
        while positional and positional[-1] not in given:
            positional.pop()
        written += [self.argument(op[name]) for name in positional]
        if operator_of(op).reads_memory:
            written[0] = f"{written[0]}.contiguous()"
        if form.spread:
            items = given[form.spread]
            if not isinstance(items, tuple):
                raise GalvatronError(f"op {op.target!r}: {form.spread!r} is not a list")
            # A call cannot say "no dimensions" by spreading an empty list: `x.view()` is an error, `x.view(())` is not.
            written.extend([self.argument(a) for a in items] if items else ["()"])
        for name in form.keywords:
            if name == "device" and not op.operands:
                written.append(f"device={self._device}")
            elif name in given:
                written.append(prefixed(f"{name}=", self._keyword(name, given[name])))
        if form.receiver:
            receiver = self.argument(given[form.receiver])
            return call(f"{receiver}.{form.function}", written)
        return call(form.function, written)

    def _keyword(self, name: str, value: Arg) -> Text:
        if name == "reduction" and isinstance(value, int):
            return f'"{_REDUCTIONS[value]}"'
        if name == "dim" and isinstance(value, tuple) and len(value) == 1:
            return self.argument(value[0])
        return self.argument(value)

    def _fallback(self, op: Op) -> Text:
        """`torch.ops.<namespace>.<name>.<overload>(...)`, which can say anything."""
        written = [self.argument(a) for a in op.args]
        if operator_of(op).reads_memory:
            written[0] = f"{written[0]}.contiguous()"
        written += [prefixed(f"{attribute(name)}=", self.argument(value)) for name, value in op.kwargs]
        if not op.operands:
            written.append(f"device={self._device}")
        return call(f"torch.ops.{attribute(op.target)}", written)

    def _bracketed(self, form: Spelling, op: Op) -> Text | None:
        """Python's square brackets: at one dimension, or with index tensors."""
        if "dim" not in form.brackets:
            return self._index(op)
        item = self._stretch(op) if "step" in form.brackets else str(self.argument(op["index"]))
        return self._brackets(op["self"], op["dim"], item)

    def _stretch(self, op: Op) -> str:
        start, end, step = op["start"], op["end"], op["step"]
        bounds = [
            "" if start in (None, 0) else str(self.argument(start)),
            "" if end in (None, _UNWRITTEN) else str(self.argument(end)),
        ]
        # Formatters put spaces around the colon when a bound is more than a name or a number.
        colon = " : " if any(" " in b for b in bounds) else ":"
        return colon.join(bounds).strip() + (f":{self.argument(step)}" if step != 1 else "")

    def _brackets(self, source: Arg, dim: Arg, item: str) -> Text:
        """`x[:, item]`, or `x[..., item]` for the last of more than two dimensions."""
        assert isinstance(source, Ref) and isinstance(dim, int)
        rank = len(self._values[source.name].type.shape)
        before = ["..."] if dim == rank - 1 and rank > 2 else [":"] * (dim % rank)
        return f"{self._identifier(source.name)}[{', '.join([*before, item])}]"

    def _index(self, op: Op) -> Text | None:
        source, indices = op["self"], op["indices"]
        if not isinstance(source, Ref) or not isinstance(indices, tuple):
            return None
        while indices and indices[-1] is None:
            indices = indices[:-1]
        if not indices or not all(i is None or (isinstance(i, Ref) and self._rank(i)) for i in indices):
            return None
        items = (":" if i is None else str(self.argument(i)) for i in indices)
        return Brackets(f"{self._identifier(source.name)}[", tuple(items), "]")

    def _rank(self, ref: Ref) -> int:
        return len(self._values[ref.name].type.shape)


class _Written(str):
    """An argument as Python text."""


def _same(value: Arg, default: Arg | Required) -> bool:
    if isinstance(value, (int, float)) and isinstance(default, (int, float)):
        return float(value) == float(default) and isinstance(value, bool) == isinstance(default, bool)
    return type(value) is type(default) and value == default
