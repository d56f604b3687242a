"""The emitted text: what it looks like, that it runs, and that it computes what the program says."""

import inspect
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from galvatron import runtime as rt
from galvatron.codegen import emit, load_module, stage_axes
from galvatron.codegen.bindings import STAGE_ATTRIBUTES, bind_names
from galvatron.codegen.sizes import local_sizes
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Op, Ref, Value
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import Form, LayerKind, When
from tests.codegen import programs
from tests.codegen.programs import network

RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
BATCH = 4
VARIANTS = [
    {"blocks": 4},
    {"blocks": 2, "strategy": "dp2"},
    {"blocks": 3, "stages": 2, "strategy": "dp2-tp2"},
    {"blocks": 9, "stages": 2, "strategy": "tp2-dp4"},
]


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(programs.V, (BATCH, programs.S), generator=generator)
    labels = ids.roll(1, 1)
    labels[0, 3:] = -100
    return {"ids": ids, "labels": labels}


def weights(program) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        state.name: torch.rand(state.type.shape, dtype=torch.float64, generator=generator).requires_grad_()
        for state in program.state
    }


def interpreted_loss(program, state, data) -> torch.Tensor:
    """The loss of a program on one device, layer by layer."""
    env = dict(data)
    for stage in program.stages:
        for layer in stage.layers:
            graph = program.class_of[layer.cls].graph
            names = [v.name for v in (*graph.inputs, *graph.state)]
            tensors = [env[n] for n in layer.operands] + [state[n] for n in layer.state]
            out = run_graph(graph, dict(zip(names, tensors, strict=True)), batch=BATCH)
            env.update(zip(layer.results, out.values(), strict=True))
    return env[program.output]


def stages_on_one_device(program, state, cache_dir) -> list[rt.Stage]:
    """The emitted stages with their state filled in; no mesh axes, so no communication."""
    stages = []
    for name, text in emit(program).items():
        world = rt.World(0, 1, torch.device("cpu"))
        mesh = rt.Mesh(world, len(stages), tuple(range(len(program.stages))), (0,), None, ())
        stage = load_module(name, text, cache_dir).Stage(mesh)
        for state_name in stage.state_specs:
            stage._parameters[state_name] = state[state_name]
        stage.global_batch_size = BATCH
        stages.append(stage)
    return stages


def emitted_loss(stages, data) -> torch.Tensor:
    """What the runtime does with the stages, for one micro-batch."""
    received: Any = ()
    for stage in stages:
        whole = {p.variable: data[p.name] for p in stage.batch_inputs if p.whole}
        keywords = {p.variable: data[p.name] for p in stage.batch_inputs if not p.whole}
        keywords |= stage.step(**whole) if whole else {}
        received = stage(*received, **keywords)
    return received


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_emitted_stages_compute_the_program(stages, tmp_path):
    program = network(blocks=4, stages=stages)
    state = weights(program)
    expected = interpreted_loss(program, state, batch())
    expected_gradients = torch.autograd.grad(expected, list(state.values()))
    loss = emitted_loss(stages_on_one_device(program, state, tmp_path), batch())
    assert torch.equal(loss, expected)
    for got, want in zip(torch.autograd.grad(loss, list(state.values())), expected_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_collectives_are_called_as_the_program_says(tmp_path):
    """The two ranks of a tp2 block, each in a thread, compute what one device computes."""
    program = network(blocks=1, strategy="tp2")
    module = load_module("stage_0.py", emit(program)["stage_0.py"], tmp_path)
    terms: dict[int, torch.Tensor] = {}
    barrier = threading.Barrier(2, timeout=60)

    def all_reduce(x, axis, *, grad):
        assert grad == "identity"
        terms[axis.index] = x
        barrier.wait()
        return terms[0] + terms[1]

    vars(module)["rt"] = SimpleNamespace(copy=lambda x, axis: x, all_reduce=all_reduce)
    x = torch.rand(BATCH, programs.S, programs.D, dtype=torch.float64)
    mask = torch.ones(BATCH, programs.S, 1, dtype=torch.bool)
    up = torch.rand(programs.H, programs.D, dtype=torch.float64)
    down, bias = torch.rand(programs.D, programs.H, dtype=torch.float64), torch.rand(programs.D, dtype=torch.float64)
    results = {}

    def rank(index: int) -> None:
        axis = SimpleNamespace(size=2, index=index)
        results[index] = module.block_tp2(axis, x, mask, up.chunk(2)[index], down.chunk(2, dim=1)[index], bias)

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = x + mask * (F.silu(x @ up.T) @ down.T + bias)
    torch.testing.assert_close(results[0], expected, rtol=1e-12, atol=0)
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_text_is_deterministic_and_compiles(variant):
    first = emit(network(**variant))
    assert first == emit(network(**variant))
    for name, text in first.items():
        compile(text, name, "exec")
        assert max(map(len, text.splitlines())) <= 120


@pytest.mark.skipif(RUFF is None, reason="ruff is a tool of development, not needed to emit code")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_text_is_formatted(variant):
    for text in emit(network(**variant)).values():
        command = [str(RUFF), "format", "--isolated", "--line-length", "120", "-"]
        assert subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout == text


def test_sizes_of_transfers_and_placements_of_inputs_follow_the_layout():
    text = emit(network(blocks=9, stages=2, strategy="tp2-dp4"))["stage_1.py"]
    assert 'self.receives("h5", lambda n: (n // 4, 6, 8), torch.float64)' in text
    assert 'self.batch("labels", "labels", {dp: rt.Sharded(0)})' in text
    assert 'self.batch("labels", "labels", {}, whole=True)' in text
    assert "self.loss(sum_over=(dp,))" in text
    assert "loss = self.head(h, labels, tokens_sum, B=self.global_batch_size)" in text
    assert "for i in range(5, 9):\n            h = self.layers[f" in text
    assert stage_axes(network(stages=2, strategy="tp2-dp4")) == (((2, 4), (4, 1)),) * 2


def test_source_lines_of_the_model_stand_over_what_became_of_them():
    text = emit(network())["stage_0.py"]
    block = text[text.index("def block_dp1") : text.index("def head_dp1")]
    assert block.count("# net.py:14  down\n    down = F.linear(silu, down_weight)\n    add = down + down_bias\n") == 1


def test_one_input_under_two_layouts_becomes_two_variables():
    program = network(blocks=1, strategy="dp2")
    whole = program.class_of["head@dp2"]
    inputs = tuple(replace(v, layout=(programs.REPLICATE,)) for v in whole.graph.inputs)
    classes = (*program.classes, replace(whole, name="whole", graph=replace(whole.graph, inputs=inputs)))
    (stage,) = program.stages
    extra = replace(stage.layers[-1], name="other", cls="whole", results=("other_loss",))
    text = emit(replace(program, classes=classes, stages=(replace(stage, layers=(*stage.layers, extra)),)))[
        "stage_0.py"
    ]
    assert 'self.batch("labels", "labels", {dp: rt.Sharded(0)})' in text
    assert 'self.batch("labels", "labels_2", {})' in text


def test_what_a_step_computes_once_has_one_name_in_forward_and_epilogue():
    program = network(blocks=1, strategy="dp2")
    whole = program.class_of["head@dp2"]
    inputs = tuple(replace(v, layout=(programs.REPLICATE,)) for v in whole.graph.inputs)
    classes = (*program.classes, replace(whole, name="whole", graph=replace(whole.graph, inputs=inputs)))
    (stage,) = program.stages
    extra = replace(stage.layers[-1], name="other", cls="whole", results=("other_loss",))
    # The second variable for the labels in `forward` would be called like the statistic.
    (count,) = (name for layer in stage.layers if layer.kind is LayerKind.STEP for name in layer.results)

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("labels_2" if name == count else name for name in names)

    layers = [
        replace(layer, operands=renamed(layer.operands), results=renamed(layer.results))
        for layer in (*stage.layers, extra)
    ]
    stage = replace(stage, layers=tuple(layers))
    program = replace(program, classes=classes, stages=(stage,))
    bindings = bind_names(program, stage, local_sizes(program))
    assert bindings.variables["labels_2"] == bindings.scopes[When.EPILOGUE]["labels_2"]


def test_names_that_python_or_torch_own_are_left_alone():
    program = network(blocks=1)
    cls = program.class_of["embed@dp1"]
    (embedding,) = cls.graph.ops
    result = Value("torch", embedding.result.type)
    renamed = Op(embedding.target, (Ref("lambda"), Ref("1.ids")), (), (result,))
    graph = replace(
        cls.graph,
        inputs=(Value("1.ids", cls.graph.inputs[0].type),),
        state=(Value("lambda", cls.graph.state[0].type),),
        ops=(renamed,),
        outputs=("torch",),
    )
    classes = tuple(replace(c, graph=graph) if c is cls else c for c in program.classes)
    text = emit(replace(program, classes=classes))["stage_0.py"]
    assert "def embed_dp1(_1_ids, lambda_):\n    torch_ = F.embedding(_1_ids, lambda_)\n    return torch_\n" in text


def test_stage_attributes_are_all_reserved(tmp_path):
    (stage,) = stages_on_one_device(network(blocks=0), weights(network(blocks=0)), tmp_path)
    own = {"embed", "head"}
    taken = {name for name in (*dir(rt.Stage), *vars(stage)) if not name.startswith("_")}
    # Other libraries add methods to `nn.Module` when they are imported.
    added = {n for n, f in vars(torch.nn.Module).items() if not getattr(f, "__module__", "torch").startswith("torch")}
    assert taken - own - added - STAGE_ATTRIBUTES == set()


def test_only_staged_programs_are_emitted():
    with pytest.raises(GalvatronError, match="staged program, this one is planned"):
        emit(replace(network(), form=Form.PLANNED))


def test_an_unknown_operand_is_named():
    program = network(blocks=1)
    (stage,) = program.stages
    layers = tuple(
        replace(layer, operands=("nowhere", "mask")) if "block" in layer.name else layer for layer in stage.layers
    )
    with pytest.raises(GalvatronError, match="layer 'block_0' reads 'nowhere'"):
        emit(replace(program, stages=(replace(stage, layers=layers),)))


@pytest.mark.parametrize("writable", [True, False])
def test_tracebacks_and_inspect_show_the_source(tmp_path, writable):
    cache_dir = tmp_path
    if not writable:
        cache_dir = tmp_path / "file"
        cache_dir.write_text("not a directory")
    module = load_module("stage_0.py", emit(network())["stage_0.py"], cache_dir)
    assert "F.silu(up)" in inspect.getsource(module.block_dp1)
    with pytest.raises(TypeError) as caught:
        module.block_dp1(1, 2, 3, 4, 5)
    assert "up = F.linear(x, up_weight)" in str(caught.getrepr())
    assert Path(str(module.__file__)).exists() == writable


def test_loading_twice_uses_one_file(tmp_path):
    text = emit(network())["stage_0.py"]
    files = {load_module("stage_0.py", text, tmp_path).__file__ for _ in range(2)}
    assert len(files) == 1 and [p.name for p in tmp_path.rglob("*.py")] == ["stage_0.py"]
