"""Which tensor of a file is which of the model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import nn

from galvatron.errors import GalvatronError


def matched(files: Collection[str], model: Collection[str], *, is_adapted: bool = False) -> dict[str, str]:
    """Names in files → names of the model; what belongs to nothing of the model is left out.

    They are equal, but that one of the two may have all of the other inside a module: files of a base model, whose
    names lack `model.` for example, or files with a head around the one that is compiled. Which module that is follows
    from the names: the one with which most of them are found.

    Args:
        is_adapted: whether what is then left belongs together where a name of the model has one module more inside of
            it, as around what an adapter wraps, and no other name has.

    Raises:
        GalvatronError: two modules fit equally well.
    """
    ways: Counter[tuple[str, str]] = Counter()
    ways["", ""] = len(set(files) & set(model))
    ways.update((f"{head}.", "") for name in model for head, tail in _cuts(name) if tail in files)
    ways.update(("", f"{head}.") for name in files for head, tail in _cuts(name) if tail in model)
    most = max(ways.values())
    best = [way for way, count in ways.items() if count == most]
    if ("", "") in best:
        best = [("", "")]
    elif len(best) > 1:
        modules = ", ".join(sorted(repr((added or removed)[:-1]) for added, removed in best))
        raise GalvatronError(f"the names in the files fit several modules equally well: {modules}")
    ((added, removed),) = best
    found = {name: added + name.removeprefix(removed) for name in files}
    direct = {name: own if own in model else name for name, own in found.items() if own in model or name in model}
    left, wrapped = [name for name in found if name not in direct], defaultdict[str, list[str]](list)
    for name in set(model).difference(direct.values()) if left and is_adapted else ():
        parts = name.split(".")
        for i in range(1, len(parts) - 1):
            wrapped[".".join(parts[:i] + parts[i + 1 :])].append(name)
    return direct | {name: wrapped[found[name]][0] for name in left if len(wrapped[found[name]]) == 1}


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """A name as a module and what is in it, in every way."""
    parts = name.split(".")
    return ((".".join(parts[:i]), ".".join(parts[i:])) for i in range(1, len(parts)))


def declared(model: nn.Module, attribute: str) -> list[str]:
    """What a model or a part of it says about names of its files, as `transformers` models do, in a list of it."""
    found = getattr(model, attribute, None)
    return [str(item) for item in found] if isinstance(found, (list, tuple, set, frozenset, dict)) else []


def without(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that no pattern is found in."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return [name for name in names if not any(pattern.search(name) for pattern in compiled)]


def kept_name(names: Collection[str], model: nn.Module) -> str:
    """Under which of the names of one tied tensor a file has it: one that the model does not say it ties to another."""
    tied = [
        re.compile(f"{re.escape(path)}\\.{pattern}" if path else pattern)
        for path, module in model.named_modules()
        for pattern in declared(module, "_tied_weights_keys")
    ]
    free = [name for name in names if not any(pattern.search(name) for pattern in tied)]
    return free[0] if free else max(names)


def listed(names: Collection[Any], most: int = 8) -> str:
    """Names in a message, not too many."""
    shown = [str(name) for name in list(names)[:most]]
    return ", ".join(shown) + (f", … ({len(names)} in all)" if len(names) > most else "")
