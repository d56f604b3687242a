"""Models of transformers, by class name and the settings that make them small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from common.architectures.base import (
    VOCABULARY,
    Architecture,
    Batch,
    Loss,
    Subject,
    batches,
    text,
)
from common.architectures.libraries import library

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
"""What most configurations of text models understand; the others leave it unused."""

DECODER = TEXT | {"num_key_value_heads": 2, "head_dim": 8}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}

Make = Callable[[], Subject]


def config_of(name: str, /, **settings: Any) -> Any:
    """A configuration, by the name of its class, in which every rate of dropout is zero."""
    config = getattr(library("transformers"), name)(**settings)
    _without_dropout(config)
    return config


def model_of(name: str, /, config: Any = None, **settings: Any) -> nn.Module:
    """A model, by the name of its class, with random weights."""
    cls = getattr(library("transformers"), name)
    if config is None:
        config = cls.config_class(**settings)
        _without_dropout(config)
    return cls(config)


def _without_dropout(config: Any) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and ("drop" in name or name in ("mask_time_prob", "mask_feature_prob")):
            setattr(config, name, 0.0)
        elif type(value).__name__.endswith("Config"):
            _without_dropout(value)


def made(
    name: str,
    batch: Callable[[int, int], Batch],
    settings: Mapping[str, Any],
    loss_fn: Loss | None = None,
) -> Make:
    """A model that is made from settings when it is asked for."""
    return partial(_made, name, batch, dict(settings), loss_fn)


def _made(name: str, batch: Callable[[int, int], Batch], settings: dict[str, Any], loss_fn: Loss | None) -> Subject:
    return Subject(model_of(name, **settings), batch, loss_fn)


def without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Settings but for those that a configuration refuses."""
    return {name: value for name, value in settings.items() if name not in names}


def decoder(name: str, /, **settings: Any) -> Make:
    """A decoder that returns the loss of the next token, on padded text."""
    return made(name, batches(text()), DECODER | settings)


def rows(
    family: str, table: Mapping[str, Make], sequence: bool = False, single: tuple[str, ...] = ()
) -> tuple[Architecture, ...]:
    """Rows of a family that come from transformers; those named in `single` cannot compute in float64."""
    return tuple(
        Architecture(name, family, "transformers", make, sequence, name in single) for name, make in table.items()
    )
