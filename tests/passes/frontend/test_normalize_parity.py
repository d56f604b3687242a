"""Captured and normalised graphs compute the loss and gradients of the model itself, at any batch size."""

from __future__ import annotations

from typing import Any

import pytest

from galvatron.passes.frontend.normalize import Normalize
from tests import models
from tests.marks import some_slow

FAST = [
    *((name, {}) for name in ("gpt", "llama", "gpt2", "t5", "mixtral", "vit")),
    ("gpt", {"tied": False}),
    ("llama", {"mask": False}),
    ("gpt2", {"mask": False, "attn_implementation": "eager"}),
]
OTHERS = [*((name, {}) for name in models.FAMILIES), ("llama", {"tie_word_embeddings": True})]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("name", "options"), some_slow(FAST, OTHERS), ids=models.case_name)
def test_equals_eager(name: str, options: dict[str, Any]) -> None:
    case = models.shared(name, **options)
    captured = case.captured
    with models.Doubles():
        normal = Normalize().run(captured.program)
        for size in (4, 7, 1):
            batch = case.batch(size, size)
            output = case.model(**batch)
            expected = models.loss_and_gradients(getattr(output, "loss", output), case.model)
            for program, tolerance in ((captured.program, 1e-12), (normal, 1e-11)):
                assert program.graph is not None
                values = models.tensors_of(program, case.model, batch, captured.constants)
                actual = models.loss_and_gradients(models.run(program.graph, values, size), case.model)
                models.assert_close(actual, expected, tolerance)
    assert Normalize().run(normal) == normal
