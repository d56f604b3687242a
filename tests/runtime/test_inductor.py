"""Compiling the layers of one program changes nothing for the rest of the process."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any, cast

from galvatron import runtime as rt
from galvatron.runtime.inductor import compile_layers
from galvatron.runtime.stage import Stage


def layer_function(x: Any, *, seed: int = 3) -> tuple[Any, Any, int]:
    return rt.linear, rt.Seed, seed


def test_the_runtime_is_hidden_from_the_compiler_for_these_layers_only() -> None:
    before = dict(vars(rt))
    layers = {name: SimpleNamespace(name=name, function=layer_function, stream=None) for name in ("a", "b")}
    compiled: list[Callable[..., Any]] = []

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(function)
        return function

    compile_layers([cast(Stage, SimpleNamespace(layers=layers))], compiler)
    assert len(compiled) == 1, "layers of one class share a compiled function"
    linear, seed_class, seed = layers["a"].function(None)
    assert layers["b"].function is layers["a"].function is not layer_function
    assert isinstance(linear, FunctionType) and linear is not rt.linear and linear.__name__ == "linear"
    assert (seed_class, seed) == (rt.Seed, 3)
    assert layer_function(None) == (rt.linear, rt.Seed, 3)
    assert all(vars(rt)[name] is value for name, value in before.items())
