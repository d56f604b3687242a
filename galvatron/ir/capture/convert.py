"""From the functional ATen graph of `torch.export` to a `Program`: state, names, types and arguments."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import sympy
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from galvatron.errors import CaptureError, GalvatronError
from galvatron.ir.capture.backwards import check_backwards
from galvatron.ir.capture.batch import Batch
from galvatron.ir.capture.checks import Noted
from galvatron.ir.capture.conditions import Asked, given_outside, that_convert, with_checks
from galvatron.ir.capture.diagnose import of_number, unreadable
from galvatron.ir.capture.functions import Call, ancestors, calls_in
from galvatron.ir.capture.numbers import NumberError, plain_number
from galvatron.ir.capture.ranges import settled
from galvatron.ir.capture.samples import Samples
from galvatron.ir.capture.selections import of_selection, selected_sizes, with_all_rows
from galvatron.ir.capture.sources import advice, source_of, turn_of, where
from galvatron.ir.capture.state import state_of, tensor_type_of
from galvatron.ir.capture.turns import (
    check_turns,
    turns_of_parameters,
    with_turns_taken,
    without_certain_turns,
)
from galvatron.ir.functions import with_dims
from galvatron.ir.graph import Arg, Const, Function, Graph, Op, Ref, Value
from galvatron.ir.interpreter import DTYPE_OF
from galvatron.ir.names import Names, base_name
from galvatron.ir.ops import foreign
from galvatron.ir.ops.schemas import is_operator
from galvatron.ir.ops.table import differentiated, of_target, takes_size
from galvatron.ir.ops.targets import of_aten, parsed
from galvatron.ir.program import MASTER, PRECISIONS, Form, Number, Program, Result, State, Update
from galvatron.ir.results import Reached, warn_of_zeros
from galvatron.ir.types import BATCH, Dim, Length, TensorType, lengths_in, numbers_in, simplify_dim

_DROPPED_KWARGS = frozenset({"device", "layout", "pin_memory"})


def converted(
    exported: ExportedProgram,
    model: nn.Module,
    samples: Samples,
    precision: str | None,
    outputs: Sequence[str] = (),
    noted: Sequence[Noted] = (),
) -> tuple[Program, dict[str, torch.Tensor]]:
    """The program of an exported model, and the data of its constants.

    Args:
        samples: what was found to hold samples.
        precision: the model's parameters are in it, but train in `MASTER`.
        outputs: the names of what was exported besides the loss.
        noted: what was noted of the checks of the model, whose conditions were exported last.

    Raises:
        CaptureError: the graph has something that a program cannot say.
    """
    state, batch = state_of(model), samples.batch
    bound, constants, fills = _bound(exported, state, batch, samples.lengths)
    written = _written(exported, bound, {s.name: s for s in state})
    inputs = tuple(v for v in bound.values() if v.name in batch.tensors)
    numbers = tuple(Number(name, type(example).__name__, example) for name, example in batch.numbers.items())
    lifted = tuple(State(name, tensor_type_of(t, name), "constant", trainable=False) for name, t in constants.items())
    order = {s.name: position for position, s in enumerate((*state, *lifted))}
    used_state = sorted(dict.fromkeys(v for v in bound.values() if v.name in order), key=lambda v: order[v.name])
    loss, *given = _given(exported, bound, outputs)
    results = (loss, *written.values(), *given)

    trainable = {s.name for s in state if s.trainable}

    def convert(asked: Iterable[Asked]) -> tuple[_Converter, Graph, list[Reached], list[str]]:
        converter = _Converter(bound, fills, samples.symbols, samples.example, selected_sizes(exported.graph))
        graph = converter.graph((*results, *(node for _, node in asked)), inputs, tuple(used_state))
        check_turns(graph, converter.turns)
        of_turns = turns_of_parameters(graph, converter.turns, trainable)
        graph, taken = with_turns_taken(graph, converter.turns, of_turns)
        return converter, with_all_rows(without_certain_turns(graph)), taken, list(of_turns)

    asked = that_convert(given_outside(noted, _returned(exported)[-len(noted) :]), convert) if noted else []
    converter, graph, taken, of_turns = convert(asked)
    output, *values = map(converter.name_of, results)
    graph, new = _of_own_types(graph, dict(zip(written, values, strict=False)), {s.name: s for s in state})
    reached = _with_gradient(graph)
    state = tuple(replace(s, trainable=s.trainable and _may_train(s.name, graph, reached)) for s in state)
    trained = {s.name for s in state if s.trainable}
    check_backwards(graph, trained, reached, batch.size)
    taken = tuple(one for one in taken if trained.issuperset(one.states))
    warn_of_zeros([name for name in of_turns if name in trained and not any(name in one.states for one in taken)])
    program = Program(
        name=type(model).__name__,
        form=Form.CAPTURED,
        batch_size=batch.size,
        inputs=inputs,
        state=(*(_master(s) if precision else s for s in state), *lifted),
        output=output,
        updates=tuple(Update(name, value) for name, value in new.items()),
        outputs=tuple(Result(name, value) for name, value in zip(outputs, values[len(written) :], strict=True)),
        reached=taken,
        graph=graph,
        precision=precision,
        batch_sizes=samples.sizes,
        numbers=numbers,
    )
    return with_checks(program, [(note, converter.name_of(node)) for note, node in asked]), constants


def _of_own_types(graph: Graph, written: Mapping[str, str], state: Mapping[str, State]) -> tuple[Graph, dict[str, str]]:
    """A graph in which what is written into each piece of state has its element type, as it has in the state."""
    names, ops, found = Names(graph.values), list(graph.ops), dict[str, str]()
    for name, value in written.items():
        type_, dtype = graph.types[value], state[name].type.dtype
        made = Value(names.fresh("written"), replace(type_, dtype=dtype))
        if type_.dtype != dtype:
            ops.append(Op("aten._to_copy.default", (Ref(value),), (("dtype", Const("dtype", dtype)),), (made,)))
        found[name] = value if type_.dtype == dtype else made.name
    return replace(graph, ops=tuple(ops)), found


def _may_train(name: str, graph: Graph, reached: frozenset[str]) -> bool:
    """Whether a gradient reaches a piece of state, as far as the graph reads it: what the loss depends on by choices
    alone, or through `detach`, has none in PyTorch either, and no optimizer touches it."""
    return name not in graph.values or name in reached


def _with_gradient(graph: Graph) -> frozenset[str]:
    """The values that the loss, the first of what a graph makes, has a gradient of."""
    reached = set(graph.outputs[:1])
    for op in reversed(graph.ops):
        if any(v.name in reached and v.type.is_floating for v in op.results):
            reached.update(differentiated(op))
    return frozenset(reached)


def _master(state: State) -> State:
    """What is kept of a piece of state whose rounded copy was captured."""
    if not state.trainable or state.type.dtype not in PRECISIONS:
        return state
    return replace(state, type=replace(state.type, dtype=MASTER))


def _bound(
    exported: ExportedProgram, state: tuple[State, ...], batch: Batch, lengths: Mapping[str, Length]
) -> tuple[dict[fx.Node, Value], dict[str, torch.Tensor], dict[fx.Node, torch.Tensor]]:
    """What each placeholder stands for (tied parameters are one value), and the data of the constants among them.

    Constants whose elements are all equal need no data: they come third, by placeholder, to become `full`.
    """
    owner = {name: s for s in state for name in (s.name, *s.aliases)}
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    clash = owner.keys() & (batch.tensors.keys() | batch.numbers.keys())
    if clash:
        raise CaptureError(f"{min(clash)!r} is the name of an input and of a parameter or buffer: rename one of them")
    bound: dict[fx.Node, Value] = {}
    constants: dict[str, torch.Tensor] = {}
    fills: dict[fx.Node, torch.Tensor] = {}
    inputs = iter(batch.tensors)
    for spec in exported.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            name = next(inputs, None)  # numbers come last, and are no values
            if name is not None:
                bound[node] = Value(name, batch.type_of(name, lengths))
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            known = owner[str(spec.target).removeprefix("model.")]
            bound[node] = Value(known.name, known.type)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            data = exported.constants[str(spec.target)]
            assert isinstance(data, torch.Tensor)
            if _is_uniform(data):
                fills[node] = data.detach()
                continue
            name = f"constant.{len(constants)}"
            constants[name] = data.detach()
            bound[node] = Value(name, tensor_type_of(constants[name], name))
        else:
            reader = next(iter(node.users), node)
            raise unreadable(source_of(reader))
    return bound, constants, fills


def _is_uniform(data: torch.Tensor) -> bool:
    if data.is_meta or data.is_complex():
        return False
    first = data.flatten()[:1]
    return bool((data == first).all() and (data.signbit() == first.signbit()).all())  # 0.0 == -0.0


def _given(exported: ExportedProgram, bound: Mapping[fx.Node, Value], outputs: Sequence[str]) -> list[fx.Node]:
    """The nodes that are the loss and, by their names, what the model returns besides.

    Raises:
        CaptureError: it returns something that it was given.
    """
    loss, *given = _returned(exported)[: 1 + len(outputs)]
    for node, name in zip(given, outputs, strict=True):
        if node in bound:
            raise CaptureError(
                f"the output {name!r} is {bound[node].name!r} as it is, which is at hand without the model: "
                "leave it out"
            )
    return [loss, *given]


def _returned(exported: ExportedProgram) -> list[fx.Node]:
    return [_node_named(exported, str(name)) for name in exported.graph_signature.user_outputs]


def _node_named(exported: ExportedProgram, name: str) -> fx.Node:
    return next(node for node in exported.graph.nodes if node.name == name)


def _written(
    exported: ExportedProgram, bound: Mapping[fx.Node, Value], state: Mapping[str, State]
) -> dict[str, fx.Node]:
    """What forward writes into the model's state: by its name, in the model's order, the node that is its new value.

    Raises:
        CaptureError: it trains what it writes, or writes a tensor as it is.
    """
    owner = {name: s for s in state.values() for name in (s.name, *s.aliases)}
    found: dict[str, fx.Node] = {}
    for spec in exported.graph_signature.output_specs:
        if spec.kind not in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            continue
        node, target = _node_named(exported, spec.arg.name), owner[str(spec.target).removeprefix("model.")]
        if node in bound and bound[node].name == target.name:
            continue
        what = f"{where(node)}the model changes its own {target.name!r} in forward"
        if target.trainable:
            own = "keep what forward writes in a buffer, or update it outside of forward"
            raise CaptureError(f"{what}, which is trained: {advice(source_of(node), own)}")
        if node in bound:
            own = "read that in its place, or write what is computed from it"
            raise CaptureError(f"{what} to what {bound[node].name!r} is, as it is: {advice(source_of(node), own)}")
        found[target.name] = node
    return {name: found[name] for name in state if name in found}


class _Converter:
    """Converts the live part of one exported graph.

    `bound` maps placeholders to the values that they stand for, `fills` maps constants to tensors of equal elements,
    `symbols` the sizes of the trace to those of the program; `example` are the sizes of the example, `selected` how
    many elements masks select, which stay as they are.
    """

    def __init__(
        self,
        bound: Mapping[fx.Node, Value],
        fills: Mapping[fx.Node, torch.Tensor],
        symbols: Mapping[sympy.Symbol, Dim],
        example: Mapping[sympy.Symbol, int],
        selected: frozenset[sympy.Symbol] = frozenset(),
    ) -> None:
        self._symbols = dict(symbols)
        self._example = example
        self._selected = selected
        self.turns: dict[str, str] = {}
        self._fills = fills
        self._names = Names(value.name for value in bound.values())
        self._values: dict[fx.Node, Value] = dict(bound)
        self._parts: dict[fx.Node, tuple[Value, ...]] = {}
        self._calls: Mapping[fx.Node, Call] = {}
        self._functions: dict[str, Function] = {}

    def graph(self, results: Sequence[fx.Node], inputs: tuple[Value, ...], state: tuple[Value, ...]) -> Graph:
        """The graph that computes some results, with only the state that it reads."""
        self._calls = calls_in(results[0].graph)
        live = set().union(*(ancestors(result, self._calls) for result in results))
        made = [(node, op) for node in results[0].graph.nodes if node in live for op in self._ops(node)]
        self.turns.update((v.name, turn) for node, op in made if (turn := turn_of(node)) for v in op.results)
        ops = tuple(op for _, op in made)
        read = {name for op in ops for name in op.operands}
        outputs = tuple(dict.fromkeys(map(self.name_of, results)))
        return Graph(inputs, tuple(v for v in state if v.name in read), ops, outputs)

    def name_of(self, node: fx.Node) -> str:
        """The value that a converted node became."""
        return self._values[node].name

    def _ops(self, node: fx.Node) -> Iterable[Op]:
        if node in self._fills:
            yield self._filled(node, self._fills[node])
        if node.op != "call_function" or _is_number(node):
            return
        if node.target is operator.getitem:
            source, index = node.args
            self._values[node] = self._parts[source][index]  # type: ignore[index]  # of an op with several results
            return
        if node in self._calls:
            yield self._called(node, self._calls[node])
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            own = "write it with operations of torch"
            what = f"{node.target} is not an operation of torch itself, so it cannot be split"
            if isinstance(changing := next(iter(node.args), None), torch._ops.OpOverload):
                own = "use one that returns new tensors"
                what = f"{foreign.qualified(str(changing))} changes its operands in place"
            raise CaptureError(f"{where(node)}{what}: {advice(source_of(node), own)}")
        target = str(node.target)
        if node.target.namespace != "aten":
            _admit(target, node)
        if on_values := of_target(target).on_values:  # the strides seen while tracing are not always those of a run
            target = of_aten(on_values)
        args = tuple(self._arg(a, node) for a in node.args)
        kwargs = tuple((k, self._arg(v, node)) for k, v in node.kwargs.items() if k not in _DROPPED_KWARGS)
        op = Op(target, args, kwargs, (), source_of(node))
        _check_numbers(op)
        op = replace(
            op,
            args=tuple(self._settled(arg) if takes_size(op, place) else arg for place, arg in enumerate(args)),
            kwargs=tuple((name, self._settled(arg) if takes_size(op, name) else arg) for name, arg in kwargs),
        )
        yield replace(op, results=self._results(node, base_name(target))).by_position()

    def _settled(self, arg: Arg) -> Arg:
        """A size among arguments, as those of results."""
        if isinstance(arg, tuple):
            return tuple(map(self._settled, arg))
        return simplify_dim(settled(arg, self._example)[0]) if isinstance(arg, sympy.Expr) else arg

    def _called(self, node: fx.Node, call: Call) -> Op:
        """A call of a function with a backward of its own."""
        function = self._named(_FunctionConverter(self._symbols, self._example, node, call).function())
        args = tuple(Ref(self._values[operand].name) for operand in (*call.operands, *call.outside))
        return Op(function.target, args, (), self._results(node, base_name(function.target)), source_of(node), function)

    def _named(self, function: Function) -> Function:
        """A function under its name, or under one of its own where that is another function's."""
        names = Names((), reserved=())
        while True:
            found = replace(function, name=names.fresh(function.name))
            known = self._functions.setdefault(found.name, found)
            if known == found:
                return with_dims(known) if known.dims is None else known

    def _filled(self, node: fx.Node, data: torch.Tensor) -> Op:
        type_ = tensor_type_of(data, node.name)
        self._values[node] = Value(self._names.fresh("full"), type_)
        fill = data.flatten()[0].item() if data.numel() else 0
        kwargs = (("dtype", Const("dtype", type_.dtype)),)
        return Op("aten.full.default", (type_.shape, fill), kwargs, (self._values[node],))

    def _results(self, node: fx.Node, base: str) -> tuple[Value, ...]:
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            self._values[node] = Value(self._names.fresh(base), self._type(value, node))
            return (self._values[node],)
        if not all(isinstance(v, torch.Tensor) for v in value):
            raise CaptureError(f"{where(node)}{node.target} returns something other than tensors")
        self._parts[node] = tuple(Value(self._names.fresh(base), self._type(v, node)) for v in value)
        return self._parts[node]

    def _type(self, tensor: torch.Tensor, node: fx.Node) -> TensorType:
        if tensor.dtype not in DTYPE_OF:
            raise CaptureError(f"{where(node)}a tensor of dtype {tensor.dtype}, which Galvatron does not support")
        return TensorType(DTYPE_OF[tensor.dtype], tuple(self._size(size, node) for size in tensor.shape))

    def _size(self, size: int | torch.SymInt, node: fx.Node) -> Dim:
        if isinstance(size, int):
            return size
        expression, _ = settled(sympy.sympify(self._number(size, node)), self._example)
        expression = simplify_dim(expression)
        if numbers := numbers_in(expression):
            raise of_number(source_of(node), min(number.parameter for number in numbers))
        free = {s for s in sympy.sympify(expression).free_symbols if s in self._example}
        if not sympy.sympify(expression).is_polynomial(*free):
            names = ", ".join(["B", *(str(s) for s in self._example if s != BATCH)])
            raise CaptureError(f"{where(node)}a size is {expression}, but must be a polynomial in {names}")
        return expression

    def _number(self, number: torch.SymInt | torch.SymFloat, node: fx.Node) -> Dim | float:
        """A size, or a number that is computed from sizes."""
        expression = number.node.expr
        unknown = expression.free_symbols - self._symbols.keys()
        is_size = isinstance(number, torch.SymInt)
        if not unknown <= self._selected or (unknown and is_size and not expression.is_polynomial()):
            raise of_selection(source_of(node), "size" if is_size else "number")
        try:
            found = simplify_dim(plain_number(expression.subs(self._symbols)))
            is_constant = isinstance(found, int) or found.is_number
            return float(found) if isinstance(number, torch.SymFloat) and is_constant else found
        except NumberError as error:
            raise CaptureError(
                f"{where(node)}a number is computed from the batch size or a number of it with {error}, which is not "
                "supported: compute it from a tensor instead"
            ) from None

    def _arg(self, arg: object, node: fx.Node) -> Arg:
        if isinstance(arg, fx.Node):
            return Ref(self._values[arg].name) if arg in self._values else self._arg(arg.meta["val"], node)
        if isinstance(arg, (torch.SymInt, torch.SymFloat)):
            return self._number(arg, node)
        if isinstance(arg, torch.SymBool):
            raise CaptureError(f"{where(node)}a truth value is computed from the batch size: write it as a number")
        if arg is None or isinstance(arg, (bool, int, float, str)):
            return arg
        if isinstance(arg, (tuple, list)):
            return tuple(self._arg(a, node) for a in arg)
        if isinstance(arg, torch.dtype) and arg in DTYPE_OF:
            return Const("dtype", DTYPE_OF[arg])
        if isinstance(arg, torch.memory_format):
            return Const("memory_format", str(arg).removeprefix("torch."))
        if isinstance(arg, (torch.device, torch.layout)):
            return None
        raise CaptureError(f"{where(node)}{node.target} has an argument that Galvatron does not support: {arg!r}")


def _check_numbers(op: Op) -> None:
    """Refuses a number of the batch as a size, an index or the like: only values may follow from it."""
    for place, arg in (*enumerate(op.args), *op.kwargs):
        for item in arg if isinstance(arg, tuple) else (arg,):
            if (numbers := numbers_in(item)) and takes_size(op, place):
                raise of_number(op.source, min(number.parameter for number in numbers))


class _FunctionConverter(_Converter):
    """Converts the two graphs of a function that one node calls."""

    def __init__(
        self, symbols: Mapping[sympy.Symbol, Dim], example: Mapping[sympy.Symbol, int], node: fx.Node, call: Call
    ) -> None:
        super().__init__({}, {}, symbols, example)
        self._node, self._call = node, call

    def function(self) -> Function:
        """The function, without its dimensions.

        Raises:
            CaptureError: its graphs have what those of a function may not.
        """
        call = self._call
        inputs = (*self._given(call.entered, call.names), *self._given(call.outside, ["outside"] * len(call.outside)))
        forward = tuple(op for node in call.forward for op in self._ops(node))
        made = {v.name for v in inputs} | {v.name for op in forward for v in op.results}
        results = tuple(self._values[node].name for node in call.results)
        gradients = self._given(call.gradients, ["gradient"] * len(call.gradients))
        backward = tuple(op for node in call.backward for op in self._ops(node))
        given = [(place, self._values[node].name) for place, node in enumerate(call.given) if node is not None]
        read = dict.fromkeys([name for op in backward for name in op.operands] + [name for _, name in given])
        saved = tuple(name for name in read if name in made)
        whole = Graph(inputs, (), forward, (*results, *saved))
        kept = tuple(whole.values[name] for name in saved)
        function = Function(
            name=call.name,
            forward=whole,
            backward=Graph((*kept, *gradients), (), backward, tuple(name for _, name in given)),
            results=len(results),
            differentiated=tuple(place for place, _ in given),
        )
        self._check(function)
        return function

    def _given(self, nodes: Iterable[fx.Node], names: Iterable[str]) -> tuple[Value, ...]:
        found: list[Value] = []
        for node, name in zip(nodes, names, strict=True):
            self._values[node] = Value(self._names.fresh(name), self._type(node.meta["val"], node))
            found.append(self._values[node])
        return tuple(found)

    def _ops(self, node: fx.Node) -> Iterable[Op]:
        if node.target is torch.ops.aten.detach.default:  # nothing of a function has a gradient of another kind
            self._values[node] = self._values[node.args[0]]  # type: ignore[index]  # a node by its schema
            return
        yield from super()._ops(node)

    def _check(self, function: Function) -> None:
        for op in (*function.forward.ops, *function.backward.ops):
            for place, arg in (*enumerate(op.args), *op.kwargs):
                if isinstance(arg, sympy.Expr) and not takes_size(op, place):
                    own = "divide by it outside of the function"
                    what = f"the autograd function {function.name} computes with the size of the batch as a number"
                    raise CaptureError(f"{where(self._node)}{what}: {advice(source_of(self._node), own)}")
                if lengths := [one for item in (arg if isinstance(arg, tuple) else (arg,)) for one in lengths_in(item)]:
                    own = f"let -1 stand for it in the function, or leave {lengths[0]} out of `dynamic`"
                    what = f"the autograd function {function.name} computes with the length {lengths[0]}"
                    raise CaptureError(f"{where(self._node)}{what}: {advice(source_of(self._node), own)}")


def _admit(target: str, node: fx.Node) -> None:
    """Makes an operator of another library one that a program may contain; warns of one that has no rule.

    Raises:
        CaptureError: it is no function of tensors, or a mark of what was traced.
    """
    if parsed(target).namespace in ("galvatron_capture", "galvatron_derivatives"):
        own = "write what it makes of its operands with other operations, or give it what it reads as operands"
        what = "what an autograd function computes cannot be told from what is around it"
        raise CaptureError(f"{where(node)}{what}: {advice(source_of(node), own)}")
    if not is_operator(target):
        try:
            foreign.admit(target)
        except GalvatronError as error:
            raise CaptureError(f"{where(node)}{error}: {advice(source_of(node), 'use operations of torch')}") from None
    if of_target(target).dims is None:
        of_library = advice(source_of(node), "")
        note = f"{foreign.whole_note(target)}{'; ' * bool(of_library)}{of_library}"
        warnings.warn(f"{where(node)}{note}", stacklevel=2)


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))
