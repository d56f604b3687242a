"""The public functions from model to training step: results against eager PyTorch, errors, artifacts."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron import api, offline
from galvatron import runtime as rt
from galvatron.errors import (
    CaptureError,
    ClusterError,
    GalvatronError,
    ParseError,
    PlanError,
    StrategyError,
    VerifyError,
)
from galvatron.ir.capture import capture_graph
from galvatron.ir.graph import Op, Value
from galvatron.ir.plan import Plan
from galvatron.ir.program import Form, Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import parse_program
from galvatron.ir.types import BATCH, TensorType
from galvatron.passes.pipeline import Pipeline
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("shared_captures")

WIDTH, HEADS, WORDS, LENGTH = 16, 4, 32, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm(x)).view(batch, length, 3, HEADS, width // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        attention = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attention.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(x)))


class GPT(nn.Module):
    """A tied language model that returns its logits, or its loss when it is given labels."""

    def __init__(self, layers: int = 2, scaled: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight
        # Neither parameter nor buffer: a constant of the program.
        self.scale = torch.linspace(0.5, 1.5, WIDTH, dtype=torch.float64) if scaled else 1.0

    def forward(self, ids: Tensor, labels: Tensor | None = None, shift: bool = False) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(x * self.scale)
        return logits if labels is None else language_loss(logits, {"labels": labels})


def language_loss(output: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())


def new_model(layers: int = 2) -> GPT:
    torch.manual_seed(0)
    return GPT(layers).double()


def new_batch(samples: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (samples, LENGTH), generator=generator)
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    labels[0, : LENGTH // 2] = -100  # shards hold unequal numbers of tokens
    return {"ids": ids, "labels": labels}


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def close(actual: Tensor, expected: Tensor, name: str = "loss") -> None:
    error = (actual - expected).norm() / expected.norm().clamp(min=1e-12)
    assert error < 1e-9, f"{name}: relative error {error:.2e}"


def equals_eager(compiled: galvatron.CompiledModel, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Loss and every gradient of one batch."""
    model.zero_grad()
    expected = model(**batch)
    expected.backward()
    close(compiled.forward_backward(batch), expected.detach())
    gradients = compiled.full_gradients()
    named = dict(model.named_parameters(remove_duplicate=False))
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        assert parameter.grad is not None
        close(gradients[name], parameter.grad, name)


# One process.


@pytest.fixture(scope="module")
def compiled() -> galvatron.CompiledModel:
    return galvatron.compile(new_model(), new_batch(), plan="pp1/m2/gpipe/dp1", optimizer=adamw, max_grad_norm=0.5)


def test_one_process_equals_eager(compiled):
    equals_eager(compiled, new_model(), new_batch(seed=1))


def test_the_batch_size_may_change_between_steps(compiled):
    equals_eager(compiled, new_model(), new_batch(samples=6, seed=2))


def test_training_equals_eager():
    compiled = galvatron.compile(new_model(), new_batch(), plan="dp1", optimizer=adamw, max_grad_norm=0.5)
    model = new_model()
    optimizer = adamw(model.parameters())
    for seed in range(3):
        optimizer.zero_grad()
        loss = model(**new_batch(seed=seed))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        close(compiled.train_step(new_batch(seed=seed)), loss.detach())
        assert compiled.metrics.gradient_norm == pytest.approx(float(norm), rel=1e-6)
    for name, value in compiled.full_state_dict().items():
        close(value, model.state_dict()[name], name)


def test_loss_function_and_positional_inputs():
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = new_model()

        def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
            return self.net(ids)

    batch = new_batch()
    compiled = galvatron.compile(Split(), (batch["ids"], batch["labels"]), loss_fn=language_loss, plan="dp1")
    expected = new_model()(**batch)
    close(compiled.forward_backward((batch["ids"], batch["labels"])), expected.detach())
    close(compiled.forward_backward(batch), expected.detach())


def test_weights_are_taken_over_and_loaded(compiled):
    state = compiled.full_state_dict()
    assert list(state) == list(new_model().state_dict())
    torch.manual_seed(7)
    other = GPT().double()
    compiled.load_full_state_dict(other.state_dict())
    equals_eager(compiled, other, new_batch())
    compiled.load_full_state_dict(state)
    equals_eager(compiled, new_model(), new_batch())


def test_a_model_on_meta_is_initialised():
    with torch.device("meta"):
        model = GPT(scaled=False)
    inputs = {name: value.to("meta") for name, value in new_batch().items()}
    state = galvatron.compile(model, inputs, plan="dp1").full_state_dict()
    assert all(not value.is_meta and value.isfinite().all() for value in state.values())
    assert 0.5 < state["words.weight"].std() < 2.0


def test_a_model_that_is_dropped_is_freed_at_once(monkeypatch):
    monkeypatch.setattr(api, "capture_graph", capture_graph)  # what a trace leaves behind is what this is about
    model = new_model()
    weights = weakref.ref(model.words.weight.untyped_storage())
    gc.disable()
    try:
        compiled = galvatron.compile(model, new_batch(), plan="dp1")
        del model
        assert compiled and weights() is None
    finally:
        gc.enable()


def test_a_compiled_model_that_is_dropped_gives_its_memory_back():
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).square().sum()

    batch = {"x": torch.randn(4, 4)}
    compiled = galvatron.compile(Small(), batch, plan="dp1", precision="bf16", optimizer=adamw)
    compiled.train_step(batch)
    leaves = [weakref.ref(parameter) for parameter in compiled._executor.stages[0].parameters()]
    assert leaves
    del compiled
    gc.collect()
    assert all(leaf() is None for leaf in leaves)


def test_artifacts_compile_again(compiled, tmp_path):
    compiled.save_artifacts(tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["plan.json", "program.gir", "stage_0.py"]
    program = parse_program((tmp_path / "run" / "program.gir").read_text())
    assert program == compiled.program and program.form is Form.PLANNED
    assert (tmp_path / "run" / "stage_0.py").read_text() == compiled.sources[0]
    again = galvatron.compile(new_model(), new_batch(), plan=tmp_path / "run" / "plan.json")
    assert again.plan == compiled.plan and again.sources == compiled.sources
    assert offline.emit(program, compiled.plan, "a100-80g:1x1") == {"stage_0.py": compiled.sources[0]}


def test_generated_code_lands_in_the_cache_directory(tmp_path):
    galvatron.compile(new_model(), new_batch(), plan="dp1", cache_dir=tmp_path)
    assert [path.name for path in tmp_path.rglob("*.py")] == ["stage_0.py"]


def test_capture_emit_and_estimate_need_no_devices():
    with torch.device("meta"):
        model = GPT(layers=4, scaled=False)
    program = galvatron.capture(model, {name: value.to("meta") for name, value in new_batch(8).items()})
    assert program.form is Form.CLUSTERED and program.batch_size == 8
    texts = offline.emit(program, "pp2/m2/1f1b/dp2-tp2", "a100-80g:1x8")
    assert list(texts) == ["stage_0.py", "stage_1.py"] and "rt.all_reduce(" in texts["stage_1.py"]
    small = galvatron.estimate(program, "pp2/m2/1f1b/dp2-tp2", "a100-80g:1x8", global_batch_size=8)
    large = galvatron.estimate(program, "pp2/m2/1f1b/dp2-tp2", "a100-80g:1x8", global_batch_size=800)
    assert 0 < small.step_time_s < large.step_time_s
    assert len(small.peak_bytes) == len(small.stages) == 2
    assert all(a < b for a, b in zip(small.peak_bytes, large.peak_bytes, strict=True))


def test_search_and_estimate_tell_the_same():
    program = galvatron.capture(new_model(), new_batch(8))
    plan = galvatron.search(program, "a100-80g:1x2", memory="1GiB")
    found = galvatron.estimate(program, plan, "a100-80g:1x2")
    assert (plan.step_time_s, plan.peak_bytes) == (found.step_time_s, found.peak_bytes)
    assert plan.global_batch_size == 8 and plan.world_size == 2
    twice = galvatron.search(program, "a100-80g:1x2", global_batch_size=16)
    assert twice.global_batch_size == 16
    assert galvatron.estimate(program, twice, "a100-80g:1x2").step_time_s == twice.step_time_s


@cache
def one_block() -> Program:
    """The captured program of a model of one block."""
    return galvatron.capture(new_model(1), new_batch())


def with_gelu(program: Program, **changes: Any) -> Program:
    """The program with its activations changed."""

    def changed(op: Op) -> Op:
        return replace(op, **changes) if op.target == "aten.gelu.default" else op

    classes = (replace(c, graph=replace(c.graph, ops=tuple(map(changed, c.graph.ops)))) for c in program.classes)
    return replace(program, classes=tuple(classes))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"target": "aten.from_file.default"}, "known-ops"),
        ({"target": "aten.gelu_.default"}, "known-ops"),
        ({"args": ()}, "arguments-fit"),
        ({"results": (Value("gelu", TensorType("f64", (BATCH, LENGTH, 4 * WIDTH - 1))),)}, "result-types"),
    ],
)
def test_what_is_given_is_verified_first(changes, rule):
    broken = with_gelu(one_block(), **changes)
    for function in (
        lambda: offline.search(broken, "a100-80g:1x2"),
        lambda: offline.estimate(broken, "m1/dp2", "a100-80g:1x2"),
        lambda: offline.emit(broken, "m1/dp2", "a100-80g:1x2"),
    ):
        with pytest.raises(VerifyError) as caught:
            function()
        assert caught.value.rule == rule


def test_what_is_generated_was_verified(monkeypatch):
    program = one_block()
    lowered = Pipeline.run

    def careless(self: Pipeline, program: Program, *instruments: Any) -> Program:
        result = lowered(self, program, *instruments)
        return with_gelu(result, args=()) if result.form is Form.STAGED else result

    monkeypatch.setattr(Pipeline, "run", careless)
    with pytest.raises(VerifyError, match="the argument 'self' is missing"):
        offline.emit(program, "m1/dp2", "a100-80g:1x2")
    with pytest.raises(VerifyError, match="the argument 'self' is missing"):
        galvatron.compile(new_model(1), new_batch(), plan="dp1")


# Several processes.


def one_plan(world: rt.World, plan: str) -> dict[int, str]:
    compiled = galvatron.compile(new_model(), new_batch(), plan=plan, optimizer=adamw)
    assert compiled.plan.world_size == world.size
    equals_eager(compiled, new_model(), new_batch())
    return compiled.sources


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", ["dp2", "m2/tp2", "pp2/m2/1f1b/dp1", "pp2/m4/gpipe/dp1-tp2", "dp2-tp2"])
def test_plans_equal_eager_and_ranks_agree_on_the_code(plan):
    world_size = 4 if plan.endswith("-tp2") else 2
    sources = run_ranks(one_plan, world_size, plan)
    assert all(other == sources[0] for other in sources)


def one_mixed_plan(world: rt.World, plan: Plan) -> None:
    equals_eager(galvatron.compile(new_model(4), new_batch(8), plan=plan), new_model(4), new_batch(8))


def test_a_strategy_per_layer_equals_eager():
    strategies = [Strategy.parse(text) for text in ("dp4", "tp2-dp2", "dp2-tp2", "dp2-tp2", "tp4", "dp4")]
    program = galvatron.capture(new_model(4), new_batch(8))
    run_ranks(one_mixed_plan, 4, Plan(program.fingerprint, 8, 4, 2, "1f1b", (tuple(strategies),)))


def searched(world: rt.World, folder: str) -> str:
    compiled = galvatron.compile(new_model(), new_batch(), cluster=f"a100-80g:1x{world.size}")
    equals_eager(compiled, new_model(), new_batch())
    compiled.save_artifacts(folder)
    return compiled.plan.to_json()


def as_asked(world: rt.World, required: str, roles: list[str]) -> str:
    options = galvatron.SearchOptions(require=(required,), roles=tuple(roles))
    compiled = galvatron.compile(new_model(), new_batch(8), cluster=f"a100-80g:1x{world.size}", search=options)
    equals_eager(compiled, new_model(), new_batch(8))
    return str(compiled.plan)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("ranks", "required", "roles"),
    [(1, "recompute", ["dp"]), (2, "zero3-recompute=selective", ["dp"]), (4, "zero2", ["dp", "tp+sp", "ulysses"])],
)
def test_a_searched_plan_has_what_is_required_and_equals_eager(ranks: int, required: str, roles: list[str]):
    (plan,) = set(run_ranks(as_asked, ranks, required, roles))
    assert required in plan


def test_the_searched_plan_of_rank_0_is_everyones(tmp_path):
    plans = run_ranks(searched, 2, str(tmp_path))
    assert plans[0] == plans[1] == (tmp_path / "plan.json").read_text()


def refused(world: rt.World, plan: str) -> tuple[str, str]:
    with pytest.raises(GalvatronError) as error:
        galvatron.compile(new_model(), new_batch(), plan=plan)
    return type(error.value).__name__, str(error.value)


def test_what_rank_0_finds_wrong_is_raised_on_all_ranks():
    for plan, kind, message in [
        ("pp2/m2/dp2", "PlanError", "is for 4 devices, but there are 2"),
        ("m3/dp2", "PlanError", "batch of 4 samples cannot be divided into 3 micro-batches"),
        ("pp2/dq1", "StrategyError", "did you mean 'dp1'"),
    ]:
        answers = run_ranks(refused, 2, plan)
        assert answers[0] == answers[1]
        assert answers[0][0] == kind and message in answers[0][1]


def fails_outside_galvatron(world: rt.World) -> str:
    def loss(output: Tensor, batch: Any) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(GalvatronError) as error:
        galvatron.compile(new_model(), {"ids": new_batch()["ids"]}, loss_fn=loss, plan="dp2")
    return str(error.value)


def test_a_failing_loss_function_is_named_on_all_ranks():
    answers = run_ranks(fails_outside_galvatron, 2)
    assert answers[0] == answers[1] and "no such thing" in answers[0]


# Bad input.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "GPT"}, GalvatronError, "model must be a torch.nn.Module, not str"),
        ({"example_inputs": [1]}, GalvatronError, "inputs"),
        ({"example_inputs": {"idz": torch.zeros(2, 8)}}, CaptureError, "required argument: 'ids'"),
        ({"loss_fn": 3}, GalvatronError, "loss_fn must be a function"),
        ({"optimizer": 1e-3}, GalvatronError, "optimizer must be a function"),
        ({"precision": "fp8"}, GalvatronError, "precision must be 'bf16' or 'fp16', or None"),
        ({"timeout_s": 0}, GalvatronError, "timeout_s must be a positive number of seconds, not 0"),
        ({"max_grad_norm": -1.0}, GalvatronError, "max_grad_norm must be a positive number, not -1.0"),
        ({"memory": "36 apples"}, GalvatronError, "unknown unit 'apples'"),
        ({"cluster": 8}, ClusterError, "preset like 'a100-80g:2x8', not int"),
        ({"cluster": "a100-80gb:1x1"}, ClusterError, "did you mean 'a100-80g'"),
        ({"cluster": "a100-80g:1x8"}, ClusterError, "has 8 devices, but this job has 1 rank"),
        ({"plan": 4}, PlanError, "a plan is a Plan, a path or a shorthand"),
        ({"plan": "nowhere.json"}, PlanError, "nowhere.json"),
        ({"plan": Path("nowhere")}, PlanError, "nowhere"),
        ({"plan": "pp1/tq2"}, StrategyError, "did you mean 'tp2'"),
        ({"plan": "m3/dp1"}, PlanError, "divided into 3 micro-batches"),
    ],
    ids=str,
)
def test_bad_arguments(changes, error, message):
    arguments: dict[str, Any] = {"model": new_model(), "example_inputs": new_batch(), "plan": "dp1", **changes}
    with pytest.raises(error) as caught:
        galvatron.compile(arguments.pop("model"), arguments.pop("example_inputs"), **arguments)
    assert message in str(caught.value)


def test_a_plan_for_another_model(compiled):
    with pytest.raises(PlanError, match="another model"):
        galvatron.compile(new_model(3), new_batch(), plan=compiled.plan)


def test_a_corrupt_plan_file(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{\n  "format": \n}')
    with pytest.raises(ParseError, match="line 3, column 1"):
        galvatron.compile(new_model(), new_batch(), plan=path)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"ids": new_batch()["ids"]}, "no input 'labels'"),
        ({**new_batch(), "lables": torch.zeros(4)}, "did you mean 'labels'"),
        ({**new_batch(), "ids": torch.zeros(4, LENGTH)}, "dtype torch.float32"),
        ({name: value[:, 1:] for name, value in new_batch().items()}, "shape (4, 7)"),
        ({**new_batch(), "ids": [1, 2]}, "is list, not a tensor"),
        ({**new_batch(), "ids": new_batch(2)["ids"]}, "same number of samples"),
        ([new_batch()["ids"]], "no input 'labels'"),
        (tuple(new_batch().values()) * 3, "does not fit the model's forward"),
        ("ids", "a batch is a mapping"),
    ],
    ids=str,
)
def test_bad_batches(compiled, batch, message):
    with pytest.raises(PlanError) as caught:
        compiled.forward_backward(batch)
    assert message in str(caught.value)


def test_flags_are_part_of_the_program():
    compiled = galvatron.compile(new_model(), {**new_batch(), "shift": False}, plan="dp1")
    compiled.forward_backward({**new_batch(), "shift": False})
    compiled.forward_backward(new_batch())
    with pytest.raises(PlanError, match="captured with False"):
        compiled.forward_backward({**new_batch(), "shift": True})


def test_training_needs_an_optimizer():
    compiled = galvatron.compile(new_model(), new_batch(), plan="dp1")
    with pytest.raises(GalvatronError, match="optimizer="):
        compiled.train_step(new_batch())


@pytest.mark.parametrize("size", [0, -4, 2.5, True])
def test_bad_global_batch_size(size):
    with pytest.raises(GalvatronError, match="global_batch_size must be a positive whole number"):
        galvatron.estimate(one_block(), "dp1", "a100-80g:1x1", global_batch_size=size)
