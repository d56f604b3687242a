"""The optimizer of a rank: built by the user's function, and what it refuses to be loaded with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError
from galvatron.runtime.elementwise import Slices, Trained, check_optimizer
from galvatron.runtime.whole import WholeParameters

OptimizerFactory = Callable[[list[Any]], torch.optim.Optimizer] | WholeParameters
"""From this rank's parameters, or from (name, parameter) pairs where the argument is called `named_parameters`."""


def build_optimizer(factory: OptimizerFactory, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """What the user's function returns for these parameters.

    Raises:
        GalvatronError: the function fails, or returns something that does not train these parameters.
    """
    pairs = list(named.items())
    build = factory.build if isinstance(factory, WholeParameters) else factory
    try:
        optimizer = build(pairs if _wants_names(build) else [parameter for _, parameter in pairs])
    except GalvatronError:
        raise
    except Exception as error:
        raise GalvatronError(f"the function given as optimizer= failed: {type(error).__name__}: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise GalvatronError(
            f"the function given as optimizer= returned {type(optimizer).__name__}, not a torch.optim.Optimizer"
        )
    given = {id(parameter) for _, parameter in pairs}
    foreign = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in given]
    if foreign:
        raise GalvatronError(
            f"the optimizer trains {len(foreign)} tensors that its function was not given, the first of shape "
            f"{tuple(foreign[0].shape)}: build it over the function's argument, not over model.parameters()"
        )
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [name for name, parameter in pairs if id(parameter) not in trained]
    if left:
        raise GalvatronError(
            f"the optimizer leaves out {len(left)} of the {len(pairs)} parameters that its function was given: "
            f"{', '.join(map(repr, left[:3]))}{', ...' if len(left) > 3 else ''}; freeze what is not to be trained "
            "(requires_grad_(False), before the model is compiled), or join an optimizer of them "
            "(galvatron.JoinedOptimizer)"
        )
    arguments = inspect.signature(optimizer.step).parameters.values()
    if any(argument.default is argument.empty and argument.kind in _POSITIONAL for argument in arguments):
        raise GalvatronError(
            f"the step of {type(optimizer).__name__} needs a closure, which would compute the loss again inside the "
            "update: choose an optimizer whose step() takes no argument"
        )
    return optimizer


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _wants_names(factory: Callable[..., Any]) -> bool:
    try:
        return "named_parameters" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable that does not tell
        return False


def optimizer_of_rank(
    factory: OptimizerFactory,
    trained: Mapping[str, nn.Parameter],
    model: Mapping[str, Trained],
    slices: Slices,
    device: torch.device,
    *,
    check: bool,
    whole: Collection[str] = (),
) -> torch.optim.Optimizer:
    """The optimizer of this rank's parameters; states of other layouts are refused by its `load_state_dict`.

    A rank that has nothing to train gives the user's function an empty tensor: the learning rate still counts.

    Args:
        trained: what this rank trains, by name.
        model, slices: see `check_optimizer`, which is called if `check` says so.
        whole: of the parameters of the model, those that a `WholeParameters` says to be read whole: the others may
            then be cut by any plan.

    Raises:
        GalvatronError: see `build_optimizer` and `check_optimizer`; or the model has nothing to train.
    """
    if not model:
        raise GalvatronError(
            "the model has nothing to train: the program reads no parameter that requires a gradient; leave "
            "optimizer= out to evaluate it"
        )
    if isinstance(factory, WholeParameters):
        slices = Slices(frozenset(range(max(len(one.shape) for one in model.values()))), ranges=True)
    keys = (
        check_optimizer(partial(build_optimizer, factory), model, tuple(trained), slices, device, whole)
        if check
        else frozenset[str]()
    )
    optimizer = build_optimizer(factory, trained or {"": nn.Parameter(torch.empty(0, device=device))})
    names = {id(parameter): name for name, parameter in trained.items()}
    optimizer.register_load_state_dict_pre_hook(lambda own, state: _check_state(own, state, names, keys))
    return optimizer


def _check_state(optimizer: torch.optim.Optimizer, state: Any, names: Mapping[int, str], keys: frozenset[str]) -> None:
    """Refuses a state that is not of these parameters, before anything of it is taken over.

    Args:
        names: of the parameters, by identity.
        keys: of state that has the shape of its parameter.
    """
    advice = "a rank loads what it saved itself under the same plan, whose slices these are"
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        raise GalvatronError("this is no state of an optimizer: it has no 'state' and 'param_groups'")
    groups, own = state["param_groups"], optimizer.param_groups
    if len(groups) != len(own):
        raise GalvatronError(
            f"the state has {len(groups)} groups of parameters, but the optimizer {len(own)}; {advice}"
        )
    for index, (saved, group) in enumerate(zip(groups, own, strict=True)):
        found = [names.get(id(parameter), "") for parameter in group["params"]]
        if len(saved["params"]) != len(found):
            raise GalvatronError(
                f"group {index} of the state has {len(saved['params'])} parameters, but that of the optimizer "
                f"{len(found)} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''}); {advice}"
            )
        saved_names = saved.get("param_names", found)
        for key, name, parameter, saved_name in zip(saved["params"], found, group["params"], saved_names, strict=True):
            if "param_names" in group and saved_name != name:
                raise GalvatronError(f"the state has {saved_name!r} where the optimizer has {name!r}; {advice}")
            for entry, value in state["state"].get(key, {}).items():
                if entry in keys and isinstance(value, Tensor) and value.shape != parameter.shape:
                    raise GalvatronError(
                        f"the state {entry!r} of {name!r} has shape {tuple(value.shape)}, but this rank's part of the "
                        f"parameter has {tuple(parameter.shape)}; {advice}"
                    )
