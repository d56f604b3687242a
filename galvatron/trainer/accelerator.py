"""What `transformers.Trainer` asks of `accelerate`, answered by a compiled program: nothing is wrapped, put anywhere,
synchronised or gathered, since a step is all of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from galvatron.compiled import CompiledModel
from galvatron.errors import GalvatronError


class Stepped(AcceleratedOptimizer):
    """The optimizer of a compiled program, which `train_step` calls: a step of it does nothing more. Schedulers change
    its groups."""

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Was done."""

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Gradients of a step replace those before."""


class BatchLoss(Tensor):
    """The loss of a batch, which `transformers.Trainer` repeats as often as a rank has samples, to take the mean over
    those of all ranks. It is that of the samples of all ranks already."""

    samples: int

    @staticmethod
    def of(loss: Tensor, samples: int) -> BatchLoss:
        """That of so many samples."""
        found = loss.as_subclass(BatchLoss)
        found.samples = samples
        return found

    def repeat(self, *_: Any) -> Tensor:
        """One for each of the samples."""
        return self.as_subclass(Tensor).expand(self.samples)


class ProgramAccelerator(Accelerator):
    """
    Args:
        program: gives the compiled program.

    Attributes:
        evaluated: samples of the global batch that was evaluated last.
        evaluated_in_all: samples of all of them.
    """

    def __init__(self, program: Callable[[], CompiledModel]) -> None:
        super().__init__(mixed_precision="no")
        self._program = program
        self.evaluated = self.evaluated_in_all = 0

    def evaluates(self, samples: int) -> None:
        """The next batch to be evaluated has so many samples."""
        self.evaluated = samples
        self.evaluated_in_all += samples

    def prepare(self, *parts: Any, **options: Any) -> Any:
        """The parts as they are."""
        self._models += [part for part in parts if isinstance(part, nn.Module)]  # Trainer asks whether there are any
        return parts[0] if len(parts) == 1 else parts

    def prepare_model(self, model: nn.Module, *_: Any, **options: Any) -> nn.Module:
        """The model as it is."""
        self._models += [model]
        return model

    def unwrap_model(self, model: nn.Module, *_: Any, **options: Any) -> nn.Module:
        """The model as it is."""
        return model

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Nothing is summed between steps."""
        yield

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> float:
        """The norm of the gradients of the last step, which has clipped them itself."""
        norm = self._program().metrics.gradient_norm
        assert norm is not None
        return norm

    @property
    def optimizer_step_was_skipped(self) -> bool:
        """Whether the last step has updated nothing since numbers overflowed."""
        program = self._program()
        return program.loss_scale is not None and not math.isfinite(program.metrics.gradient_norm or 0.0)

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """One row for each sample of the batch that was evaluated: every rank has them."""
        if isinstance(input_data, Mapping):
            return {key: self.gather_for_metrics(value) for key, value in input_data.items()}
        if isinstance(input_data, (tuple, list)):
            return type(input_data)(self.gather_for_metrics(value) for value in input_data)
        if not isinstance(input_data, Tensor) or not input_data.dim() or len(input_data) == self.evaluated:
            return input_data
        raise GalvatronError(
            f"what is gathered of an evaluation has {len(input_data)} rows, and the batch {self.evaluated} samples: "
            "name other outputs with outputs=[...], or keep a row for each sample in preprocess_logits_for_metrics"
        )

    def pad_across_processes(self, tensor: Any, *_: Any, **options: Any) -> Any:
        """Every rank has the same."""
        return tensor
