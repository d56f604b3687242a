"""The batches of a step: what a user passes, and the tensors and numbers that a program reads of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from galvatron.errors import PlanError, did_you_mean
from galvatron.facts import oddity
from galvatron.ir.needed import tables_of
from galvatron.ir.program import Program
from galvatron.ir.types import TORCH_DTYPE_NAMES, TensorType, evaluate, lengths_in
from galvatron.runtime.inputs import batch_size
from galvatron.runtime.rows import Part, Rows

BatchLike = Mapping[str, Any] | tuple[Any, ...]
"""One global batch: forward keyword arguments, or positional ones."""


class BatchReader:
    """Turns what a user passes as a batch into what the program reads, and refuses what does not fit.

    Attributes:
        constants: what forward was called with when it was captured besides tensors and numbers that change.
    """

    def __init__(self, model: nn.Module, example_inputs: BatchLike, program: Program) -> None:
        self._signature = inspect.signature(model.forward)
        self._types = {value.name: value.type for value in program.inputs}
        self._batched, self._batch_sizes = program.batched, program.batch_sizes
        self._numbers = {number.name: number.kind for number in program.numbers}
        self._lengths = {length.name: length for length in program.lengths}
        self._tables = tables_of(program)
        others = {n: value for n, value in self.by_name(example_inputs).items() if n not in self._numbers}
        self.constants = {name: value for name, value in others.items() if not isinstance(value, Tensor)}

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The batch that a call of the model's forward is.

        Raises:
            PlanError: forward takes no such arguments.
        """
        try:
            return {**self._signature.bind_partial(*args).arguments, **kwargs}
        except TypeError as error:
            raise PlanError(f"the batch does not fit the model's forward{self._signature}: {error}") from None

    def is_complete(self, batch: Mapping[str, Any]) -> bool:
        """Whether a batch has every tensor that the program reads."""
        return all(batch.get(name) is not None for name in self._types)

    def read(self, batch: BatchLike, needed: Collection[str] | None = None) -> Mapping[str, Tensor | int | float]:
        """The batch's tensors and the numbers that change, by forward name; of a `Part` a part.

        Args:
            needed: the inputs that it must have, where nothing else matters: others are zeros where it lacks them.

        Raises:
            PlanError: an input is missing, unknown, or has another shape or element type than the one captured.
            GalvatronError: it is a part of a batch that could not be loaded.
        """
        if isinstance(batch, Part) and batch.error is not None:
            raise batch.error
        named = self.by_name(batch)
        absent = [name for name in self._types if named.get(name) is None] if needed is not None else []
        named = {name: value for name, value in named.items() if name not in absent}
        missing = [name for name in self._types if name not in named and (needed is None or name in needed)]
        missing += [name for name in self._numbers if name not in named]
        if missing and needed is not None:
            known = ", ".join(map(repr, sorted(needed)))
            raise PlanError(f"the batch has no input {missing[0]!r}, on which an output depends; they need {known}")
        if missing:
            raise PlanError(f"the batch has no input {missing[0]!r}, which the program was captured with")
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, int | float] = {}
        for name, value in named.items():
            if name in self._numbers:
                numbers[name] = self._number(name, value)
            elif name in self._types:
                self._check(name, value)
                self._check_rows(name, value, batch.rows if isinstance(batch, Part) else None)
                # Autograd saves no tensor of inference mode.
                plain = value.detach().as_subclass(Tensor)
                tensors[name] = plain.clone() if value.is_inference() else plain
            elif isinstance(value, Tensor) or name not in self.constants:
                known = did_you_mean(name, [*self._types, *self.constants])
                raise PlanError(f"the batch has an input {name!r} that the program was not captured with; {known}")
            elif value != self.constants[name]:
                raise PlanError(
                    f"batch input {name!r} is {value!r}, but the program was captured with {self.constants[name]!r}; "
                    f"compile again for the other value{self._or_dynamic(name, value)}"
                )
        samples = self._check_size(tensors, batch.rows if isinstance(batch, Part) else None)
        found = self._lengths_of(tensors)
        if absent:  # a length that only these have is any
            found = {name: length.example for name, length in self._lengths.items()} | found
            tensors.update((name, self._zeros(name, samples, found)) for name in absent)
        read = {**tensors, **numbers, **found}
        return Part(read, batch.rows, batch.origin) if isinstance(batch, Part) else read

    def _lengths_of(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """The sizes, beside the number of samples, that may be others in every step; equal wherever they stand."""
        found: dict[str, int] = {}
        for name, tensor in tensors.items():
            for dim, wanted in enumerate(self._types[name].shape):
                for length in lengths_in(wanted):
                    size = tensor.shape[dim]
                    if found.setdefault(length.name, size) != size:
                        raise PlanError(
                            f"batch input {name!r} has {size} on dim {dim}, where other inputs have {length.name} = "
                            f"{found[length.name]}"
                        )
                    if size % length.sizes.multiple:
                        raise PlanError(
                            f"batch input {name!r} has {size} on dim {dim}: the plan shards the sequence into "
                            f"{length.sizes.multiple} pieces; pad {length.name} to what {length.sizes.multiple} divides"
                        )
                    if size not in length.sizes:
                        again = "which is what the model does; compile again with an example of this size"
                        raise PlanError(
                            f"batch input {name!r} has {size} on dim {dim}: the program holds for {length.name} "
                            f"{length.sizes}, {again if size >= 2 else 'and none does for fewer than 2; pad it'}"
                        )
        return found

    def _or_dynamic(self, name: str, value: Any) -> str:
        """What else to do where a constant has another value: numbers may change."""
        is_number = all(type(v) in (int, float) for v in (value, self.constants[name]))
        return f", or with dynamic={{{name!r}: True}} for all values" if is_number else ""

    def _number(self, name: str, value: Any) -> int | float:
        kind = self._numbers[name]
        if type(value).__name__ == kind and math.isfinite(value):
            return value
        shown = repr(value) if isinstance(value, (bool, int, float, str)) else f"a {type(value).__name__}"
        raise PlanError(f"batch input {name!r} is {shown}, but the program was captured with a finite {kind}: pass one")

    def _zeros(self, name: str, samples: int, lengths: Mapping[str, int]) -> Tensor:
        """An input that does not matter, in the sizes of the others."""
        wanted = self._types[name]
        sizes = [evaluate(dim, samples, lengths) for dim in wanted.shape]
        return torch.zeros(sizes, dtype=getattr(torch, TORCH_DTYPE_NAMES[wanted.dtype]))

    def _check_size(self, tensors: Mapping[str, Tensor], rows: Rows | None) -> int:
        """The number of samples, on which inputs agree. They are a batch, or a part of one of a number that fits."""
        own = samples = batch_size({name: tensor for name, tensor in tensors.items() if name in self._batched})
        if rows is not None:
            samples = rows.samples
            if own != len(rows.held):
                raise PlanError(f"the batch has {own} samples of this rank, which reads {len(rows.held)} of {samples}")
        self.check_samples(samples)
        return own

    def check_samples(self, samples: int) -> None:
        """
        Raises:
            PlanError: the program is not for batches of so many samples.
        """
        if not samples:
            raise PlanError("a batch of 0 samples has no loss; leave it out")
        if samples not in self._batch_sizes:
            if samples == 1 and self._batch_sizes.least == 2:  # an example of one sample would be refused
                raise PlanError(
                    "a batch of 1 sample, which the model treats unlike several: leave it out, or add it to another"
                )
            raise PlanError(
                f"a batch of {samples} samples: the model branches on the size of its batch, and was captured for "
                f"batches {self._batch_sizes}; compile again with a batch of this size as example"
            )

    def _check_rows(self, name: str, value: Tensor, rows: Rows | None) -> None:
        """Numbers of rows that a table has, where the host sees them; one on a device would have to be waited for."""
        table = self._tables.get(name)
        if table is None or value.device.type != "cpu":
            return
        if table.ignored is not None:
            value = value.where(value != table.ignored, 0)
        if not value.numel():
            return
        least, greatest = (int(bound) for bound in value.aminmax())
        if least < 0 or greatest >= table.rows:
            wrong = least if least < 0 else greatest
            sample = int((value == wrong).nonzero()[0, 0]) if value.dim() else 0
            where = f" in sample {sample if rows is None else rows.held[sample]}" if name in self._batched else ""
            raise PlanError(
                f"index {wrong} is outside of 0 to {table.rows - 1}: batch input {name!r} has it{where}; nothing was "
                "updated"
            )

    def samples(self, batch: BatchLike) -> int:
        """Those of a global batch that was read before."""
        if isinstance(batch, Part):
            return batch.samples
        return batch_size({name: value for name, value in self.by_name(batch).items() if name in self._batched})

    def _advice(self, name: str, wanted: TensorType, value: Tensor) -> str:
        """What to do where an input has as many samples as it likes, but was taken for one without."""
        has_rank = len(wanted.shape) == value.dim()
        if name not in self._batched and has_rank and wanted.shape[1:] == value.shape[1:]:
            return f"; if {name!r} has one row per sample, compile with batch_dims={{{name!r}: 0}}"
        sizes = enumerate(zip(wanted.shape, value.shape, strict=False))
        other = [dim for dim, (own, size) in sizes if isinstance(own, int) and own != size]
        if not has_rank or not other:
            return ""
        size = wanted.shape[other[0]]
        alike = {n: t.shape.index(size, 1) for n, t in self._types.items() if size in t.shape[1:]}
        named = ", ".join(f"{n!r}: {{{dim}: 'S'}}" for n, dim in ({name: other[0]} | alike).items())
        return (
            f": pad to that size, or compile with dynamic={{{named}}} for batches of several (where collate_fn pads to "
            "the longest sample of a batch, pass whole_batches=True to the dataloader as well)"
        )

    def by_name(self, batch: BatchLike) -> dict[str, Any]:
        """What a batch has for each argument of forward.

        Raises:
            PlanError: it is no batch, or does not fit forward.
        """
        if isinstance(batch, Mapping):
            odd = next((name for name in batch if not isinstance(name, str)), None)
            if odd is not None:
                raise PlanError(f"a batch has its inputs by name, but {odd!r} is no name of an input")
            return dict(batch)
        if isinstance(batch, (tuple, list)):
            try:
                return dict(self._signature.bind(*batch).arguments)
            except TypeError as error:
                raise PlanError(f"the batch does not fit the model's forward{self._signature}: {error}") from None
        kind = type(batch).__name__
        raise PlanError(f"a batch is a mapping of forward keyword arguments or a tuple of positional ones, not {kind}")

    def _check(self, name: str, value: Any) -> None:
        wanted = self._types[name]
        if not isinstance(value, Tensor):
            raise PlanError(f"batch input {name!r} is {type(value).__name__}, not a tensor")
        odd = oddity(value) or ("one on the meta device, without values" if value.is_meta else "")
        if odd or isinstance(value, FakeTensor):
            odd = odd or "fake, without values"
            raise PlanError(f"batch input {name!r} is {odd}: pass a dense tensor with values")
        if value.dtype != getattr(torch, TORCH_DTYPE_NAMES[wanted.dtype]):
            raise PlanError(f"batch input {name!r} has dtype {value.dtype}, but the program was captured with {wanted}")
        sizes = zip(wanted.shape, value.shape, strict=False)
        if len(wanted.shape) != value.dim() or any(isinstance(w, int) and w != size for w, size in sizes):
            raise PlanError(
                f"batch input {name!r} has shape {tuple(value.shape)}, but the program was captured with {wanted}; "
                f"only {' and '.join(['the number of samples B', *self._lengths])} may change"
                f"{self._advice(name, wanted, value)}"
            )
