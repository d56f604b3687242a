"""The registry of architectures, how a row is judged, and the document; a tenth of the rows themselves are slow."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common.architectures import FAMILIES, architectures, named
from common.architectures.base import Architecture, Subject, batches, floats
from common.coverage import row, step
from common.coverage.document import DOCUMENT, document, rows_in
from common.coverage.eager import Expected, eager, errors_of
from common.coverage.jobs import run_rows
from common.coverage.outcomes import RowOutcome, without_paths
from common.coverage.plans import plans_for
from common.results import RESULTS
from torch import Tensor, nn

CHOSEN = [
    "Llama",
    "GPT-2",
    "DeepSeek-V3 (batched_mm)",
    "ModernBERT",
    "T5",
    "LFM2",
    "ViT",
    "MLP-Mixer",
    "ConvNeXt",
    "CLIP",
    "YOLOS",
    "DiT",
    "PatchTST",
    "GAT",
    "dense GCN",
    "DLRM",
    "LoRA on BERT",
]
"""Quick rows, at least one of most families, of every library."""


class Small(nn.Module):
    def __init__(self, then: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.first, self.second, self.then = nn.Linear(4, 4), nn.Linear(4, 2), then

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.second(self.then(self.first(x))), y)


def small(then: Callable[[Tensor], Tensor] = torch.tanh) -> Architecture:
    return Architecture("small", "graphs", "torch", lambda: Subject(Small(then), batches(x=floats(4), y=floats(2))))


def outcome_of(architecture: Architecture) -> RowOutcome:
    return row.row_of(architecture, lambda _: None)


def test_the_registry_is_wide_and_sound() -> None:
    rows = architectures()
    assert len(rows) >= 120
    assert len({row.name for row in rows}) == len(rows)
    assert {row.family for row in rows} == set(FAMILIES)
    assert {row.name for row in rows} >= set(CHOSEN)


def test_a_factory_gives_the_same_at_every_call() -> None:
    first, second = named("GAT").build(), named("GAT").build()
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    one, same, other = first.batch(4, 0), second.batch(4, 0), first.batch(4, 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_the_table_sees_every_role_schedule_and_level() -> None:
    plans = " ".join(attempts[0] for row in architectures() for attempts in plans_for(row.name, row.sequence))
    parts = "dp2 tp2 tp2+sp ulysses2 cp2 gpipe 1f1b interleaved2 zbv zero1 zero2 zero3 recompute recompute=selective"
    for part in parts.split():
        assert part in plans


def test_each_row_has_four_kinds_of_plans() -> None:
    for row_ in architectures():
        plans = plans_for(row_.name, row_.sequence)
        assert len({attempts[0] for attempts in plans}) == 4, row_.name


def test_a_model_that_trains_alike_is_equal() -> None:
    found = outcome_of(small())
    assert found.outcome == "equal", found
    assert [plan.outcome for plan in found.plans] == ["equal"] * 4
    assert max(plan.error for plan in found.plans if plan.error is not None) < 1e-12


def test_another_gradient_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*args: Any) -> Expected:
        found = eager(*args)
        return replace(found, gradients={n: g * (1 + 1e-6) for n, g in found.gradients.items()})

    monkeypatch.setattr(step, "eager", off)
    found = outcome_of(small())
    assert found.outcome == "wrong"
    assert "gradient of first.weight 1.0e-06" in found.plans[0].cause


def test_a_refusal_is_kept_with_its_text() -> None:
    found = outcome_of(small(lambda h: h if h.sum() > 0 else -h))
    assert found.outcome == "refused"
    assert "test_coverage.py" in found.cause


def test_a_model_that_draws_is_nothing_to_compare_with() -> None:
    found = outcome_of(small(lambda h: h + torch.randn_like(h)))
    assert found.outcome == "unsound"
    assert "does not repeat itself" in found.cause


@pytest.mark.slow
def test_plans_that_do_not_apply_are_passed_over() -> None:
    found = outcome_of(small(lambda h: h / h.square().mean().sqrt()))
    assert found.outcome == "equal", found
    passed = [cause for plan in found.plans for cause in (plan.passed_over or {}).values()]
    assert any("micro-batch" in cause for cause in passed), found.plans


def test_a_buffer_that_differs_is_seen() -> None:
    expected = Expected(1.0, {"w": torch.ones(2)}, {"count": torch.tensor(3), "mean": torch.ones(2)}, 2.0)
    state = {"count": torch.tensor(2), "mean": torch.ones(2)}
    errors = errors_of(1.0, {"w": torch.ones(2)}, state, 2.5, expected)
    assert [name for name, error in errors.items() if error] == ["evaluation", "buffer count"]


def test_a_buffer_of_rounding_alone_is_not() -> None:
    expected = Expected(1.0, {"w": torch.ones(2)}, {"mean": torch.full((2,), 1e-17), "variance": torch.ones(2)}, None)
    state = {"mean": torch.zeros(2), "variance": torch.ones(2)}
    errors = errors_of(1.0, {"w": torch.ones(2)}, state, None, expected)
    assert max(errors.values()) < 1e-9


def test_messages_name_files_from_their_library_on() -> None:
    assert without_paths("/home/a/venv/lib/python3.11/site-packages/timm/layers/x.py:3: no") == "timm/layers/x.py:3: no"
    assert without_paths("wrote /root/.cache/bugs/1.gir; B/2 of a/b/c") == "wrote 1.gir; B/2 of a/b/c"


def test_the_document_says_what_the_results_say() -> None:
    rows = rows_in(RESULTS / "coverage.json")
    assert rows
    assert DOCUMENT.read_text(encoding="utf-8") == document(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_a_real_architecture_equals_eager(name: str) -> None:
    chosen = named(name)
    if importlib.util.find_spec(chosen.library) is None:
        pytest.skip(f"{chosen.library} is not installed; `make coverage` makes an environment that has it")
    found: list[RowOutcome] = []
    run_rows([chosen], 1, 280.0, lambda _: None, found.append)
    assert found[0].outcome == "equal", found[0]
