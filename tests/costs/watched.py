"""A whole graph run forward and backward on fake tensors by autograd itself, and watched: what composed costs equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch.utils.weak import WeakIdKeyDictionary

from galvatron.costs.calls import Shown
from galvatron.costs.events import Dispatches
from galvatron.costs.sending import communicated, find_routes
from galvatron.costs.watch import ObservedEvent, Watch
from galvatron.ir.attention import pieces
from galvatron.ir.graph import Graph, Op
from galvatron.ir.interpreter import empty_like_type, run_graph
from galvatron.ir.layout import Axis, nameable_axes
from galvatron.ir.ops.kernels import call_on
from galvatron.ir.recompute import in_steps, selective_steps
from galvatron.ir.skew import EVEN
from galvatron.recompute import again, keep, once, recomputed


class _Watch(Watch):
    """Counts what is alive."""

    def __init__(self, events: list[ObservedEvent], kind: str) -> None:
        super().__init__(events, kind)
        self.live_bytes = self.peak_bytes = self.ops = self.views = 0
        self._sizes: dict[int, int] = {}

    def dispatched(self, *, view: bool = False) -> None:
        self.views += view
        self.ops += not view

    def made(self, number: int, size_bytes: int) -> None:
        self._sizes[number] = size_bytes
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def gone(self, number: int) -> None:
        self.live_bytes -= self._sizes.pop(number, 0)

    def record_in(self, events: list[ObservedEvent]) -> None:
        super().record_in(events)
        self.ops = self.views = 0

    def made_gradient(self, gradient: torch.Tensor) -> None:
        """Marks the product of matrices that a gradient is, if it is one."""
        for place, event in enumerate(self.events):
            if event.name == "mm" and event.writes[0][0] == self.number(gradient):
                self.events[place] = replace(event, of_weight=True)


@dataclass
class Observed:
    """What one run did; the numbers have the names that they have in `Composed`."""

    forward: list[ObservedEvent] = field(default_factory=list)
    backward: list[ObservedEvent] = field(default_factory=list)
    forward_dispatches: Dispatches = Dispatches()
    backward_dispatches: Dispatches = Dispatches()
    numbers: dict[str, Any] = field(default_factory=dict)


class Run:
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
        on: str,
    ) -> None:
        self.on = on
        self.graph, self.batch, self.recompute, self.kind = graph, batch, recompute, kind
        self.axes = {axis.name: axis for axis in nameable_axes(mesh)}
        self.observed = Observed()
        self.routes: MutableMapping[torch.Tensor, set[tuple[Any, ...]]] = WeakIdKeyDictionary()
        """By what rows choose, where it is known how many go where."""
        self.watch = _Watch(self.observed.forward, kind)
        with Shown(on):
            values = {v.name: empty_like_type(v.type, batch, on) for v in (*graph.inputs, *graph.state)}
            for name in differentiable & values.keys():
                if values[name].dtype.is_floating_point:
                    values[name].requires_grad_(True)
            self.given = {id(tensor) for tensor in values.values()}
            for tensor in values.values():
                self.watch.keep(tensor)
            self.state = {self.watch.number(values[v.name]) for v in graph.state}
            self.saved: set[str | None] = set()
            with self.watch:
                outputs = self._forward(values)
                self._backward(outputs, values)

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
        # What is alive without the results is what autograd keeps.
        whole_call = ref(call)
        del results, call
        kept_bytes = self.watch.live_bytes
        kept_inputs = inputs if whole_call() is not None else [name for name in inputs if name in self.saved]
        self.observed.numbers |= {
            "saved_bytes": kept_bytes,
            "kept": {name: values[name].untyped_storage().nbytes() for name in kept_inputs},
            "forward_extra_bytes": max(0, peak_bytes - kept_bytes),
            "backward_extra_bytes": 0,
            "summing_extra_bytes": 0,
        }
        return outputs

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
        return (
            function
            if self.recompute == "none"
            else recomputed(function, selective=in_steps(self.graph, self.recompute))
        )

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
        return call_on(self.kind, target)

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
        self.observed.numbers["backward_extra_bytes"] = max(0, *peaks, self.watch.peak_bytes) - before
        self.observed.numbers["summing_extra_bytes"] = self.watch.peak_bytes - before if peaks else 0
        self.observed.backward_dispatches = Dispatches(self.watch.ops, self.watch.views)

    def _collective(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        chosen = (kwargs["by"], *kwargs.get("also", ())) if "by" in kwargs else ()
        way = (kwargs["axis"], kwargs.get("size"))
        new = [by for by in chosen if id(by) not in self.given and way not in self.routes.setdefault(by, set())]
        if new:
            find_routes(op, new, self.axes[kwargs["axis"]], self.watch, EVEN)
        for by in new:
            self.routes[by].add(way)
        return communicated(op, args, kwargs, self.axes[kwargs["axis"]], self.watch, self.batch, EVEN)


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


@contextmanager
def _gradients_leave_at_once(leaves: Any, watch: _Watch, made: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """The gradient of each leaf is freed when it is complete, after `made` was told: the accumulated ones count as
    state, not as a peak."""

    def drop(leaf: torch.Tensor) -> None:
        assert leaf.grad is not None
        watch.made_gradient(leaf.grad)
        made(leaf)
        leaf.grad = None

    handles = [t.register_post_accumulate_grad_hook(drop) for t in leaves if t.requires_grad]
    yield
    for handle in handles:
        handle.remove()
