"""Weights of Hugging Face models in and out under many plans: files come out as they went in, and mean the same."""

from __future__ import annotations

import filecmp
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import memory
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron import tensor_file
from galvatron.errors import GalvatronError
from galvatron.ir.planned import PlanShorthand
from galvatron.tensor_file import Entry
from galvatron.weights import Weights
from tests.marks import some_slow
from tests.ranks import run_ranks

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("shared_captures")

WORDS, LENGTH = 64, 8


def llama(**changes: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": WORDS, "num_key_value_heads": 2, "use_cache": False}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | changes)))


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def t5() -> Any:
    sizes = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, decoder_start_token_id=0, use_cache=False)
    )


MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "gpt2": gpt2, "t5": t5}


def on_meta(kind: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS[kind]().double()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(WORDS, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone()}


def goes_round(world: rt.World, kind: str, plan: str, source: str, target: str) -> float:
    program = galvatron.compile(on_meta(kind), batch(), plan=plan, weights=source)
    program.export(target, max_shard_size="20KB")
    return float(program.eval_step(batch()))


ROUNDS = [("gpt2", "pp2/m2/1f1b/dp1"), ("gpt2", "dp1"), ("gpt2", "pp2/m2/zbv/tp2"), ("gpt2", "m2/cp2-dp2-zero2")]
ROUNDS += [("llama", plan) for plan in ("dp1", "dp2", "tp2+sp", "dp2-zero3", "ulysses2", "cp2", "dp2-tp2-zero3")]
ROUNDS += [("t5", plan) for plan in ("dp1", "tp2", "dp4-zero3", "pp2/m2/1f1b/dp2-zero1")]


def ranks_of(plan: str) -> int:
    return PlanShorthand.parse(plan).world_size


@pytest.mark.parametrize(("kind", "plan"), some_slow(ROUNDS[:1], ROUNDS))
def test_files_come_out_as_they_went_in(kind: str, plan: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = tmp_path / "in", tmp_path / "out"
    model = MODELS[kind]().double().eval()
    model.save_pretrained(source, max_shard_size="20KB")
    names = sorted(os.listdir(source))
    assert "model.safetensors.index.json" in names
    losses = run_ranks(goes_round, ranks_of(plan), kind, plan, str(source), str(target))
    with torch.no_grad():
        wanted = model(**batch())
    for loss in losses:  # which these models compute in float32
        assert abs(loss - float(wanted.loss)) <= 1e-6 * abs(float(wanted.loss))
    assert sorted(os.listdir(target)) == names
    assert filecmp.cmpfiles(source, target, names, shallow=False) == (names, [], [])
    with torch.no_grad():
        assert torch.equal(type(model).from_pretrained(target).eval()(**batch()).logits, wanted.logits)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The files of a Llama of a single layer, in bfloat16."""
    torch.manual_seed(0)
    llama(num_hidden_layers=1).bfloat16().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def compiled(weights: Path, model: nn.Module | None = None, **options: Any) -> galvatron.CompiledModel:
    return galvatron.compile(
        llama(num_hidden_layers=1) if model is None else model, batch(), plan="dp1", weights=weights, **options
    )


@pytest.mark.slow
def test_half_types_are_read_into_full_ones_and_written_again(saved: Path, tmp_path: Path) -> None:
    program = compiled(saved, precision="bf16")
    found = program.full_state_dict()
    for name, value in transformers.LlamaForCausalLM.from_pretrained(saved, dtype=torch.float32).state_dict().items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], value), name
    program.export(tmp_path / "half", dtype=torch.bfloat16)
    assert filecmp.cmpfiles(saved, tmp_path / "half", os.listdir(saved), shallow=False)[1:] == ([], [])
    program.export(tmp_path / "full")
    assert transformers.LlamaConfig.from_pretrained(tmp_path / "full").dtype == torch.float32
    with pytest.raises(GalvatronError, match="has something in it"):
        program.export(tmp_path / "full")


def read(model: nn.Module, path: Path, **options: Any) -> dict[str, Tensor]:
    """What a model gets of files, by name."""
    given = Weights(model, path, **options).given
    return {name: value.clone() for name, value in rt.ModelState(model, given=given).read(model.state_dict())}


def test_files_of_a_base_model_fill_one_with_a_tied_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = gpt2()
    model.transformer.save_pretrained(tmp_path)
    found = read(gpt2(), tmp_path, is_partial=False)
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_what_the_files_lack_is_left_as_it_is_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, fresh = llama(), llama()
    model.model.save_pretrained(tmp_path)
    found = read(fresh, tmp_path, is_partial=True)
    assert "they lack lm_head.weight" in caplog.text
    assert torch.equal(found["lm_head.weight"], fresh.lm_head.weight)
    for name, value in model.model.state_dict().items():
        assert torch.equal(found[f"model.{name}"], value), name


class Table(nn.Module):
    """A weight and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("table", torch.zeros(2), persistent=False)


def test_what_a_model_does_not_save_is_not_read(tmp_path: Path) -> None:
    entries = [Entry(name, (2,), torch.float32) for name in ("table", "weight")]
    tensor_file.write(tmp_path / "x.safetensors", tensor_file.header(entries), [torch.ones(2), torch.ones(2)])
    for model in (Table(), nn.ModuleDict({"inner": Table()})):
        found = Weights(model, tmp_path, is_partial=False)
        assert [name.rpartition(".")[2] for name in found.given] == ["weight"]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lack": (lambda: llama(num_hidden_layers=2), r"they lack model.layers.1.self_attn.q_proj.weight, .* \(9 in all\)"),
    "more": (lambda: transformers.LlamaModel(llama(num_hidden_layers=1).config), "they have besides lm_head.weight"),
    "shape": (lambda: llama(num_hidden_layers=1, vocab_size=65), r"lm_head.weight has shape \(64, 32\) in the files"),
    "tied": (
        lambda: llama(num_hidden_layers=1, tie_word_embeddings=True),
        "are one tensor of the model, but have unlike",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_of_another_model_are_refused(case: str, saved: Path) -> None:
    build, words = REFUSED[case]
    with pytest.raises(GalvatronError, match=words):
        compiled(saved, build())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": 3}, "given by its path"),
        ({"weights": "x", "partial_weights": 1}, "partial_weights must be"),
        ({"partial_weights": True}, "was not given"),
        ({"weights": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(GalvatronError, match=words):
        galvatron.compile(llama(num_hidden_layers=1), batch(), plan="dp1", **options)


def fills_the_disk(world: rt.World, folder: str) -> list[str]:
    program = galvatron.compile(on_meta("gpt2"), batch(), plan="pp2/m2/1f1b/dp1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    with pytest.raises(GalvatronError, match=r"safetensors cannot be written"):
        program.export(folder + "/model", max_shard_size="40KB")
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    program.export(folder + "/again")
    return os.listdir(folder)


def test_a_full_disk_leaves_nothing_and_the_job_goes_on(tmp_path: Path) -> None:
    assert run_ranks(fills_the_disk, 2, str(tmp_path)) == [["again"], ["again"]]


class Stack(nn.Module):
    """Many layers, so that none is much of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(32)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


def peak_of_load(world: rt.World, plan: str, folder: str) -> float:
    with torch.device("meta"):
        model = Stack()
    x = {"x": torch.ones(4, 64)}
    galvatron.compile(model, x, plan=plan)  # what is made once is made
    with memory.watched() as seen:
        program = galvatron.compile(model, x, plan=plan, weights=folder)
    shard = sum(piece.tensor.nbytes for piece in program._executor.pieces())
    return (shard + seen.peak_bytes - seen.left_bytes) / shard


@pytest.mark.parametrize("plan", some_slow(["dp2-zero3"], ["dp2-zero3", "tp2", "pp2/m2/1f1b/dp1", "dp1"]))
def test_a_load_needs_hardly_more_memory_than_what_it_leaves(plan: str, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    library.save_file(Stack().bfloat16().state_dict(), tmp_path / "model.safetensors")
    for peak in run_ranks(peak_of_load, ranks_of(plan), plan, str(tmp_path)):
        assert peak <= 1.1
