"""The operators of `aten` that a program may contain: a table of pure functions of tensors, with their signatures.

`operators.txt` has a line for each, in torch's own notation: `add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1)
-> Tensor  # pointwise`. It is made from the schemas of torch (`tests/ir/ops/operators.py` has the criteria): nothing in
it writes to its arguments, to files or to anything else, so whatever a program from a file says may be computed. An
operator that is not in it is in no program, unless the program's user adds it (`table.add`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from galvatron.ir.ops.arguments import Arg, Const
from galvatron.ir.ops.targets import parsed

CONSTANTS = frozenset(
    Const("memory_format", name)
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
) | {Const("layout", "strided")}
"""Constants of torch that an op may be given beside element types."""


MEANINGLESS = frozenset({"cudnn_enable", "cudnn_enabled", "non_blocking"})
"""Parameters that choose a kernel, not a result."""


class Required:
    """The default of a parameter that has none."""


REQUIRED = Required()


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operator.

    `kind` is what torch calls its type, without what the other fields say of it: `Tensor`, `int`, `Scalar`. `length` is
    None for a single value; for a list, how often a single value may stand in it, 0 if none may.
    """

    name: str
    kind: str
    length: int | None = None
    optional: bool = False
    optional_items: bool = False
    keyword_only: bool = False
    default: Arg | Required = REQUIRED


@dataclass(frozen=True)
class Schema:
    """The signature of an operator; `results` is the number of tensors it returns, None for a list of any length.

    `pointwise`: each element of the result follows from those at its place, after broadcasting. `random`: it draws
    random numbers, at least if its arguments say so.
    """

    parameters: tuple[Parameter, ...]
    results: int | None
    pointwise: bool = False
    random: bool = False

    def bound(self, args: tuple[Arg, ...], kwargs: dict[str, Arg]) -> dict[str, Arg]:
        """Arguments that fit, by parameter and in the order of these, defaults included."""
        defaults = {p.name: None if isinstance(p.default, Required) else p.default for p in self.parameters}
        return defaults | {p.name: a for p, a in zip(self.parameters, args, strict=False)} | kwargs


Arguments = tuple[tuple[Arg, ...], tuple[tuple[str, Arg], ...]]
"""What an op is given by position, and by keyword."""


def arranged(parameters: Sequence[Parameter], args: Sequence[Arg], named: Mapping[str, Arg]) -> Arguments:
    """Arguments as an op has them: by position where its parameter has one, with the defaults of those between.

    Behind one that is missing and has no default, arguments stay by name.
    """
    found, others = list(args), dict(named)
    behind = [p for p in parameters[len(args) :] if not p.keyword_only]
    count = max((place for place, p in enumerate(behind, 1) if p.name in named), default=0)
    for parameter in behind[:count]:
        if parameter.name not in others and isinstance(parameter.default, Required):
            break
        found.append(others.pop(parameter.name, parameter.default))  # type: ignore[arg-type]  # none that is required
    return tuple(found), tuple(others.items())


def operators() -> Collection[str]:
    """Every operator of the table, as `<name>.<overload>`."""
    return _lines().keys()


@cache
def _lines() -> dict[str, str]:
    text = files("galvatron.ir.ops").joinpath("operators.txt").read_text(encoding="utf-8")
    return {line.partition("(")[0]: line for line in text.splitlines()}


ADDED: dict[str, Schema] = {}
"""The signatures of operators of other namespaces than `aten`, by target."""


def is_operator(target: str) -> bool:
    """Whether an operator may stand in a program: `aten.<name>.<overload>` of the table, or one that was added."""
    called = parsed(target)
    return target in ADDED or (called.namespace == "aten" and called.short in _lines())


def schema_of(target: str) -> Schema:
    """The signature of an operator that may stand in a program."""
    return ADDED[target] if target in ADDED else _schema(parsed(target).short)


@cache
def _schema(short: str) -> Schema:
    return parse_schema(_lines()[short])


@cache
def whole_target(target: str) -> str:
    """The operator whose counterpart in a sharded graph this is; any other as it is, its overload written out."""
    called = parsed(target)
    if called.namespace not in ("aten", "random", "spmd"):
        return target
    short = f"{called.name}.{called.overload or 'default'}"
    own = f"galvatron.{short}"
    return own if called.namespace == "spmd" and own in _OWN else f"aten.{short}"


def signature(target: str) -> Schema | None:
    """The signature of an operator or of the one whose counterpart in a sharded graph it is, if there is one."""
    target = whole_target(target)
    return schema_of(target) if is_operator(target) else None


def bound(target: str, args: tuple[Arg, ...], kwargs: dict[str, Arg]) -> dict[str, Arg]:
    """Arguments by parameter, defaults included; only those that are named where there is no signature."""
    schema = signature(target)
    return kwargs if schema is None else schema.bound(args, kwargs)


_PARAMETER = re.compile(
    r"(?P<kind>\w+)(\([^)]*\))?(?P<items>\?(?=\[))?(?P<list>\[(?P<length>\d*)\])?(?P<optional>\?)? (?P<name>\w+)"
    r"(=(?P<default>.*))?"
)


def parse_schema(line: str) -> Schema:
    """Reads a line of the table.

    Raises:
        ValueError: it is none.
    """
    signature, _, traits = line.partition("  # ")
    parameters, _, returns = signature.partition("(")[2].rpartition(") -> ")
    found: list[Parameter] = []
    keyword_only = False
    for part in _split(parameters):
        if part == "*":
            keyword_only = True
        else:
            found.append(_parameter(part, keyword_only))
    results = None if returns.endswith("[]") else 1 + returns.count(", ")
    return Schema(tuple(found), results, "pointwise" in traits, "random" in traits)


def _split(text: str) -> Iterator[str]:
    """The parts between commas outside of brackets and quotes."""
    yield from re.findall(r'(?:[^,\["]|\[[^\]]*\]|"[^"]*")+', text.replace(", ", ","))


def _parameter(text: str, keyword_only: bool) -> Parameter:
    match = _PARAMETER.fullmatch(text)
    if match is None:
        raise ValueError(f"no parameter: {text!r}")
    length = int(match["length"] or 0) if match["list"] else None
    default = REQUIRED if match["default"] is None else _default(match["default"])
    if length and isinstance(default, int):
        default = (default,) * length
    if match["kind"] == "MemoryFormat" and default == 0:
        default = Const("memory_format", "contiguous_format")
    return Parameter(
        match["name"], match["kind"], length, bool(match["optional"]), bool(match["items"]), keyword_only, default
    )


_DEFAULTS: dict[str, Arg] = {"None": None, "True": True, "False": False, "inf": float("inf")}


def _default(text: str) -> Arg:
    if text in _DEFAULTS:
        return _DEFAULTS[text]
    if text.startswith("["):
        return tuple(_default(item) for item in _split(text[1:-1]))
    number = re.fullmatch(r"-?\d+(\.\d*)?(e-?\d+)?", text)
    if number:
        return float(text) if "." in text or "e" in text else int(text)
    return text.strip('"')


_OWN = {
    "step.either": "either(Tensor trained, Tensor evaluated) -> Tensor  # pointwise",
    "galvatron.grouped_linear.default": "grouped_linear(Tensor rows, Tensor weight, Tensor ids) -> Tensor",
}
"""The operators of this package, which torch does not have."""

ADDED.update((target, parse_schema(line)) for target, line in _OWN.items())
