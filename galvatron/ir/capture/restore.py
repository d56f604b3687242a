"""The user's model as it was: what forward assigns while it is traced are tensors without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block forward may assign to attributes of its modules, and write into lists, dictionaries and
    sets that they hold; afterwards all is as before."""
    before = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    held = {id(value): value for _, values in before for value in values.values() if type(value) in (list, dict, set)}
    copies = [(value, value.copy()) for value in held.values()]
    try:
        yield
    finally:
        for table, values in before:
            _refill(table, values)
        for value, copy in copies:
            _refill(value, copy)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)
