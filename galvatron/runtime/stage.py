"""What generated stage modules are made of: their state, their layers, and what goes in and out of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError, PlanError
from galvatron.recompute import recomputed
from galvatron.runtime.bounds import bounds
from galvatron.runtime.collectives import gather_full
from galvatron.runtime.comm import Place, now
from galvatron.runtime.mesh import Axis, Mesh
from galvatron.runtime.outputs import Output, PartialSum, taken
from galvatron.runtime.random import Randomness
from galvatron.runtime.slices import Sharded, in_cutting_order
from galvatron.runtime.started import ending


@dataclass(frozen=True)
class Summed:
    """Whole on every rank of the axis; the ranks' gradients add up to the true one."""


Recompute = Literal["full", "selective"]

Placements = Mapping[Axis, Sharded | Summed]
"""Where a tensor lives, outermost axis first; on an axis that is not named it is replicated and so is its gradient."""


@dataclass(frozen=True)
class StateSpec:
    """A parameter or buffer of the model: its own name, global shape and dtype, and where it lives in the stage.

    `zero` is the ZeRO level over the axes on which it is `Summed`; a `frozen` parameter has no gradient. With a
    `master` type the value that is trained has that type, and the layers read a copy of it in `dtype`. State that the
    forward of another stage writes is `written_by` that.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    placements: tuple[tuple[Axis, Sharded | Summed], ...]
    kind: Literal["parameter", "buffer"]
    zero: int = 0
    master: torch.dtype | None = None
    frozen: bool = False
    written_by: int | None = field(default=None, compare=False)

    @property
    def sharded(self) -> tuple[tuple[Axis, Sharded], ...]:
        """The slices, in the order in which the whole tensor is cut into them."""
        return in_cutting_order((axis, place) for axis, place in self.placements if isinstance(place, Sharded))

    @property
    def summed(self) -> tuple[Axis, ...]:
        return tuple(axis for axis, place in self.placements if isinstance(place, Summed))

    @property
    def shards(self) -> int:
        """Into how many distinct slices the tensor is cut."""
        return math.prod(axis.size for axis, _ in self.sharded)

    def local_shape(self) -> tuple[int, ...]:
        """The shape of one rank's slice.

        Raises:
            PlanError: a sharded dimension does not divide.
        """
        shape = list(self.shape)
        for axis, place in self.sharded:
            if shape[place.dim] % (place.pieces(axis.size) * place.outer) and not place.padded:
                raise PlanError(f"{self.name} of shape {self.shape} does not divide over {axis} as {place}")
            shape[place.dim] = -(-shape[place.dim] // axis.size)
        return tuple(shape)

    @property
    def local_numel(self) -> int:
        """The number of elements of one rank's slice."""
        return math.prod(self.local_shape())

    def shard(self, full: Tensor) -> Tensor:
        """This rank's slice of the whole tensor (a view where possible)."""
        for axis, place in self.sharded:
            full = place.take(full, axis)
        return full

    def unshard(self, local: Tensor) -> Tensor:
        """The whole tensor from the slices of all ranks of the stage. Collective over the sharded axes."""
        for axis, place in reversed(self.sharded):
            local = gather_full(local, axis, place)
            if place.padded:
                local = local.narrow(place.dim, 0, self.shape[place.dim])
        return local


@dataclass(frozen=True)
class BatchInput:
    """A tensor of the user's batch as one keyword of `forward`, of `step` (when `whole`), or of `epilogue`.

    Without `samples` it is the same for all of them.
    """

    name: str
    variable: str
    placements: tuple[tuple[Axis, Sharded], ...]
    whole: bool
    epilogue: bool = False
    samples: bool = True


@dataclass(frozen=True)
class Transfer:
    """A value that crosses a stage border: `shape(n)` is its local shape for a micro-batch of `n` samples in all."""

    name: str
    shape: Callable[[int], tuple[int, ...]]
    dtype: torch.dtype
    requires_grad: bool


@dataclass(frozen=True)
class Collected:
    """A value that `forward` gives to `epilogue`: laid end to end `along` a dimension over the micro-batches, or, where
    that is None, added up."""

    name: str
    along: int | None

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole value; of one part, the part itself."""
        if len(parts) == 1:
            return parts[0]
        return torch.stack(tuple(parts)).sum(0) if self.along is None else torch.cat(tuple(parts), self.along)

    def split(self, gradient: Tensor, micro_batches: int) -> Sequence[Tensor]:
        """The gradient of each part: its own stretch, or for a sum all of it."""
        return (gradient,) * micro_batches if self.along is None else gradient.chunk(micro_batches, self.along)


@dataclass
class Amount:
    """One result of one layer in a step, or what a stage receives, in whole on every rank: the same in each
    micro-batch, or a term of a sum over them where it is `summed`."""

    name: str
    result: int
    summed: bool
    value: Tensor | None = None

    def take(self, results: Any, state: Iterable[Tensor] = ()) -> None:
        """A call of the layer, for one micro-batch, has ended with these results."""
        value = taken(results, self.result, state)
        self.value = self.value + value if self.summed and self.value is not None else value


@dataclass
class Update(Amount):
    """The new value of a piece of state. Where it `adds`, it comes on top of the old value."""

    adds: bool = False


class Supply(Protocol):
    """What brings the parameters of a layer where they are not simply there."""

    def enter(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The layer's forward begins, with these arguments; what it is to be called with in their place."""
        ...

    def leave(self, results: Any) -> None:
        """The layer's forward has ended, with these results."""
        ...


class Layer(nn.Module):
    """One layer of a stage: the function of its class, applied to this layer's own state.

    The state belongs to the stage and is looked up at each call. `random` is where the seed of a call comes from; None
    for a function that draws no random numbers. Compiled, its draws on the axes of `stream` may follow one after
    another from one key (`galvatron.runtime.random`). With `recompute`, activations are computed again in the backward:
    all, or with "selective" those that are not results of `rt.keep`. `rereads` says whether its backward reads values
    of its parameters. One that is called `once` per step is so behind the micro-batches.
    """

    def __init__(
        self,
        stage: Stage,
        name: str,
        function: Callable[..., Any],
        axes: tuple[Axis, ...],
        state: Sequence[str],
        random: Randomness | None,
        stream: tuple[Axis, ...] | None = None,
        recompute: Recompute | None = None,
        once: bool = False,
        rereads: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.once = once
        self.rereads = rereads
        self._stage = stage.index
        self._job = stage.random
        self.function = function
        self._call = self._run
        if recompute:
            self._call = recomputed(ending(self._run), selective=recompute == "selective")
        self.axes = axes
        self.random = random
        self.stream = stream
        self.names = tuple(state)
        self._sources = tuple((stage.table(name), name) for name in self.names)
        self.amounts: list[Amount] = []
        """Updates among them."""
        self.outputs: list[Output] = []
        self.checks: list[tuple[str, int]] = []
        """What results are true nowhere, by their numbers, and what is said otherwise."""
        self.parameters: Supply | None = None
        """Set by the runtime."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        state = [table[name] for table, name in self._sources]
        if self.random is not None:
            kwargs["seed"] = self.random.seed(self.name)
        place = now.place = (self._stage, self.name, self._job.microbatch)
        if self.parameters is not None:
            args = self.parameters.enter(args)
        # A replay of the call has the same seed, and reads the same parameters.
        results = self._call(place, *self.axes, *args, *state, **kwargs)
        for output in self.outputs:
            output.take(results, state, self._job.microbatch)
        for amount in self.amounts if self._job.training else ():
            amount.take(results, state)
        for says, result in self.checks:
            bounds.never(says, results[result] if isinstance(results, tuple) else results)
        if self.parameters is not None:
            self.parameters.leave(results)
        now.place = None
        return results

    def _run(self, place: Place, *args: Any, **kwargs: Any) -> Any:
        now.place = place  # in the backward, when the call is replayed
        return self.function(*args, **kwargs)


class Stage(nn.Module):
    """Base of generated stage modules.

    Parameters and buffers keep the model's own dotted names (`named_parameters()` yields them) and start on the meta
    device, with local shapes; the executor gives them values. Layers are attributes but not sub-modules, since they
    own nothing.
    """

    index: int = 0
    count: int = 1
    epilogue_shards: int = 0
    """Over how many ranks samples are sharded in the last stage's `epilogue`; 0 where there is none. Then `forward` of
    the last stage returns what the epilogue reads, and `epilogue`, once per step, the loss."""
    step_adds: bool = False
    """Whether what `step` gives for parts of a batch adds up to what it gives for all of it."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        if self.index not in mesh.stages or self.count != len(mesh.holders):
            raise PlanError(
                f"code of stage {self.index} of {self.count} runs on pipeline rank {mesh.pipeline_rank}, which holds "
                f"stages {mesh.stages} of {len(mesh.holders)}: the plan and the number of ranks do not agree"
            )
        self.mesh = mesh
        self.state_specs: dict[str, StateSpec] = {}
        self.layers: dict[str, Layer] = {}
        self.batch_inputs: list[BatchInput] = []
        self.received: list[Transfer] = []
        self.sent: list[Transfer] = []
        self.collected: list[Collected] = []
        self.amounts: list[Amount] = []
        self.arriving: list[Amount] = []
        """Those of `amounts` that the stage receives, by their place there."""
        self.reaches: list[tuple[Amount, tuple[tuple[str, ...], ...]]] = []
        """Truth values that say of parameters, element by element, whether they have a gradient in the step."""
        self.updates: list[Update] = []
        self.outputs: list[Output] = []
        self.loss_axes: tuple[Axis, ...] = ()
        self.global_batch_size = 0
        """Samples in the whole batch of the running step; set by the runtime."""
        self.turns = False
        """Whether the running forward is followed by a backward of this stage at once; set by the runtime."""
        self.asked = False
        """Whether the running step is to give what the model returns besides its loss; set by the runtime."""
        self.micro_batches: float = 1
        """What is counted once per step is divided by: the micro-batches, less where samples are repeated; set by the
        runtime."""
        self.numbers: Mapping[str, int | float] = {}
        """The Python numbers of the running step's batch, by name; set by the runtime."""
        self.random = Randomness(mesh.world.device)

    def epilogue(self, *collected: Tensor, **keywords: Any) -> Tensor:
        """The loss, from what `forward` has given for all micro-batches; generated where there is one."""
        raise GalvatronError(f"stage {self.index} has no epilogue")

    def closing(self, **keywords: Any) -> None:
        """Calls the layers that make new values of state of what the micro-batches of a step add up to; generated where
        there are some."""

    def state(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        placements: Placements,
        *,
        kind: Literal["parameter", "buffer"] = "parameter",
        requires_grad: bool = True,
        zero: int = 0,
        master: torch.dtype | None = None,
        written_by: int | None = None,
    ) -> None:
        """Declare a parameter or buffer of the model under its own name; see `StateSpec`."""
        frozen = not (kind == "parameter" and requires_grad and dtype.is_floating_point)
        spec = StateSpec(name, tuple(shape), dtype, tuple(placements.items()), kind, zero, master, frozen, written_by)
        self.state_specs[name] = spec
        local = torch.empty(spec.local_shape(), dtype=dtype, device="meta")
        # Written past `register_parameter`, which refuses dots: the model's names are kept whole, not as a module tree.
        if kind == "parameter":
            self._parameters[name] = nn.Parameter(local, not frozen)
        else:
            self._buffers[name] = local

    @property
    def device(self) -> torch.device:
        """Where this rank's tensors live."""
        return self.mesh.world.device

    def table(self, name: str) -> dict[str, Any]:
        """The dictionary that holds the tensor called `name`."""
        spec = self.state_specs.get(name)
        if spec is None:
            raise GalvatronError(f"stage {self.index} uses {name!r}, which it does not declare with `self.state`")
        return self._parameters if spec.kind == "parameter" else self._buffers

    def layer(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        axes: tuple[Axis, ...] = (),
        state: Sequence[str] = (),
        random: bool = False,
        stream: tuple[Axis, ...] | None = None,
        recompute: Recompute | None = None,
        once: bool = False,
        rereads: bool = True,
    ) -> None:
        """Make `self.<name>(*args)` call `function(*axes, *args, *state)`, and with `seed=` if it is `random`; the
        backward computes its activations again if `recompute` says so. See `Layer` for `stream`, `once` and `rereads`.
        """
        if hasattr(type(self), name) or name in self.__dict__:
            raise GalvatronError(
                f"stage {self.index}: {name!r} cannot name a layer, a stage has an attribute of that name"
            )
        source = self.random if random else None
        layer = Layer(self, name, function, axes, state, source, stream, recompute, once, rereads)
        self.layers[name] = layer
        object.__setattr__(self, name, layer)

    def update(self, name: str, layer: str, result: int, *, summed: bool = False, adds: bool = False) -> None:
        """Give the state `name`, at the end of a step, the value of a result of a layer; see `Update`."""
        self.updates.append(Update(name, result, summed, adds=adds))
        self.layers[layer].amounts.append(self.updates[-1])

    def amount(
        self, name: str, layer: str | None = None, result: int = 0, *, received: int | None = None, summed: bool = False
    ) -> None:
        """Give `closing`, as keyword `name`, a result of a layer, or what the stage has `received` in a place; see
        `Amount`."""
        self.amounts.append(Amount(name, result if received is None else received, summed))
        (self.arriving if layer is None else self.layers[layer].amounts).append(self.amounts[-1])

    def reached(self, layer: str, result: int, parameters: Sequence[Sequence[str]]) -> None:
        """Of each element of a result of a layer, the parameters that have no gradient in a step where it is false."""
        self.reaches.append((Amount("", result, False), tuple(map(tuple, parameters))))
        self.layers[layer].amounts.append(self.reaches[-1][0])

    def gives(
        self,
        name: str,
        layer: str,
        result: int,
        shape: Callable[[int], tuple[int, ...]],
        places: Callable[[int], Mapping[Axis, Sharded | PartialSum]],
        *,
        along: Sharded | None = None,
        summed: bool = False,
    ) -> None:
        """Give a result of a layer, as the model's output `name`, where it is asked for; see `Output`."""
        self.outputs.append(Output(name, result, shape, places, along, summed))
        self.layers[layer].outputs.append(self.outputs[-1])

    def never(self, says: str, layer: str, result: int) -> None:
        """Refuse a step in which a result of a layer is true anywhere, with what the model `says` then."""
        self.layers[layer].checks.append((says, result))

    def batch(
        self,
        name: str,
        variable: str,
        placements: Mapping[Axis, Sharded],
        *,
        whole: bool = False,
        epilogue: bool = False,
        samples: bool = True,
    ) -> None:
        """Read batch input `name` as keyword `variable`: of `forward`, split over micro-batches along dim 0 (unless it
        has no `samples`) and then over the axes; with `epilogue`, of `epilogue`, split over the axes alone; with
        `whole`, of `step`, unsplit.
        """
        self.batch_inputs.append(BatchInput(name, variable, tuple(placements.items()), whole, epilogue, samples))

    def collects(self, name: str, *, along: int | None = None, summed: bool = False) -> None:
        """Declare the next element of the tuple that `forward` returns for `epilogue`: its parts are laid end to end
        along a dimension, or `summed`.
        """
        if summed == (along is not None):
            raise GalvatronError(f"{name!r} is either laid end to end along a dimension or summed")
        self.collected.append(Collected(name, along))

    def receives(
        self, name: str, shape: Callable[[int], tuple[int, ...]], dtype: torch.dtype, *, requires_grad: bool = True
    ) -> None:
        """Declare the next positional argument of `forward`, sent by the stage before.

        Args:
            shape: local shape for a micro-batch of `n` samples over all ranks.
            requires_grad: whether a gradient goes back; never for integers. Both ends must agree.
        """
        self.received.append(
            Transfer(name, shape, dtype, requires_grad and (dtype.is_floating_point or dtype.is_complex))
        )

    def sends(
        self, name: str, shape: Callable[[int], tuple[int, ...]], dtype: torch.dtype, *, requires_grad: bool = True
    ) -> None:
        """Declare the next element of the tuple that `forward` returns to the stage after; as `receives`."""
        self.sent.append(Transfer(name, shape, dtype, requires_grad and (dtype.is_floating_point or dtype.is_complex)))

    def loss(self, sum_over: Sequence[Axis] = ()) -> None:
        """Say that `forward` returns a loss term, to be summed over micro-batches and over these axes."""
        self.loss_axes = tuple(sum_over)
