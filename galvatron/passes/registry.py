"""Passes by name: the built-in ones, and those that installed packages add through the entry point group."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

from galvatron.errors import PassError, did_you_mean
from galvatron.ir.program import Form
from galvatron.passes import PASSES
from galvatron.passes.base import Pass
from galvatron.passes.others import code_of_others

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
    if name in PASSES:
        return _imported(PASSES[name])
    entries = tuple(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name))
    if not entries:
        raise PassError(f"unknown pass {name!r}; {did_you_mean(name, pass_names())}")
    target = entries[0].value
    of = getattr(entries[0].dist, "name", "an installed package")
    with code_of_others(f"{target!r}, which {of} registers as pass {name!r},"):
        cls = _imported(target)
    if not (isinstance(cls, type) and issubclass(cls, Pass) and getattr(cls, "name", None) == name):
        raise PassError(f"{target!r}, registered as pass {name!r}, is not a Pass of that name")
    if not (_are_forms(getattr(cls, "needs", None)) and isinstance(getattr(cls, "leaves", ""), (Form, type(None)))):
        raise PassError(f"{target!r}, registered as pass {name!r}, does not say which forms it needs and leaves")
    return cls


def _imported(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute, None)


def _are_forms(needs: object) -> bool:
    return isinstance(needs, Form) or (
        isinstance(needs, tuple) and len(needs) == 2 and all(isinstance(form, Form) for form in needs)
    )


def loadable_passes(refused: list[PassError] | None = None) -> Iterator[type[Pass]]:
    """The classes of all passes, but for those of entry points that lead to none; the reasons go to `refused`."""
    for name in pass_names():
        try:
            yield load_pass(name)
        except PassError as error:
            if refused is not None:
                refused.append(error)
