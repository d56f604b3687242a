"""Passes by name: the built-in ones, and those that installed packages add through the entry point group."""

from __future__ import annotations

import importlib
import importlib.metadata

from galvatron.errors import PassError, did_you_mean
from galvatron.passes import PASSES
from galvatron.passes.base import Pass

ENTRY_POINTS = "galvatron.passes"
"""The entry point group; an entry `my-pass = "package.module:MyPass"` adds a pass. Built-in names cannot be taken."""


def pass_names() -> tuple[str, ...]:
    """The name of every pass, built-in ones first, without importing any."""
    added = {entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    return (*PASSES, *sorted(added - PASSES.keys()))


def load_pass(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        PassError: no pass has that name, or an entry point does not lead to a pass of that name.
    """
    target = PASSES.get(name)
    if target is None:
        entries = tuple(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name))
        if not entries:
            raise PassError(f"unknown pass {name!r}; {did_you_mean(name, pass_names())}")
        target = entries[0].value
    module, _, attribute = target.partition(":")
    cls = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, Pass) and cls.name == name):
        raise PassError(f"{target!r}, registered as pass {name!r}, is not a Pass of that name")
    return cls
