"""Values for what stages hold: those of files, the user's own, or those of the model's initialisers, shard by shard.

A tensor on the meta device has no value yet. Its module is then given real memory on the CPU, initialised under a
random generator seeded by (seed, module path), cut, and freed again; so the result depends neither on the plan nor on
the number of ranks, and at no time is more than one module whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError, PlanError, did_you_mean
from galvatron.runtime.held import HeldState
from galvatron.runtime.stage import Stage

Source = Callable[[], AbstractContextManager[Tensor]]
"""Opens a whole tensor of which only those elements are read that are used."""


class ModelState:
    """The parameters and buffers of the user's model by name; meta ones are initialised when they are read.

    Attributes:
        canonical: every name of every tensor, aliases included, to the first name of that tensor.
        persistent: the names that `model.state_dict()` has.

    Args:
        constants: tensors that the program reads and that are not among the model's parameters and buffers.
        given: what is read elsewhere instead, by each of its names, in whatever type it has there.
        initialisers: by their paths, what gives some modules their values, in the place of what these and those around
            them say of themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        seed: int = 0,
        constants: Mapping[str, Tensor] | None = None,
        given: Mapping[str, Source] | None = None,
        initialisers: Mapping[str, Sequence[Callable[[], Any]]] | None = None,
    ) -> None:
        self.model = model
        self.seed = seed
        self._tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._tensors.update(model.named_buffers(remove_duplicate=False))
        self._tensors.update(constants or {})
        first_names: dict[int, str] = {}
        self.canonical = {name: first_names.setdefault(id(tensor), name) for name, tensor in self._tensors.items()}
        self.persistent = tuple(name for name in model.state_dict(keep_vars=True) if name in self._tensors)
        self._given = given or {}
        self._initialisers = initialisers or {}

    def type_of(self, name: str) -> torch.dtype:
        """The element type that the model has for a tensor."""
        return self._tensors[name].dtype

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The whole tensors called `names`, one module at a time, in no promised order.

        Raises:
            GalvatronError: the model has no such tensor, or it is on the meta device and nothing initialises it.
        """
        on_meta: dict[str, list[str]] = {}
        for name in names:
            tensor = self._tensors.get(name)
            if tensor is None:
                known = did_you_mean(name, self._tensors)
                raise GalvatronError(f"the model has no parameter or buffer {name!r}; {known}")
            if name in self._given:
                with self._given[name]() as value:
                    yield name, value
            elif tensor.is_meta:
                on_meta.setdefault(name.rpartition(".")[0], []).append(name)
            else:
                yield name, tensor.detach()
        for path, owned in on_meta.items():
            attributes = [name.rpartition(".")[2] for name in owned]
            yield from zip(owned, self._initialise(path, attributes), strict=True)

    def _initialise(self, path: str, wanted: list[str]) -> list[Tensor]:
        """Run the model's initialisers on the module at `path` alone, with everything else left on meta."""
        chain = _ancestors(self.model, path)
        module = chain[0]
        kept = module._parameters.copy(), module._buffers.copy()
        # What a user's constructor did first (reset_parameters) may be left in place by `_init_weights`, so when that
        # does not reach every tensor both run, in the constructor's order.
        attempts = [_model_initialisers(chain), _module_initialisers(chain) + _model_initialisers(chain)]
        if path in self._initialisers:
            attempts = [[*self._initialisers[path]]]
        missing = wanted
        around = [(own, own.detach().clone()) for outer in chain[1:] for own in _with_values(outer)]
        try:
            for initialisers in attempts:
                _put(module, *kept)
                blank = _allocate(module)
                _run_seeded(initialisers, f"{self.seed}:{path}")
                missing = [name for name in wanted if _is_blank(_own(module, name), blank.get(name))]
                if not missing:
                    return [_own(module, name).detach() for name in wanted]
        finally:
            _put(module, *kept)
            for own, value in around:  # what is around it may have initialised itself as well
                own.detach().copy_(value)
        raise _no_initialiser(path, module, missing[0], missing[0] in kept[1])


def materialize(
    stages: Sequence[Stage],
    state: ModelState,
    names: Iterable[str] | None = None,
    write: Callable[[str, Tensor], None] | None = None,
    elsewhere: Container[str] = (),
) -> None:
    """Give parameters and buffers of a rank's stages their values on the rank's device; the model is not changed.

    Args:
        names: which; default: all.
        write: where this rank's slice of a parameter that is kept `elsewhere` goes; others go to the stages.

    Raises:
        GalvatronError: see `ModelState.read`.
        PlanError: the model is not the one that the stages were generated for.
    """
    held = HeldState(stages)
    device = held.mesh.world.device
    for name, full in state.read(held.state_specs if names is None else names):
        spec = held.state_specs[name]
        if tuple(full.shape) != spec.shape:
            raise PlanError(f"{name} has shape {tuple(full.shape)} in the model but {spec.shape} in the generated code")
        local, placeholder = spec.shard(full), held.get(name)
        if write is not None and name in elsewhere:
            write(name, local)
            continue
        value = local.to(device, spec.dtype, copy=True).contiguous()
        held.put(name, nn.Parameter(value, placeholder.requires_grad) if spec.kind == "parameter" else value)


def _with_values(module: nn.Module) -> list[Tensor]:
    """The module's own tensors that are not on meta."""
    return [own for table in _tables(module) for own in table.values() if own is not None and not own.is_meta]


def _ancestors(model: nn.Module, path: str) -> list[nn.Module]:
    """The module at `path` and everything around it, innermost first."""
    chain = [model]
    for part in path.split(".") if path else []:
        chain.append(getattr(chain[-1], part))
    return chain[::-1]


def _model_initialisers(chain: list[nn.Module]) -> list[Callable[[], Any]]:
    """The `_init_weights(module)` protocol of `transformers` and many others: a model initialises each of its modules,
    children before parents, and a parent may overwrite what its children were given.
    """
    calls = []
    for depth, module in enumerate(chain):
        owner = next((outer for outer in chain[depth:] if callable(getattr(outer, "_init_weights", None))), None)
        if owner is not None:
            calls.append((owner, module))
    return [lambda owner=owner, module=module: owner._init_weights(module) for owner, module in calls]


def _module_initialisers(chain: list[nn.Module]) -> list[Callable[[], Any]]:
    """`reset_parameters` of the module and of what is around it."""
    found = []
    for module in chain:
        for name in ("reset_parameters", "_reset_parameters"):
            if callable(getattr(module, name, None)):
                found.append(getattr(module, name))
                break
    return found


def _run_seeded(initialisers: list[Callable[[], Any]], key: str) -> None:
    state = torch.get_rng_state()
    # Not `torch.manual_seed`: that would also seed the accelerator's generators, which are the training's.
    torch.default_generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
    try:
        with torch.no_grad():
            for initialiser in initialisers:
                try:
                    initialiser()
                except Exception as error:
                    path = key.partition(":")[2] or "the model"
                    what = f"the initialisers of module {path!r} failed: {type(error).__name__}: {error}"
                    raise GalvatronError(f"{what}; build the model with real weights, or mend them") from error
    finally:
        torch.set_rng_state(state)


def _allocate(module: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Real memory for the module's own meta tensors, marked so that untouched ones are found; with their versions."""
    blank: dict[str, tuple[Tensor, int]] = {}
    for table in _tables(module):
        for name, tensor in table.items():
            if tensor is None or not tensor.is_meta:
                continue
            fresh = torch.empty_like(tensor, device="cpu", requires_grad=False)
            fresh.fill_(torch.nan if fresh.is_floating_point() or fresh.is_complex() else 0)
            fresh = nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
            table[name] = fresh
            blank[name] = fresh, fresh._version
    return blank


def _tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers


def _put(module: nn.Module, parameters: dict[str, Any], buffers: dict[str, Any]) -> None:
    module._parameters.update(parameters)
    module._buffers.update(buffers)


def _own(module: nn.Module, name: str) -> Tensor:
    parameters, buffers = _tables(module)
    return parameters[name] if name in parameters else buffers[name]


def _is_blank(tensor: Tensor, blank: tuple[Tensor, int] | None) -> bool:
    if tensor.is_meta:
        return True
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    return blank is not None and tensor is blank[0] and tensor._version == blank[1]


def _no_initialiser(path: str, module: nn.Module, name: str, is_buffer: bool) -> GalvatronError:
    what = "buffer" if is_buffer else "parameter"
    full = f"{path}.{name}" if path else name
    where = f"{what} {full!r} of {type(module).__name__} is on the meta device and nothing initialises it"
    remedy = (
        f"build {type(module).__name__} with real buffers (only its parameters on meta), or let its "
        "`reset_parameters` compute the buffer"
        if is_buffer
        else f"give {type(module).__name__} a `reset_parameters` method, give the model `_init_weights(module)`, "
        "or build the model with real weights"
    )
    return GalvatronError(f"{where}: {remedy}")
