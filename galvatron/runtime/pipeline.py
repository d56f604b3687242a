"""One pass of all micro-batches through the stages of this rank, action by action.

`galvatron.schedules` says what a rank does in which order; here it is done. Every shape that crosses a stage border is
declared by the generated stages, so nothing is inferred at run time. Values live from when they are needed to when they
were used: receive buffers for the micro-batches in flight, no outputs once they are sent. The loss is computed inside
the last stage, in its epilogue where there is one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from galvatron.runtime import bounds, comm, deferral
from galvatron.runtime.collectives import packed
from galvatron.runtime.comm import PIPELINE, Chunk, now
from galvatron.runtime.stage import Stage, Transfer
from galvatron.schedules import SENDS_IN_FLIGHT, Action, Kind, Schedule, at_turn, orders

Perform = Callable[[int, int], None]
"""Does one action of a stage with a micro-batch."""

Keywords = Mapping[int, Sequence[Mapping[str, Any]]]
"""By stage, the keyword arguments of `Stage.forward` for each micro-batch."""


class Pipeline:
    """Runs the micro-batches of a step through this rank's stages."""

    def __init__(
        self,
        stages: Sequence[Stage],
        schedule: Schedule,
        *,
        on_loss: Callable[[Tensor], None] | None = None,
        on_backward: Callable[[], None] | None = None,
        on_forwards: Callable[[], None] | None = None,
    ) -> None:
        self.stages = {stage.index: stage for stage in stages}
        self.mesh = stages[0].mesh
        self.schedule = schedule
        self.epilogue = stages[0].epilogue_shards > 0
        self.on_loss = on_loss or (lambda loss: None)
        self.on_backward = on_backward or (lambda: None)
        self.on_forwards = on_forwards or (lambda: None)
        self.watched: Callable[[Kind, Perform], Perform] | None = None
        """Stands around every action while it is set."""

    def run(
        self,
        keywords: Keywords,
        samples: int,
        micro_batches: int,
        *,
        epilogue: Mapping[str, Any] | None = None,
        backward: bool = True,
    ) -> Tensor:
        """Accumulate the gradients of all micro-batches.

        Args:
            keywords: what the stages read besides what they receive.
            epilogue: what the epilogue reads besides what it collects.
            samples: the global batch size.
            micro_batches: into how many parts the batch is cut.
            backward: False to compute the loss only; autograd must be off then.

        Returns:
            This rank's sum of loss terms, detached; zero when it does not hold the last stage.
        """
        degree, rank = self.mesh.pipeline_degree, self.mesh.pipeline_rank
        order = orders(self.schedule, degree, micro_batches, epilogue=self.epilogue)[rank]
        turns = at_turn(order, len(self.mesh.holders) - 1) if backward else frozenset()
        one = _Pass(self, keywords, epilogue or {}, samples, micro_batches, backward, turns)
        perform: dict[Kind, Perform] = {
            Kind.FORWARD: one.forward,
            Kind.BACKWARD: one.backward,
            Kind.BACKWARD_INPUT: one.backward_input,
            Kind.BACKWARD_WEIGHT: one.backward_weight,
            Kind.SEND_F: one.send_values,
            Kind.RECV_F: one.receive_values,
            Kind.SEND_B: one.send_gradients,
            Kind.RECV_B: one.receive_gradients,
            Kind.EPILOGUE: one.epilogue,
        }
        if self.watched is not None:
            perform = {kind: self.watched(kind, call) for kind, call in perform.items()}
        performed = order if backward else list(filter(_is_forward, order))
        last = max(i for i, action in enumerate(performed) if action.kind in (Kind.FORWARD, Kind.EPILOGUE))
        for i, action in enumerate(performed):
            perform[action.kind](action.stage, action.micro_batch)
            if i == last:
                self.on_forwards()
        one.finish()
        if not one.losses:
            return torch.zeros((), dtype=torch.float64, device=self.mesh.world.device)
        return torch.stack(one.losses).to(torch.float64).sum()


@dataclass
class _Arrival:
    """Tensors that a neighbouring stage gives; from another rank they are still to come."""

    tensors: tuple[Tensor | None, ...]
    handle: comm.Handle | None = None

    def wait(self) -> tuple[Any, ...]:
        """The tensors, once they are there."""
        if self.handle is not None:
            self.handle.wait()
        return self.tensors


Key = tuple[int, int]
"""A stage and a micro-batch."""


class _Pass:
    """What one pass has under way, by stage and micro-batch."""

    def __init__(
        self,
        pipeline: Pipeline,
        keywords: Keywords,
        epilogue: Mapping[str, Any],
        samples: int,
        micro_batches: int,
        backward: bool,
        turns: frozenset[int],
    ) -> None:
        self._stages, self._mesh = pipeline.stages, pipeline.mesh
        self._ends = pipeline.epilogue
        self._on_loss, self._on_backward = pipeline.on_loss, pipeline.on_backward
        self._keywords = keywords
        self._epilogue_keywords = epilogue
        self._micro_batches = micro_batches
        self._samples = samples // micro_batches
        self._backward = backward
        self._turns = turns
        self.losses: list[Tensor] = []
        self._values: dict[Key, _Arrival] = {}
        self._gradients: dict[Key, _Arrival] = {}
        # What the backward starts from, and where the gradients of what was received end up.
        self._live: dict[Key, tuple[tuple[Any, ...], tuple[Tensor, ...]]] = {}
        self._collected: list[tuple[Tensor, ...]] = []
        self._tasks: dict[Key, deferral.Tasks] = {}
        self._leaving: dict[tuple[Kind, int, int], tuple[Tensor, ...]] = {}
        self._sent: dict[tuple[Kind, int], deque[comm.Handle]] = defaultdict(deque)

    def forward(self, index: int, micro_batch: int) -> None:
        stage, key = self._stages[index], (index, micro_batch)
        chunk = index, "forward", micro_batch
        received = self._values.pop(key).wait() if index else ()
        now.chunk = chunk
        for transfer, value in zip(stage.received, received, strict=True):
            value.requires_grad_(transfer.requires_grad and self._backward)
        for amount in stage.arriving if stage.training else ():
            amount.take(received)
        stage.random.microbatch = micro_batch
        stage.turns = index == stage.count - 1 and micro_batch in self._turns
        with bounds.looking_up():
            result = stage(*received, **self._keywords[index][micro_batch])
        now.chunk = now.place = None
        if index == stage.count - 1 and not self._ends:
            self._on_loss(result)
            self.losses.append(result.detach())
            if self._backward:
                self._live[key] = ((get_gradient_edge(result),) if result.requires_grad else ()), received
            return
        if index == stage.count - 1:
            self._collected.append(tuple(value.detach().requires_grad_(value.requires_grad) for value in result))
            if self._backward:
                self._live[key] = tuple(get_gradient_edge(v) if v.requires_grad else None for v in result), received
            return
        if self._backward:
            self._live[key] = _edges(stage, result), received
        self._hand_over(Kind.SEND_F, key, index + 1, tuple(value.detach() for value in result))

    def epilogue(self, index: int, _: int) -> None:
        """The end of the loss, forward and backward, on what all micro-batches have made."""
        stage = self._stages[index]
        differentiable = [value.requires_grad for value in self._collected[0]]
        now.chunk = index, "epilogue", 0
        whole: list[Tensor] = []
        for collected, parts in zip(stage.collected, zip(*self._collected, strict=True), strict=True):
            whole.append(collected.join([part.detach() for part in parts]))
        self._collected.clear()
        for value, has_gradient in zip(whole, differentiable, strict=True):
            value.requires_grad_(has_gradient and self._backward)
        stage.random.microbatch = 0
        with bounds.looking_up():
            loss = stage.epilogue(*whole, **self._epilogue_keywords)
        self._on_loss(loss)
        self.losses.append(loss.detach())
        if self._backward:
            self._return_gradients(stage, loss, whole)
        now.chunk = now.place = None

    def _return_gradients(self, stage: Stage, loss: Tensor, whole: Sequence[Tensor]) -> None:
        """The backward of the epilogue; each micro-batch gets the gradients of its own parts."""
        if loss.requires_grad:
            torch.autograd.backward([loss])
        parts: list[Sequence[Tensor | None]] = []
        for collected, value in zip(stage.collected, whole, strict=True):
            none = (None,) * self._micro_batches
            parts.append(none if value.grad is None else collected.split(value.grad, self._micro_batches))
        for micro_batch, gradients in enumerate(zip(*parts, strict=True)):
            self._gradients[stage.index, micro_batch] = _Arrival(gradients)

    def backward(self, index: int, micro_batch: int) -> None:
        stage, key = self._stages[index], (index, micro_batch)
        edges, received = self._live.pop(key)
        chunk = index, "backward", micro_batch
        at_loss = index == stage.count - 1 and not self._ends
        gradients = (None,) * len(edges) if at_loss else self._gradients.pop(key).wait()
        now.chunk = chunk
        self._on_backward()
        pairs = zip(edges, gradients, strict=True)
        roots = [(edge, g) for edge, g in pairs if edge is not None and (at_loss or g is not None)]
        if roots:
            torch.autograd.backward([edge for edge, _ in roots], [gradient for _, gradient in roots])
        now.chunk = now.place = None
        if index:
            leaves = [value for t, value in zip(stage.received, received, strict=True) if t.requires_grad]
            back = tuple(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)
            self._hand_over(Kind.SEND_B, key, index - 1, back)

    def backward_input(self, index: int, micro_batch: int) -> None:
        """The backward but for gradients of weights, as far as the generated code lets them wait."""
        with deferral.put_off() as tasks:
            self.backward(index, micro_batch)
        self._tasks[index, micro_batch] = tasks

    def backward_weight(self, index: int, micro_batch: int) -> None:
        now.chunk = index, "weight gradients", micro_batch
        deferral.run(self._tasks.pop((index, micro_batch)))
        now.chunk = None

    def send_values(self, index: int, micro_batch: int) -> None:
        self._send(Kind.SEND_F, index, micro_batch, index + 1)

    def send_gradients(self, index: int, micro_batch: int) -> None:
        self._send(Kind.SEND_B, index, micro_batch, index - 1)

    def receive_values(self, index: int, micro_batch: int) -> None:
        chunk = index, "forward", micro_batch
        self._values[index, micro_batch] = self._receive(chunk, self._stages[index].received, index - 1)

    def receive_gradients(self, index: int, micro_batch: int) -> None:
        differentiable = [transfer for transfer in self._stages[index].sent if transfer.requires_grad]
        self._gradients[index, micro_batch] = self._receive((index, "backward", micro_batch), differentiable, index + 1)

    def finish(self) -> None:
        """Wait until everything that was sent has left."""
        for sends in self._sent.values():
            while sends:
                sends.popleft().wait()

    def _hand_over(self, kind: Kind, key: Key, target: int, tensors: tuple[Tensor, ...]) -> None:
        """To a stage of this rank at once, to another rank when the order says so."""
        if target in self._stages:
            arrivals = self._values if kind is Kind.SEND_F else self._gradients
            arrivals[target, key[1]] = _Arrival(tensors)
        else:
            self._leaving[(kind, *key)] = tuple(packed(tensor) for tensor in tensors)

    def _send(self, kind: Kind, index: int, micro_batch: int, target: int) -> None:
        tensors = self._leaving.pop((kind, index, micro_batch))
        sends = self._sent[kind, index]
        if len(sends) == SENDS_IN_FLIGHT:
            sends.popleft().wait()
        assert self._mesh.pipeline is not None
        sends.append(comm.send(tensors, self._mesh.pipeline, self._mesh.holders[target], kind=PIPELINE))

    def _receive(self, chunk: Chunk, transfers: Sequence[Transfer], source: int) -> _Arrival:
        device, group, peer = self._mesh.world.device, self._mesh.pipeline, self._mesh.holders[source]
        assert group is not None
        buffers = tuple(torch.empty(t.shape(self._samples), dtype=t.dtype, device=device) for t in transfers)
        expected = {chunk: self._mesh.rank_of(peer)}
        return _Arrival(buffers, comm.receive(buffers, group, peer, kind=PIPELINE, expected=expected))


def _edges(stage: Stage, result: Sequence[Tensor]) -> tuple[Any, ...]:
    """Where the backward of what a stage sends begins. The values themselves are dropped once they are sent, if no op
    of the stage saved them.
    """
    return tuple(
        get_gradient_edge(value) if value.requires_grad else None
        for value, transfer in zip(result, stage.sent, strict=True)
        if transfer.requires_grad
    )


def _is_forward(action: Action) -> bool:
    return action.kind in (Kind.FORWARD, Kind.SEND_F, Kind.RECV_F, Kind.EPILOGUE)
