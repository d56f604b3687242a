"""Errors of our own: said to be ours, with a file in which they can be seen again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import offline
from galvatron.bugs import ours
from galvatron.errors import GalvatronError, InternalError, PassError
from galvatron.instruments import instrumented
from galvatron.ir.program import Form
from galvatron.ir.text import parse_program
from galvatron.passes.pipeline import Pipeline

BATCH = {"x": torch.linspace(-1, 1, 16).view(4, 4)}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).pow(2).mean()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where reproducers land."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def failing(file: Path) -> Callable[..., Any]:
    """A function that is wrong, and says that it is in a file."""
    found: dict[str, Any] = {}
    exec(compile("def fails(*_, **__): raise ZeroDivisionError('this is wrong')", str(file), "exec"), found)
    return found["fails"]


fails = failing(Path(galvatron.__file__).with_name("broken.py"))


CALLS = {
    "compile": lambda: galvatron.compile(Tiny(), BATCH, plan="dp1"),
    "compile, searching": lambda: galvatron.compile(Tiny(), BATCH, cluster="a100-80g:1x1"),
    "search": lambda: galvatron.search(galvatron.capture(Tiny(), BATCH), "a100-80g:1x1"),
    "estimate": lambda: galvatron.estimate(galvatron.capture(Tiny(), BATCH), "dp1", "a100-80g:1x1"),
    "emit": lambda: offline.emit(galvatron.capture(Tiny(), BATCH), "dp1", "a100-80g:1x1"),
}


@pytest.mark.parametrize(
    ("call", "broken", "doing", "form"),
    [
        ("compile", "galvatron.passes.lower.shard.Shard.run", "running pass 'shard'", Form.PLANNED),
        ("compile", "galvatron.forms.emit_stages", "generating code", Form.STAGED),
        ("compile, searching", "galvatron.passes.planning.prune.Prune.run", "running pass 'prune'", Form.CANDIDATES),
        (
            "search",
            "galvatron.passes.planning.annotate_costs.AnnotateCosts.run",
            "running pass 'annotate-costs'",
            Form.CLUSTERED,
        ),
        ("estimate", "galvatron.offline.estimate_plan", "estimating a plan", Form.PLANNED),
        ("emit", "galvatron.passes.lower.split_stages.SplitStages.run", "running pass 'split-stages'", Form.SHARDED),
    ],
)
def test_a_bug_is_said_to_be_one_and_can_be_seen_again(folder, monkeypatch, call, broken, doing, form):
    monkeypatch.setattr(broken, fails)
    with pytest.raises(InternalError) as caught:
        CALLS[call]()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    message = str(caught.value)
    assert f"a bug of Galvatron, not of your program: ZeroDivisionError while {doing}" in message
    (path,) = folder.glob("galvatron-bug-*.gir")
    assert message.endswith(f"and the reproducer {path}")
    text = path.read_text()
    assert parse_program(text).form is form
    if "pass" in doing:
        command = text.splitlines()[0]
        assert command.startswith(f"// galvatron opt {path} --passes '")
        with pytest.raises(ZeroDivisionError):
            Pipeline.parse(command.split("'")[1]).run(parse_program(text))


def test_a_bug_of_others_is_theirs(folder):
    words = r"^instrument 'fails' around pass 'normalize' failed: ZeroDivisionError: .* \(at mine\.py:1\)"
    with pytest.raises(PassError, match=words), instrumented([failing(Path("/me/mine.py"))]):
        galvatron.capture(Tiny(), BATCH)
    assert not list(folder.iterdir())


def test_a_bug_of_capture(folder, monkeypatch):
    monkeypatch.setattr("galvatron.api.capture_graph", fails)
    with pytest.raises(
        InternalError, match="(?s)while capturing the model, at \\S*broken.py:1: .*with the traceback above and the"
    ):
        galvatron.capture(Tiny(), BATCH)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("error", [PassError("wrong input"), MemoryError(), KeyboardInterrupt()])
def test_what_is_no_bug_passes_as_it_is(folder, error):
    with pytest.raises(type(error)) as caught, ours("testing", galvatron.capture(Tiny(), BATCH)):
        raise error
    assert caught.value is error and not list(folder.iterdir())


def test_a_reproducer_that_cannot_be_written_hides_nothing(folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    words = "(?s)ZeroDivisionError while testing.*no reproducer could be written"
    with pytest.raises(GalvatronError, match=words), ours("testing", galvatron.capture(Tiny(), BATCH)):
        fails()
