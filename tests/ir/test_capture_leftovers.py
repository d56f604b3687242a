"""What a forward keeps outside of the model while it is captured does not stay there: the model itself still runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import galvatron

_table: Tensor | None = None
_tables: dict[int, Tensor] = {}


@functools.lru_cache
def bounded(n: int) -> Tensor:
    return torch.arange(float(n))


@functools.cache
def nested(n: int) -> tuple[list[Tensor]]:
    return ([torch.arange(float(n))],)


def of_module(n: int) -> Tensor:
    global _table
    if _table is None:
        _table = torch.arange(float(n))
    return _table


def in_module(n: int) -> Tensor:
    return _tables.setdefault(n, torch.arange(float(n)))


def of_closure() -> Callable[[int], Tensor]:
    table = None

    def cached(n: int) -> Tensor:
        nonlocal table
        if table is None:
            table = torch.arange(float(n))
        return table

    return cached


class Helper:
    shared: Tensor | None = None

    def __init__(self) -> None:
        self.tables: dict[int, SimpleNamespace] = {}
        self.last: Tensor | None = None
        self.all: list[Tensor] = []

    def __call__(self, n: int) -> Tensor:
        if n not in self.tables:
            self.tables[n] = SimpleNamespace(table=torch.arange(float(n)))
        if Helper.shared is None:
            Helper.shared = torch.ones(n)
        if self.last is None:
            self.last = torch.ones(n)
        if not self.all:
            self.all.append(torch.ones(n))
        return self.tables[n].table * Helper.shared * self.last * self.all[0]


class Scaled(nn.Module):
    def __init__(self, table: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) * self.table(8)).pow(2).mean()


class Loading(dict[str, Tensor]):
    """A table of a library that loads all of itself when it is gone through."""

    def keys(self):
        raise ImportError("what is missing")

    items = values = __iter__ = keys


loading = Loading()


def in_subclass(n: int) -> Tensor:
    if "table" not in loading:
        loading["table"] = torch.arange(float(n))
    return loading["table"]


class Cached(Scaled):
    """Caches by a method."""

    def __init__(self) -> None:
        super().__init__(self.rows)

    @functools.lru_cache  # noqa: B019  # what this is about
    def rows(self, n: int) -> Tensor:
        return torch.arange(float(n))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lru_cache": lambda: Scaled(bounded),
    "cache": lambda: Scaled(lambda n: nested(n)[0][0]),
    "global": lambda: Scaled(of_module),
    "global_dict": lambda: Scaled(in_module),
    "subclass": lambda: Scaled(in_subclass),
    "closure": lambda: Scaled(of_closure()),
    "helper": lambda: Scaled(Helper()),
    "method": Cached,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_runs_after_it_was_captured(name: str) -> None:
    model, x = MODELS[name](), torch.randn(4, 6)
    first = galvatron.capture(model, {"x": x})
    assert galvatron.capture(model, {"x": x}) == first
    assert model(x).isfinite()


def test_what_a_cache_holds_already_stays() -> None:
    helper = Helper()
    helper.tables[5] = SimpleNamespace(table=torch.ones(5))
    kept = helper.tables[5]
    galvatron.capture(Scaled(helper), {"x": torch.randn(4, 6)})
    assert helper.tables == {5: kept} and helper.last is None and helper.all == []


def test_a_model_that_is_refused_runs_too() -> None:
    class Refused(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            loss = super().forward(x)
            return loss if loss > 0 else -loss

    model, x = Refused(Helper()), torch.randn(4, 6)
    with pytest.raises(galvatron.GalvatronError, match="depends on the values"):
        galvatron.capture(model, {"x": x})
    assert model(x).isfinite()
