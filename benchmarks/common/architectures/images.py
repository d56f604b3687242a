"""Classifiers of images from torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from common.architectures.base import Architecture, Classifier, Subject, batches, floats, integers
from common.architectures.hugging_face import VISION, Make, made
from common.architectures.libraries import library

CLASSES = 5


def torchvision(name: str, /, size: int = 32, **settings: Any) -> Make:
    """A model of torchvision, by the name of its class or of the function that makes it."""
    return partial(
        _subject, lambda: getattr(library("torchvision.models"), name)(num_classes=CLASSES, **settings), size
    )


def timm(name: str, /, size: int = 32, **settings: Any) -> Make:
    """A model of timm, by its name there; settings replace those of the name."""
    return partial(_subject, lambda: library("timm").create_model(name, num_classes=CLASSES, **settings), size)


def pixels(name: str, /, size: int = 16, **settings: Any) -> Make:
    """A classifier of transformers."""
    batch = batches(pixel_values=floats(3, size, size), labels=integers(CLASSES))
    return made(name, batch, VISION | {"image_size": size} | settings)


def staged(name: str, /, size: int = 32, **settings: Any) -> Make:
    """A classifier of transformers whose stages have sizes of their own."""
    batch = batches(pixel_values=floats(3, size, size), labels=integers(CLASSES))
    return made(name, batch, {"image_size": size, "num_labels": CLASSES} | settings)


def timm_class(path: str, name: str, /, size: int = 16, **settings: Any) -> Make:
    """A model of timm by its class, for settings that the names there do not let be replaced."""
    return partial(
        _subject,
        lambda: getattr(library(f"timm.models.{path}"), name)(num_classes=CLASSES, **settings),
        size,
    )


def _subject(make: Callable[[], nn.Module], size: int) -> Subject:
    return Subject(Classifier(make()), batches(x=floats(3, size, size), target=integers(CLASSES)))


def rows(family: str, library: str, table: Mapping[str, Make]) -> tuple[Architecture, ...]:
    """Rows of a family that come from one library."""
    return tuple(Architecture(name, family, library, make) for name, make in table.items())
