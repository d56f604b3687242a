"""The commands of docs/cli.md, docs/debugging.md and docs/timelines.md, run in order on a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from galvatron.cli import app
from tests.timelines.traces import checked

DOCS = Path(__file__).parents[2] / "docs"

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(128, 64)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.head = nn.Linear(64, 128)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss(output, batch):
    return nn.functional.cross_entropy(output.flatten(0, 1), batch["tokens"].flatten())


def factory():
    return Model(), {"tokens": torch.zeros(16, 8, dtype=torch.int64)}, loss
"""


def commands(document: str) -> list[list[str]]:
    """The arguments of every `$ galvatron` line in a document's console blocks."""
    text = (DOCS / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines and all(line.startswith("$ galvatron ") for line in lines)
    return [shlex.split(line)[2:] for line in lines]


def run_all(document: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the commands of a document; what they write to stderr."""
    monkeypatch.chdir(folder)
    Path("model.py").write_text(MODEL)
    errors = ""
    for words in commands(document):
        output = words[words.index(">") + 1] if ">" in words else None
        arguments = words[: words.index(">")] if output else words
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (arguments, result.output)
        errors += result.stderr
        if output:
            Path(output).write_text(result.stdout)
    return errors


def test_looking_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = run_all("debugging.md", tmp_path, monkeypatch)
    assert "// after normalize\ngraph\n" in errors and "clustered" in Path("clustered.gir").read_text()


def test_every_command_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = run_all("cli.md", tmp_path, monkeypatch)
    assert "time in passes" in errors
    assert "ops that run whole on an axis" in errors and "collectives" in errors
    assert "tp8+sp" in Path("sharded.gir").read_text()
    statistics = json.loads(Path("stats.json").read_text())["sharding"]
    assert {row["axis"]["name"] for cls in statistics for row in cls["collectives"]} == {"tp"}


def test_timelines_are_written_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all("timelines.md", tmp_path, monkeypatch)
    checked(Path("predicted.json").read_text())
    result = CliRunner().invoke(app, ["trace", "--compare", "predicted.json", "predicted.json", "--json"])
    assert all(one["first_s"] == one["second_s"] for one in json.loads(result.stdout))
