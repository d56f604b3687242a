"""Modules of one kind beside each other in a model: layers that may do the same with parameters of their own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping

import torch
from torch import nn

_LEAST_PARTS = 4
"""Modules with fewer, counting themselves, are traced each: what they compute takes no longer than to compare it."""

_LEAST_SIBLINGS = 3


def repeated_modules(model: nn.Module) -> dict[int, str]:
    """The modules that may do the same with parameters of their own, by the id of their attributes (which a stand-in
    that torch makes for a module shares), with their names."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names = Counter(id(tensor) for _, tensor in named)
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found: dict[int, str] = {}
    for path, parent in model.named_modules():
        kinds = Counter(type(child) for child in parent.children())
        alike: dict[Hashable, list[tuple[str, nn.Module]]] = defaultdict(list)
        for name, child in parent.named_children():
            if kinds[type(child)] >= _LEAST_SIBLINGS and places[id(child)] == 1:
                alike[form_of(child)].append((f"{path}.{name}" if path else name, child))
        for members in alike.values():
            if len(members) >= _LEAST_SIBLINGS and sum(1 for _ in members[0][1].modules()) >= _LEAST_PARTS:
                own = {id(vars(member)): name for name, member in members if _owns_its_state(member, names)}
                found.update(own)
    return found


def form_of(module: nn.Module) -> Hashable:
    """The parts of a module, and its state, but for values."""
    parts = tuple((name, type(part)) for name, part in module.named_modules())
    state = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    with torch._C.DisableTorchFunction():  # modes are not to see what this asks
        return parts, tuple((n, t.shape, t.stride(), t.dtype, t.device, t.requires_grad, type(t)) for n, t in state)


def _owns_its_state(module: nn.Module, names: Mapping[int, int]) -> bool:
    """Whether nothing of its state has a name elsewhere, too."""
    own = Counter(map(id, (*parameters_of(module).values(), *buffers_of(module).values())))
    return all(names[tensor] == count for tensor, count in own.items())


def parameters_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """By every name that they have in it."""
    return dict(module.named_parameters(remove_duplicate=False))


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """By every name that they have in it."""
    return dict(module.named_buffers(remove_duplicate=False))
