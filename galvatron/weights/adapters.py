"""Adapters of `peft`: which tensors of a model are one's, and how `save_pretrained` would write it.

Nothing here needs the package unless a model is one of its own.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

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
        GalvatronError: it has one without values.
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
    blank = [names[id(value)] for value in found.values() if value.is_meta]
    if blank:
        raise GalvatronError(
            f"{blank[0]!r} of adapter {active[0]!r} is on the meta device, and only peft knows which values it begins "
            "with: build the model and its adapters with real values"
        )
    config = copy.deepcopy(own.peft_config[active[0]])
    base = own.get_base_model()
    config.base_model_name_or_path = config.base_model_name_or_path or getattr(base, "name_or_path", None) or None
    config.inference_mode = True
    mapping = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    return Adapter(
        {name: names[id(value)] for name, value in found.items()}, config, mapping if config.task_type is None else None
    )
