"""The commands of docs/cli.md, run in order on a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from galvatron.cli import app

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"

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


def commands() -> list[list[str]]:
    """The arguments of every `$ galvatron` line in the document's console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines and all(line.startswith("$ galvatron ") for line in lines)
    return [shlex.split(line)[2:] for line in lines]


def test_every_command_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    errors = ""
    for words in commands():
        output = words[words.index(">") + 1] if ">" in words else None
        arguments = words[: words.index(">")] if output else words
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (arguments, result.output)
        errors += result.stderr
        if output:
            Path(output).write_text(result.stdout)
    assert "time in passes" in errors
    assert "ops that run whole on an axis" in errors and "collectives" in errors
    assert "tp8+sp" in Path("sharded.gir").read_text()
    statistics = json.loads(Path("stats.json").read_text())["sharding"]
    assert {row["axis"]["name"] for cls in statistics for row in cls["collectives"]} == {"tp"}
