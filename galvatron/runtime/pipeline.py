"""One forward and backward of all micro-batches: a plain loop on one stage, `torch.distributed.pipelining` on several.

Every shape that crosses a stage border is declared by the generated stage, so nothing is inferred at run time. The loss
is computed inside the last stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from galvatron.runtime.activity import now
from galvatron.runtime.observed import ObservedStage, running_schedule
from galvatron.runtime.stage import Stage, Transfer

ScheduleName = Literal["gpipe", "1f1b"]


class Pipeline:
    """Runs the micro-batches of a step through this rank's stage, in the order of the schedule."""

    def __init__(self, stage: Stage, microbatches: int, schedule: ScheduleName) -> None:
        self.stage = stage
        self.microbatches = microbatches
        self.schedule_name = schedule
        self._body = _Body(stage)
        self._indices = torch.arange(microbatches)
        self._schedules: dict[int, PipelineScheduleSingle] = {}

    def run(self, keywords: list[dict[str, Tensor]], samples: int) -> Tensor:
        """Accumulate the gradients of all micro-batches.

        Args:
            keywords: the keyword arguments of `Stage.forward`, per micro-batch.
            samples: the global batch size.

        Returns:
            This rank's sum of loss terms, detached; zero when the stage is not the last.
        """
        losses: list[Tensor] = []
        if self.stage.count == 1:
            for number, arguments in enumerate(keywords):
                self.stage.random.microbatch = number
                now.chunk = (self.stage.index, "forward", number)
                loss = self.stage(**arguments)
                now.chunk = (self.stage.index, "backward", number)
                loss.backward()
                losses.append(loss.detach())
            now.chunk = now.place = None
        else:
            self._body.keywords = keywords
            try:
                # The schedule splits keywords along dim 0, so each call of `_Body` gets its micro-batch's number.
                schedule = self._schedule(samples // self.microbatches)
                with running_schedule(self.stage.mesh.pipeline):
                    schedule.step(target=self._indices, losses=losses, return_outputs=False, microbatch=self._indices)
            finally:
                self._body.keywords = []
        if not losses:
            return torch.zeros((), dtype=torch.float64, device=self.stage.mesh.world.device)
        return torch.stack([loss.detach() for loss in losses]).to(torch.float64).sum()

    def _schedule(self, samples: int) -> PipelineScheduleSingle:
        """The schedule for micro-batches of `samples` samples; its receive buffers have that size."""
        if samples not in self._schedules:
            stage = self.stage
            # With fewer micro-batches than stages 1F1B never reaches its steady state, and torch refuses it; GPipe
            # then holds as few activations.
            use_1f1b = self.schedule_name == "1f1b" and self.microbatches >= stage.count
            pipeline_stage = _PipelineStage(
                self._body,
                stage.index,
                stage.count,
                stage.mesh.world.device,
                input_args=_examples(stage.received, samples),
                output_args=_examples(stage.sent, samples) if stage.index < stage.count - 1 else (torch.empty(()),),
                group=stage.mesh.pipeline,
            )
            pipeline_stage.in_flight = stage.count - stage.index if use_1f1b else self.microbatches
            kind: Callable[..., PipelineScheduleSingle] = Schedule1F1B if use_1f1b else ScheduleGPipe
            self._schedules[samples] = kind(pipeline_stage, self.microbatches, _loss_of_stage, scale_grads=False)
        return self._schedules[samples]


class _PipelineStage(ObservedStage):
    """A stage with as many receive buffers as micro-batches are in flight, instead of one per micro-batch.

    The schedules receive a micro-batch's input only after the backward of the one `in_flight` earlier, and its gradient
    only after the backward before; so the buffers go round.
    """

    in_flight = 1

    def _setup_forward_recv_info(self, num_microbatches: int, has_backward: bool) -> None:
        distinct = min(num_microbatches, self.in_flight)
        super()._setup_forward_recv_info(distinct, has_backward)
        for index in range(distinct, num_microbatches):
            self.args_recv_info[index] = self.args_recv_info[index % distinct]

    def _setup_backward_recv_info(self, num_microbatches: int) -> None:
        super()._setup_backward_recv_info(1)
        self.chunks = num_microbatches
        for index in range(1, num_microbatches):
            self.grad_recv_info[index] = self.grad_recv_info[0]


class _Body(nn.Module):
    """The stage as `PipelineStage` calls it: received values and the number of the micro-batch."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.keywords: list[dict[str, Tensor]] = []

    def forward(self, *received: Tensor, microbatch: Tensor) -> Any:
        number = int(microbatch)
        self.stage.random.microbatch = number
        result = self.stage(*received, **self.keywords[number])
        if self.stage.index == self.stage.count - 1:
            return result
        return tuple(value.contiguous() for value in result)


def _loss_of_stage(output: Tensor, target: Tensor) -> Tensor:
    return output


def _examples(transfers: list[Transfer], samples: int) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(t.shape(samples), dtype=t.dtype, device="meta", requires_grad=t.requires_grad) for t in transfers
    )
