"""What a layer class does on a device, read off its graph: run forward and backward on fake tensors and watch.

Nothing here is a formula beside the code: the kernels, their FLOPs and traffic, the collectives with their adjoints,
the activations that autograd saves and the peak of live memory are those of the very graph that is emitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from galvatron.costs.events import CollectiveCall, Dispatches, Event, Launch, Linear, Profile
from galvatron.costs.fusion import fused, kept_instead, padded, peak_bytes
from galvatron.costs.slices import run_on_slice
from galvatron.costs.watch import ObservedEvent, Watch
from galvatron.errors import GalvatronError
from galvatron.ir.attention import pieces
from galvatron.ir.collectives import MESSAGES, Conversion, conversion_of, copies
from galvatron.ir.either import in_training
from galvatron.ir.fakes import described
from galvatron.ir.graph import Graph, Op
from galvatron.ir.interpreter import empty_like_type, run_graph
from galvatron.ir.layout import Axis, nameable_axes
from galvatron.ir.local_functions import with_local_functions
from galvatron.ir.ops.kernels import BY_DEVICE, call_on
from galvatron.ir.ops.work import Work
from galvatron.ir.recompute import IN_STEPS, selective_steps
from galvatron.ir.types import evaluate
from galvatron.ir.verify.computed import silence
from galvatron.recompute import again, keep, once, recomputed

_MOST_NEEDED = 512
"""Samples that are not too few for any model."""


def profile_graph(
    graph: Graph,
    mesh: tuple[Axis, ...],
    differentiable: frozenset[str],
    recompute: str = "none",
    *,
    at: int | None = None,
    kind: str = "cpu",
    compiled: bool = False,
) -> Profile:
    """Runs what a graph does in training at two batch sizes and puts lines through that.

    Args:
        mesh: the axes that its collectives name.
        differentiable: its inputs and state that have a gradient.
        recompute: which activations the backward computes again, as in a strategy; it does, as at run time.
        at: the local batch size that matters, for a graph that is not linear in it: one that pairs samples.
        kind: of the device that runs it (`Device.kind`).
        compiled: whether `torch.compile` compiles it (`costs.fusion`).
    """
    graph = with_local_functions(in_training(graph), mesh)
    batches = _batches(graph, mesh) if at is None else (at, 2 * at)
    run = partial(_Run, graph, mesh, differentiable, recompute=recompute, kind=kind, compiled=compiled)
    on = _device_of(kind, graph)
    while True:
        try:
            with silence():
                first, second = (run(batch=batch, on=on).observed for batch in batches)
            break
        except (IndexError, RuntimeError, ValueError):
            if on == "meta":  # torch has no shapes for some op there; fakes know more, and are slower
                on = "cpu"
            elif at is not None or batches[0] > _MOST_NEEDED:
                raise
            else:  # the model takes so many samples at least, as for `h[5]`
                batches = batches[1], 2 * batches[1]

    def line(a: float, b: float) -> Linear:
        return Linear.through(batches, (a, b))

    return Profile(
        forward=_fit_events(batches, first.forward, second.forward),
        backward=_fit_events(batches, first.backward, second.backward),
        saved_bytes=line(first.saved_bytes, second.saved_bytes),
        shared_bytes=tuple(
            (name, line(first.shared_bytes.get(name, size), size)) for name, size in second.shared_bytes.items()
        ),
        forward_extra_bytes=line(first.forward_extra_bytes, second.forward_extra_bytes),
        backward_extra_bytes=line(first.backward_extra_bytes, second.backward_extra_bytes),
        summing_extra_bytes=line(first.summing_extra_bytes, second.summing_extra_bytes),
        forward_dispatches=second.forward_dispatches,
        backward_dispatches=second.backward_dispatches,
    )


def _device_of(kind: str, graph: Graph) -> str:
    """Where tensors are for torch to show what a kind of device runs: on the meta device, where the table of kernels
    says what torch would choose by the device, and otherwise on the CPU, as fakes, which take three times as long.
    """
    return "cpu" if kind == "cpu" or any(op.name in BY_DEVICE for op in graph.ops) else "meta"


def _batches(graph: Graph, mesh: tuple[Axis, ...]) -> tuple[int, int]:
    """Two small batch sizes at which every shape is whole; not 1, where a transposed tensor may count as contiguous."""
    step = 2
    try:
        for value in graph.values.values():
            for dim in value.type.shape:
                evaluate(dim, step)
    except GalvatronError:
        step *= math.prod(axis.size for axis in mesh)
    return step, 2 * step


def _fit_events(batches: tuple[int, int], first: list[ObservedEvent], second: list[ObservedEvent]) -> tuple[Event, ...]:
    """One linear kernel or collective per event.

    The kernels of two batch sizes differ where a copy is needed at one of them only; then the larger run counts, in
    proportion to the batch.
    """
    if [(e.name, e.axis) for e in first] != [(e.name, e.axis) for e in second]:
        first = [_in_proportion(e, batches[0] / batches[1]) for e in second]
    fitted: list[Event] = []
    for a, b in zip(first, second, strict=True):
        size_bytes = Linear.through(batches, (a.size_bytes, b.size_bytes))
        if b.axis is not None:
            fitted.append(CollectiveCall(b.name, b.axis, size_bytes))
        else:
            fitted.append(Launch(b.name, b.dtype, _fit_work(batches, a.work, b.work), size_bytes, b.of_weight))
    return tuple(fitted)


def _fit_work(batches: tuple[int, int], first: Work | None, second: Work | None) -> Work | None:
    if first is None or second is None:
        return None
    sizes = (Linear.through(batches, pair) for pair in zip(first.sizes, second.sizes, strict=True))
    return Work(second.kind, tuple(sizes))


def _in_proportion(event: ObservedEvent, share: float) -> ObservedEvent:
    """The event of so large a share of a batch; the first size of work is how often it is done."""
    work = event.work and Work(event.work.kind, (event.work.sizes[0] * share, *event.work.sizes[1:]))
    return replace(event, size_bytes=event.size_bytes * share, work=work)


class _Observed:
    """What one run did, at one batch size."""

    def __init__(self) -> None:
        self.forward: list[ObservedEvent] = []
        self.backward: list[ObservedEvent] = []
        self.saved_bytes = 0
        self.shared_bytes: dict[str, int] = {}
        self.forward_extra_bytes = 0
        self.backward_extra_bytes = 0
        self.summing_extra_bytes = 0
        self.forward_dispatches = Dispatches()
        self.backward_dispatches = Dispatches()


class _Run:
    """One forward and backward run of a graph on tensors without memory: fakes of the CPU, or on the meta device."""

    def __init__(
        self,
        graph: Graph,
        mesh: tuple[Axis, ...],
        differentiable: frozenset[str],
        *,
        batch: int,
        recompute: str,
        kind: str,
        compiled: bool,
        on: str,
    ) -> None:
        self.on = on
        self.graph, self.batch, self.recompute, self.kind, self.compiled = graph, batch, recompute, kind, compiled
        self.axes = {axis.name: axis for axis in nameable_axes(mesh)}
        self.observed = _Observed()
        self.watch = Watch(self.observed.forward, kind)
        with _faked() if on == "cpu" else nullcontext():
            values = {v.name: empty_like_type(v.type, batch, on) for v in (*graph.inputs, *graph.state)}
            for name in differentiable & values.keys():
                if values[name].dtype.is_floating_point:
                    values[name].requires_grad_(True)
            for tensor in values.values():
                self.watch.keep(tensor)
            self.state = {self.watch.number(values[v.name]) for v in graph.state}
            self.given = {self.watch.number(tensor) for tensor in values.values()}
            self.again: dict[int, ObservedEvent] = {}
            self.kept: dict[int, float] = {}
            self.saved: set[str | None] = set()
            with self.watch:
                outputs = self._forward(values)
                self._backward(outputs, values)
            if compiled:
                self._fuse_backward()

    def _forward(self, values: dict[str, torch.Tensor]) -> list[_Output]:
        inputs = [v.name for v in self.graph.inputs]
        self.formal = {values[name].untyped_storage()._cdata: name for name in values}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            self._save(tensor)
            return tensor

        call = _Call()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            results = self._function()(call, *values.values())
        self.observed.forward_dispatches = Dispatches(self.watch.ops, self.watch.views)
        peak_bytes = self.watch.peak_bytes
        outputs = [_Output.of(t) for t in results if t.requires_grad]
        made = {self.watch.number(t) for t in results} if self.compiled else set()
        # What is alive without the results is what autograd keeps.
        whole_call = ref(call)
        del results, call
        kept_bytes = self.watch.live_bytes
        self.observed.saved_bytes = kept_bytes
        self.observed.forward_extra_bytes = max(0, peak_bytes - kept_bytes)
        kept_inputs = inputs if whole_call() is not None else [name for name in inputs if name in self.saved]
        for name in kept_inputs:
            size = values[name].untyped_storage().nbytes()
            if values[name].requires_grad:
                self.observed.saved_bytes += size
            else:
                self.observed.shared_bytes[name] = size
        if self.compiled:
            self._pad(self.observed.forward)
            self._fuse_forward(made, {self.watch.number(values[name]) for name in kept_inputs})
        return outputs

    def _pad(self, events: list[ObservedEvent]) -> None:
        if self.kind == "cuda":
            events[:] = map(padded, events)

    def _fuse_forward(self, made: set[int], kept_inputs: set[int]) -> None:
        """Kernels as the compiler groups them, without what it computes again."""
        observed, kept = self.observed, self.watch.alive()
        instead = kept_instead(observed.forward, kept, kept_inputs | self.state)
        self.again = instead.again
        observed.saved_bytes += round(sum(instead.more.values())) - sum(kept[value] for value in self.again)
        lasting = made | instead.more.keys() | (kept.keys() - self.again.keys())
        observed.forward[:] = fused(observed.forward, lasting=lasting)
        observed.forward_dispatches = Dispatches(len(observed.forward))
        self.kept = {value: size for value, size in kept.items() if value not in self.again} | instead.more
        given = kept_inputs | self.given
        own = {value: size for value, size in self.kept.items() if value not in given}
        peak = peak_bytes(observed.forward, {}, given, lasting)
        observed.forward_extra_bytes = max(0, round(peak - sum(own.values())))

    def _fuse_backward(self) -> None:
        gradients = self.watch.gradients
        of_weights = {made for made, leaf in gradients.items() if leaf in self.state}
        observed = self.observed
        self._pad(observed.backward)
        observed.backward[:] = fused(
            observed.backward, lasting=gradients.keys(), of_weights=of_weights, again=self.again
        )
        observed.backward_dispatches = Dispatches(len(observed.backward))
        observed.backward_extra_bytes = round(
            peak_bytes(observed.backward, self.kept, self.given, lasting=gradients.keys())
        )
        observed.summing_extra_bytes = min(observed.summing_extra_bytes, observed.backward_extra_bytes)

    def _function(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        """The graph as a function of its call, inputs and state, that runs as a layer does under the strategy."""
        names = [v.name for v in (*self.graph.inputs, *self.graph.state)]
        callers = {index: _CALLERS[step] for index, step in selective_steps(self.graph, self.recompute).items()}
        run = partial(
            run_graph,
            batch=self.batch,
            handler=self._collective,
            device=self.on,
            callers=callers,
            calls=self._calls,
        )

        def function(call: _Call, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values = dict(zip(names, tensors, strict=True))
            return tuple(run(self.graph, values).values())

        def in_pieces(call: _Call, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values = dict(zip(names, tensors, strict=True))
            for piece, core in pieces(self.graph):
                values |= self._core(piece, run, values) if core else run(piece, values)
            return tuple(values[name] for name in self.graph.outputs)

        if self.recompute == "attention":
            return in_pieces
        return function if self.recompute == "none" else recomputed(function, selective=self.recompute in IN_STEPS)

    def _core(
        self, graph: Graph, run: Callable[..., dict[str, torch.Tensor]], values: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What a core of attention gives; its backward computes it again of what it reads."""
        read = [value.name for value in graph.inputs]

        def core(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(run(graph, dict(zip(read, tensors, strict=True))).values())

        results = again(core, *(values[name] for name in read))
        if any(result.requires_grad for result in results):
            for name in read:
                self._save(values[name])
        return dict(zip(graph.outputs, results, strict=True))

    def _save(self, tensor: torch.Tensor) -> None:
        """Notes that a backward reads a tensor, which may be one that is given to the graph."""
        self.saved.add(self.formal.get(tensor.untyped_storage()._cdata))

    def _calls(self, target: str) -> Callable[..., Any] | None:
        """What the device calls for an op, if it is not what torch shows on the CPU."""
        return call_on(self.kind, target) or (call_on("compiled", target) if self.compiled else None)

    def _backward(self, outputs: list[_Output], values: dict[str, torch.Tensor]) -> None:
        if not outputs:
            return
        self.watch.record_in(self.observed.backward)
        before = self.watch.live_bytes
        self.watch.peak_bytes = before
        peaks: list[int] = []

        def made(leaf: torch.Tensor) -> None:
            """The peak is that before the first gradient of state, and then that from there on."""
            if not peaks and self.watch.number(leaf) in self.state:
                peaks.append(self.watch.peak_bytes)
                self.watch.peak_bytes = self.watch.live_bytes

        with _gradients_leave_at_once(values.values(), self.watch, made):
            gradients = [torch.empty_strided(out.shape, out.stride, dtype=out.dtype, device=self.on) for out in outputs]
            torch.autograd.backward([out.edge for out in outputs], gradients)
        self.observed.backward_extra_bytes = max(0, *peaks, self.watch.peak_bytes) - before
        self.observed.summing_extra_bytes = self.watch.peak_bytes - before if peaks else 0
        self.observed.backward_dispatches = Dispatches(self.watch.ops, self.watch.views)

    def _record(self, axis: Axis, kind: str, payload_bytes: int) -> None:
        self.watch.collective(kind, axis, payload_bytes)

    def _collective(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        axis = self.axes[kwargs["axis"]]
        if op.namespace == "spmd":
            return run_on_slice(op, args, kwargs, axis, partial(self._record, axis), self.kind)
        shape = [evaluate(d, self.batch) for d in op.result.type.shape]
        return _Collective.apply(args[0], shape, conversion_of(op), copies(op), axis, self.watch)


@contextmanager
def _faked() -> Iterator[None]:
    with FakeTensorMode(), described():
        yield


_CALLERS = {"keep": keep, "once": once}


class _Call:
    """Stands for the arguments of a call: what keeps it alive keeps them."""


@dataclass(frozen=True)
class _Output:
    """A result of a graph, without its memory."""

    edge: torch.autograd.graph.GradientEdge
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: torch.Tensor) -> _Output:
        edge = torch.autograd.graph.get_gradient_edge(tensor)
        return _Output(edge, tuple(tensor.shape), tensor.stride(), tensor.dtype)


class _Collective(torch.autograd.Function):
    """Stands for a collective: right shapes forward and backward, and an event for what crosses the network."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        shape: list[int],
        conversion: Conversion,
        copies: tuple[float, float],
        axis: Axis,
        watch: Watch,
    ):
        ctx.shape, ctx.conversion, ctx.axis, ctx.watch = list(x.shape), conversion, axis, watch
        ctx.payload, (there, ctx.copies) = max(x.numel(), math.prod(shape)), copies
        return _moved(x, shape, conversion.forward, there, axis, ctx.payload, watch)

    @staticmethod
    def backward(ctx: Any, *gradients: Any):
        back = ctx.conversion.backward
        moved = _moved(gradients[0], ctx.shape, back, ctx.copies, ctx.axis, ctx.payload, ctx.watch)
        return moved, None, None, None, None, None


def _moved(x: Any, shape: list[int], kind: str | None, copies: float, axis: Axis, payload: int, watch: Watch) -> Any:
    """What a tensor is after a collective; the same memory if it stays as it is."""
    if kind is None and list(x.shape) == shape:
        return x.view_as(x)
    watch.collective(kind, axis, payload * x.element_size())
    if copies:
        watch.copied(x, copies * payload * x.element_size())
    buffer = x.new_empty(payload * (MESSAGES[kind].buffers if kind else 0))
    result = x.new_empty(shape)
    del buffer
    return result


@contextmanager
def _gradients_leave_at_once(leaves: Any, watch: Watch, made: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """The gradient of each leaf is freed when it is complete, after `made` was told: the accumulated ones count as
    state, not as a peak."""

    def drop(leaf: torch.Tensor) -> None:
        assert leaf.grad is not None
        watch.made_gradient(leaf.grad, leaf)
        made(leaf)
        leaf.grad = None

    handles = [t.register_post_accumulate_grad_hook(drop) for t in leaves if t.requires_grad]
    yield
    for handle in handles:
        handle.remove()
