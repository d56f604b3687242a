"""What tracing leaves in the user's objects besides the model's own attributes: tensors without values in caches.

A forward may keep tensors in a `functools.lru_cache`, in a helper object, in a global table. While it is traced these
are fake, and the model itself could compute nothing with them later.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from galvatron.ir.capture.sources import is_user_file

_CONTAINERS = (dict, list, set, tuple, deque)
_LRU_CACHE = functools._lru_cache_wrapper
_LEAVES = (int, float, str, bytes, torch.Tensor, torch.dtype, torch.device)
_NOTHING = object()
_DEPTH = 5
"""How far within a new value a fake tensor is looked for; a value may hold itself."""


@contextmanager
def no_leftovers(*roots: Any) -> Iterator[None]:
    """After the `with` block no entry of anything that the roots reach holds a fake tensor that it did not hold
    before: caches are emptied, and entries are what they were.

    Roots reach what their attributes hold, and what the code of their classes and functions names.
    """
    reached = _Reached(roots)
    before = [(holder, _entries(holder)) for holder in reached.holders]
    try:
        yield
    finally:
        for holder, entries in before:
            _take_back(holder, entries, reached)
        for cached in reached.caches:
            if any(_is_fake(value, reached) for value in gc.get_referents(cached)):
                cached.cache_clear()


class _Reached:
    """Everything in reach: `holders` have entries that can be put back, `caches` can be emptied."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.holders: list[Any] = []
        self.caches: list[Any] = []
        self._seen: dict[int, Any] = {}  # the values keep objects alive, so that no id is given twice
        pending = list(roots)
        while pending:
            found = pending.pop()
            if not issubclass(type(found), _LEAVES) and found is not None and found not in self:
                self._seen[id(found)] = found
                pending.extend(self._parts(found))

    def __contains__(self, found: Any) -> bool:
        return id(found) in self._seen

    def _parts(self, found: Any) -> Iterable[Any]:
        kind = type(found)  # what an object says of its class may load a library
        if issubclass(kind, _CONTAINERS):
            if not issubclass(kind, tuple):
                self.holders.append(found)
            return _values(found)
        if issubclass(kind, types.FunctionType):
            return self._parts_of_function(found)
        if issubclass(kind, _LRU_CACHE):
            self.caches.append(found)
            return [found.__wrapped__]
        if issubclass(kind, types.CellType):
            self.holders.append(found)
            return _entries(found).values()
        if issubclass(kind, (staticmethod, classmethod, types.MethodType)):
            return [found.__func__, getattr(found, "__self__", None)]
        if issubclass(kind, property):
            return [found.fget]
        if issubclass(kind, functools.partial):
            return [found.func, found.args, found.keywords]
        if issubclass(kind, type):
            return self._parts_of_class(found)
        return [kind, vars(found)] if _has_variables(found) else []

    def _parts_of_class(self, found: type) -> Iterable[Any]:
        if not _is_of_user(found):
            return []
        self.holders.append(found)
        return [*vars(found).values(), *found.__bases__]

    def _parts_of_function(self, found: types.FunctionType) -> Iterable[Any]:
        """What its code names: variables of its own and of its module, and attributes of modules. Of what code of a
        library names, only what may be a cache."""
        file = found.__code__.co_filename
        if not is_user_file(file):
            return
        yield from found.__closure__ or ()
        yield found.__defaults__
        names = {name for code in _codes(found.__code__) for name in code.co_names}
        tables = [found.__globals__]
        for named in map(found.__globals__.get, names):
            if isinstance(named, types.ModuleType) and not _is_foreign(named.__name__):
                tables.append(vars(named))
        for table in tables:
            variables = _Variables(table, names & table.keys())
            self.holders.append(variables)
            for value in _entries(variables).values():
                if "-packages/" not in file or issubclass(type(value), (*_CONTAINERS, _LRU_CACHE)):
                    yield value


class _Variables:
    """Some variables of a module."""

    def __init__(self, table: dict[str, Any], names: Iterable[str]) -> None:
        self.table = table
        self.names = frozenset(names)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _has_variables(found: Any) -> bool:
    """Whether an object has attributes of the user's making."""
    kind = type(found)
    return hasattr(found, "__dict__") and (issubclass(kind, nn.Module) or _is_of_user(kind))


def _is_of_user(cls: type) -> bool:
    return cls is types.SimpleNamespace or not _is_foreign(cls.__module__)


def _is_foreign(module: str) -> bool:
    """Whether a module is torch's, of the standard library or ours, which keep nothing of a model's forward."""
    root = module.partition(".")[0]
    return root in ("torch", "galvatron") or (root in sys.stdlib_module_names and root != "__main__")


def _plain(container: Any) -> Any:
    """The plain type of a container: its methods run no code of the user's or of a library."""
    return next(kind for kind in _CONTAINERS if issubclass(type(container), kind))


def _values(container: Any) -> list[Any]:
    return [*dict.values(container)] if issubclass(type(container), dict) else [*_plain(container).__iter__(container)]


def _entries(holder: Any) -> dict[Any, Any]:
    """What a holder holds, by key."""
    if isinstance(holder, dict):
        return dict(dict.items(holder))
    if isinstance(holder, _Variables):
        return {name: holder.table[name] for name in holder.names if name in holder.table}
    if isinstance(holder, types.CellType):
        try:
            return {"": holder.cell_contents}
        except ValueError:  # nothing was assigned to the variable
            return {}
    return dict(vars(holder)) if isinstance(holder, type) else dict(enumerate(_values(holder)))


def _take_back(holder: Any, before: dict[Any, Any], reached: _Reached) -> None:
    """Gives the entries of a holder that have become fake tensors the values that they had."""
    for key, value in _entries(holder).items():
        was = before.get(key, _NOTHING)
        if value is was or not _is_fake(value, reached):
            continue
        if isinstance(holder, (list, set, deque)):
            plain = _plain(holder)
            plain.clear(holder)
            (plain.update if isinstance(holder, set) else plain.extend)(holder, before.values())
            return
        _put(holder, key, was)


def _put(holder: dict[Any, Any] | _Variables | types.CellType | type, key: Any, value: Any) -> None:
    """Gives an entry a value, or none at all."""
    if isinstance(holder, types.CellType):
        if value is _NOTHING:
            del holder.cell_contents
        else:
            holder.cell_contents = value
    elif isinstance(holder, type):
        delattr(holder, key) if value is _NOTHING else setattr(holder, key, value)
    else:
        table = holder if isinstance(holder, dict) else holder.table
        if value is _NOTHING:
            dict.__delitem__(table, key)
        else:
            dict.__setitem__(table, key, value)


def _is_fake(value: Any, reached: _Reached, depth: int = _DEPTH) -> bool:
    """Whether a value is a fake tensor, or has one within it that is in nothing that was there before."""
    kind = type(value)
    if issubclass(kind, torch.Tensor):
        return isinstance(value, (FakeTensor, FunctionalTensor)) or isinstance(value.data, FakeTensor)
    if not depth or value in reached or issubclass(kind, (type, types.FunctionType, types.ModuleType)):
        return False
    if issubclass(kind, _CONTAINERS):
        return any(_is_fake(v, reached, depth - 1) for v in _values(value))
    return _has_variables(value) and any(_is_fake(v, reached, depth - 1) for v in vars(value).values())
