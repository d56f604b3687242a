"""Which tensor of a file is which of the model, by the names alone."""

from __future__ import annotations

import pytest
from torch import nn

from galvatron.errors import GalvatronError
from galvatron.weights.names import kept_name, listed, matched

BASE = ["embedding.weight", "layers.0.weight", "layers.1.weight"]
WITH_HEAD = [*(f"model.{name}" for name in BASE), "head.weight"]

CASES = {
    "equal": (BASE, BASE, {name: name for name in BASE}),
    "base into head": (BASE, WITH_HEAD, {name: f"model.{name}" for name in BASE}),
    "head into base": (WITH_HEAD, BASE, {f"model.{name}": name for name in BASE}),
    "deeper": (BASE, [f"a.b.{name}" for name in BASE], {name: f"a.b.{name}" for name in BASE}),
    "other tensors besides": ([*BASE, "layers.0.mask"], WITH_HEAD, {name: f"model.{name}" for name in BASE}),
    "head without the module": (
        [*BASE, "head.weight"],
        WITH_HEAD,
        {**{name: f"model.{name}" for name in BASE}, "head.weight": "head.weight"},
    ),
    "nothing": (["x"], ["y"], {}),
    "empty": ([], BASE, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_names_are_matched(case: str) -> None:
    files, model, wanted = CASES[case]
    assert matched(files, set(model)) == wanted


def test_what_an_adapter_wraps_has_one_module_more() -> None:
    files, model = ["a.weight", "b.weight"], {"a.base.weight", "a.lora.down", "b.weight"}
    assert matched(files, model) == {"b.weight": "b.weight"}
    assert matched(files, model, is_adapted=True) == {"a.weight": "a.base.weight", "b.weight": "b.weight"}


def test_names_that_fit_twice_are_refused() -> None:
    with pytest.raises(GalvatronError, match="'0', '1'"):
        matched(["weight", "bias"], {"0.weight", "0.bias", "1.weight", "1.bias"})


class Tied(nn.Module):
    """A model that says of its inner one which of its names are tied to others."""

    def __init__(self, tied: object) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner._tied_weights_keys = tied  # type: ignore[assignment]  # as transformers' models have it


@pytest.mark.parametrize(
    ("tied", "names", "kept"),
    [
        ({"head.weight": "words.weight"}, ["inner.head.weight", "inner.words.weight"], "inner.words.weight"),
        (["words.weight"], ["inner.head.weight", "inner.words.weight"], "inner.head.weight"),
        ({r"\d.weight": "a"}, ["inner.0.weight", "inner.1.weight"], "inner.1.weight"),
        (None, ["inner.b", "inner.a"], "inner.b"),
    ],
)
def test_a_tied_tensor_keeps_one_name(tied: object, names: list[str], kept: str) -> None:
    assert kept_name(names, Tied(tied)) == kept


def test_many_names_are_not_all_shown() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(9)]) == "0, 1, 2, 3, 4, 5, 6, 7, … (9 in all)"
