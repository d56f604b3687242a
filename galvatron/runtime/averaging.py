"""Moving averages of weights (EMA), which the optimizer keeps as a part of its state: each rank those of its slices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.runtime import failure
from galvatron.runtime.agreement import Calls
from galvatron.runtime.executor import Executor

KEY = "ema"
"""Of the average in the state of a parameter."""

DECAY = "ema_decay"
"""Of a group's option."""


def ema(optimizer: torch.optim.Optimizer, decay: float = 0.999) -> torch.optim.Optimizer:
    """The same optimizer, which after each step also averages what it has updated: `average = decay * average +
    (1 - decay) * value`, from the values after the first step on, in float32 or the type of the masters.

        compile(..., optimizer=lambda parameters: galvatron.ema(torch.optim.AdamW(parameters, lr=3e-4), 0.9999))
        with compiled.ema():
            compiled.evaluate(held_out), compiled.export("averaged")

    Checkpoints have the averages, as they have the rest of the optimizer's state. They take 4 bytes per element, which
    ZeRO cuts, and one more pass over the parameters.

    Args:
        decay: at least 0 and less than 1; a group of parameters may have its own, as its option `ema_decay`.

    Raises:
        GalvatronError: an argument is wrong.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise GalvatronError(f"ema averages what a torch.optim.Optimizer updates, not {type(optimizer).__name__}")
    if type(decay) not in (int, float) or not 0 <= decay < 1:
        raise GalvatronError(f"decay must be a number from 0 to below 1, not {decay!r}")
    optimizer.defaults[DECAY] = decay
    for group in optimizer.param_groups:
        group.setdefault(DECAY, decay)
    optimizer.register_step_post_hook(_average)
    return optimizer


def averages(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether `ema` was called for it."""
    return optimizer is not None and any(DECAY in group for group in optimizer.param_groups)


def _average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if KEY in state:
                    pairs[parameter.dtype].append((state[KEY], parameter))
                elif parameter.grad is not None:  # other state is there too, which optimizers look for
                    state[KEY] = parameter.detach().to(type_of_average(parameter), copy=True)
            for found in pairs.values():
                kept, values = [own for own, _ in found], [value.to(own.dtype) for own, value in found]
                torch._foreach_lerp_(kept, values, 1 - group[DECAY])  # pyright: ignore[reportPrivateImportUsage]  # as torch.optim.swa_utils does


def type_of_average(parameter: Tensor) -> torch.dtype:
    """Of the average of a parameter: changes of one step are too small for 16 bits."""
    return torch.promote_types(parameter.dtype, torch.float32)


@contextmanager
def exchanged(calls: Calls, executor: Executor) -> Iterator[None]:
    """Inside the `with` block the parameters are their averages; the values are kept on the host. Collective.

    Raises:
        GalvatronError: the optimizer keeps no averages.
    """
    optimizer = executor.optimizer
    with calls.agreeing("ema"):
        if not averages(optimizer):
            raise GalvatronError(
                "there are no averages: compile with optimizer=lambda ps: galvatron.ema(AdamW(ps), ...)"
            )
    assert optimizer is not None
    kept = {name: optimizer.state[p][KEY] for name, p in executor.updated.items() if KEY in optimizer.state.get(p, {})}
    own = {piece.held_as: piece.tensor for piece in executor.pieces() if piece.held_as in executor.updated}
    values = {name: tensor.detach().to("cpu", copy=True) for name, tensor in own.items()}
    _put(executor, own, kept)
    calls.refused = {what: f"{what} waits until the block of compiled.ema() has ended" for what in _NOT_ON_AVERAGES}
    try:
        yield
    finally:
        calls.refused = {}
        with torch.no_grad():
            for piece in executor.pieces():
                if piece.held_as in values:
                    piece.tensor.copy_(values[piece.held_as])
        executor.publish()


_NOT_ON_AVERAGES = ("train_step", "save", "load", "load_full_state_dict", "ema")


def _put(executor: Executor, own: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> None:
    """Averages take the place of values, in this rank's own tensors and, of parameters that are updated whole, in those
    of all ranks that have parts."""
    update = executor.whole_update
    whole = {} if update is None else update.parameters
    with failure.guarded("ema"), torch.no_grad():
        if update is not None:
            update.put({name: average for name, average in averages.items() if name in whole})
        for name, average in averages.items():
            if name not in whole:
                own[name].copy_(average)
    executor.publish()
