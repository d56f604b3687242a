"""The example trains a small model that is made here; what it exports is what it has trained."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.faults.jobs import Job

EXAMPLE = Path(__file__).parents[2] / "examples/train_llama.py"
LENGTH, SAMPLES = 16, 100


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments of the example: the configuration of a model, and tokens of which each follows from the one before."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path / "model")
    (torch.arange(LENGTH * SAMPLES, dtype=torch.int32) * 7 % 31).numpy().tofile(tmp_path / "tokens")
    return [str(tmp_path / name) for name in ("model", "tokens", "out")]


def options(files: list[str], plan: str, **more: Any) -> list[str]:
    chosen = {"plan": plan, "batch": 8, "length": LENGTH, "rate": 0.01, "every": 5} | more
    return [*files, *(text for name, value in chosen.items() for text in (f"--{name}", str(value)))]


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_llama", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_llama"] = module
    spec.loader.exec_module(module)
    return module


def figures(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "figures.jsonl").read_text().splitlines()]


def steps(files: list[str]) -> int:
    """That have figures."""
    path = Path(files[2]) / "figures.jsonl"
    return len(figures(files[2])) if path.exists() else 0


def plain_perplexity(files: list[str], step: int) -> float:
    """Of the model that was exported after a step on the samples that were held out, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(Path(files[2]) / f"model-{step}").eval()
    held_out = list(example().Tokens(Path(files[1]), LENGTH))[-SAMPLES // 20 :]
    ids = torch.stack([sample["input_ids"] for sample in held_out])
    with torch.no_grad():
        return math.exp(model(input_ids=ids, labels=ids).loss)


def test_it_trains_and_exports(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = example()
    module.main(module.read_options(options(files, "m2/dp1", workers=0)))
    found = figures(files[2])
    assert [line["step"] for line in found] == list(range(1, 13))
    assert found[-1]["perplexity"] < 0.9 * found[4]["perplexity"]
    assert plain_perplexity(files, 12) == pytest.approx(found[-1]["perplexity"], rel=1e-5)
    module.main(module.read_options(options(files, "m2/dp1", workers=0)))
    assert len(figures(files[2])) == 12, "it had ended"


@pytest.mark.slow
def test_it_goes_on_with_more_epochs(files: list[str]) -> None:
    module = example()
    for epochs in (1, 2):
        module.main(module.read_options(options(files, "m2/dp1", workers=0, epochs=epochs)))
    found = figures(files[2])
    assert [line["step"] for line in found] == list(range(1, 25))
    for step in (12, 24):
        assert plain_perplexity(files, step) == pytest.approx(found[step - 1]["perplexity"], rel=1e-5)


def test_what_is_missing_is_said_in_a_line(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for at, said in ((0, "there is no nowhere/config.json"), (1, "there is no file nowhere")):
        with pytest.raises(SystemExit):
            example().read_options([*files[:at], "nowhere", *files[at + 1 :]])
        assert capsys.readouterr().err.splitlines()[-1].endswith(said)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("plan", ["dp2-zero2", "pp2/m2/1f1b/dp1"])
def test_it_goes_on_when_a_rank_was_killed(files: list[str], plan: str) -> None:
    undisturbed = [*files[:2], files[2] + " undisturbed"]
    with Job(EXAMPLE, *options(undisturbed, plan, epochs=4)) as job:
        assert job.wait() == 0, job.output
    wanted = {line["step"]: line["loss"] for line in figures(undisturbed[2])}
    with Job(EXAMPLE, *options(files, plan, epochs=4), restarts=2) as job:
        for restart, step in enumerate((13, 29)):
            job.wait_until(
                lambda step=step: (Path(files[2]) / "figures.jsonl").exists() and len(figures(files[2])) > step
            )
            job.kill(rank=restart, start=restart)
        assert job.wait() == 0, job.output
    found = figures(files[2])
    assert [line["step"] for line in found] == list(range(1, 49))
    for line in found:
        assert line["loss"] == wanted[line["step"]], line["step"]
    assert plain_perplexity(files, 48) == pytest.approx(found[-1]["perplexity"], rel=1e-5)
