"""One stage as a Python module: the functions of its layer classes, and a `Stage` that calls them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import sympy

from galvatron.codegen.bindings import Bindings, bind_names, stage_mesh
from galvatron.codegen.closings import give_amounts, is_summed, tell_gradients
from galvatron.codegen.expressions import print_expression, print_shard, share
from galvatron.codegen.layout import WIDTH, Brackets, Text, call, lines, prefixed, tuple_of
from galvatron.codegen.names import escaped, literal
from galvatron.codegen.ops import ASKED, IN_TRAINING
from galvatron.codegen.outputs import give_outputs
from galvatron.codegen.runs import INDEX, chain, first_number, quoted, runs, template
from galvatron.codegen.sizes import MICRO_BATCH, Sizes, local_sizes, numbers_of_step
from galvatron.ir.layout import BROADCAST, PARTIAL, Placement, Shard, nameable_axes
from galvatron.ir.micro_batches import adds_up
from galvatron.ir.planned import epilogue
from galvatron.ir.program import Layer, LayerKind, Program, Stage, StateLayout, Transfer, Update, When
from galvatron.ir.recompute import in_steps, replays, rereads
from galvatron.ir.types import TORCH_DTYPE_NAMES, Dim
from galvatron.ir.zero import LEVELS

_FUNCTIONAL = re.compile(r"[ (]F\.")
_MATH = re.compile(r"\bmath\.")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')

_DECLARE_IN_LOOP, _CALL_IN_LOOP = 2, 3
"""Layers in a run that are worth a loop: the state of a layer is many lines, its call is one."""


def emit_stage(program: Program, stage: Stage, sizes: Sizes | None = None) -> str:
    """The module of one stage of a staged program, as text."""
    bindings = bind_names(program, stage, sizes or local_sizes(program))
    functions = [*bindings.own_backwards, *(function.text for function in bindings.functions.values())]
    methods = [*_step(bindings), *_forward(bindings), *_epilogue(bindings), *_closing(bindings)]
    stage_text = "\n".join([*_head(bindings), *_init(bindings), *methods])
    return module_text(_title(program, stage), "\n\n\n".join([*functions, stage_text]))


def module_text(title: str, body: str) -> str:
    """A module with what it imports."""
    imports = ["import math", ""] if _names(_MATH, body) else []
    imports += ["import torch", *(["import torch.nn.functional as F"] if _names(_FUNCTIONAL, body) else [])]
    imports += ["", "from galvatron import runtime as rt"]
    return "\n".join([f'"""{escaped(title)}"""', "", *imports, "", "", body, ""])


def _names(module: re.Pattern[str], body: str) -> bool:
    """Whether code, not a string in it or the model's line above it, names a module."""
    code = (line for line in body.split("\n") if not line.lstrip().startswith("#"))
    return any(module.search(_STRING.sub("", line)) for line in code)


def stage_axes(program: Program) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each stage the (size, stride) of every mesh axis that its code asks for, largest stride first."""
    meshes = (stage_mesh(program, stage) for stage in program.stages)
    return tuple(tuple(dict.fromkeys((axis.size, axis.stride) for axis in mesh)) for mesh in meshes)


def _title(program: Program, stage: Stage) -> str:
    """`Stage 1 of 2 of LlamaForCausalLM: layers 3-5 (decoder ×2, head) on 2 devices.`"""

    def planned(one: Stage) -> list[str]:
        classes = (program.class_of[layer.cls] for layer in one.layers if layer.kind is LayerKind.PLANNED)
        return [cls.origin_name for cls in classes]

    own = planned(stage)
    first = sum(len(planned(s)) for s in program.stages[: stage.index])
    counts = ", ".join(name if n == 1 else f"{name} ×{n}" for name, n in Counter(own).items())
    which = f"layer {first}" if len(own) == 1 else f"layers {first}-{first + len(own) - 1}"
    devices = program.required_plan.devices_per_stage
    where = f"{devices} device{'s' if devices > 1 else ''}"
    what = f"{which} ({counts})" if own else "no layers"
    return f"Stage {stage.index} of {len(program.stages)} of {program.name}: {what} on {where}."


def _head(bindings: Bindings) -> list[str]:
    out = ["class Stage(rt.Stage):", f"    index, count = {bindings.stage.index}, {len(bindings.program.stages)}"]
    shards = _epilogue_shards(bindings.program)
    out += [f"    epilogue_shards = {shards}"] if shards else []
    return [*out, "    step_adds = True"] if _step_adds(bindings) else out


def _step_adds(bindings: Bindings) -> bool:
    """Whether `step` of parts of the samples gives terms of a sum: it is told no number of samples, and is one."""
    counts = {keyword for layer in bindings.step_layers for keyword in bindings.function(layer).keywords}
    if not bindings.step_results or counts & {"B", "b", "m"}:
        return False
    return adds_up(bindings.program, bindings.step_layers, bindings.step_results)


def _epilogue_shards(program: Program) -> int:
    """Over how many ranks the samples are sharded in the epilogue; 0 where there is none."""
    for layer in epilogue(program):
        strategy = program.class_of[layer.cls].strategy
        return strategy.sample_shards if strategy else 1
    return 0


def _init(bindings: Bindings) -> list[str]:
    """`__init__`: axes, state and layers, then what goes in and out."""
    stage = bindings.stage
    out = ["", "    def __init__(self, mesh: rt.Mesh) -> None:", "        super().__init__(mesh)"]
    for axis, name in bindings.axes.items():
        out.append(f"        {name} = mesh.axis({axis.size}, stride={axis.stride})")
    layouts = {layout.state: layout for layout in stage.state}
    declared: set[str] = set()
    after_loop = False
    for run in runs(stage.layers, _DECLARE_IN_LOOP, lambda run: _counts_up(bindings, run, layouts)):
        fresh = dict.fromkeys(name for layer in run for name in _touched(bindings, layer) if name not in declared)
        declared.update(fresh)
        loops = len(run) > 1
        text = _declare_run(bindings, run, fresh, layouts) if loops else _declare(bindings, run[0], fresh, layouts)
        out += ["", *text] if text and (fresh or after_loop) else text
        after_loop = loops or (after_loop and not text)
    interface = [*_batch_inputs(bindings), *_transfers(bindings, "receives", stage.receives)]
    interface += _transfers(bindings, "sends", stage.sends)
    interface += _collected(bindings)
    interface += give_amounts(bindings)
    interface += tell_gradients(bindings)
    interface += give_outputs(bindings)
    interface += _checks(bindings)
    if bindings.program.output in {name for layer in stage.layers for name in layer.results}:
        interface += _statement("self.loss", [prefixed("sum_over=", tuple_of(_loss_axes(bindings)))])
    return [*out, "", *interface]


def _statement(function: str, arguments: Iterable[Text], depth: int = 2) -> list[str]:
    return lines(call(function, arguments), depth)


def _declare(bindings: Bindings, layer: Layer, fresh: Iterable[str], layouts: dict[str, StateLayout]) -> list[str]:
    """The state of one layer, as far as no layer before has declared it, and the layer."""
    out = [line for name in fresh for line in _state(bindings, literal(name), layouts[name], 2)]
    if not _is_called_directly(bindings, layer):
        name, state = literal(bindings.layers[layer.name]), [literal(name) for name in layer.state]
        out += _layer(bindings, layer, name, state, 2)
        for update, result in bindings.updates(layer):
            out += _update(bindings, layer, update, literal(update.state), name, result, 2)
    return out


def _declare_run(
    bindings: Bindings, run: Sequence[Layer], fresh: Iterable[str], layouts: dict[str, StateLayout]
) -> list[str]:
    """The state of a run of layers, as far as no layer before has declared it, and the layers, in one loop."""
    start = _start(bindings, run)
    out = [_for(start, len(run))]
    columns = zip(*(_touched(bindings, layer) for layer in run), strict=True)
    texts = [quoted(template(column, start) or "") for column in columns]
    for text, name in zip(texts, _touched(bindings, run[0]), strict=True):
        out += _state(bindings, text, layouts[name], 3) if name in fresh else []
    names = texts[: len(run[0].state)]
    name = quoted(template([bindings.layers[layer.name] for layer in run], start) or "")
    out += _layer(bindings, run[0], name, names, 3)
    updates = zip(*map(bindings.updates, run), strict=True)
    for column in updates:
        state = quoted(template([update.state for update, _ in column], start) or "")
        out += _update(bindings, run[0], column[0][0], state, name, column[0][1], 3)
    return out


def _touched(bindings: Bindings, layer: Layer) -> tuple[str, ...]:
    """The state that a layer reads, and then what it only updates."""
    return tuple(dict.fromkeys((*layer.state, *(update.state for update, _ in bindings.updates(layer)))))


def _update(
    bindings: Bindings, layer: Layer, update: Update, state: str, name: str, result: int, depth: int
) -> list[str]:
    arguments = [state, name, str(result)]
    arguments += ["summed=True"] if layer.when is When.MICRO_BATCH and is_summed(bindings, update.value) else []
    arguments += ["adds=True"] if update.adds else []
    return _statement("self.update", arguments, depth)


def _checks(bindings: Bindings) -> list[str]:
    """`self.never(...)` for what the layers of the stage make that is to be true nowhere."""
    out: list[str] = []
    for layer in bindings.stage.layers:
        name = literal(bindings.layers[layer.name])
        for check, result in bindings.checks(layer):
            out += _statement("self.never", [literal(check.says), name, str(result)])
    return out


def _for(start: int, count: int) -> str:
    return f"        for {INDEX} in range({f'{start}, ' if start else ''}{start + count}):"


def _start(bindings: Bindings, run: Sequence[Layer]) -> int:
    """Where the loop variable starts: at the number in the names of the state, or of the layers."""
    state = [layer.state[0] for layer in run if layer.state]
    return first_number(state or [bindings.layers[layer.name] for layer in run])


def _counts_up(bindings: Bindings, run: Sequence[Layer], layouts: dict[str, StateLayout]) -> bool:
    """Whether one loop declares the run: names count up, each layer has state of its own, laid out alike."""
    start, program = _start(bindings, run), bindings.program
    if not run[0].state or template([bindings.layers[layer.name] for layer in run], start) is None:
        return False
    if len({_updated(bindings, layer) for layer in run}) > 1:
        return False
    every = [name for layer in run for name in _touched(bindings, layer)]
    layers = (layer for layer in bindings.stage.layers if layer.when is not When.CLOSING)
    users = Counter(name for layer in layers for name in _touched(bindings, layer))
    if len(set(every)) < len(every) or any(users[name] > 1 for name in every):
        return False
    for column in zip(*(_touched(bindings, layer) for layer in run), strict=True):
        kinds = {(s.type, s.kind, s.trainable) for s in (program.state_of[name] for name in column)}
        places = {
            (layouts[name].mesh, _placed(bindings, layouts[name]), layouts[name].zero, bindings.writers.get(name))
            for name in column
        }
        is_declared = {users[name] for name in column}
        if template(column, start) is None or len(kinds) > 1 or len(places) > 1 or len(is_declared) > 1:
            return False
    return True


def _updated(bindings: Bindings, layer: Layer) -> tuple[tuple[int, int, bool], ...]:
    """Which of the state that a layer touches becomes which of its results, and whether that adds."""
    touched = _touched(bindings, layer)
    return tuple((touched.index(u.state), result, u.adds) for u, result in bindings.updates(layer))


def _state(bindings: Bindings, name: str, layout: StateLayout, depth: int) -> list[str]:
    state = bindings.program.state_of[layout.state]
    places = zip(layout.mesh, _placed(bindings, layout), strict=True)
    placed: list[Text] = [f"{bindings.axes[axis]}: {text}" for axis, text in places if text]
    read = state.compute_type(bindings.program.precision)
    arguments: list[Text] = [name, tuple_of(print_expression(d) for d in read.shape), _dtype(read.dtype)]
    arguments.append(Brackets("{", tuple(placed), "}"))
    if state.kind != "parameter":
        arguments.append('kind="buffer"')
    elif not state.trainable:
        arguments.append("requires_grad=False")
    if layout.zero:
        arguments.append(f"zero={layout.zero}")
    if state.has_master(bindings.program.precision):
        arguments.append(f"master={_dtype(state.type.dtype)}")
    writer = bindings.writers.get(state.name, bindings.stage.index)
    if writer != bindings.stage.index:
        arguments.append(f"written_by={writer}")
    return _statement("self.state", arguments, depth)


def _placed(bindings: Bindings, layout: StateLayout) -> tuple[str, ...]:
    """The placement of a piece of state on each axis of its mesh, as text."""
    state = bindings.program.state_of[layout.state]
    summed = state.trainable or layout.zero > 0
    return tuple(_placement(placement, summed) for placement in layout.layout)


def _layer(bindings: Bindings, layer: Layer, name: str, state: Sequence[str], depth: int) -> list[str]:
    function = bindings.function(layer)
    axes = [_axis_variable(bindings, layer, axis) for axis in function.axes]
    arguments: list[Text] = [name, function.name]
    arguments += [prefixed("axes=", tuple_of(axes))] if axes else []
    arguments += [prefixed("state=", tuple_of(state))] if state else []
    arguments += ["random=True"] if function.random else []
    if function.stream is not None:
        stream = tuple_of(_axis_variable(bindings, layer, axis) for axis in function.stream)
        arguments.append(prefixed("stream=", stream))
    arguments += [f"recompute={literal(kind)}"] if (kind := _recompute(bindings, layer)) else []
    arguments += ["once=True"] if layer.when in (When.EPILOGUE, When.CLOSING) else []
    arguments += ["rereads=False"] if _is_gathered_once(bindings, layer) else []
    return _statement("self.layer", arguments, depth)


def _recompute(bindings: Bindings, layer: Layer) -> str:
    """How the call of a layer is recomputed; empty where it is not, though its function may do so with a part."""
    cls = bindings.cls(layer)
    recompute = cls.strategy.recompute if cls.strategy else "none"
    if not replays(recompute):
        return ""
    return "selective" if in_steps(cls.graph, recompute) else "full"


def _is_gathered_once(bindings: Bindings, layer: Layer) -> bool:
    """Whether values that are there only while a layer runs need not be there for its backward."""
    cls, program = bindings.cls(layer), bindings.program
    if cls.strategy is None or not LEVELS[cls.strategy.zero].values:
        return False
    formals = zip(cls.graph.state, layer.state, strict=True)
    parameters = [formal.name for formal, name in formals if name in program.parameters]
    differentiable = bindings.differentiable[cls.origin_name]
    return bool(parameters) and not rereads(cls.graph, parameters, differentiable, cls.strategy.recompute)


def _axis_variable(bindings: Bindings, layer: Layer, name: str) -> str:
    return next(bindings.axes[axis] for axis in nameable_axes(bindings.cls(layer).mesh) if axis.name == name)


def _placement(placement: Placement, summed: bool) -> str:
    """Text of a placement; empty for what an axis that is not named means."""
    if isinstance(placement, Shard):
        return print_shard(placement, placement.outer)
    return "rt.Summed()" if placement == BROADCAST and summed else ""


def _dtype(name: str) -> str:
    return f"torch.{TORCH_DTYPE_NAMES[name]}"


def _batch_inputs(bindings: Bindings) -> list[str]:
    out: list[str] = []
    for parameter, (variable, _) in bindings.batch.items():
        placed = [f"{bindings.axes[axis]}: {_placement(p, False)}" for axis, p in parameter.placements]
        arguments: list[Text] = [literal(parameter.name), literal(variable), Brackets("{", tuple(placed), "}")]
        arguments += {When.STEP: ["whole=True"], When.EPILOGUE: ["epilogue=True"]}.get(parameter.when, [])
        arguments += [] if parameter.samples else ["samples=False"]
        out += _statement("self.batch", arguments)
    return out


def _collected(bindings: Bindings) -> list[str]:
    """What `forward` gives to the epilogue, and how the parts of the micro-batches make up the whole."""
    out: list[str] = []
    for name in bindings.collected:
        sizes = enumerate(bindings.sizes.shapes[name])
        along = next((dim for dim, size in sizes if isinstance(size, sympy.Expr) and size.has(MICRO_BATCH)), None)
        how = "summed=True" if along is None else f"along={along}"
        out += _statement("self.collects", [literal(name), how])
    return out


def _transfers(bindings: Bindings, method: str, transfers: Iterable[Transfer]) -> list[str]:
    out: list[str] = []
    for transfer in transfers:
        shape = tuple_of(_size(d) for d in bindings.sizes.shapes[transfer.name])
        arguments: list[Text] = [literal(transfer.name), f"lambda n: {shape}", _dtype(transfer.type.dtype)]
        if transfer.type.is_floating and not transfer.differentiable:
            arguments.append("requires_grad=False")
        out += _statement(f"self.{method}", arguments)
    return out


def _size(dim: Dim) -> str:
    """A size of a value that crosses a stage border, in the samples of a micro-batch and the lengths of the step."""
    return print_expression(dim, numbers=numbers_of_step(dim))


def _loss_axes(bindings: Bindings) -> list[str]:
    """The axes over which the loss is a partial sum."""
    for layer in bindings.stage.layers:
        if bindings.program.output in layer.results:
            cls = bindings.cls(layer)
            output = cls.graph.values[cls.graph.outputs[layer.results.index(bindings.program.output)]]
            placed = zip(output.layout or (), cls.mesh, strict=False)
            return [bindings.axes[axis] for placement, axis in placed if placement == PARTIAL]
    return []


def _is_called_directly(bindings: Bindings, layer: Layer) -> bool:
    """A function without state, axes and random numbers that keeps its activations needs no layer object."""
    function = bindings.function(layer)
    gives = bindings.updates(layer) or bindings.outputs(layer) or bindings.checks(layer)
    gives = gives or any(layer is source[0] for source in bindings.amounts.values() if isinstance(source, tuple))
    gives = gives or any(one.value in layer.results for one in bindings.program.reached)
    return not (layer.state or function.axes or function.random or gives or _recompute(bindings, layer))


def _step(bindings: Bindings) -> list[str]:
    """`step`: statistics of the whole batch, once per step; nothing when there are none."""
    if not bindings.step_layers:
        return []
    parameters = ["self", *(variable for p, (variable, _) in bindings.batch.items() if p.when is When.STEP)]
    scope = bindings.scopes[When.STEP]
    out = ["", *lines(prefixed("def ", call("step", parameters), ":"), 1)]
    for layer in bindings.step_layers:
        results = [scope[name] for name in layer.results]
        out += lines(prefixed(f"{', '.join(results)} = ", _call(bindings, layer)), 2)
    returned = [f"{literal(bindings.variables[name])}: {scope[name]}" for name in bindings.step_results]
    return [*out, *lines(prefixed("return ", Brackets("{", tuple(returned), "}")), 2)]


def _forward(bindings: Bindings) -> list[str]:
    """`forward`: received values, then by keyword this rank's part of the micro-batch and the step values."""
    stage, scope = bindings.stage, bindings.variables
    out = _header(bindings, "forward", When.MICRO_BATCH, [t.name for t in stage.receives])
    read_outside = _readers(bindings)
    for run in runs(bindings.forward_layers, _CALL_IN_LOOP, lambda run: _is_loop(bindings, run, read_outside(run))):
        used, over = read_outside(run), _over(bindings, run)
        if len(run) > 1:
            out += _loop(bindings, run, used, over)
            continue
        results = [scope[name] if name in used else "_" for name in run[0].results]
        out += lines(prefixed(f"{', '.join(results)} = ", _call(bindings, run[0])), 2)
        out += _deleted(over)
    returned = [scope[name] for name in (bindings.collected or (t.name for t in stage.sends))]
    if bindings.program.output in scope and bindings.program.output not in {t.name for t in stage.receives}:
        return [*out, f"        return {scope[bindings.program.output]}"]
    text = tuple_of(returned)
    flat = f"        return {', '.join(returned)}" if len(returned) > 1 else f"        return {text}"
    return [*out, *([flat] if len(flat) <= WIDTH else lines(prefixed("return ", text), 2))]


def _epilogue(bindings: Bindings) -> list[str]:
    """`epilogue`: the end of the loss, on what all micro-batches have made; nothing when there is none."""
    layer = bindings.epilogue
    if layer is None:
        return []
    out = _header(bindings, "epilogue", When.EPILOGUE, bindings.collected)
    if len(layer.results) == 1:
        return [*out, *lines(prefixed("return ", _call(bindings, layer)), 2)]
    loss = bindings.scopes[When.EPILOGUE][bindings.program.output]
    results = [loss if name == bindings.program.output else "_" for name in layer.results]
    out += lines(prefixed(f"{', '.join(results)} = ", _call(bindings, layer)), 2)
    return [*out, f"        return {loss}"]


def _closing(bindings: Bindings) -> list[str]:
    """`closing`: new values of state, of what all micro-batches have made; nothing when there are none."""
    if not bindings.closings:
        return []
    scope = bindings.scopes[When.CLOSING]
    keywords = [scope[name] for name in (*bindings.amounts, *bindings.step_results)]
    out = ["", *lines(prefixed("def ", call("closing", ["self", "*", *keywords]), ":"), 1)]
    return out + [line for layer in bindings.closings for line in lines(_call(bindings, layer), 2)]


def _header(bindings: Bindings, method: str, when: When, arguments: Iterable[str]) -> list[str]:
    """The head of a method: values as arguments, then by keyword its batch inputs and the results of `step`."""
    scope = bindings.scopes[when]
    keywords = [variable for p, (variable, _) in bindings.batch.items() if p.when is when]
    keywords += [scope[name] for name in bindings.step_results]
    parameters = ["self", *(scope[name] for name in arguments), *(["*", *keywords] if keywords else [])]
    return ["", *lines(prefixed("def ", call(method, parameters), ":"), 1)]


def _readers(bindings: Bindings):
    """A function from a run of layers to the names that something outside the run reads."""
    sent = {t.name for t in bindings.stage.sends} | {bindings.program.output, *bindings.collected}

    def outside(run: Sequence[Layer]) -> frozenset[str]:
        members = {layer.name for layer in run}
        read = (name for layer in bindings.forward_layers if layer.name not in members for name in layer.operands)
        return frozenset(sent) | frozenset(read)

    return outside


def _over(bindings: Bindings, run: Sequence[Layer]) -> list[str]:
    """The variables that no layer behind a run reads, of values that autograd does not hold: of these nothing but the
    variables would be left, up to the end of the forward."""
    layers = bindings.forward_layers
    behind = layers[layers.index(run[-1]) + 1 :]
    if not behind or not bindings.untrained:
        return []
    read = {name for layer in behind for name in layer.operands} | {t.name for t in bindings.stage.sends}
    made = {name for layer in layers for name in layer.results} & bindings.untrained - read.union(bindings.collected)
    return [bindings.variables[name] for name in dict.fromkeys(run[0].operands) if name in made]


def _deleted(variables: Sequence[str]) -> list[str]:
    return [f"        del {', '.join(variables)}"] if variables else []


def _is_loop(bindings: Bindings, run: Sequence[Layer], outside: frozenset[str]) -> bool:
    if _is_called_directly(bindings, run[0]) or "b" in bindings.function(run[0]).keywords:
        return False
    names = [bindings.layers[layer.name] for layer in run]
    return chain(run, outside) is not None and template(names, _start(bindings, run)) is not None


def _loop(bindings: Bindings, run: Sequence[Layer], outside: frozenset[str], over: Sequence[str]) -> list[str]:
    """A run of layers, each fed with the results of the one before, with variables that are over with the first."""
    carried = chain(run, outside)
    assert carried is not None
    scope, start, last = bindings.variables, _start(bindings, run), run[-1]
    first_operands = bindings.operands(run[0])
    live = {c for c in carried if c is not None}
    for k in live:
        scope.rebind(last.results[k], re.sub(r"_?\d+", "", scope[last.results[k]]) or "x")
    results = [scope[name] if k in live or name in outside else "_" for k, name in enumerate(last.results)]
    out = [
        f"        {results[c]} = {operand}"
        for c, operand in zip(carried, first_operands, strict=True)
        if c is not None and results[c] != operand
    ]
    operands = [operand if c is None else results[c] for c, operand in zip(carried, first_operands, strict=True)]
    out += _deleted([variable for variable in over if variable not in operands])
    name = quoted(template([bindings.layers[layer.name] for layer in run], start) or "")
    keywords = _keywords(bindings, run[0])
    out.append(_for(start, len(run)))
    return out + lines(prefixed(f"{', '.join(results)} = ", call(f"self.layers[{name}]", [*operands, *keywords])), 3)


def _call(bindings: Bindings, layer: Layer) -> Brackets:
    """A layer called with the variables in scope."""
    direct = _is_called_directly(bindings, layer)
    function = bindings.function(layer).name if direct else f"self.{bindings.layers[layer.name]}"
    return call(function, [*bindings.operands(layer), *_keywords(bindings, layer)])


def _keywords(bindings: Bindings, layer: Layer) -> list[str]:
    """What the function cannot read off its arguments."""
    written: list[str] = []
    for keyword in bindings.function(layer).keywords:
        if keyword == "B":
            written.append("B=self.global_batch_size")
        elif keyword == "m":
            written.append("m=self.micro_batches")
        elif keyword == "device":
            written.append("device=self.device")
        elif keyword in (ASKED, IN_TRAINING):
            written.append(f"{keyword}=self.{keyword}")
        else:
            written.append(f"b={_local_batch(bindings, layer)}")
    numbers = bindings.function(layer).numbers
    return [*written, *(f"{keyword}=self.numbers[{literal(name)}]" for keyword, name in numbers)]


def _arriving(bindings: Bindings, layer: Layer) -> Iterator[tuple[str, tuple[Dim, ...]]]:
    """What comes into the method that calls a layer: variables, with their local shapes in samples over all ranks."""
    scope = bindings.scope_of(layer)
    yield from (found for p, found in bindings.batch.items() if bindings.scopes[p.when] is scope)
    received = bindings.collected if layer.when is When.EPILOGUE else [t.name for t in bindings.stage.receives]
    yield from ((scope[name], bindings.sizes.shapes[name]) for name in received)


def _local_batch(bindings: Bindings, layer: Layer) -> str:
    """This rank's samples as the layer counts them, read off something that came into the method that calls it.

    What runs once per step runs on the whole batch.
    """
    if layer.kind.is_whole:
        return "self.global_batch_size"
    for variable, shape in _arriving(bindings, layer):
        for dim, size in enumerate(shape):
            whole = share(size, MICRO_BATCH)
            if whole:
                factor = 1 / whole / bindings.sizes.divisors[layer.name]
                read = sympy.Symbol(f"{variable}.size({dim})")
                return print_expression(read * sympy.Rational(factor.numerator, factor.denominator))
    raise AssertionError(f"stage {bindings.stage.index} reads nothing that has the batch as a dimension")
