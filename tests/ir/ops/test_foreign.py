"""Operators of other libraries: whole until a rule says more; a rule that does not fit is refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import galvatron
from galvatron.errors import CaptureError, GalvatronError, ParseError
from galvatron.ir.capture import capture_graph
from galvatron.ir.micro_batches import SUM, batch_state, coupling, flow
from galvatron.ir.ops import foreign, schemas
from galvatron.ir.ops.table import OPERATORS
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify

NAME, TARGET = "galvatron_test::scaled", "galvatron_test.scaled.default"


@torch.library.custom_op(NAME, mutates_args=())
def scaled(x: torch.Tensor, power: int, w: torch.Tensor | None = None) -> torch.Tensor:
    y = x**power
    return y if w is None else y * w


@scaled.register_fake
def _(x: torch.Tensor, power: int, w: torch.Tensor | None = None) -> torch.Tensor:
    return torch.empty_like(x)


def _kept(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[2])
    ctx.power = inputs[1]


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor | None]:
    x, w = ctx.saved_tensors
    inner = gradient if w is None else gradient * w
    rest = None if w is None else (gradient * x**ctx.power).flatten(0, -2).sum(0)
    return inner * ctx.power * x ** (ctx.power - 1), None, rest


scaled.register_autograd(_backward, setup_context=_kept)


def _without(name: str, backward: Any = None) -> Any:
    """An operator that has this backward, or none."""

    @torch.library.custom_op(f"galvatron_test::{name}", mutates_args=())
    def operator(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * w

    operator.register_fake(lambda x, w: torch.empty_like(x))
    if backward is not None:
        operator.register_autograd(backward)
    return operator


plain = _without("plain")
half = _without("half", lambda ctx, gradient: (gradient, None))
broken = _without("broken", lambda ctx, gradient: gradient.nothing())


@torch.library.custom_op("galvatron_test::doubled_into", mutates_args=("x",))
def doubled_into(x: torch.Tensor) -> None:
    x.mul_(2)


@torch.library.custom_op("galvatron_test::of_list", mutates_args=())
def of_list(xs: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(xs).sum(0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.w = nn.Linear(6, 6), nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scaled(self.first(x), 2, self.w).sum()


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for name in [name for name in OPERATORS if name.startswith("galvatron_test::")]:
        del OPERATORS[name]
    for target in [target for target in schemas.ADDED if target.startswith("galvatron_test.")]:
        del schemas.ADDED[target]
        foreign.RULES.pop(target, None)


def captured() -> Program:
    return capture_graph(Net(), {"x": torch.zeros(4, 6)}).program


def couplings(program: Program) -> list[str]:
    graph = program.required_graph
    found = flow(graph, {value.name: batch_state(value.type) for value in graph.inputs})
    assert bool(found.couplings) or found.states[program.output] is SUM
    return list(map(str, found.couplings.values()))


def test_without_a_rule_it_is_whole_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"test_foreign.py:\d+: .*galvatron_test::scaled runs whole on every rank"):
        program = captured()
    verify(program)
    (coupling,) = couplings(program)
    assert "galvatron.register_rule('galvatron_test::scaled', 'b* k -> b* k')" in coupling


def test_with_a_rule_it_is_an_operator_like_others() -> None:
    galvatron.register_rule(NAME, "b* k, k? -> b* k")
    program = captured()
    verify(program)
    assert parse_program(print_program(program)) == program
    assert couplings(program) == []


def test_a_rule_counts_from_when_it_is_given_to_when_it_is_taken_back() -> None:
    class Twice(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(scaled(self.first(x), 2, self.w)).square().sum()

    net = Twice()

    def coupled() -> bool:
        return coupling(galvatron.capture(net, {"x": torch.zeros(4, 6)})) is not None

    with pytest.warns(UserWarning):
        assert coupled()
    galvatron.register_rule(NAME, "b* k, k? -> b* k")
    assert not coupled()
    galvatron.register_rule(NAME, "")
    with pytest.warns(UserWarning, match="runs whole on every rank"):
        assert coupled()


def test_a_program_is_read_where_its_operators_were_asked_for() -> None:
    with pytest.warns(UserWarning):
        text = print_program(captured())
    parse_program(text)
    del schemas.ADDED[TARGET]
    with pytest.raises(ParseError, match=r"imported and galvatron.register_rule\('galvatron_test::scaled', ...\) was"):
        parse_program(text)
    galvatron.register_rule(NAME, "")
    parse_program(text)


def test_another_rank_has_the_same_rules() -> None:
    galvatron.register_rule(NAME, "b* k, k? -> b* k")
    targets = foreign.foreign_targets(captured().graphs)
    assert targets == {TARGET: "b* k, k? -> b* k"}
    foreign.adopt(targets)
    galvatron.register_rule(NAME, "")
    with pytest.raises(GalvatronError, match="is '' on this rank, but 'b\\* k, k\\? -> b\\* k' on rank 0"):
        foreign.adopt(targets)


@pytest.mark.parametrize(
    ("operator", "rule", "told"),
    [
        ("scaled", "b* -> b*", "'scaled' is no name of an operator: write namespace::name"),
        (3, "b* -> b*", "3 is no name of an operator"),
        ("galvatron_test::missing", "b* -> b*", "torch has no operator galvatron_test::missing: import the library"),
        ("aten::mul", "b* -> b*", "aten::mul is an operator of torch itself"),
        ("galvatron_test::doubled_into", "b* -> b*", "galvatron_test::doubled_into changes its operands in place"),
        ("galvatron_test::of_list", "b* -> b*", "an operator with lists of tensors has no rule"),
        (NAME, 3, "is a text such as 'b* k, k -> b* k', not int"),
        (NAME, "b* k, k?", "it has operands and results on the two sides of one '->'"),
        (NAME, "b* k -> b* k", "it has 1 operands, but the operator has x, w"),
        (NAME, "b* k, k? -> b* k, k", "it has 2 results, but the operator gives 1"),
        (NAME, "b* k, k? -> b* j", "no operand has the dimension 'j' of a result"),
        (NAME, "b* k^, k? -> b* k", "'^' means nothing in it"),
        (NAME, "b* [k], k? -> b* k", "'[' means nothing in it"),
    ],
)
def test_what_is_no_rule_is_refused(operator: Any, rule: Any, told: str) -> None:
    with pytest.raises(GalvatronError) as error:
        galvatron.register_rule(operator, rule)
    assert told in str(error.value)


def test_an_operator_that_changes_its_operands_is_refused() -> None:
    class Changing(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x) * 1
            doubled_into(h)
            return h.sum()

    with pytest.raises(CaptureError, match=r"test_foreign.py:\d+: `doubled_into\(h\)`"):
        capture_graph(Changing(), {"x": torch.zeros(4, 6)})


@pytest.mark.parametrize(
    ("called", "told"),
    [
        (plain, r"galvatron_test::plain has no backward that runs \(RuntimeError: .*no autograd formula"),
        (half, "galvatron_test::half gives 'w' no gradient, which training needs: register one"),
        (broken, r"galvatron_test::broken has no backward that runs \(AttributeError: .*'nothing'"),
    ],
)
def test_an_operator_without_a_gradient_that_is_needed_is_refused(called: Any, told: str) -> None:
    class Calling(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return called(self.first(x), self.w).sum()

    with pytest.warns(UserWarning), pytest.raises(CaptureError, match=rf"test_foreign.py:\d+: `return called.*{told}"):
        capture_graph(Calling(), {"x": torch.zeros(4, 6)})
    report = galvatron.check(Calling(), {"x": torch.zeros(4, 6)})
    assert not report.captured


def test_an_operator_without_a_gradient_that_is_not_needed_is_taken() -> None:
    class Detaching(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            return (h * plain(h.detach(), self.w.detach()) + half(h, self.w.detach()) + plain(x, x)).sum()

    with pytest.warns(UserWarning):
        verify(capture_graph(Detaching(), {"x": torch.zeros(4, 6)}).program)
