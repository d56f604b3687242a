"""Whether an optimizer means the same on slices as on whole parameters.

A rank's optimizer gets what the plan leaves it: slices along dimensions (tensor parallelism), parts of the flattened
parameter (ZeRO), the parameters of some layers (pipelines). Training is that of one device only if the update of a
slice is the slice of the update. That is a property of the optimizer and of the groups that the user makes, so it is
tested on them: small random stand-ins of the whole model are trained for a few steps, once whole and once cut like the
plan cuts, and must end up alike. An optimizer that a plan gives everything whole need not have the property.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError

Build = Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]
"""From parameters by name to the user's optimizer of them."""

STEPS = 12
"""More than the interval at which usual optimizers renew what they do not renew in each step."""

_LEARNING_RATE = 0.01
"""Of stand-ins: a schedule may start at zero, where nothing could be seen."""

_LONGEST = {1: 4200, 2: 136}
"""The longest dimension of a stand-in, by number of dimensions: optimizers treat small tensors in other ways, such as
those below 4096 elements or 128 rows."""

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


class NotElementwiseError(GalvatronError):
    """An optimizer updates parts in another way than the whole parameter."""


@dataclass(frozen=True)
class Trained:
    """A trained parameter of the model."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Slices:
    """How a rank's parameters are cut: along which dimensions, and whether into ranges of the flattened tensor."""

    dims: frozenset[int] = frozenset()
    ranges: bool = False


def check_optimizer(
    build: Build,
    model: Mapping[str, Trained],
    own: Sequence[str],
    slices: Slices,
    device: torch.device,
    whole: Collection[str] = (),
) -> frozenset[str]:
    """Proves that an optimizer trains what a plan gives to this rank as it would train the whole model.

    Nothing of the job changes.

    Args:
        build: called for stand-ins only.
        model: every trained parameter by name, in the model's order.
        own: the names of those that this rank trains some part of, in the order in which its optimizer gets them.
        whole: the names of those that are given whole to one rank, whatever the plan makes of them.

    Returns:
        The keys of the optimizer's state of a parameter that hold one number per element of it.

    Raises:
        GalvatronError: it does not; or it cannot be built, or takes no step.
    """
    with undisturbed(device):
        trial = _Trial(build, model, own, device, frozenset(whole))
        reference = trial.run(list(model), _whole)
        if whole:
            trial.compare(reference, trial.run(own, _whole, trial.every_other), "gradients of some parameters", _whole)
        everything = set(own) == set(model)
        slices = Slices() if set(own) <= set(whole) else slices
        for words, cut in _cuts(slices, everything=everything) if own else ():
            trial.compare(reference, trial.run(own, cut), words, cut)
        return reference.keys_of_elements()


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Inside the `with` block optimizers are tried of which the job does not see anything."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        yield


_Cut = Callable[[Tensor], Tensor]


def _whole(x: Tensor) -> Tensor:
    return x


def _cuts(slices: Slices, *, everything: bool) -> Iterable[tuple[str, _Cut]]:
    """What a rank may get of a parameter, in words and as a function of the whole."""
    if not everything:
        yield "the parameters of some layers", _whole
    for dim in sorted(slices.dims):
        yield f"a slice of dim {dim}", lambda x, dim=dim: _half(x, dim)
    if slices.ranges:
        yield "a range of the flattened parameter", lambda x: _row(x, x.numel() // 3, x.numel() - x.numel() // 4)
        yield "an empty range of the parameter", lambda x: _row(x, 0, 0)


def _half(x: Tensor, dim: int) -> Tensor:
    return x.narrow(dim, 0, -(-x.size(dim) // 2)) if dim < x.dim() else x


def _row(x: Tensor, begin: int, end: int) -> Tensor:
    """A range of the elements, shaped as a bucket shapes its parts."""
    return x.reshape(-1)[begin:end].view((1,) * (x.dim() - 1) + (end - begin,))


@dataclass(frozen=True)
class _Run:
    """Stand-ins after some steps: their first and last values, and the optimizer."""

    before: dict[str, Tensor]
    after: dict[str, nn.Parameter]
    options: dict[str, dict[str, Any]]
    optimizer: torch.optim.Optimizer

    def keys_of_elements(self) -> frozenset[str]:
        """The keys of the state that has the shape of its parameter, whichever that is."""
        shaped: dict[str, bool] = {}
        for name in self.before:
            parameter = self.after[name]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                fits = isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0
                shaped[str(key)] = shaped.get(str(key), True) and fits
        return frozenset(key for key, fits in shaped.items() if fits)


class _Trial:
    """Trains stand-ins of a model.

    Of the parameters whose groups have the same options but for rates, and that have as many dimensions, only the two
    largest of this rank and the largest of other ranks get gradients; the rest are as small as can be.
    """

    def __init__(
        self,
        build: Build,
        model: Mapping[str, Trained],
        own: Sequence[str],
        device: torch.device,
        given_whole: frozenset[str],
    ) -> None:
        self._given_whole = given_whole
        self._build, self._model, self._device = build, model, device
        self._generator = torch.Generator().manual_seed(0)
        tiny = {name: nn.Parameter(torch.zeros(_shape(whole, {}, 2), device=device)) for name, whole in model.items()}
        options = options_of(build(tiny), tiny)
        here, classes = set(own), dict[Any, list[str]]()
        for name in sorted(options, key=lambda name: -math.prod(model[name].shape)):
            chosen = classes.setdefault((kind_of(options[name]), len(model[name].shape), name in here), [])
            if len(chosen) < (2 if name in here else 1):
                chosen.append(name)
        self._values: dict[str, Tensor] = {}
        self._gradients: dict[str, list[Tensor]] = {}
        for name in (name for chosen in classes.values() for name in chosen):
            shape, dtype = _shape(model[name], _LONGEST, 8), _dtype(model[name])
            self._values[name] = self._random(shape, dtype)
            # Larger and larger along each dimension, so that no slice has the statistics of the whole.
            scale = torch.ones((), dtype=dtype)
            for size in shape:
                scale = scale.unsqueeze(-1) * torch.linspace(0.1, 2.0, size, dtype=dtype)
            scale = scale.to(self._device)
            self._gradients[name] = [(self._random(shape, dtype) + 1) * scale for _ in range(STEPS)]

    def _random(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=self._generator).to(self._device)

    @property
    def every_other(self) -> frozenset[str]:
        """Every other of those that have gradients."""
        return frozenset([*self._values][::2])

    def run(self, names: Sequence[str], cut: _Cut, given: Collection[str] | None = None) -> _Run:
        """Stand-ins with these names after some steps, each cut from the whole one.

        Args:
            given: those that have gradients in this run, of those that have any; None, all.

        Raises:
            GalvatronError: the optimizer takes no step.
        """
        named: dict[str, nn.Parameter] = {}
        for name in names:
            value = self._values.get(name)
            if value is None:
                value = torch.zeros(
                    _shape(self._model[name], {}, 2), dtype=_dtype(self._model[name]), device=self._device
                )
            named[name] = nn.Parameter(self._cut(cut, name)(value).clone())
        moving = [name for name in names if name in self._values and (given is None or name in given)]
        before = {name: named[name].detach().clone() for name in moving}
        optimizer = self._build(named)
        options = options_of(optimizer, named)
        for group in optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, Tensor):
                group["lr"] = torch.full_like(rate, _LEARNING_RATE)
            elif isinstance(rate, float):
                group["lr"] = _LEARNING_RATE
        for step in range(STEPS):
            for name in before:
                named[name].grad = self._cut(cut, name)(self._gradients[name][step]).clone()
            try:
                optimizer.step()
            except Exception as error:
                raise GalvatronError(
                    f"{type(optimizer).__name__} fails on small parameters with dense gradients of shapes like "
                    f"{', '.join(sorted({str(tuple(p.shape)) for n, p in named.items() if n in before}))}: "
                    f"{type(error).__name__}: {error}; {_ADVICE}"
                ) from error
        return _Run(before, named, options, optimizer)

    def _cut(self, cut: _Cut, name: str) -> _Cut:
        """What a plan that cuts others so does to a parameter."""
        return _whole if name in self._given_whole else cut

    def compare(self, reference: _Run, found: _Run, words: str, cut: _Cut) -> None:
        """
        Raises:
            GalvatronError: a parameter is in a group with other options than in the whole model, or ends up elsewhere.
        """
        who = type(reference.optimizer).__name__
        for name, options in found.options.items():
            whole = reference.options.get(name, {})
            other = [key for key in options.keys() | whole.keys() if not _alike(options.get(key), whole.get(key))]
            if other:
                raise GalvatronError(
                    f"the function given as optimizer= gives {name!r} {min(other)}={options.get(min(other))!r} on a "
                    f"rank that has {words}, and {whole.get(min(other))!r} in the whole model: let options follow from "
                    "a parameter's name or number of dimensions (an argument called named_parameters gets names)"
                )
        for name, start in found.before.items():
            moved = self._cut(cut, name)(reference.after[name].detach() - reference.before[name])
            error = found.after[name].detach() - start - moved
            if not moved.numel():
                continue
            if not moved.any():
                raise GalvatronError(
                    f"{who} does not move {name!r} in {STEPS} steps, so nobody can see whether it may be given "
                    f"{words}; {_ADVICE}"
                )
            if not error.norm() <= _TOLERANCES[moved.dtype] * moved.norm():
                advice = (
                    "Use an element-wise optimizer (SGD, Adam and their relatives), say that it reads whole "
                    "parameters (optimizer=galvatron.WholeParameters(...)), or use a plan that leaves every "
                    "parameter whole on every rank (dp without ZeRO)"
                )
                if self._given_whole:
                    advice = "It is to be read whole, so let which= of WholeParameters say so of this parameter"
                raise NotElementwiseError(
                    f"{who} is not element-wise: given {words}, as {'some' if self._given_whole else 'this'} plan "
                    f"gives it, it updates {name!r} in another way than given the whole parameter (by "
                    f"{float(error.norm() / moved.norm()):.1%} on stand-ins). {advice}; {_ADVICE}"
                )


_ADVICE = "compile(check_optimizer=False) leaves this check out"


def _shape(whole: Trained, longest: Mapping[int, int], otherwise: int) -> tuple[int, ...]:
    return tuple(min(size, longest.get(len(whole.shape), otherwise)) for size in whole.shape)


def _dtype(whole: Trained) -> torch.dtype:
    """Half types have too few digits to tell rounding from another update."""
    return whole.dtype if whole.dtype in _TOLERANCES else torch.float32


def options_of(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """For each parameter that is trained, the options of its group."""
    names = {id(parameter): name for name, parameter in named.items()}
    return {
        names[id(parameter)]: {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    }


def kind_of(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is equal for groups that are updated by the same rule: their options but for rates."""
    return tuple(
        (key, value if isinstance(value, (bool, int, str, type(None))) else type(value).__name__)
        for key, value in sorted(options.items())
    )


def _alike(one: Any, other: Any) -> bool:
    """Whether two options are equal, as far as options can be compared."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    comparable = (bool, int, float, str, type(None), tuple, list)
    return one == other if isinstance(one, comparable) and isinstance(other, comparable) else type(one) is type(other)
