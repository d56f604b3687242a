"""The names inside one stage module: functions, axes, layers, and the variables of `forward` and `step`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from galvatron.codegen.function import Function, emit_function
from galvatron.codegen.names import Scope, identifier
from galvatron.codegen.own_backward import emit_own_backward
from galvatron.codegen.runs import INDEX
from galvatron.codegen.sizes import Sizes, batch_input_shape
from galvatron.errors import GalvatronError
from galvatron.ir import graph as ir
from galvatron.ir.functions import functions_of
from galvatron.ir.gradients import gradients, untrained
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis, Mesh, Shard, nameable_axes
from galvatron.ir.local_functions import with_local_functions
from galvatron.ir.program import Check, Layer, LayerClass, LayerKind, Program, Result, Stage, Update, When
from galvatron.ir.types import Dim
from galvatron.schedules import Schedule

STAGE_ATTRIBUTES = frozenset(
    """
    add_module amount amounts apply arriving asked batch batch_inputs bfloat16 buffers call_super_init children closing
    collected collects compile count cpu cuda device double dump_patches epilogue epilogue_shards eval extra_repr float
    forward get_buffer get_extra_state get_parameter get_submodule gives global_batch_size half index ipu layer layers
    load_state_dict loss loss_axes materialize mesh micro_batches modules mtia named_buffers named_children
    named_modules named_parameters never numbers outputs parameters random reached reaches received receives
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
    register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ sends sent
    set_extra_state set_submodule share_memory state state_dict state_specs step step_adds T_destination table to
    to_empty train training turns type update updates xpu zero_grad
    """.split()  # noqa: SIM905
)
"""What a stage already has, so no layer may be called that."""


@dataclass(frozen=True)
class BatchParameter:
    """A batch input as one keyword: of `forward` or `epilogue`, split over axes, or of `step`, whole; without `samples`
    it is the same for every micro-batch."""

    name: str
    placements: tuple[tuple[Axis, Shard], ...]
    when: When
    samples: bool


@dataclass(frozen=True)
class Bindings:
    """Every name of one stage's module.

    `own_backwards` are the texts of functions with a backward of their own, which `functions` call.

    `batch` maps each batch parameter to its variable and its local shape in samples of the micro-batch, or of the whole
    batch in an epilogue; `scopes` have the variables of `forward`, `step` and `epilogue` by program-level name.
    """

    program: Program
    stage: Stage
    sizes: Sizes
    functions: dict[str, Function]
    own_backwards: tuple[str, ...]
    axes: dict[Axis, str]
    layers: dict[str, str]
    batch: dict[BatchParameter, tuple[str, tuple[Dim, ...]]]
    scopes: dict[When, Scope]

    def cls(self, layer: Layer) -> LayerClass:
        return self.program.class_of[layer.cls]

    def function(self, layer: Layer) -> Function:
        return self.functions[layer.cls]

    @property
    def variables(self) -> Scope:
        """The variables of `forward`."""
        return self.scopes[When.MICRO_BATCH]

    @cached_property
    def differentiable(self) -> dict[str, set[str]]:
        """The formals with a gradient, by the class that theirs was sharded from."""
        return gradients(self.program).formals

    @cached_property
    def untrained(self) -> set[str]:
        """The values that only frozen parameters have made."""
        return untrained(self.program)

    @cached_property
    def step_layers(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.stage.layers if layer.when is When.STEP)

    @cached_property
    def forward_layers(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.stage.layers if layer.when is When.MICRO_BATCH)

    def updates(self, layer: Layer) -> list[tuple[Update, int]]:
        """The updates that a layer makes, each with the number of the result that is its value."""
        results = enumerate(layer.results)
        return [(update, number) for number, name in results for update in self.program.updates_by.get(name, ())]

    def outputs(self, layer: Layer) -> list[tuple[Result, int]]:
        """The outputs of the model that a layer makes, each with the number of the result that it is."""
        made = {name: position for position, name in enumerate(layer.results)}
        return [(output, made[output.value]) for output in self.program.outputs if output.value in made]

    def checks(self, layer: Layer) -> list[tuple[Check, int]]:
        """The checks of what a layer makes, each with the number of the result that it is of."""
        made = {name: position for position, name in enumerate(layer.results)}
        return [(check, made[check.value]) for check in self.program.checks if check.value in made]

    @cached_property
    def writers(self) -> dict[str, int]:
        """The stage that makes the new value of each piece of state that forward writes."""
        stages, layers_of = self.program.stages, self.program.updates_in
        return {update.state: s.index for s in stages for layer in s.layers for update, _ in layers_of(layer)}

    @cached_property
    def epilogue(self) -> Layer | None:
        """The layer that runs once per step after all forwards."""
        return next((layer for layer in self.stage.layers if layer.when is When.EPILOGUE), None)

    @cached_property
    def collected(self) -> tuple[str, ...]:
        """What the epilogue reads of the micro-batches."""
        made = {name for layer in self.forward_layers for name in layer.results}
        made |= {transfer.name for transfer in self.stage.receives}
        return tuple(dict.fromkeys(name for name in self.epilogue.operands if name in made)) if self.epilogue else ()

    @cached_property
    def closings(self) -> tuple[Layer, ...]:
        """The layers that run once per step, when it ends."""
        return tuple(layer for layer in self.stage.layers if layer.when is When.CLOSING)

    @cached_property
    def amounts(self) -> dict[str, tuple[Layer, int] | int]:
        """What these read of the micro-batches: the layer that makes it and the number of its result, or where it is
        among what the stage receives."""
        read = {name for layer in self.closings for name in layer.operands}
        received = {transfer.name: place for place, transfer in enumerate(self.stage.receives)}
        made = {n: (layer, place) for layer in self.forward_layers for place, n in enumerate(layer.results)}
        return {name: source for name, source in {**received, **made}.items() if name in read}

    @cached_property
    def step_results(self) -> tuple[str, ...]:
        """The results of `step` that `forward`, `epilogue` or `closing` reads."""
        read = {name for layer in self.stage.layers if layer.when is not When.STEP for name in layer.operands}
        return tuple(name for layer in self.step_layers for name in layer.results if name in read)

    def operands(self, layer: Layer) -> list[str]:
        """The variables that a layer is called with."""
        scope = self.scope_of(layer)
        found: list[str] = []
        for operand, formal in zip(layer.operands, self.cls(layer).graph.inputs, strict=True):
            if operand in scope:
                found.append(scope[operand])
            else:
                found.append(self.batch[_batch_parameter(self.program, layer, operand, formal)][0])
        return found

    def scope_of(self, layer: Layer) -> Scope:
        """The variables beside which a layer is called."""
        return self.scopes[layer.when]


def bind_names(program: Program, stage: Stage, sizes: Sizes) -> Bindings:
    """Chooses every name of the module of one stage.

    Raises:
        GalvatronError: a layer reads a value that the stage neither makes nor receives.
    """
    waiting = _waiting(program, stage)
    module = Scope(taken=("Stage",))
    functions: dict[str, Function] = {}
    own = _own_backwards(program, stage, module)
    for layer in stage.layers:
        if layer.cls not in functions:
            cls = program.class_of[layer.cls]
            functions[layer.cls] = emit_function(
                cls, module.bind(layer.cls), waiting.get(layer.cls, frozenset()), own, program.only_given(cls)
            )
    taken = [*(function.name for function in functions.values()), *own.values(), INDEX]
    bindings = Bindings(
        program=program,
        stage=stage,
        sizes=sizes,
        functions=functions,
        own_backwards=tuple(emit_own_backward(function, name) for function, name in own.items()),
        axes=_axis_names(program, stage),
        layers=layer_attributes(program, stage),
        batch={},
        scopes={when: Scope(taken) for when in When},
    )
    wishes = _wishes(program)
    # First of all: `step` gives its results to `forward` and `epilogue` under one name.
    for name in bindings.step_results:
        bindings.variables.bind_one_of(name, wishes[name])
        bindings.scopes[When.EPILOGUE].bind_one_of(name, wishes[name])
        bindings.scopes[When.CLOSING].bind_one_of(name, wishes[name])
    for transfer in stage.receives:
        bindings.variables.bind_one_of(transfer.name, wishes[transfer.name])
    for name in bindings.collected:
        bindings.scopes[When.EPILOGUE].bind_one_of(name, wishes[name])
    for name in bindings.amounts:
        bindings.scopes[When.CLOSING].bind_one_of(name, wishes[name])
    _bind_batch(bindings)
    for layer in stage.layers:
        for result in layer.results:
            bindings.scope_of(layer).bind_one_of(result, wishes[result])
    return bindings


def _own_backwards(program: Program, stage: Stage, module: Scope) -> dict[ir.Function, str]:
    """The functions with a backward of their own, as the rank runs them, that the layers of a stage call."""
    classes = [program.class_of[name] for name in dict.fromkeys(layer.cls for layer in stage.layers)]
    found = functions_of(with_local_functions(cls.graph, cls.mesh) for cls in classes)
    return {function: module.bind(("function", function), function.name) for function in found}


def _wishes(program: Program) -> dict[str, str]:
    """What the variable of each result is called, where that is free: a copy or conversion like its origin."""
    return {
        result: origin
        for layer in program.all_layers
        for result, origin in zip(layer.results, layer.origin or layer.results, strict=True)
    }


def _waiting(program: Program, stage: Stage) -> dict[str, frozenset[str]]:
    """For each class the formal state whose gradients may be computed later than those of other operands.

    Only under a schedule that puts them off, and what one op of one layer reads: so that each stage adds to a gradient
    once per micro-batch, whatever waits.
    """
    if not Schedule.parse(program.required_plan.schedule).splits_backward:
        return {}
    readers = Counter(name for layer in stage.layers for name in layer.state)
    found: dict[str, frozenset[str]] = {}
    for layer in stage.layers:
        graph = program.class_of[layer.cls].graph
        reads = Counter([*graph.outputs, *(name for op in graph.ops for name in op.operands)])
        formals = zip(graph.state, layer.state, strict=True)
        alone = frozenset(formal.name for formal, name in formals if readers[name] == reads[formal.name] == 1)
        found[layer.cls] = found.get(layer.cls, alone) & alone
    return found


def stage_mesh(program: Program, stage: Stage) -> Mesh:
    """The distinct axes that the stage's code names, outermost first."""
    found = {axis for layer in stage.layers for axis in nameable_axes(program.class_of[layer.cls].mesh)}
    found.update(axis for state in stage.state for axis in state.mesh)
    return tuple(sorted(found, key=lambda axis: (-axis.stride, -axis.size, axis.name)))


def _axis_names(program: Program, stage: Stage) -> dict[Axis, str]:
    """`tp`, or `tp2` beside another tp, or `tp2_4` (stride 4) beside another of size 2; sub-axes are `tp_0`, `tp_0_2`
    and so on."""
    axes = stage_mesh(program, stage)
    scope = Scope(taken=("mesh", INDEX))
    names: dict[Axis, str] = {}
    for axis in axes:
        twins = [a for a in axes if a.name == axis.name]
        of_size = f"{axis.name}{axis.size}" if axis.name == axis.parent else f"{axis.name}_{axis.size}"
        wish = axis.name if len(twins) == 1 else of_size
        if sum(a.size == axis.size for a in twins) > 1:
            wish += f"_{axis.stride}"
        names[axis] = scope.bind(str(axis), wish)
    return names


def layer_attributes(program: Program, stage: Stage) -> dict[str, str]:
    """The attribute that each layer of a stage is in its code. Those of a plan have one of their own among all stages:
    what a layer draws follows from what it is called."""
    scope = Scope(taken=STAGE_ATTRIBUTES)
    planned = {layer.name: _layer_name(scope, layer) for layer in program.all_layers if _is_single(layer)}
    return {
        layer.name: planned[layer.name] if _is_single(layer) else _layer_name(scope, layer) for layer in stage.layers
    }


def _is_single(layer: Layer) -> bool:
    return layer.kind.is_single


def _layer_name(scope: Scope, layer: Layer) -> str:
    if identifier(layer.name) in STAGE_ATTRIBUTES:
        return scope.bind(layer.name, f"{layer.name}_0")
    if not layer.origin:
        return scope.bind(layer.name)
    return scope.bind_one_of(layer.name, layer.origin[0] if layer.kind is LayerKind.CONVERSION else str(layer.kind))


def _bind_batch(bindings: Bindings) -> None:
    """Gives a variable to every distinct (batch input, placements) that the stage's layers read."""
    program, stage = bindings.program, bindings.stage
    defined = {t.name for t in stage.receives} | {name for layer in stage.layers for name in layer.results}
    for layer in stage.layers:
        cls = program.class_of[layer.cls]
        for operand, formal in zip(layer.operands, cls.graph.inputs, strict=True):
            if operand in defined:
                continue
            parameter = _batch_parameter(program, layer, operand, formal)
            if parameter in bindings.batch:
                continue
            type_ = next(value.type for value in program.inputs if value.name == parameter.name)
            variable = bindings.scopes[parameter.when].bind(("batch", len(bindings.batch)), operand)
            bindings.batch[parameter] = (variable, batch_input_shape(type_, formal.layout or (), cls))


def _batch_parameter(program: Program, layer: Layer, operand: str, formal: Value) -> BatchParameter:
    """The batch input that an operand which no layer defines stands for, as the layer wants it."""
    if all(operand != value.name for value in program.inputs):
        raise GalvatronError(f"layer {layer.name!r} reads {operand!r}, which its stage neither makes nor receives")
    samples = operand in program.batched
    if layer.when is When.STEP:
        return BatchParameter(operand, (), When.STEP, samples)
    mesh = program.class_of[layer.cls].mesh
    sharded = ((axis, p) for p, axis in zip(formal.layout or (), mesh, strict=False) if isinstance(p, Shard))
    return BatchParameter(operand, tuple(sharded), layer.when, samples)
