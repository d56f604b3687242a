"""The script of `docs/adapters.md`, as a user runs it: several ranks, killed, gone on, and read back by `peft`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.faults.jobs import Job
from tests.weights.test_round_trip import llama

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs/adapters.md"
LENGTH, SAMPLES = 128, 80


def logits(base: Path, adapter: Path) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, adapter)(input_ids=torch.arange(16)[None]).logits


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("plan", "ranks"), [("dp2-zero3", 2), ("pp2/m2/1f1b/tp2", 4)])
def test_it_goes_on_when_a_rank_was_killed(plan: str, ranks: int, tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    script, base = tmp_path / "tune.py", tmp_path / "base"
    script.write_text(found[1])
    torch.manual_seed(0)
    llama().save_pretrained(base)
    (torch.arange(LENGTH * SAMPLES, dtype=torch.int32) * 7 % 31).numpy().tofile(tmp_path / "tokens")
    for out, restarts in (("undisturbed", 0), ("killed", 1)):
        with Job(script, base, tmp_path / "tokens", tmp_path / out, plan, ranks=ranks, restarts=restarts) as job:
            if restarts:
                job.wait_until(lambda: any((tmp_path / "killed").glob("checkpoints/*")))
                job.kill(rank=1)
            assert job.wait() == 0, job.output
    undisturbed, killed = (logits(base, tmp_path / out / "adapter") for out in ("undisturbed", "killed"))
    assert torch.equal(killed, undisturbed)
    with torch.no_grad():
        untouched = transformers.AutoModelForCausalLM.from_pretrained(base)(input_ids=torch.arange(16)[None]).logits
    assert float((killed - untouched).abs().max()) > 1e-3
