"""The op graph: an immutable, straight-line list of ATen ops in static single assignment form.

Unlike `torch.fx.Graph` a `Graph` is a value: hashable, comparable, free of torch objects, and shared between the layers
that use it. Ops are named by their ATen overload (`aten.linear.default`); collectives live in the `comm.` namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from galvatron.ir.layout import Layout
from galvatron.ir.ops.arguments import Arg, Const, Ref, map_refs, typed, walk_refs
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.schemas import arranged, bound, signature
from galvatron.ir.ops.targets import parsed
from galvatron.ir.types import TensorType

__all__ = ["Arg", "Const", "Function", "Graph", "Op", "Ref", "Source", "Value", "map_refs", "walk_refs"]


@dataclass(frozen=True)
class Value:
    """A tensor with a name; `layout` is set once the graph is sharded, and `type` is then the local type."""

    name: str
    type: TensorType
    layout: Layout | None = None


@dataclass(frozen=True)
class Source:
    """Where an op comes from in the user's model: file, line, the text of that line, and the module path."""

    file: str
    line: int
    code: str = ""
    scope: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Op:
    """One operation. `source` says where it comes from and takes no part in comparison.

    An op `function.NAME` calls the `function` of this name, with a tensor for each of its operands.
    """

    target: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    results: tuple[Value, ...]
    source: Source | None = None
    function: Function | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Op) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        arguments = typed(self.args), tuple((k, typed(v)) for k, v in self.kwargs)
        return (self.target, *arguments, self.results, self.function)

    @property
    def namespace(self) -> str:
        """`aten`, `random`, `spmd`, `comm`, `step` or `function` (see `ops.targets`)."""
        return parsed(self.target).namespace

    @property
    def name(self) -> str:
        """The operator's name, the same in all namespaces and of all overloads: `add`."""
        return parsed(self.target).name

    @property
    def overload(self) -> str:
        return parsed(self.target).overload

    @cached_property
    def arguments(self) -> dict[str, Arg]:
        """The arguments by parameter, in the order of the schema and defaults included."""
        if self.function is not None:
            return {v.name: arg for v, arg in zip(self.function.forward.inputs, self.args, strict=False)}
        return bound(self.target, self.args, dict(self.kwargs))

    def __getitem__(self, parameter: str) -> Arg:
        """The argument for a parameter, however it is passed; its default where it is not.

        Raises:
            KeyError: the operator has no such parameter.
        """
        return self.arguments[parameter]

    def get(self, parameter: str) -> Arg:
        """The argument for a parameter, None where the operator has no such parameter."""
        return self.arguments.get(parameter)

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the values read, in argument order, with repeats."""
        return tuple(ref.name for ref in walk_refs((self.args, tuple(v for _, v in self.kwargs))))

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    def kwarg(self, name: str, default: Arg = None) -> Arg:
        return dict(self.kwargs).get(name, default)

    def changed(self, /, **arguments: Arg) -> Op:
        """The same op with other arguments for some parameters, among those that it is given."""
        return replace(
            self,
            args=tuple(arguments.get(name, arg) for name, arg in zip(self.arguments, self.args, strict=False)),
            kwargs=tuple((k, arguments.get(k, v)) for k, v in self.kwargs),
        )

    def by_position(self) -> Op:
        """The same op as its text reads back: arguments by position where their parameters have one."""
        schema = signature(self.target) if self.kwargs else None
        if schema is None:
            return self
        args, kwargs = arranged(schema.parameters, self.args, dict(self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def map_refs(self, rename: Callable[[str], str]) -> Op:
        """The same op reading (not defining) renamed values."""
        return replace(
            self,
            args=tuple(map_refs(a, rename) for a in self.args),
            kwargs=tuple((k, map_refs(v, rename)) for k, v in self.kwargs),
        )


@dataclass(frozen=True)
class Graph:
    """Ops in order of execution. `inputs` are data, `state` are parameters and buffers; all names are unique."""

    inputs: tuple[Value, ...]
    state: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]

    @cached_property
    def values(self) -> dict[str, Value]:
        """Every value by name: inputs, state, results."""
        table = {v.name: v for v in (*self.inputs, *self.state)}
        for op in self.ops:
            table.update((v.name, v) for v in op.results)
        return table

    @cached_property
    def types(self) -> dict[str, TensorType]:
        """The type of every value by name."""
        return {name: value.type for name, value in self.values.items()}

    @cached_property
    def producers(self) -> dict[str, Op]:
        """The op that defines each result."""
        return {v.name: op for op in self.ops for v in op.results}

    @cached_property
    def consumers(self) -> dict[str, tuple[Op, ...]]:
        """The ops that read each value, in order, each once; values nobody reads map to ()."""
        table: dict[str, list[Op]] = {name: [] for name in self.values}
        for op in self.ops:
            for name in dict.fromkeys(op.operands):
                table[name].append(op)
        return {name: tuple(ops) for name, ops in table.items()}

    def without_outputs(self, names: frozenset[str]) -> Graph:
        """The same graph without some of its outputs, and without the ops that only these need."""
        if names.isdisjoint(self.outputs):
            return self
        return replace(self, outputs=tuple(n for n in self.outputs if n not in names)).without_dead_ops()

    def part(self, ops: Sequence[Op]) -> Graph:
        """Some of its ops by themselves: on what they read of others, for what others read of them."""
        own, state, readers = set(ops), {value.name for value in self.state}, self.consumers
        results = dict.fromkeys(value.name for op in ops for value in op.results)
        given = [name for name in dict.fromkeys(n for op in ops for n in op.operands) if name not in results]
        return Graph(
            inputs=tuple(self.values[name] for name in given if name not in state),
            state=tuple(self.values[name] for name in given if name in state),
            ops=tuple(ops),
            outputs=tuple(n for n in results if n in self.outputs or not own.issuperset(readers[n])),
        )

    def without_dead_ops(self) -> Graph:
        """The same graph with only the ops that the outputs need."""
        live = set(self.outputs)
        kept: list[Op] = []
        for op in reversed(self.ops):
            if any(v.name in live for v in op.results):
                kept.append(op)
                live.update(op.operands)
        return replace(self, ops=tuple(reversed(kept)))


@dataclass(frozen=True)
class Function:
    """A function whose backward is its own and not what follows from its forward: what an op `function.NAME` calls.

    `forward` makes of the operands first the `results` results, then what is saved for the backward. `backward` reads
    what is saved, under the names that it has in `forward`, then a gradient of each floating result, and makes the
    gradients of the operands at the positions `differentiated`; no others have one. Neither has state.

    `dims` are the dimensions along which it may run on slices, and `linear` says whether its backward is known to be
    linear in the gradients that it is given; both follow from the graphs (see `ir.functions`).
    """

    name: str
    forward: Graph
    backward: Graph
    results: int
    differentiated: tuple[int, ...]
    dims: OpDims | None = field(default=None, compare=False, repr=False)
    linear: bool = field(default=False, compare=False, repr=False)

    @property
    def target(self) -> str:
        """What an op that calls it has for its target."""
        return f"function.{self.name}"

    @property
    def saved(self) -> tuple[str, ...]:
        """The values that the backward reads of the forward."""
        return self.forward.outputs[self.results :]

    @property
    def made(self) -> tuple[Value, ...]:
        """The results, as values of `forward`."""
        return tuple(self.forward.values[name] for name in self.forward.outputs[: self.results])

    @property
    def gradients(self) -> tuple[Value, ...]:
        """The gradients of the floating results, as inputs of `backward`."""
        return self.backward.inputs[len(self.saved) :]
