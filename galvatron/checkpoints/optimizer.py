"""The optimizer of a rank, parameter by parameter: what of it a checkpoint has, and how it is put together again.

It follows from each parameter alone, whatever the groups that the optimizer of another plan has them in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from galvatron.checkpoints.index import ParameterState
from galvatron.errors import GalvatronError
from galvatron.runtime import Piece
from galvatron.runtime.averaging import DECAY, averages
from galvatron.runtime.averaging import KEY as AVERAGE
from galvatron.runtime.joined import Updated, updated_by

_NOT_OPTIONS = ("params", "param_names", "foreach", "fused", "capturable", "differentiable")
"""What is no option of the update: which parameters, and by which kernels, which is for this machine to say."""


def single_numbers(optimizer: Optimizer) -> frozenset[str]:
    """The keys of the state that is a number for all of a parameter, which cannot be told from that of its elements
    where a parameter has one and no dimensions."""
    found = {
        str(key)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor) and parameter.dim() and not value.dim()
    }
    return frozenset(found | {"step"})


def state_of(
    optimizer: Optimizer, updated: Mapping[int, Updated], single: frozenset[str], piece: Piece
) -> tuple[ParameterState, dict[str, Tensor]] | None:
    """What an optimizer has for one parameter: in words, and its tensors by key; None where it does not train it.

    Args:
        updated: see `updated_by`.
        single: see `single_numbers`.

    Raises:
        GalvatronError: a part of the state is nothing that a checkpoint can have, or means nothing under another plan.
    """
    how = updated.get(id(piece.tensor))
    if how is None:
        return None
    options = {key: _plain(value) for key, value in how.group.items() if key not in _NOT_OPTIONS}
    elements: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in optimizer.state.get(piece.tensor, {}).items():
        if isinstance(value, Tensor) and _is_of_elements(value, piece.tensor, is_single=key in single):
            elements[key] = value
        elif isinstance(value, Tensor):
            if value.dim() and not piece.is_whole:
                raise GalvatronError(
                    f"{how.rule} keeps {key!r} of {piece.name!r}, which is not one number per element, "
                    "for a slice of it: no other plan could go on with that; use a plan that leaves parameters whole, "
                    "or optimizer=galvatron.WholeParameters(...)"
                )
            tensors[key] = value
        elif value is None or type(value) in (bool, int, float, str):
            values[key] = value
        else:
            raise GalvatronError(
                f"{how.rule} keeps {key!r} of {piece.name!r}, of type {type(value).__name__}: a "
                "checkpoint has tensors, numbers and texts"
            )
    found = ParameterState(
        how.rule, {k: v for k, v in options.items() if v is not _NOTHING}, tuple(elements), tuple(tensors), values
    )
    return found, elements | tensors


def _is_of_elements(value: Tensor, parameter: Tensor, *, is_single: bool) -> bool:
    return value.shape == parameter.shape and (value.dim() > 0 or not is_single)


_NOTHING = object()


def _plain(value: Any) -> Any:
    """An option as JSON has it; `_NOTHING` for what stays as the user's function made it."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (tuple, list)):
        items = [_plain(item) for item in value]
        return _NOTHING if any(item is _NOTHING for item in items) else items
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return float(value) if isinstance(value, Real) else _NOTHING


def check(optimizer: Optimizer, pieces: Sequence[Piece], saved: Mapping[str, ParameterState]) -> None:
    """
    Raises:
        GalvatronError: a checkpoint has not what this rank's optimizer needs.
    """
    own = type(optimizer).__name__
    if pieces and not saved:
        raise GalvatronError(
            f"the checkpoint has no optimizer, but the model was compiled with {own}; nothing was loaded"
        )
    updated = updated_by(optimizer)
    for piece in pieces:
        how, found = updated.get(id(piece.tensor)), saved.get(piece.name)
        if how is not None and found is not None and how.rule != found.rule:
            raise GalvatronError(
                f"the checkpoint has the state of {found.rule}, but the model was compiled with {how.rule} for "
                f"{piece.name!r}; nothing was loaded"
            )
    has_averages = any(AVERAGE in state.elements or DECAY in state.options for state in saved.values())
    if has_averages and not averages(optimizer):
        raise GalvatronError(
            f"the checkpoint has moving averages of weights, but {own} keeps no moving averages: pass it to "
            "galvatron.ema; nothing was loaded"
        )
    options = group_options(optimizer, pieces, saved)
    for group, found in zip(optimizer.param_groups, options, strict=True):
        for key, value in found.items():
            if not _fits(value, group.get(key)):
                raise GalvatronError(
                    f"option {key} of the optimizer is {value!r} in the checkpoint and {group[key]!r} here: they do "
                    "not go together; nothing was loaded"
                )


def _fits(value: Any, own: Any) -> bool:
    """Whether an option may have this value where it has another one now."""
    if value is None or own is None:
        return True
    if isinstance(value, list) and isinstance(own, (tuple, list)):
        pairs = list(zip(value, own, strict=False))
        return len(value) == len(own) and all(_kind(one) == _kind(other) and _fits(one, other) for one, other in pairs)
    return _kind(value) == _kind(own)


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "list"
    if isinstance(value, (Real, Tensor)):
        return "number"
    return "none" if value is None else type(value).__name__


def group_options(
    optimizer: Optimizer, pieces: Sequence[Piece], saved: Mapping[str, ParameterState]
) -> list[dict[str, Any]]:
    """For each group of the optimizer, the options that the checkpoint has for its parameters.

    Raises:
        GalvatronError: it has none, or unlike ones.
    """
    names = {id(piece.tensor): piece.name for piece in pieces}
    found: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        options: dict[str, Any] | None = None
        for name in (names[id(p)] for p in group["params"] if id(p) in names):
            if name not in saved:
                raise GalvatronError(f"{name!r} is trained, but was not in the run that saved the checkpoint")
            if options is not None and saved[name].options != options:
                raise GalvatronError(
                    f"{name!r} had other options in the run that saved the checkpoint than the parameters that it "
                    "shares a group with here: make the groups of the optimizer alike"
                )
            options = saved[name].options
        found.append({key: value for key, value in (options or {}).items() if key not in _NOT_OPTIONS})
    return found


def load(
    optimizer: Optimizer,
    pieces: Sequence[Piece],
    saved: Mapping[str, ParameterState],
    tensor_of: Callable[[Piece, str], Tensor],
) -> None:
    """Take over what a checkpoint that was checked has.

    Args:
        tensor_of: the tensor of the state of a parameter that has this key.

    Raises:
        GalvatronError: the optimizer does not take it; it has the state that it had.
    """
    by_id = {id(piece.tensor): piece for piece in pieces}
    packed = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    loaded: list[tuple[Tensor, str, Tensor]] = []
    groups: list[dict[str, Any]] = []
    for group, shell, options in zip(
        optimizer.param_groups, packed["param_groups"], group_options(optimizer, pieces, saved), strict=True
    ):
        groups.append({**shell, **{key: _like(group.get(key), value) for key, value in options.items()}})
        for number, parameter in zip(shell["params"], group["params"], strict=True):
            piece = by_id.get(id(parameter))
            own = None if piece is None else saved[piece.name]
            if piece is not None and piece.updated and own is not None and (own.elements or own.tensors or own.values):
                tensors = {key: tensor_of(piece, key) for key in (*own.elements, *own.tensors)}
                state[number] = {**tensors, **own.values}
                loaded += [(parameter, key, value) for key, value in tensors.items()]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except Exception as error:
        optimizer.load_state_dict(packed)
        raise GalvatronError(
            f"{type(optimizer).__name__} does not take the state of the checkpoint: {type(error).__name__}: {error}; "
            "nothing was loaded"
        ) from error
    for parameter, key, value in loaded:  # torch has put each on its device, but also into the parameter's type
        here = optimizer.state[parameter][key]
        if here.dtype != value.dtype:
            optimizer.state[parameter][key] = value.to(here.device)


def _like(now: Any, value: Any) -> Any:
    if isinstance(now, Tensor):
        return torch.full_like(now, value)
    return tuple(value) if isinstance(value, list) and not isinstance(now, list) else value
