"""The passes of docs/write-a-pass.md, found by their entry points."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron.ir.text import print_program
from tests.cli.test_cli import run

DOCUMENT = Path(__file__).parents[2] / "docs" / "write-a-pass.md"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).softmax(-1)).square().sum()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package of the page's code and entry points."""
    text = DOCUMENT.read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "your_package.py").write_text("\n\n".join(code))
    info = tmp_path / "your_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: your-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[galvatron.passes]\nwide-softmax = your_package:WideSoftmax\ncount-parameters = your_package:CountParameters\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_passes_of_the_page_run(installed: Path) -> None:
    path = installed / "p.gir"
    batch = {"x": torch.zeros(4, 8, dtype=torch.bfloat16)}
    path.write_text(print_program(galvatron.capture(Net(), batch, precision="bf16", form="captured")))
    out, err = run("opt", path, "--passes", "normalize,wide-softmax,count-parameters", "--diff", "--check", "--stats")
    assert "aten.softmax.int(%to_copy, dim=1) : f32[B, 8]" in " ".join(out.split())
    assert "// after wide-softmax\ngraph\n" in err and "numbers that train" in err and "144" in err
    assert run("opt", "--list-passes")[0].count("wide-softmax  (captured → captured)") == 1
    some, _ = run("opt", path, "--passes", "normalize,wide-softmax", "--limit-rewrites", "wide-softmax=0")
    assert some == run("opt", path, "--passes", "normalize")[0]
    run("bisect", path, "--passes", "normalize,wide-softmax")
