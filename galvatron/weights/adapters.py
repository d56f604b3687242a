"""Adapters of `peft`: which tensors of a model are one's, what they begin with, and how `save_pretrained` would write
them.

Nothing here needs the package unless a model is one of its own.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError


@dataclass(frozen=True)
class Adapter:
    """The active adapter of a model.

    Attributes:
        tensors: the name in files → that in the model's `state_dict`.
        config: what `peft` writes beside them; a copy.
        base: of the model around which it is: its class and where that is from, as far as the configuration says so.
    """

    tensors: Mapping[str, str]
    config: Any
    base: Mapping[str, str] | None

    def save_pretrained(self, folder: Path) -> None:
        """Writes the configuration."""
        self.config.save_pretrained(folder, auto_mapping_dict=None if self.base is None else dict(self.base))


class NotSavedError(GalvatronError):
    """Adapters may be trained, but not saved as files that `peft` reads."""


def is_adapted(model: nn.Module) -> bool:
    """Whether it is a `PeftModel`."""
    return isinstance(getattr(model, "peft_config", None), Mapping) and hasattr(model, "get_base_model")


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter of a `PeftModel`; None where the model is none.

    Raises:
        NotSavedError: it has several active ones, or one that is no selection of its tensors.
    """
    if not is_adapted(model):
        return None
    own: Any = model
    active = list(own.active_adapters)
    if len(active) != 1:
        raise NotSavedError(
            f"the model has {len(active)} active adapters ({', '.join(active)}): choose one (set_adapter), or merge "
            "the others into the model"
        )
    state = model.state_dict(keep_vars=True)
    names = {id(value): name for name, value in state.items()}
    embeds = own.get_input_embeddings() if hasattr(own, "get_input_embeddings") else None
    kept = embeds is not None and any(p.requires_grad for p in embeds.parameters())
    select = importlib.import_module("peft").get_peft_model_state_dict
    try:
        found = select(model, state_dict=state, adapter_name=active[0], save_embedding_layers=kept)
    except Exception as error:
        raise NotSavedError(f"peft cannot save adapter {active[0]!r}: {type(error).__name__}: {error}") from error
    made = [name for name, value in found.items() if id(value) not in names]
    if made:
        raise NotSavedError(
            f"{made[0]!r} of adapter {active[0]!r} is no tensor of the model: peft computes it when it saves the "
            "adapter; use a kind of adapter that is saved as it is, such as LoRA"
        )
    config = copy.deepcopy(own.peft_config[active[0]])
    base = own.get_base_model()
    config.base_model_name_or_path = config.base_model_name_or_path or getattr(base, "name_or_path", None) or None
    config.inference_mode = True
    mapping = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    return Adapter(
        {name: names[id(value)] for name, value in found.items()}, config, mapping if config.task_type is None else None
    )


def names_in_adapters(model: nn.Module) -> set[str]:
    """The tensors of a model that belong to adapters, active ones or others, by name; none where it has no adapters."""
    found: set[str] = set()
    for path, layer in model.named_modules() if is_adapted(model) else ():
        for kind in (*getattr(layer, "adapter_layer_names", ()), "modules_to_save", "prompt_encoder"):
            if isinstance(held := getattr(layer, kind, None), nn.Module):
                found |= held.state_dict(prefix=f"{path}.{kind}." if path else f"{kind}.").keys()
    with contextlib.suppress(NotSavedError):
        if (adapter := adapter_of(model)) is not None:
            found |= set(adapter.tensors.values())
    return found


def initialisers(model: nn.Module) -> dict[str, list[Callable[[], Any]]]:
    """By the paths of the modules that hold tensors of adapters, what `peft` gives them their values by: what they do
    themselves when they are made, and then the method of the layer around them that resets an adapter."""
    found: dict[str, list[Callable[[], Any]]] = {}
    for path, layer in model.named_modules() if is_adapted(model) else ():
        for kind in getattr(layer, "adapter_layer_names", ()):
            held: Any = getattr(layer, kind, None)
            for adapter in held if isinstance(held, (nn.ModuleDict, nn.ParameterDict)) else ():
                resets = list(_resets(layer, adapter, getattr(model, "peft_config", {}).get(adapter)))
                if not resets:
                    continue
                place = f"{path}.{kind}" if path else kind
                if isinstance(held, nn.ParameterDict):
                    found.setdefault(place, []).extend(resets)
                    continue
                for own, module in held[adapter].named_modules(prefix=f"{place}.{adapter}"):
                    made = getattr(module, "reset_parameters", None)
                    found[own] = [made, *resets] if callable(made) else resets
    return found


def _resets(layer: nn.Module, adapter: str, config: Any) -> Iterator[Callable[[], Any]]:
    """What of a layer resets one adapter, as its configuration says; nothing where that has it begin otherwise than by
    a method of such a name."""
    for name in sorted(dir(type(layer))):
        if not re.fullmatch(r"reset_\w+_parameters", name):
            continue
        method = getattr(layer, name)
        asked = [parameter for parameter in inspect.signature(method).parameters if parameter != "adapter_name"]
        told = {parameter: getattr(config, parameter) for parameter in asked if hasattr(config, parameter)}
        if any(getattr(config, key) is not True for key in vars(config) if key.startswith("init_") and key not in told):
            continue
        yield partial(method, adapter, **told)


def copied(model: nn.Module) -> dict[str, str]:
    """The tensors of layers of which `peft` trains a copy (`modules_to_save`), as long as they have the values of what
    they were copied from, or none: the name of each, and that of its original."""
    found: dict[str, str] = {}
    for path, module in model.named_modules() if is_adapted(model) else ():
        copies, original = getattr(module, "modules_to_save", None), getattr(module, "original_module", None)
        if not (isinstance(copies, nn.ModuleDict) and isinstance(original, nn.Module)):
            continue
        values = original.state_dict(keep_vars=True)
        for adapter, one in copies.items():
            for name, value in one.state_dict(keep_vars=True).items():
                if name in values and (value.is_meta or _is_equal(value, values[name])):
                    found[f"{path}.modules_to_save.{adapter}.{name}"] = f"{path}.original_module.{name}"
    return found


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return not other.is_meta and one.dtype == other.dtype and torch.equal(one, other)
