"""What the model returns besides its loss: names, texts, refusals, and what a caller gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron.errors import CaptureError, GalvatronError, PlanError, VerifyError
from galvatron.ir.capture import capture_graph
from galvatron.ir.program import Program, Result
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from tests.parity.outputs import case, expected

pytestmark = pytest.mark.usefixtures("shared_captures")

NAMES = ("logits", "hidden.0", "right")


@cache
def decoder(*names: str) -> Program:
    subject = case("decoder")
    return galvatron.capture(subject.model, subject.batch(8, 0), outputs=names or NAMES)


@cache
def compiled(*names: str) -> galvatron.CompiledModel:
    subject = case("decoder")
    return galvatron.compile(subject.model, subject.batch(8, 0), outputs=names or NAMES, plan="m2/dp1")


@pytest.mark.slow
def test_the_text_says_them() -> None:
    program = decoder()
    text = print_program(program)
    assert "result hidden.0 = %blocks.0.add\n" in text
    assert parse_program(text) == program
    assert decoder("hidden.0", "hidden.1").outputs == (
        Result("hidden.0", "blocks.0.add"),
        Result("hidden.1", "blocks.1.out"),
    )


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("result right", "result logits", "'logits' stands for several"),
        ("= %blocks.0.add\n", "= %nothing\n", "no layer computes %nothing"),
        ("= %blocks.0.add\n", "= %tokens\n", "no layer computes %tokens"),
    ],
)
def test_a_stranger_may_not_name_what_is_not_there(before: str, after: str, reason: str) -> None:
    text = print_program(decoder())
    assert before in text
    with pytest.raises(VerifyError, match=reason):
        verify(parse_program(text.replace(before, after)))


def test_a_captured_graph_returns_them_all() -> None:
    subject = case("decoder")
    program = capture_graph(subject.model, subject.batch(8, 0), outputs=NAMES).program
    verify(program)
    with pytest.raises(VerifyError, match="must return"):
        verify(replace(program, outputs=program.outputs[:1]))


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (["logit"], "no tensor 'logit'.*did you mean 'logits'"),
        (["hidden"], "no tensor 'hidden'"),
        (True, "name what is wanted of 'loss', 'logits'"),
    ],
)
def test_unknown_names_are_refused(outputs: Any, reason: str) -> None:
    subject = case("decoder")
    with pytest.raises(CaptureError, match=reason):
        galvatron.capture(subject.model, subject.batch(8, 0), outputs=outputs)


def test_names_come_in_a_list() -> None:
    subject = case("decoder")
    with pytest.raises(GalvatronError, match="outputs are names"):
        galvatron.capture(subject.model, subject.batch(8, 0), outputs="logits")


class Echo(nn.Module):
    """Gives back its input, a scalar that is no tensor, and all that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        return self.linear(x), x, 1.0


def mean_of_first(output: tuple[Tensor, ...], batch: Mapping[str, Any]) -> Tensor:
    return output[0].mean()


@pytest.mark.parametrize(("name", "reason"), [("1", "'x' as it is"), ("2", "no tensor '2'"), ("7", "no tensor '7'")])
def test_what_is_not_computed_is_refused(name: str, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        galvatron.capture(Echo(), {"x": torch.randn(4, 4)}, loss_fn=mean_of_first, outputs=[name])


def test_a_name_of_two_outputs_is_refused() -> None:
    class Dotted(Echo):
        def forward(self, x: Tensor) -> dict[str, Any]:
            y = self.linear(x)
            return {"loss": y.mean(), "a.b": y, "a": {"b": y * 2, "c": y * 3}}

    batch = {"x": torch.randn(4, 4)}
    with pytest.raises(CaptureError, match=r"several tensors with the name 'a\.b', since a field of it has a dot"):
        galvatron.capture(Dotted(), batch, outputs=["a.b"])
    assert galvatron.capture(Dotted(), batch, outputs=["a.c"]).outputs[0].name == "a.c"


def test_positions_and_whole_outputs_have_names() -> None:
    batch = {"x": torch.randn(4, 4)}
    program = galvatron.capture(Echo(), batch, loss_fn=mean_of_first, outputs=["0"])
    assert [output.name for output in program.outputs] == ["0"]
    program = galvatron.capture(nn.Linear(4, 4), (batch["x"],), loss_fn=lambda y, _: y.mean(), outputs=True)
    assert [output.name for output in program.outputs] == ["output"]


def test_they_have_the_types_that_the_model_gives() -> None:
    batch = {"x": torch.randn(4, 4)}
    program = galvatron.capture(Echo(), batch, loss_fn=mean_of_first, outputs=["0"], precision="bf16")
    assert program.values()[program.outputs[0].value].type.dtype == "bf16"


def test_what_a_caller_gets() -> None:
    program, subject = compiled(), case("decoder")
    batch = subject.batch(6, 3)
    wanted = expected("decoder", batch)
    for found in (program.eval_step(batch, outputs=True), program(**batch)):
        assert list(found) == list(NAMES)
        torch.testing.assert_close(found.logits, wanted["logits"])
        torch.testing.assert_close(found["hidden.0"], wanted["hidden.0"])
        assert found.loss is not None
        assert float(found.loss) == float(program.eval_step(batch))
    with pytest.raises(AttributeError, match="did you mean 'logits'"):
        _ = program.eval_step(batch, outputs=True).logit


def test_labels_may_be_missing_where_no_output_needs_them() -> None:
    batch = case("decoder").batch(8, 3)
    program = compiled("logits")
    for found in (
        program.predict({"tokens": batch["tokens"]}),
        program(tokens=batch["tokens"]),
        program(batch["tokens"]),
    ):
        assert found.loss is None
        torch.testing.assert_close(found.logits, expected("decoder", batch)["logits"])
    with pytest.raises(PlanError, match="no input 'tokens', on which an output depends; they need 'tokens'"):
        program.predict({"labels": batch["labels"]})
    with pytest.raises(PlanError, match="no input 'labels', on which an output depends"):
        compiled("right").predict({"tokens": batch["tokens"]})


def test_missing_labels_are_as_long_as_the_rest() -> None:
    subject = case("lengths")
    options: dict[str, Any] = {"outputs": ["logits"], "dynamic": subject.dynamic, "plan": "m1/dp1"}
    program = galvatron.compile(subject.model, subject.batch(8, 0), **options)
    batch = subject.batch(4, 2)
    assert batch["tokens"].shape[1] != subject.batch(8, 0)["tokens"].shape[1]
    torch.testing.assert_close(
        program.predict({"tokens": batch["tokens"]}).logits, expected("lengths", batch)["logits"]
    )


def test_none_without_names() -> None:
    subject = case("decoder")
    program = galvatron.compile(subject.model, subject.batch(8, 0), plan="m1/dp1")
    with pytest.raises(GalvatronError, match="there are no outputs"):
        program.eval_step(subject.batch(8, 0), outputs=True)


def test_training_computes_none_of_them() -> None:
    program = compiled("logits", "next")
    (source,) = program.sources.values()
    before, after = source.split("    if not asked:\n")
    assert "argmax" in after
    assert "argmax" not in before
    assert "asked=self.asked" in after


@pytest.mark.slow
def test_plans_cost_the_same_with_them() -> None:
    subject = case("decoder")
    plain = galvatron.capture(subject.model, subject.batch(8, 0))
    for plan in ("m2/dp2", "m1/tp2"):
        costs = [
            galvatron.estimate(program, plan, "a100-80g:1x2") for program in (plain, decoder("logits", "hidden.0"))
        ]
        assert costs[0] == costs[1]
