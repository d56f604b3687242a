"""The program: one training computation from a batch to a scalar loss, in one of seven named forms.

    captured → clustered → costed → candidates → planned → sharded → staged

A *captured* program is one flat `graph`. From *clustered* on it is a list of `layers`, each a call of a shared
`LayerClass`; program-level values are global names. *Costed* attaches a cost per class, *candidates* the strategies
that survived pruning, *planned* the plan. In a *sharded* program every class is the local graph of one (class,
strategy) pair, the layers stand in the plan's stages, and conversions between them are layers of their own; a *staged*
one also says what each stage receives, sends and keeps.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import sympy

from galvatron.errors import PassError, PlanError
from galvatron.ir.cluster import Cluster
from galvatron.ir.cost import ClassCost
from galvatron.ir.functions import functions_of
from galvatron.ir.graph import Function, Graph, Value
from galvatron.ir.layout import Layout, Mesh
from galvatron.ir.plan import Plan
from galvatron.ir.results import Check, Reached, Result, Update, with_values_of_ops
from galvatron.ir.strategy import Strategy
from galvatron.ir.summary import program_html
from galvatron.ir.types import BATCH, BatchNumber, BatchSizes, Length, TensorType
from galvatron.ir.update_rule import ADAMW, UpdateRule

PRECISIONS = ("bf16", "f16")
"""Element types in which a program may compute while its parameters train in `MASTER`."""

MASTER = "f32"
"""Element type of master weights, their gradients and their optimizer state."""


class Form(enum.IntEnum):
    """The forms of a program, in the order in which the pipeline reaches them."""

    CAPTURED = 0
    CLUSTERED = 1
    COSTED = 2
    CANDIDATES = 3
    PLANNED = 4
    SHARDED = 5
    STAGED = 6

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Part:
    """Which forms have a part of a program: those from `first` to `last` have to; up to `kept` they may."""

    first: Form
    last: Form
    kept: Form

    def __str__(self) -> str:
        """`captured`, or `planned to staged`."""
        return str(self.first) if self.first is self.last else f"{self.first} to {self.last}"


PARTS = {
    "graph": Part(Form.CAPTURED, Form.CAPTURED, Form.CAPTURED),
    "classes": Part(Form.CLUSTERED, Form.STAGED, Form.STAGED),
    "layers": Part(Form.CLUSTERED, Form.PLANNED, Form.PLANNED),
    "candidates": Part(Form.CANDIDATES, Form.CANDIDATES, Form.PLANNED),
    "plan": Part(Form.PLANNED, Form.STAGED, Form.STAGED),
    "stages": Part(Form.SHARDED, Form.STAGED, Form.STAGED),
}
"""What forms promise: which of them have a field of a `Program`, and which may still. All others leave it empty."""


@dataclass(frozen=True)
class State:
    """A parameter, buffer or lifted constant of the model, under the model's own name; `type` is always global.

    `aliases` are the other names of a tied parameter. `kind` is `parameter`, `buffer` or `constant`. Under a precision
    (see `Program`) `type` is that of the master, which the optimizer updates, by the `rule` of that name; empty:
    `ADAMW`.
    """

    name: str
    type: TensorType
    kind: str = "parameter"
    trainable: bool = True
    aliases: tuple[str, ...] = ()
    rule: str = ""

    def has_master(self, precision: str | None) -> bool:
        """Whether ops read a rounded copy of this state: it trains in `MASTER`, under a precision."""
        return precision is not None and self.trainable and self.type.dtype == MASTER

    def compute_type(self, precision: str | None) -> TensorType:
        """The type under which ops read this state: its own, or under a precision that of its rounded copy."""
        return replace(self.type, dtype=str(precision)) if self.has_master(precision) else self.type


@dataclass(frozen=True)
class Number:
    """A Python number of the batch that may be another in every step, by its forward name.

    `kind` is what Python calls it: an `int` times whole numbers makes whole ones, a `float` does not. `example` is its
    value in the example batch.
    """

    name: str
    kind: str
    example: int | float

    @property
    def symbol(self) -> BatchNumber:
        """What stands for it in the arguments of ops."""
        return BatchNumber(self.kind, self.name)


@dataclass(frozen=True)
class StateLayout:
    """Where a stage keeps a piece of state: its mesh and layout. `R'` axes are those its gradient is summed over.

    `zero` is the ZeRO level over these axes (`galvatron.ir.zero`); 0 where there are none.
    """

    state: str
    mesh: Mesh
    layout: Layout
    zero: int = 0


@dataclass(frozen=True)
class LayerClass:
    """An op graph shared by structurally identical layers.

    In the sharded form `mesh` and `strategy` are set, the graph is the local one with a layout per value, and `base`
    names the class it was sharded from (empty for a redistribution between layers).
    """

    name: str
    graph: Graph
    cost: ClassCost | None = None
    base: str = ""
    strategy: Strategy | None = None
    mesh: Mesh = ()

    @property
    def origin_name(self) -> str:
        """The name of the class before sharding."""
        return self.base or self.name

    @property
    def converts(self) -> bool:
        """Whether, in a sharded program, it is that of a redistribution between layers (`LayerKind.CONVERSION`)."""
        return not self.base


class When(enum.Enum):
    """How often a layer runs."""

    MICRO_BATCH = "micro-batch"
    """Once per micro-batch, in its stage."""
    STEP = "step"
    """Once per step on the whole batch, before the first micro-batch."""
    EPILOGUE = "epilogue"
    """Once per step on the whole batch, after the last micro-batch's forward and before the first backward."""
    CLOSING = "closing"
    """Once per step, when all micro-batches have gone forward and backward."""


class LayerKind(enum.Enum):
    """What a layer is to its program."""

    PLANNED = "layer"
    """A part of the model to which the plan gives a strategy."""
    PREAMBLE = "preamble"
    """What every stage that needs its results computes for itself: cheap, and free of trainable state."""
    STEP = "step"
    """Statistics of the whole batch, such as a token count."""
    EPILOGUE = "epilogue"
    """The end of a loss that couples samples."""
    CLOSING = "closing"
    """What new values of state, and nothing else, need of sums over the whole batch: every rank computes it whole."""
    CONVERSION = "conversion"
    """Takes a value from the layout in which one layer makes it to that in which another one reads it."""

    def __str__(self) -> str:
        return self.value

    @property
    def when(self) -> When:
        """How often such a layer runs."""
        return _WHEN.get(self, When.MICRO_BATCH)

    @property
    def is_single(self) -> bool:
        """Whether such a layer is there once, whatever the plan: stages have no copies of it."""
        return self in (LayerKind.PLANNED, LayerKind.EPILOGUE, LayerKind.CLOSING)

    @property
    def is_whole(self) -> bool:
        """Whether every rank of a stage computes such a layer whole, for the whole batch."""
        return self in (LayerKind.STEP, LayerKind.CLOSING)


_WHEN = {LayerKind.STEP: When.STEP, LayerKind.EPILOGUE: When.EPILOGUE, LayerKind.CLOSING: When.CLOSING}


@dataclass(frozen=True)
class Layer:
    """A call of a layer class.

    `operands` are the program-level names bound to the class graph's inputs, `state` those bound to its state,
    `results` the names given to its outputs, each in the graph's order.

    In a sharded program a stage may have a copy of a layer, in its own layout, and conversions of values: `origin` has
    the names of the values of the planned program that the results are; empty where they are values of their own.
    """

    name: str
    cls: str
    operands: tuple[str, ...]
    state: tuple[str, ...]
    results: tuple[str, ...]
    kind: LayerKind = LayerKind.PLANNED
    origin: tuple[str, ...] = ()

    @property
    def when(self) -> When:
        """How often it runs."""
        return self.kind.when


@dataclass(frozen=True)
class Candidates:
    """The strategies left for one layer class at one pipeline degree."""

    pipeline_degree: int
    cls: str
    strategies: tuple[Strategy, ...]


@dataclass(frozen=True)
class Cut:
    """A branch of the decision tree that was cut, by which rule, and why: the answer to "why not tp=8?"."""

    branch: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Transfer:
    """A value that crosses from one stage to the next: its global name and its local type where it was made."""

    name: str
    type: TensorType
    differentiable: bool = True


@dataclass(frozen=True)
class Stage:
    """The layers that one pipeline rank group runs; in a staged program also what it receives and sends, and the state
    it keeps."""

    index: int
    layers: tuple[Layer, ...]
    receives: tuple[Transfer, ...] = ()
    sends: tuple[Transfer, ...] = ()
    state: tuple[StateLayout, ...] = ()


shown_as: Callable[[Program], str] = repr
"""What a program is shown as; `galvatron.ir.text`, which is made of programs, puts its text here."""


@dataclass(frozen=True)
class Program:
    """A training computation; which fields are set depends on `form` (`PARTS`).

    `inputs` are the tensors of one global batch by their forward names, `numbers` its Python numbers that may change
    from step to step, `output` the name of the scalar loss, `updates` what else a step makes: the new values of state
    that forward writes, each piece of it once. `outputs` are what the model returns besides, which is computed in a
    step and given only where it is asked for, `checks` what must hold of its values, `reached` which parameters have a
    gradient in some steps alone, and `batch_size` the number of
    samples of the example batch (the value of `B` that costs default to). An input whose type does not have `B` on dim
    0 holds no samples: it is the same for all. A `Length` in the type of an input is free as `B` is, and says itself
    for which values. `batch_sizes` are those that the program holds for. `precision` is the element type in which
    parameters take part in compute: one of `PRECISIONS`, whose masters, gradients and optimizer state are kept in
    `MASTER`; None: each in its own. `unlike_evaluated` is empty, or says why a step that only evaluates would not
    compute what the model does in evaluation mode, so that there can be none. `inductor` says that `torch.compile`
    compiles its layers when they run. `rules` are those by which the optimizer updates parameters.
    """

    name: str
    form: Form
    batch_size: int
    inputs: tuple[Value, ...]
    state: tuple[State, ...]
    output: str
    graph: Graph | None = None
    classes: tuple[LayerClass, ...] = ()
    layers: tuple[Layer, ...] = ()
    cluster: Cluster | None = None
    candidates: tuple[Candidates, ...] = ()
    cuts: tuple[Cut, ...] = ()
    plan: Plan | None = None
    stages: tuple[Stage, ...] = ()
    precision: str | None = None
    batch_sizes: BatchSizes = BatchSizes()
    numbers: tuple[Number, ...] = ()
    updates: tuple[Update, ...] = ()
    outputs: tuple[Result, ...] = ()
    checks: tuple[Check, ...] = ()
    reached: tuple[Reached, ...] = ()
    unlike_evaluated: str = ""
    inductor: bool = False
    rules: tuple[UpdateRule, ...] = ()

    def _repr_html_(self) -> str:
        return program_html(self)

    @cached_property
    def class_of(self) -> dict[str, LayerClass]:
        """Layer classes by name."""
        return {c.name: c for c in self.classes}

    @cached_property
    def layer_groups(self) -> tuple[tuple[int | None, tuple[Layer, ...]], ...]:
        """The layers that run one after another: those of each stage with its index, or all of them with None."""
        if self.form >= PARTS["stages"].first:
            return tuple((stage.index, stage.layers) for stage in self.stages)
        return ((None, self.layers),)

    @cached_property
    def all_layers(self) -> tuple[Layer, ...]:
        """The layers in order, of all stages where there are stages."""
        return tuple(layer for _, layers in self.layer_groups for layer in layers)

    @cached_property
    def origin_of(self) -> dict[str, str]:
        """The value of the planned program that each result of a copy or of a conversion is."""
        # Of a program that is yet to be verified, a layer may have fewer origins than results, or more.
        return {n: of for layer in self.all_layers for n, of in zip(layer.results, layer.origin, strict=False)}

    @cached_property
    def planned_layers(self) -> tuple[Layer, ...]:
        """The layers that a plan gives a strategy to, in order."""
        return tuple(layer for layer in self.all_layers if layer.kind is LayerKind.PLANNED)

    @cached_property
    def layers_of(self) -> dict[str, tuple[Layer, ...]]:
        """The layers that call a class, in order, by its name; those of a class that no layer calls are none."""
        found: dict[str, list[Layer]] = {cls.name: [] for cls in self.classes}
        for layer in self.all_layers:
            found.setdefault(layer.cls, []).append(layer)
        return {name: tuple(layers) for name, layers in found.items()}

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """The functions with a backward of their own that its ops call."""
        return functions_of(self.graphs)

    @cached_property
    def graphs(self) -> tuple[Graph, ...]:
        """Its op graphs: that of a captured program, those of classes."""
        return (*(() if self.graph is None else (self.graph,)), *(cls.graph for cls in self.classes))

    @cached_property
    def batched(self) -> frozenset[str]:
        """Names of the inputs that hold samples: `B` is their dim 0."""
        return frozenset(v.name for v in self.inputs if v.type.shape[:1] == (BATCH,))

    @cached_property
    def lengths(self) -> tuple[Length, ...]:
        """The sizes of inputs, besides the number of samples, that may be others in every step, in order."""
        dims = (dim for value in self.inputs for dim in value.type.shape if isinstance(dim, sympy.Expr))
        return tuple(dict.fromkeys(s for dim in dims for s in dim.free_symbols if isinstance(s, Length)))

    def __str__(self) -> str:
        """The text of the program."""
        return shown_as(self)

    @cached_property
    def state_of(self) -> dict[str, State]:
        """State by name."""
        return {s.name: s for s in self.state}

    def count_parameters(self, names: Iterable[str]) -> int:
        """How many elements the parameters among some state have."""
        states = (self.state_of[name] for name in names)
        return sum(math.prod(map(int, state.type.shape)) for state in states if state.kind == "parameter")

    def rule_of(self, state: State) -> UpdateRule:
        """By which the optimizer updates a parameter."""
        return self._rules.get(state.rule, ADAMW)

    @cached_property
    def _rules(self) -> dict[str, UpdateRule]:
        return {rule.name: rule for rule in self.rules}

    @cached_property
    def results(self) -> tuple[str, ...]:
        """The values that a step is for, each once: the loss, then those of the updates, of the outputs and of the
        checks, and those that say what has a gradient. All else serves them."""
        others = (*self.updates, *self.outputs, *self.checks, *self.reached)
        return tuple(dict.fromkeys((self.output, *(result.value for result in others))))

    @cached_property
    def _unread(self) -> frozenset[str]:
        """The values of outputs and checks that nothing else of the program reads."""
        read = {name for layer in self.all_layers for name in layer.operands}
        read |= {self.output, *(update.value for update in self.updates)}
        return frozenset(result.value for result in (*self.outputs, *self.checks)) - read

    def unread(self, cls: LayerClass) -> frozenset[str]:
        """The formal outputs of a class that no layer reads, in any of its layers: the model returns them, or they are
        checked."""
        return self._formals(cls, self._unread)

    def only_given(self, cls: LayerClass) -> frozenset[str]:
        """The formal outputs of a class that only the model's own outputs are, in any of its layers."""
        return self._formals(cls, self._unread - {check.value for check in self.checks})

    def _formals(self, cls: LayerClass, names: frozenset[str]) -> frozenset[str]:
        # Of a program that is yet to be verified, a layer may have fewer results than its class, or more.
        columns = zip(cls.graph.outputs, *(layer.results for layer in self.layers_of[cls.name]), strict=False)
        return frozenset(formal for formal, *own in columns if own and names.issuperset(own))

    @cached_property
    def updates_by(self) -> dict[str, tuple[Update, ...]]:
        """The updates that a value is for, by its name; a value that is for none is not there."""
        found: dict[str, tuple[Update, ...]] = {}
        for update in self.updates:
            found[update.value] = (*found.get(update.value, ()), update)
        return found

    def updates_in(self, layer: Layer) -> list[tuple[Update, Value]]:
        """The updates that a layer makes, in the order of its results, with their values as its class has them."""
        graph = self.class_of[layer.cls].graph
        return [
            (update, graph.values[formal])
            for name, formal in zip(layer.results, graph.outputs, strict=True)
            for update in self.updates_by.get(name, ())
        ]

    def with_graph(self, graph: Graph) -> Program:
        """The captured program with a graph that makes the same results, in the same order, under names of its own.

        Updates that turn out to write what is there anyway are left out.

        Raises:
            PassError: an update or an output is of what no op makes.
        """
        now = dict(zip(self.results, graph.outputs, strict=True))
        updates = tuple(replace(u, value=now[u.value]) for u in self.updates if u.adds or now[u.value] != u.state)
        for update in updates:
            if update.value not in graph.producers:
                raise PassError(
                    f"forward writes {update.value!r} as it is into {update.state!r}, which is not supported: read "
                    "that in its place, or write what is computed from it"
                )
        outputs = tuple(replace(output, value=now[output.value]) for output in self.outputs)
        for output in outputs:
            if output.value not in graph.producers:
                raise PassError(
                    f"the output {output.name!r} is {output.value!r} as it is, which is at hand without the model: "
                    "leave it out"
                )
        graph, checks = with_values_of_ops(graph, [replace(check, value=now[check.value]) for check in self.checks])
        reached = tuple(replace(one, value=now[one.value]) for one in self.reached)
        program = replace(
            self, output=now[self.output], updates=updates, outputs=outputs, checks=checks, reached=reached
        )
        return replace(program, graph=replace(graph, outputs=program.results).without_dead_ops())

    @property
    def required_graph(self) -> Graph:
        """The op graph, where the form promises one.

        Raises:
            PassError: the program is in another form.
        """
        if self.graph is None:
            raise self._lacks("graph")
        return self.graph

    @property
    def required_plan(self) -> Plan:
        """The plan, where the form promises one.

        Raises:
            PassError: the program is in another form.
        """
        if self.plan is None:
            raise self._lacks("plan")
        return self.plan

    @property
    def required_cluster(self) -> Cluster:
        """The cluster, which no form promises.

        Raises:
            PlanError: the program names none.
        """
        if self.cluster is None:
            raise PlanError(
                "the program has no cluster to plan for; name one, as in annotate-costs{cluster=a100-80g:1x8}"
            )
        return self.cluster

    def _lacks(self, part: str) -> PassError:
        return PassError(f"a program in form {self.form} has no {part}; one in form {PARTS[part]} has")

    @cached_property
    def compute_dtype(self) -> str:
        """The element type in which ops read most elements of parameters: what most of the program computes in."""
        sizes: Counter[str] = Counter()
        for state in self.state:
            own = state.compute_type(self.precision)
            if state.kind == "parameter" and own.is_floating:
                sizes[own.dtype] += math.prod(map(int, own.shape))
        return max(sizes, key=lambda dtype: sizes[dtype], default="f32")

    @cached_property
    def trainable(self) -> frozenset[str]:
        """Names of the state that gradients flow to."""
        return frozenset(s.name for s in self.state if s.trainable)

    @cached_property
    def parameters(self) -> frozenset[str]:
        """The names of the state that a plan may cut: parameters, trained or frozen, but for what forward writes, and
        what is read once per step, or by each stage for itself."""
        kinds = (LayerKind.STEP, LayerKind.PREAMBLE, LayerKind.CLOSING)
        apart = (layer for layer in self.all_layers if layer.kind in kinds)
        whole = {name for layer in apart for name in layer.state} | {update.state for update in self.updates}
        return frozenset(s.name for s in self.state if s.kind == "parameter" and s.type.is_floating) - whole

    def values(self) -> dict[str, Value]:
        """Every program-level value of a layered form: batch inputs and layer results, typed as at their producer."""
        table = {v.name: v for v in self.inputs}
        for layer in self.all_layers:
            graph = self.class_of[layer.cls].graph
            for name, formal in zip(layer.results, graph.outputs, strict=True):
                value = graph.values[formal]
                table[name] = Value(name, value.type, value.layout)
        return table

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the model that a plan belongs to: its precision and the signature of its batch and its state, in
        order.

        The same in every form of one program. Constants take no part: `fuse` may find that one is not needed.
        """
        digest = hashlib.sha256()
        if self.precision is not None:
            digest.update(f"{self.precision};".encode(errors="surrogatepass"))
        for value in self.inputs:
            digest.update(f"{value.name}:{value.type};".encode(errors="surrogatepass"))
        for number in self.numbers:
            digest.update(f"{number.kind}.{number.name};".encode(errors="surrogatepass"))
        for state in self.state:
            if state.kind != "constant":
                digest.update(f"{state.name}:{state.type}:{state.kind};".encode(errors="surrogatepass"))
        return digest.hexdigest()[:16]
