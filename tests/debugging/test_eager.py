"""A job beside its eager model: right programs differ by rounding, wrong ones by more, and training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.debugging.differences import Comparison, Row
from galvatron.debugging.rounding import Reference, Rounding, distance, finite_norm
from galvatron.errors import GalvatronError
from galvatron.runtime import comm
from tests.marks import some_slow
from tests.ranks import run_ranks
from tests.test_api import GPT, adamw, new_batch

pytestmark = pytest.mark.usefixtures("shared_captures")


def new_model(dtype: torch.dtype) -> GPT:
    torch.manual_seed(0)
    return GPT(layers=3, scaled=False).to(dtype)


class Coarse(GPT):
    """Its float32 is off by a thousandth, and so no measure of what rounding makes of bf16."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().forward(*args, **kwargs)
        return loss * 1.001 if loss.dtype == F32 else loss


def compiled(plan: str, dtype: torch.dtype, **options: Any) -> galvatron.CompiledModel:
    return galvatron.compile(new_model(dtype), new_batch(), plan=plan, optimizer=adamw, **options)


def a_little_more(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return function(*args, **kwargs) * (1 + 1e-4)


def wrong_layer(monkeypatch: pytest.MonkeyPatch, own: galvatron.CompiledModel) -> None:
    """The second block gives a little more than it should."""
    for stage in own._executor.stages:
        if (layer := stage.layers.get("blocks_1")) is not None:
            monkeypatch.setattr(layer, "function", partial(a_little_more, layer.function))


def no_sums_of_gradients(monkeypatch: pytest.MonkeyPatch, own: galvatron.CompiledModel) -> None:
    """Ranks keep what they have of a gradient."""
    real = comm.all_reduce

    def all_reduce(x: Tensor, *args: Any, phase: str | None = None, **more: Any) -> comm.Handle:
        return real(x.clone() if phase == "gradients" else x, *args, phase=phase, **more)

    monkeypatch.setattr(comm, "all_reduce", all_reduce)


Bug = Callable[[pytest.MonkeyPatch, galvatron.CompiledModel], None]


def with_bug(own: galvatron.CompiledModel, bug: Bug, dtype: torch.dtype) -> Comparison:
    with pytest.MonkeyPatch.context() as monkeypatch:
        bug(monkeypatch, own)
        return own.compare_with(new_model(dtype), new_batch(), layers=True)


def compared(world: rt.World, plan: str, dtype: torch.dtype, precision: str | None) -> tuple[Comparison, Comparison]:
    own = compiled(plan, dtype, precision=precision)
    own.train_step(new_batch())  # what is compared is what the program has now
    state, gradients, random, metrics = own.full_state_dict(), own.full_gradients(), own.state(), own.metrics
    found = own.compare_with(
        new_model(dtype if world.rank == 0 else F32).to("cpu" if world.rank == 0 else "meta"), new_batch(), layers=True
    )
    assert own.state() == random and own.metrics == metrics
    for before, after in ((state, own.full_state_dict()), (gradients, own.full_gradients())):
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return found, with_bug(own, wrong_layer, dtype)


def without_sums(world: rt.World) -> Comparison:
    return with_bug(compiled("m1/dp2", F32), no_sums_of_gradients, F32)


F32, F64 = torch.float32, torch.float64
QUICK = [("pp2/m2/1f1b/dp1", F32, None)]
MORE = [
    ("m2/dp2", F64, None), ("m1/tp2", F32, None), ("m2/dp2-zero3", F32, None), ("m1/tp2+sp-recompute", F64, None),
    ("m2/dp2", F32, "bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "dtype", "precision"), some_slow(QUICK, MORE))
def test_right_programs_differ_by_rounding_and_wrong_ones_do_not(
    plan: str, dtype: torch.dtype, precision: str | None
) -> None:
    (found, wrong), other = run_ranks(compared, 2, plan, dtype, precision, timeout=180)
    assert (found, wrong) == other and not found.departures, str(found)
    whats = [row.what for row in found.rows]
    assert whats == sorted(whats, key=("output", "loss", "gradient").index) and whats.count("loss") == 1
    names = {name for name, _ in new_model(F32).named_parameters()}
    assert {row.name for row in found.rows if row.what == "gradient"} == names
    layers = dict.fromkeys(row.layer for row in found.rows if row.what == "output")
    assert [name for name in layers if name.startswith("blocks")] == ["blocks.0", "blocks.1", "blocks.2"]
    assert str(found).endswith(f"all {len(found.rows)} differ by rounding of {found.dtype}, or not at all")
    if precision is None:  # else so little is rounding
        _check_wrong(wrong)


def _check_wrong(found: Comparison) -> None:
    first = found.departures[0]
    assert (first.what, first.layer) == ("output", "blocks.1") and "return x + self.down" in first.line
    assert 1e-5 < first.difference < 1e-3
    before = found.rows[: found.rows.index(first)]
    assert before and all(row.layer != "blocks.2" for row in before)
    assert "the first is the output of" in str(found) and "NOT ROUNDING" in str(found)


@pytest.mark.slow
def test_gradients_that_are_not_summed_are_named() -> None:
    found, _ = run_ranks(without_sums, 2)
    assert {row.what for row in found.departures} == {"gradient"}
    assert found.departures[0].layer == "blocks.2"  # the head's weight is that of the embedding, which is read first


def test_one_process_and_wrong_arguments() -> None:
    own = compiled("m2/dp1", F32)
    found = own.compare_with(new_model(F32), new_batch())
    assert not found.departures and {row.what for row in found.rows} == {"loss", "gradient"}
    assert len(found.to_dict()["rows"]) == len(found.rows)
    other = GPT(layers=2, scaled=False)
    for arguments, message in (
        ({"model": 3}, "compared with the model that was compiled, not int"),
        ({"layers": 1}, "layers must be True or False"),
        ({"model": new_model(F32).to("meta")}, "the model is on the meta device"),
        ({"model": other}, r"the model has no 'blocks\.2"),
        ({"batch": {"ids": new_batch()["ids"]}}, "the batch has no input 'labels'"),
    ):
        given: dict[str, Any] = {"model": new_model(F32), "batch": new_batch(), **arguments}
        with pytest.raises(GalvatronError, match=message):
            own.compare_with(given.pop("model"), given.pop("batch"), **given)


def test_lengths_are_those_of_the_batch() -> None:
    own = compiled("m2/dp1", F32, dynamic={"ids": {1: "S"}, "labels": {1: "S"}})
    batch = {name: value[:, :6] for name, value in new_batch().items()}
    found = own.compare_with(new_model(F32), batch, layers=True)
    assert not found.departures and "output" in {row.what for row in found.rows}, found


def test_the_loss_is_that_which_the_program_was_compiled_for() -> None:
    model, batch = nn.Linear(4, 2), {"input": torch.randn(2, 4)}
    own = galvatron.compile(model, batch, loss_fn=lambda out, _: out.square().sum(), plan="m1/dp1", optimizer=adamw)
    assert not own.compare_with(model, batch).departures
    assert own.compare_with(model, batch, loss_fn=lambda out, _: out.sum()).departures


def test_what_is_rounding_of_bf16_is_not_much() -> None:
    model = Coarse(layers=1, scaled=False)
    own = galvatron.compile(model, new_batch(), plan="m1/dp1", optimizer=adamw, precision="bf16")
    assert not own.compare_with(model, new_batch()).departures
    real = own._executor.gradients
    with pytest.MonkeyPatch.context() as monkeypatch:
        more = lambda **options: ((name, value * 1.3) for name, value in real(**options))  # noqa: E731
        monkeypatch.setattr(own._executor, "gradients", more)
        found = own.compare_with(model, new_batch())
    assert [row.what for row in found.rows if row.is_rounding] == ["loss"], str(found)


@pytest.mark.slow
def test_memory_of_copies_is_not_that_of_later_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1 << 21), nn.ReLU())
    batch = {"input": torch.randn(2, 8)}
    own = galvatron.compile(model, batch, loss_fn=lambda out, _: out.mean(), plan="m1/dp1", optimizer=adamw)
    for _ in range(2):
        own.train_step(batch)
    before = own.metrics.peak_bytes
    if before is None:
        pytest.skip("the system does not tell")
    own.compare_with(model, batch, loss_fn=lambda out, _: out.mean())  # 72 MB each in float32, and twice in float64
    own.train_step(batch)
    assert own.metrics.peak_bytes is not None and own.metrics.peak_bytes[0] < before[0] + (100 << 20)


def test_infinities_are_equal_or_no_rounding() -> None:
    wide = torch.tensor([1.0, math.inf, 3.0], dtype=F64)
    reference, rounding = Reference(wide, wide.float()), Rounding.of(F32)
    assert reference.beside(wide.float(), rounding).difference == 0
    off = reference.beside(torch.tensor([1.5, math.inf, 3.0]), rounding)
    assert off.difference == pytest.approx(0.5 / 10**0.5)
    assert reference.beside(torch.tensor([1.0, 2.0, 3.0]), rounding).difference == math.inf
    overflows = Reference(torch.tensor([1.0, 1e50], dtype=F64), torch.tensor([1.0, math.inf]))
    off = overflows.beside(torch.tensor([7.0, math.inf]), rounding)
    assert off.difference == math.inf and off.rounding < 1e-6
    assert distance(wide, wide + 1, finite_norm(wide)) > 0.1 and finite_norm(wide) == pytest.approx(10**0.5)


def test_what_counts_as_rounding() -> None:
    def row(difference: float) -> Row:
        return Row(difference, 1e-7, "gradient", f"w{difference}", "blocks.0", "model.py:3  y = x @ w")

    found = Comparison((row(9e-7), row(2e-6)), "float32")
    assert [one.is_rounding for one in found.rows] == [True, False]
    assert str(found).splitlines()[-2:] == [
        "1 of 2 differ by more than rounding of float32; the first is the gradient of w2e-06 in blocks.0",
        "  model.py:3  y = x @ w",
    ]
    many = Comparison((*(row(i * 1e-9) for i in range(99)), row(1.0)), "float32")
    assert "w1.0" in str(many) and "(89 more, which differ by less)" in str(many)
    output, loss = Row(0.0, 1e-7, "output", "h", "blocks.0", ""), Row(0.0, 1e-7, "loss", "", "", "")
    others = Comparison((output, loss, *(row(i * 1e-9) for i in range(99)), row(1.0)), "float32")
    assert "\nloss " in str(others) and "what layers give is what the captured program" in str(others)
