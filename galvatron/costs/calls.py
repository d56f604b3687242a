"""What one op of a local graph does when it is called, and when its backward runs: watched by itself, once.

All that calls of equal ops on equal tensors do is equal, so that what is found here serves every layer, strategy and
kind of recomputation that has such a call. `costs.composed` puts the calls of a graph together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple
from weakref import finalize, ref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from galvatron.costs.acts import (
    Act,
    Backward,
    Dispatched,
    Form,
    Forms,
    Gave,
    Gone,
    Made,
    Read,
    Released,
    Result,
    Saved,
    Step,
    StepEnd,
)
from galvatron.costs.sending import communicated, find_routes, is_uneven
from galvatron.costs.watch import Watch
from galvatron.ir.collectives import ALSO
from galvatron.ir.fakes import described
from galvatron.ir.graph import Graph, Op, Ref, Value, map_refs
from galvatron.ir.interpreter import run_graph
from galvatron.ir.layout import Axis
from galvatron.ir.ops.arguments import typed
from galvatron.ir.ops.kernels import call_on
from galvatron.ir.ops.table import derived
from galvatron.ir.random import without_site
from galvatron.ir.skew import EVEN
from galvatron.ir.types import TensorType
from galvatron.recompute import running

ANY_AXIS = "any"
"""What an op that is watched by itself calls the axis that it communicates on."""


class Setting(NamedTuple):
    """Where calls run: the kind of device, whether `torch.compile` compiles them, where torch is to show what runs
    (`cpu` or `meta`), the local batch size, and how unevenly rows choose (`galvatron.ir.skew`)."""

    kind: str
    compiled: bool
    on: str
    batch: int
    skew: float = EVEN


@dataclass(frozen=True, eq=False)
class Called:
    """What an op calls, whatever its operands are named, and on whatever axis it communicates; one object for all equal
    ones. `operands` are numbered as they are first read."""

    op: Op
    ranks: int
    finds_route: bool = False

    @staticmethod
    def of(op: Op, ranks: int, finds_route: bool = False) -> Called:
        """What an op of a local graph calls.

        Args:
            ranks: of the axis that it communicates on.
            finds_route: whether the ranks do not know yet how many rows go where.
        """
        op = without_site(op)
        places = {name: str(i) for i, name in enumerate(dict.fromkeys(op.operands))}
        talks = op.namespace in ("comm", "spmd")
        types = tuple(value.type if talks else None for value in op.results)
        args = tuple(map_refs(arg, places.__getitem__) for arg in op.args)
        kwargs = tuple(
            (key, ANY_AXIS if talks and key == "axis" else map_refs(arg, places.__getitem__)) for key, arg in op.kwargs
        )
        key = (
            op.target,
            typed(args),
            tuple((k, typed(arg)) for k, arg in kwargs),
            types,
            op.function,
            ranks,
            finds_route,
        )
        return _called(_Key(key, replace(op, args=args, kwargs=kwargs)))

    @property
    def uneven(self) -> bool:
        """Whether what it does depends on how many rows choose something of the rank."""
        return is_uneven(self.op)

    def graph(self) -> Graph:
        """The op alone, as a graph."""
        operands = dict.fromkeys(self.op.operands)
        results = tuple(replace(v, name=f"result{i}") for i, v in enumerate(self.op.results))
        inputs = tuple(Value(name, TensorType("f32", ())) for name in operands)
        return Graph(inputs, (), (replace(self.op, results=results),), tuple(v.name for v in results))


@dataclass(frozen=True)
class _Key:
    """What tells calls apart, and one op that calls so."""

    key: tuple[object, ...]
    op: Op

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@derived(maxsize=1 << 16)
def _called(key: _Key) -> Called:
    *_, ranks, finds_route = key.key
    return Called(key.op, ranks, finds_route)  # type: ignore[arg-type]  # as `Called.of` has them


class Call:
    """A call of an op on operands of some forms."""

    def __init__(self, called: Called, setting: Setting, operands: tuple[Form, ...]) -> None:
        self._run, self._setting, self._operands = _function(called, setting), setting, operands
        self._backwards: dict[Forms, Backward] = {}
        made = self._made()
        self.forward, self.results = made.acts, made.forms
        self._waiting = made if self.own else None
        """The call as it was made, until its first backward: only that says which gradients reach it."""

    @cached_property
    def own(self) -> tuple[int, ...]:
        """The numbers of the results whose gradients its backward takes: those with one that are no operand."""
        return tuple(i for i, r in enumerate(self.results) if r and r.form.differentiable and r.operand is None)

    @cached_property
    def saved(self) -> tuple[int, ...]:
        """The storages of what it saves."""
        return tuple(act.storage for act in self.forward if isinstance(act, Saved))

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """The numbers of the operands that have a gradient."""
        return tuple(i for i, form in enumerate(self._operands) if form.differentiable)

    def backward(self, gradients: Forms) -> Backward:
        """What its backward does.

        Args:
            gradients: the forms of those that are there before it: of each result in `own`, and of each operand in
                `leaves`, to which it adds.
        """
        if gradients not in self._backwards:
            made, self._waiting = self._waiting or self._made(), None
            self._backwards[gradients] = made.backward(gradients, self.own, self.leaves)
        return self._backwards[gradients]

    def _made(self) -> _Forward:
        """Makes the call, watched."""
        shown, acts = Shown(self._setting.on), list[Any]()
        watch = _Acts(acts, self._setting.kind)
        with shown:
            operands = [form.tensor(shown.on) for form in self._operands]
            for operand in operands:
                watch.keep(operand)
            with watch, torch.autograd.graph.saved_tensors_hooks(watch.pack, watch.unpack), running(watch):
                results = self._run(operands, watch)
            forms = tuple(_result(result, operands, watch) for result in results)
        return _Forward(shown, watch, operands, results, tuple(acts), forms)


@dataclass(frozen=True, eq=False)
class _Forward:
    """A call that was made: what that did, and what its backward needs."""

    shown: Shown
    watch: _Acts
    operands: list[torch.Tensor]
    results: list[torch.Tensor]
    acts: tuple[Act, ...]
    forms: tuple[Result | None, ...]

    def backward(self, gradients: Forms, own: Sequence[int], leaves: Sequence[int]) -> Backward:
        """Runs its backward, of which there is one; see `Call.backward`."""
        with self.shown:
            arrived = _Arrived(self.watch, gradients, self.shown.on)
            ends = [*(self.results[i] for i in own), *(self.operands[i] for i in leaves)]
            root = _Arrive.apply(arrived, *(end for end, form in zip(ends, gradients, strict=True) if form))
            self.results.clear()
            ends.clear()
            return _backward(self.watch, arrived, root, self.operands)


def _result(result: torch.Tensor | None, operands: Sequence[torch.Tensor], watch: Watch) -> Result | None:
    if not isinstance(result, torch.Tensor):
        return None
    same = next((i for i, operand in enumerate(operands) if operand is result), None)
    return Result(watch.number(result), Form.of(result), same)


def _backward(watch: _Acts, arrived: _Arrived, root: torch.Tensor, operands: Sequence[torch.Tensor]) -> Backward:
    """Runs the backward of a call."""
    watch.events = acts = []
    first = watch.next_number
    leaves = {i: operand for i, operand in enumerate(operands) if operand.requires_grad}

    def gave(operand: int, gradient: torch.Tensor | None) -> torch.Tensor | None:
        """Notes a gradient, and lets something go on that holds no memory of it; a function may give none."""
        if gradient is None:
            return None
        acts.append(Gave(operand, watch.number(gradient), Form.of(gradient), arrived.place(gradient)))
        begun = len(acts)
        # `new_empty`, as `ones_like` below, is written in Python where tensors have no memory.
        instead = torch.empty((), dtype=gradient.dtype, device=gradient.device).expand(gradient.shape)
        del acts[begun:]
        return instead

    hooks = [operand.register_hook(partial(gave, i)) for i, operand in leaves.items()]
    whole = torch.ones(root.shape, device=root.device)
    with watch:
        torch.autograd.grad(root, list(leaves.values()), whole, allow_unused=True)
    for hook in hooks:
        hook.remove()
    # What the forward made is there as long as others need it, which a call by itself does not know.
    return Backward(tuple(a for a in acts if not isinstance(a, Gone) or a.storage >= first), arrived.numbers)


@derived(maxsize=1 << 12)
def accumulated(setting: Setting, leaf: Form, gradient: Form, *, shared: bool) -> Backward:
    """What autograd does with the whole gradient of what is given to a graph; `Gave` then says what it leaves.

    Args:
        shared: whether the gradient's tensor is somebody else's gradient too.
    """
    with Shown(setting.on):
        acts: list[Any] = []
        watch = _Acts(acts, setting.kind)
        given = leaf.tensor(setting.on)
        watch.keep(given)
        arrived = _Arrived(watch, (gradient,), setting.on, shared=shared)

        def made(tensor: torch.Tensor) -> None:
            assert tensor.grad is not None
            acts.append(Gave(0, watch.number(tensor.grad), Form.of(tensor.grad), 0))
            tensor.grad = None

        given.register_post_accumulate_grad_hook(made)
        root = _Arrive.apply(arrived, given)
        whole = torch.ones(root.shape, device=root.device)
        with watch:
            root.backward(whole)
        return Backward(tuple(acts), arrived.numbers)


class _Acts(Watch):
    """Lists all that a call does."""

    def __init__(self, events: list[Any], kind: str) -> None:
        super().__init__(events, kind)
        self._places = 0

    @property
    def next_number(self) -> int:
        """The number of the next storage."""
        return self._next

    def dispatched(self, *, view: bool = False) -> None:
        self.events.append(Dispatched(view))

    def made(self, number: int, size_bytes: int) -> None:
        self.events.append(Made(number, size_bytes))

    def gone(self, number: int) -> None:
        self.events.append(Gone(number))

    def pack(self, tensor: torch.Tensor) -> _Packed:
        """What autograd holds of a tensor that it saves."""
        packed = _Packed(tensor, self._places)
        self._places += 1
        self.events.append(Saved(packed.place, self.number(tensor), tensor.dtype))
        finalize(packed, self._released, packed.place)
        return packed

    def unpack(self, packed: _Packed) -> torch.Tensor:
        """The tensor, for the backward."""
        self.events.append(Read(packed.place))
        return packed.tensor

    def _released(self, place: int) -> None:
        self.events.append(Released(place))

    def step(
        self, function: Callable[..., Any], operands: Sequence[Any], options: dict[str, Any], *, kept: bool
    ) -> Any:
        """Runs what `recompute.keep` and `recompute.once` are given."""
        self.events.append(Step())
        result = function(*operands, **options)
        self.events.append(StepEnd((self.number(result),) if kept else ()))
        return result


@dataclass(frozen=True, eq=False)
class _Packed:
    tensor: torch.Tensor
    place: int


class _Arrived:
    """The gradients of results that arrive at a backward."""

    def __init__(self, watch: _Acts, forms: Forms, on: str, *, shared: bool = False) -> None:
        self._watch, self._forms, self._on, self._shared = watch, forms, on, shared
        self._held: list[Any] = []
        self._tensors: list[Callable[[], torch.Tensor | None]] = []
        self.numbers: dict[int, int] = {}

    def make(self) -> list[torch.Tensor]:
        """The gradients; that they are made is no act of the backward."""
        acts = self._watch.events
        begun = len(acts)
        found = {i: form.tensor(self._on) for i, form in enumerate(self._forms) if form}
        del acts[begun:]
        self.numbers = {i: self._watch.number(tensor) for i, tensor in found.items()}
        self._tensors = [ref(found[i]) if i in found else _nothing for i in range(len(self._forms))]
        self._held = [*found.values()] if self._shared else []
        return [*found.values()]

    def place(self, gradient: torch.Tensor) -> int:
        """The number of a tensor among those that are gradients: first those that arrived."""
        found = next((i for i, known in enumerate(self._tensors) if known() is gradient), None)
        if found is None:
            found = len(self._tensors)
            self._tensors.append(ref(gradient))
        return found


def _nothing() -> None:
    return None


class _Arrive(torch.autograd.Function):
    """Stands for what comes after a call: its backward hands on gradients that nobody else holds."""

    @staticmethod
    def forward(ctx: Any, arrived: _Arrived, *results: torch.Tensor) -> torch.Tensor:
        ctx.arrived = arrived
        return torch.empty((), device=results[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, *ctx.arrived.make()


class Shown:
    """Inside its `with` blocks tensors have no memory, and those of one block may be used in another.

    Args:
        on: see `Setting`.
    """

    def __init__(self, on: str) -> None:
        self.on, self._fakes = on, FakeTensorMode() if on == "cpu" else None
        self._entered = ExitStack()

    def __enter__(self) -> None:
        if self._fakes is not None:
            self._entered.enter_context(self._fakes)
            self._entered.enter_context(described())

    def __exit__(self, *error: object) -> None:
        self._entered.close()


def _function(called: Called, setting: Setting) -> Callable[[Sequence[torch.Tensor], Watch], list[torch.Tensor]]:
    graph, axis = called.graph(), Axis(ANY_AXIS, called.ranks, 1)

    def calls(target: str) -> Callable[..., Any] | None:
        """What the device calls for an op, if it is not what torch shows on the CPU."""
        return call_on(setting.kind, target) or (call_on("compiled", target) if setting.compiled else None)

    def run(operands: Sequence[torch.Tensor], watch: Watch) -> list[torch.Tensor]:
        def collective(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if called.finds_route:
                find_routes(op, (kwargs["by"], *kwargs.get(ALSO, ())), axis, watch, setting.skew)
            return communicated(op, args, kwargs, axis, watch, setting.batch, setting.skew)

        values = {value.name: tensor for value, tensor in zip(graph.inputs, operands, strict=True)}
        found = run_graph(graph, values, batch=setting.batch, handler=collective, device=setting.on, calls=calls)
        return list(found.values())

    return run


@derived(maxsize=1 << 16)
def call(called: Called, setting: Setting, operands: tuple[Form, ...]) -> Call:
    """The call of an op on operands of some forms, which is watched once."""
    return Call(called, setting, operands)


_ADD = Called.of(Op("aten.add.Tensor", (Ref("a"), Ref("b")), (), (Value("sum", TensorType("f32", ())),)), 1)


def added(setting: Setting, first: Form, second: Form) -> Call:
    """What autograd does with two gradients of one tensor."""
    return call(_ADD, setting, (first, second))
