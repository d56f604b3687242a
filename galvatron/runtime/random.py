"""Random numbers as pure functions of a key: who draws what depends on no generator's state and no order of calls.

The key of a draw is (seed of the job, step, micro-batch, layer, site in the layer, coordinates on the axes on which the
drawn tensor is sharded). So ranks with replicas of a tensor draw the same numbers, ranks with different slices
independent ones, a recomputed layer the same ones again, and a job that starts from the same seed repeats exactly.

Of a compiled layer no key can be made in the middle. There the draws on the same axes are a *stream*: one key for the
call of the layer, from which they follow one after another in the compiler's order. That is the same on all ranks, in
every step and when the call is replayed as a whole; the numbers are others than those of the layer as written, which
they are anyway where the compiler fuses draws, as it has a generator of its own. Other draws, and those of layers that
are replayed in parts, keep their keys, and the compiler cuts its graphs there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from galvatron.runtime.mesh import Axis

_STREAM = -1
"""The site of a stream; those of draws count from 0."""


@dataclass(frozen=True)
class Seed:
    """What the draws of one call of a layer have in common. Without `training` there is no dropout."""

    device: torch.device
    job: int
    step: int
    microbatch: int
    layer: str
    training: bool = True

    def rate(self, dropout: float) -> float:
        """The probability of dropping something."""
        return dropout if self.training else 0.0


@dataclass
class Randomness:
    """The job's seed, and what runs now: the executor counts the steps, the pipeline says which micro-batch is next."""

    device: torch.device
    job: int = 0
    step: int = 0
    microbatch: int = 0
    training: bool = True

    def seed(self, layer: str) -> Seed:
        """The seed of a call of `layer` that starts now; whoever recomputes the layer later calls it with this one."""
        return Seed(self.device, self.job, self.step, self.microbatch, layer, self.training)


@contextmanager
def seeded(seed: Seed, *, site: int, axes: tuple[Axis, ...] = (), per_step: bool = False) -> Iterator[None]:
    """Draws inside the `with` block follow from the key alone; the device's generator is as before afterwards.

    Args:
        site: the number of the draw in its layer.
        axes: where ranks with different coordinates draw independent numbers.
        per_step: all micro-batches of a step draw the same numbers.
    """
    microbatch = None if per_step else seed.microbatch
    key = (seed.job, seed.step, microbatch, seed.layer, site, tuple(axis.index for axis in axes))
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = _generator(seed.device)
    state = generator.get_state()
    generator.manual_seed(int.from_bytes(digest, "little"))
    try:
        yield
    finally:
        generator.set_state(state)


def in_stream(function: Callable[..., Any], axes: tuple[Axis, ...]) -> Callable[..., Any]:
    """The function of a layer, whose draws under `going_on` are a stream."""

    def call(*args: Any, seed: Seed, **kwargs: Any) -> Any:
        with seeded(seed, site=_STREAM, axes=axes):
            return function(*args, seed=seed, **kwargs)

    return call


def going_on(stream: tuple[Axis, ...]) -> Callable[..., AbstractContextManager[None]]:
    """In the place of `seeded`, in such a function: draws on the axes of the stream are drawn from that."""

    def seeded_or_not(
        seed: Seed, *, site: int, axes: tuple[Axis, ...] = (), per_step: bool = False
    ) -> AbstractContextManager[None]:
        if axes == stream and not per_step:
            return nullcontext()
        return seeded(seed, site=site, axes=axes, per_step=per_step)

    return seeded_or_not


def _generator(device: torch.device) -> torch.Generator:
    """The generator from which ops on the device draw."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
