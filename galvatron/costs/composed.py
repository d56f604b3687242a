"""A forward and a backward of a graph, put together from what each of its calls does by itself (`costs.calls`).

This is autograd's bookkeeping without autograd: values are there until the function returns, what is saved until the
backward of its call is over; backwards run in the reverse order of the calls, gradients of one value are added up as
they come, and that of what is given to the graph is complete with the last of them. What is computed again, and when,
is in `costs.replays`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from galvatron.costs.acts import Dispatched, Form, Gone, Read, Released, Saved, StepEnd
from galvatron.costs.calls import Called
from galvatron.costs.events import Dispatches
from galvatron.costs.replays import Replayed
from galvatron.costs.storages import Storages
from galvatron.costs.together import (
    ActAt,
    BackwardAt,
    CallAt,
    Forms,
    GaveAt,
    MadeAt,
    Seen,
    Settings,
    Sizes,
    accumulated_at,
    added_at,
    call_at,
)
from galvatron.ir.attention import pieces
from galvatron.ir.collectives import COLLECTIVES, WAIT, is_started, sent_by
from galvatron.ir.either import in_training
from galvatron.ir.graph import Arg, Graph, Op, Value
from galvatron.ir.layout import Axis, nameable_axes
from galvatron.ir.local_functions import with_local_functions
from galvatron.ir.ops.table import operator_of
from galvatron.ir.overlap import Order
from galvatron.ir.recompute import in_steps, replays, selective_steps
from galvatron.ir.skew import EVEN
from galvatron.ir.spmd import on_slices
from galvatron.ir.types import TORCH_DTYPE_NAMES, evaluate


@dataclass(frozen=True, eq=False)
class Layer:
    """A graph of which forwards and backwards are composed, on the axes that its collectives name.

    `differentiable` are its inputs and state that have a gradient.
    """

    graph: Graph
    mesh: tuple[Axis, ...]
    differentiable: frozenset[str]

    @staticmethod
    def of(graph: Graph, mesh: tuple[Axis, ...], differentiable: frozenset[str]) -> Layer:
        """What of a local graph a step that trains runs."""
        return Layer(with_local_functions(in_training(graph), mesh), mesh, differentiable)

    @cached_property
    def groups(self) -> tuple[Axis, ...]:
        """The axes that it communicates on, by their first ops."""
        return tuple(dict.fromkeys(axis for axis in self.axes if axis is not None))

    @cached_property
    def alike(self) -> Hashable:
        """Equal for layers that do the same, whatever their `groups` are: layouts say nothing that calls do not."""
        places = {axis: place for place, axis in enumerate(self.groups)}
        ops = tuple(
            (called, op.operands, tuple(value.name for value in op.results), axis and places[axis])
            for op, called, axis in zip(self.graph.ops, self.called, self.axes, strict=True)
        )
        given = tuple(
            tuple((value.name, value.type, value.name in self.differentiable) for value in values)
            for values in (self.graph.inputs, self.graph.state)
        )
        return ops, given, self.graph.outputs

    @cached_property
    def alike_hash(self) -> int:
        """The hash of `alike`, which is long."""
        return hash(self.alike)

    @cached_property
    def operands(self) -> tuple[tuple[str, ...], ...]:
        """The values that each op reads, each once."""
        return tuple(tuple(dict.fromkeys(op.operands)) for op in self.graph.ops)

    @cached_property
    def axes(self) -> tuple[Axis | None, ...]:
        """The axis that each op communicates on."""
        named = {axis.name: axis for axis in nameable_axes(self.mesh)}
        talks = ("comm", "spmd")
        return tuple(named[str(op.kwarg("axis"))] if op.namespace in talks else None for op in self.graph.ops)

    @cached_property
    def independent(self) -> tuple[int, ...]:
        """The collectives that could run beside something: some op neither needs their result nor is needed for it.
        Those that were started have what they have beside them."""
        order = Order(self.graph)
        talking = (i for i, op in enumerate(self.graph.ops) if op.namespace == "comm" and not is_started(op))
        sends = (i for i in talking if COLLECTIVES[self.graph.ops[i].target].sent)
        return tuple(i for i in sends if order.independent(i) & self.quiet)

    @cached_property
    def quiet(self) -> frozenset[int]:
        """The ops that compute something, and send nothing."""

        def sends(op: Op) -> bool:
            return op.namespace == "comm" or (op.namespace == "spmd" and on_slices(op).communicates)

        return frozenset(i for i, op in enumerate(self.graph.ops) if not sends(op) and not operator_of(op).free)

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """For each op that starts a collective or waits for one, the number of the op that starts it."""
        started = {op.result.name: i for i, op in enumerate(self.graph.ops) if is_started(op)}
        return tuple(
            started.get(op.operands[0] if op.target == WAIT else op.results[0].name) if op.namespace == "comm" else None
            for op in self.graph.ops
        )

    def awaited(self, index: int) -> str:
        """What an op waits for, and nobody holds any longer; empty if it is no such op."""
        op = self.graph.ops[index]
        return op.operands[0] if op.target == WAIT else ""

    @cached_property
    def called(self) -> tuple[Called, ...]:
        """What each op calls."""
        ops, finding = zip(self.graph.ops, self.axes, strict=True), self._finding_routes
        return tuple(Called.of(op, axis.size if axis else 1, i in finding) for i, (op, axis) in enumerate(ops))

    @cached_property
    def _finding_routes(self) -> frozenset[int]:
        """The ops at which ranks tell each other how many rows go where: the first of all that send rows by a value. Of
        a value that is given to the graph they know it, all layers but one."""
        first: dict[tuple[str, Axis | None, Arg], int] = {}
        for index, (op, axis) in enumerate(zip(self.graph.ops, self.axes, strict=True)):
            for by in self.graph.producers.keys() & sent_by(op):
                first.setdefault((by, axis, op.kwarg("size")), index)
        return frozenset(first.values())

    @cached_property
    def uneven(self) -> bool:
        """Whether what it does depends on how many rows choose something of the rank."""
        return any(called.uneven for called in self.called)

    @cached_property
    def pieces(self) -> tuple[tuple[tuple[int, ...], Graph, bool], ...]:
        """The graph cut at its cores of attention: by number the ops of each piece, the piece, and if it is a core."""
        places = {id(op): i for i, op in enumerate(self.graph.ops)}
        return tuple((tuple(places[id(op)] for op in piece.ops), piece, core) for piece, core in pieces(self.graph))

    def part(self, recompute: str) -> list[tuple[tuple[int, ...], Graph, bool]]:
        """What runs one after the other: ops, as a graph, and whether all of it is computed again as one."""
        if recompute == "attention":
            return list(self.pieces)
        return [(tuple(range(len(self.graph.ops))), self.graph, recompute != "none")]


@dataclass(eq=False)
class _Gradient:
    """A gradient on its way; `tensor` tells tensors apart that have one storage."""

    storage: int
    forms: Forms
    tensor: object


class Pass(NamedTuple):
    """What a pass does: its kernels and collectives, and what is dispatched."""

    events: list[Seen]
    dispatches: Counter[bool]

    @property
    def dispatched(self) -> Dispatches:
        """Ops and views."""
        return Dispatches(self.dispatches[False], self.dispatches[True])


class Composed:
    """One forward and one backward of a layer, at each of some batch sizes, of which all bytes are told.

    Raises:
        UnlikeError: it does not do the same at each.

    Attributes:
        forward, backward: what both passes do.
        saved_bytes: of storages that are kept between them, other than what is given.
        kept: by name, what is given and kept.
        forward_extra_bytes, backward_extra_bytes: the most in use above that.
        summing_extra_bytes: the same of the backward from the first gradient of state on.
        results, alive: the storages of the results, and the bytes of those that are kept, by their numbers; `alive` is
            empty where nothing is compiled.
        gradients: the number of each gradient's storage → that of what it is the gradient of.
        calls, backwards: by op, what it calls, and what the backward of that does if there is one.
    """

    def __init__(self, layer: Layer, settings: Settings, recompute: str) -> None:
        graph = layer.graph
        self.layer, self.settings, self.recompute = layer, settings, recompute
        self._compiled, self._even = settings[0].compiled, tuple(each._replace(skew=EVEN) for each in settings)
        given = (*graph.inputs, *graph.state)
        self.storages = Storages(len(given), len(settings))
        self.places = {value.name: i for i, value in enumerate(given)}
        """Where values are that are there now: the numbers of their storages."""
        self._given = {value.name: i for i, value in enumerate(given)}
        self.state = {self._given[value.name] for value in graph.state}
        self._forms = {value.name: self._given_form(value) for value in given}
        self._names = {name: name for name in self._forms}
        """By value, the first name of the same tensor."""
        self.calls: dict[int, CallAt] = {}
        self.backwards: dict[int, BackwardAt] = {}
        self._local: dict[int, dict[int, int]] = {}
        self._order: list[int] = []
        self._packed: dict[tuple[int, int], int] = {}
        self._replays: dict[int, Replayed] = {}
        self._slots: dict[str, _Gradient] = {}
        self._matmuls: dict[int, int] = {}
        self._outside: set[object] = set()
        self._awaited: Counter[str] = Counter()
        self._saved: set[int] = set()
        self._peaks: list[Sizes] = []
        self.gradients: dict[int, int] = {}
        self.forward, self.backward = Pass([], Counter()), Pass([], Counter())
        self.now = self.forward
        self.results = self._run_forward()
        self.reached = self._reach()
        self._end_forward()
        self._run_backward()

    def _given_form(self, value: Value) -> Forms:
        dtype: torch.dtype = getattr(torch, TORCH_DTYPE_NAMES[value.type.dtype])
        trained = value.name in self.layer.differentiable and dtype.is_floating_point
        shapes = ([evaluate(d, setting.batch) for d in value.type.shape] for setting in self.settings)
        return tuple(Form.contiguous(dtype, shape)._replace(differentiable=trained) for shape in shapes)

    def _run_forward(self) -> set[int]:
        """Runs all calls; the storages of the results."""
        there: list[str] = []
        for ops, piece, again in self.layer.part(self.recompute):
            replayed = self._replayed(ops, piece) if again else None
            made: list[str] = []
            for index in ops:
                made += self._call(index, replayed)
                if (awaited := self.layer.awaited(index)) in made:
                    made.remove(awaited)
                    self.storages.drop(self.places.pop(awaited))
            if replayed is not None:
                replayed.forward_is_over()
                self._replays |= dict.fromkeys(ops, replayed)
                if self.recompute == "attention" and any(map(self.has_gradient, piece.outputs)):
                    self._saved |= {self.places[value.name] for value in piece.inputs}
            for name in made:
                if name in piece.outputs:
                    there.append(name)
                else:
                    self.storages.drop(self.places.pop(name))
            self._order += ops
        results = {self.places[name] for name in self.layer.graph.outputs}
        self.forward_peak_bytes = self.storages.peak_bytes
        for name in there:
            self.storages.drop(self.places.pop(name))
        return results

    def _replayed(self, ops: Sequence[int], piece: Graph) -> Replayed:
        read = {value.name: self.places[value.name] for value in (*piece.inputs, *piece.state)}
        steps = selective_steps(self.layer.graph, self.recompute)
        return Replayed(self, ops, read, steps, selective=in_steps(self.layer.graph, self.recompute))

    def _call(self, index: int, replayed: Replayed | None) -> list[str]:
        """Runs one op, and names its results."""
        names, op = self.layer.operands[index], self.layer.graph.ops[index]
        called = self.layer.called[index]
        settings = self.settings if called.uneven else self._even
        one = call_at(called, settings, tuple(self._forms[name] for name in names))
        local = {i: self.places[name] for i, name in enumerate(names)}
        self.calls[index], self._local[index] = one, local
        inner: set[int] = set()
        for act in self.played(index, one.forward, local, inner):
            if isinstance(act, Saved):
                if replayed is None:
                    self._saved.add(local[act.storage])
                    self.pack(index, act.place, local[act.storage])
                else:
                    replayed.saved(index, act, local)
            elif isinstance(act, StepEnd) and replayed is not None:
                replayed.step_inside(index, [local[storage] for storage in act.storages])
        made: list[str] = []
        for value, result in zip(op.results, one.results, strict=False):
            if result is not None:
                made.append(value.name)
                self.places[value.name] = self.storages.hold(local[result.storage])
                self._forms[value.name] = result.forms
                same = result.operand is not None
                self._names[value.name] = self._names[names[result.operand or 0]] if same else value.name
        if replayed is not None:
            replayed.called(index, made)
        self.dropped(local, inner)
        return made

    def played(
        self, index: int, acts: Iterable[ActAt], local: dict[int, int], inner: set[int], *, back: bool = False
    ) -> Iterator[ActAt]:
        """Does what a call does with kernels and storages, and hands on all else.

        Args:
            local: the storages of the run, by those of the call.
            inner: those of the call that it holds itself.
            back: whether these are the acts of its backward.
        """
        storages, now = self.storages, self.now
        for act in acts:
            if isinstance(act, Seen):
                now.events.append(self._seen(index, act, local, back))
            elif isinstance(act, Dispatched):
                now.dispatches[act.view] += 1
            elif isinstance(act, MadeAt):
                local[act.storage] = storages.make(act.sizes)
                inner.add(act.storage)
            elif isinstance(act, Gone):
                if act.storage in inner:
                    inner.remove(act.storage)
                    storages.drop(local[act.storage])
            else:
                yield act

    def dropped(self, local: Mapping[int, int], inner: Iterable[int]) -> None:
        """Ends what a call holds."""
        for storage in inner:
            self.storages.drop(local[storage])

    def _seen(self, index: int, seen: Seen, local: Mapping[int, int], back: bool) -> Seen:
        """An event of a call as one of the run."""
        if seen.axis is not None:
            window = None if seen.events[0].at_once else self.layer.windows[index]
            return seen.on(self.layer.axes[index], -1 - window if window is not None and back else window)
        if seen.name == "mm":
            self._matmuls[local[seen.written]] = len(self.now.events)
        return seen.touching(local) if self._compiled else seen

    @property
    def by_op(self) -> Iterator[tuple[tuple[Seen, ...], tuple[Seen, ...]]]:
        """What each op runs, forward and backward."""
        for index in range(len(self.layer.graph.ops)):
            back = self.backwards.get(index)
            yield self.calls[index].seen, back.seen if back else ()

    def has_gradient(self, name: str) -> bool:
        """Whether a value has a gradient."""
        return self._forms[name][0].differentiable

    def is_computed(self, name: str) -> bool:
        """Whether autograd knows what computed a value."""
        return self.has_gradient(name) and name not in self._given

    @property
    def given(self) -> set[int]:
        """The storages of inputs and state."""
        return set(self._given.values())

    def dtype(self, index: int, operand: int) -> torch.dtype:
        """The type of an operand of a call."""
        return self._forms[self.layer.operands[index][operand]][0].dtype

    def pack(self, index: int, place: int, storage: int) -> None:
        """Keeps a storage for the backward of a call."""
        self._packed[index, place] = self.storages.hold(storage)

    def _reach(self) -> dict[int, None]:
        """The ops whose backward runs, last ones first; counts what gradients of what is given wait for."""
        needed = {self._names[name] for name in self.layer.graph.outputs if self.has_gradient(name)}
        reached: dict[int, None] = {}
        for index in reversed(self._order):
            results, one = self.layer.graph.ops[index].results, self.calls[index]
            if any(results[i].name in needed for i in one.own):
                reached[index] = None
                for name in self._differentiated(index):
                    needed.add(name)
                    self._awaited[name] += 1
        return reached

    def _differentiated(self, index: int) -> set[str]:
        names = self.layer.operands[index]
        return {self._names[name] for name in names if self.has_gradient(name)}

    def _end_forward(self) -> None:
        """Forgets what no backward will read."""
        for (index, place), storage in list(self._packed.items()):
            if index not in self.reached:
                del self._packed[index, place]
                self.storages.drop(storage)
        for replayed in dict.fromkeys(self._replays.values()):
            replayed.end_of_graph(self.reached)
        whole = replays(self.recompute) and any(r.alive for r in self._replays.values())
        inputs = [value.name for value in self.layer.graph.inputs]
        self.kept = {
            name: tuple(form.storage_bytes for form in self._forms[name])
            for name in inputs
            if whole or self._given[name] in self._saved
        }
        self.saved_bytes = self.storages.live_bytes
        self.alive = self.storages.alive() if self._compiled else {}
        self.forward_extra_bytes = _above(self.saved_bytes, self.forward_peak_bytes)

    def _run_backward(self) -> None:
        storages, before = self.storages, self.storages.live_bytes
        self.now, self._matmuls = self.backward, {}
        storages.peak_bytes = before
        outputs = [name for name in self.layer.graph.outputs if self.has_gradient(name)]
        arriving: list[tuple[str, _Gradient]] = []
        for name in outputs:
            forms = tuple(Form.laid_out(of.dtype, of.shape, of.stride) for of in self._forms[name])
            made = storages.make(tuple(form.storage_bytes for form in forms))
            arriving.append((self._names[name], _Gradient(made, forms, object())))
        self._outside = {gradient.tensor for _, gradient in arriving}
        for name, gradient in arriving:
            storages.hold(gradient.storage)
            self._give(name, gradient)
            self._complete(name)
        for index in self.reached:
            self._call_backward(index)
        nothing = (0,) * len(before)
        self.backward_extra_bytes = _above(before, *self._peaks, storages.peak_bytes) if outputs else nothing
        self.summing_extra_bytes = _above(before, storages.peak_bytes) if self._peaks else nothing

    def _call_backward(self, index: int) -> None:
        names, results = self.layer.operands[index], self.layer.graph.ops[index].results
        one, local = self.calls[index], self._local[index]
        ends = [*(results[i].name for i in one.own), *(self._names[names[i]] for i in one.leaves)]
        there = [self._slots.pop(name, None) for name in ends]
        if not any(there):  # a function behind it gave no gradient, so it computes none
            self._end(index)
            return
        back = self.backwards[index] = one.backward(tuple(gradient and gradient.forms for gradient in there))
        tensors: dict[int, object] = {i: gradient.tensor for i, gradient in enumerate(there) if gradient}
        local |= {back.gradients[i]: gradient.storage for i, gradient in enumerate(there) if gradient}
        inner = set(back.gradients.values())
        for act in self.played(index, back.acts, local, inner, back=True):
            if isinstance(act, GaveAt):
                name, tensor = self._names[names[act.operand]], tensors.setdefault(act.tensor, object())
                self._give(name, _Gradient(self.storages.hold(local[act.storage]), act.forms, tensor))
                self._complete(name, still=1)
            elif isinstance(act, Read):
                if (replayed := self._replays.get(index)) is not None:
                    replayed.read(index, act.place)
                local[one.saved[act.place]] = self._packed[index, act.place]
            elif isinstance(act, Released):
                if (storage := self._packed.pop((index, act.place), None)) is not None:
                    self.storages.drop(storage)
                elif (replayed := self._replays.get(index)) is not None:
                    replayed.forget(index, act.place)
        self.dropped(local, inner)
        self._end(index)

    def _end(self, index: int) -> None:
        """The backward of a call is over: what is given to it waits for one less."""
        for name in self._differentiated(index):
            self._awaited[name] -= 1
            self._complete(name)

    def _give(self, name: str, gradient: _Gradient) -> None:
        """Adds a gradient to what there is of a value's."""
        before = self._slots.get(name)
        if before is not None:
            one = added_at(self.settings, before.forms, gradient.forms)
            local, inner = {0: before.storage, 1: gradient.storage}, set[int]()
            for _ in self.played(0, one.forward, local, inner):
                pass
            (result,) = one.results
            assert result is not None
            for old in (before, gradient):
                self.storages.drop(old.storage)
            gradient = _Gradient(self.storages.hold(local[result.storage]), result.forms, object())
            self.dropped(local, inner)
        self._slots[name] = gradient

    def _complete(self, name: str, still: int = 0) -> None:
        """Ends the gradient of what is given to the graph, if it waits for no more than the calls that still run."""
        if name not in self._given or self._awaited[name] > still or name not in self._slots:
            return
        gradient, leaf = self._slots.pop(name), self._given[name]
        others = {other.tensor for other in self._slots.values()} | self._outside
        back = accumulated_at(self.settings, self._forms[name], gradient.forms, shared=gradient.tensor in others)
        local = {0: leaf, back.gradients[0]: gradient.storage}
        inner = {back.gradients[0]}
        for act in self.played(0, back.acts, local, inner):
            if isinstance(act, GaveAt):
                self._made_gradient(leaf, local[act.storage])
        self.dropped(local, inner)

    def _made_gradient(self, leaf: int, gradient: int) -> None:
        """The peak is that before the first gradient of state, and then that from there on."""
        self.gradients[gradient] = leaf
        position = self._matmuls.get(gradient)
        if position is not None:
            events = self.backward.events
            events[position] = events[position].of_weight
        if not self._peaks and leaf in self.state:
            self._peaks.append(self.storages.peak_bytes)
            self.storages.peak_bytes = self.storages.live_bytes


def _above(there: Sizes, *peaks: Sizes) -> Sizes:
    """By how much the highest is above what is there, at each batch size."""
    return tuple(max(own) - base for base, *own in zip(there, *peaks, strict=True))
