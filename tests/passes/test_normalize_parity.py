"""Captured and normalised graphs compute the loss and gradients of the model itself, at any batch size."""

from __future__ import annotations

import contextlib

import pytest

from galvatron.ir.capture import capture_graph
from galvatron.passes.normalize import Normalize
from tests import models

CASES = {
    "gpt": lambda: models.gpt(),
    "gpt-untied": lambda: models.gpt(tied=False),
    **{name: lambda name=name: models.hugging_face(name) for name in models.FAMILIES},
    "llama-without-mask": lambda: models.hugging_face("llama", mask=False),
    "llama-tied": lambda: models.hugging_face("llama", tie_word_embeddings=True),
    "gpt2-eager-attention": lambda: models.hugging_face("gpt2", attn_implementation="eager"),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_eager(name: str) -> None:
    case = CASES[name]()
    with models.Doubles() if not name.startswith("gpt") else contextlib.nullcontext():
        captured = capture_graph(case.model, case.batch(4, 0))
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
