"""Gradients that forward computes itself (`torch.autograd.grad`): of a penalty on gradients, a differential equation, a
force, a step of an inner optimizer.

Autograd works below what is traced, so `derivative` is all that a trace says: of which outputs, with which gradients of
them, by which inputs. Once the graph is functional, what lies between the inputs and the outputs is differentiated
there (`write_derivatives`): it is run on fake tensors under autograd, and the ops of that run, forward and backward,
are written in the place of the mark. They are operations of a forward like others, so that the gradients of the loss
pass through them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch._decomp import core_aten_decompositions
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import _engine_run_backward as _run_engine
from torch.autograd.graph import get_gradient_edge
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from galvatron.errors import CaptureError
from galvatron.ir.capture.functions import needed
from galvatron.ir.capture.running import advised, here
from galvatron.ir.capture.sources import advice, source_of, where

_LIBRARY = torch.library.Library("galvatron_derivatives", "DEF")
_LIBRARY.define("derivative(Tensor[] outputs, Tensor[] given, Tensor[] inputs) -> Tensor[]")
_LIBRARY.define("cut(Tensor value) -> Tensor")
_LIBRARY.impl(
    "derivative", lambda _outputs, _given, inputs: [torch.empty_like(i) for i in inputs], "CompositeExplicitAutograd"
)
_LIBRARY.impl("cut", torch.empty_like, "CompositeExplicitAutograd")


def _never(*_: Any) -> Any:
    raise AssertionError("a mark of a trace has no backward")


torch.library.register_autograd("galvatron_derivatives::derivative", _never, lib=_LIBRARY)
_ops = torch.ops.galvatron_derivatives
_aten = torch.ops.aten


def differentiated(
    outputs: Sequence[torch.Tensor],
    given: Sequence[torch.Tensor | None],
    retain_graph: bool | None,
    create_graph: bool,
    inputs: Sequence[torch.Tensor] = (),
    allow_unreachable: bool = False,
    accumulate_grad: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """Stands where `torch.autograd.grad` leads while a model is traced; marks what it is to compute.

    Raises:
        CaptureError: gradients are written into tensors, or are those of functions of Python; names the line.
    """
    if accumulate_grad or not inputs or torch._C._are_functorch_transforms_active():
        refuse_gradient()
    gradients = [torch.ones_like(o) if g is None else g for o, g in zip(outputs, given, strict=True)]
    used = [_leads_to(outputs, tensor) for tensor in inputs]
    if not all(used) and not allow_unreachable:
        raise CaptureError(
            f"{here()}a gradient by a tensor that was not used is asked for: "
            + advised("use the tensor itself, or pass allow_unused=True")
        )
    found = iter(_ops.derivative(list(outputs), gradients, [t for t, u in zip(inputs, used, strict=True) if u]))
    results = [next(found) if is_used else None for is_used in used]
    return tuple(r if r is None or create_graph else r.detach() for r in results)


def refuse_gradient(*_: Any, **__: Any) -> Any:
    own = "use torch.autograd.grad, write the gradient as a formula, or leave this term of the loss out"
    raise CaptureError(
        f"{here()}a gradient is computed inside forward in a way that cannot be captured: {advised(own)}"
    )


def _leads_to(outputs: Iterable[torch.Tensor], tensor: torch.Tensor) -> bool:
    """Whether autograd comes from some outputs to a tensor.

    Raises:
        RuntimeError: the tensor has no gradient; torch's own words.
    """
    wanted = get_gradient_edge(tensor)
    pending: list[tuple[Any, int]] = [(edge.node, edge.output_nr) for edge in map(get_gradient_edge, outputs)]
    seen: set[Any] = set()
    while pending:
        node, number = pending.pop()
        if node == wanted.node and number == wanted.output_nr:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(node.next_functions)
    return False


def write_derivatives(exported: ExportedProgram, model: nn.Module) -> ExportedProgram:
    """Writes, in place, the ops of all derivatives that are marked in an exported graph.

    Raises:
        CaptureError: what lies between cannot be differentiated so; names its line.
    """
    module = exported.graph_module
    marks = [node for node in module.graph.nodes if node.target is _ops.derivative.default]
    if not marks:
        return exported
    tied = _tied(exported, model)
    for mark in marks:
        results = _written(module.graph, mark, tied)
        for user in list(mark.users):
            assert user.target is operator.getitem
            result = results[user.args[1]]  # type: ignore[call-overload,index]  # the index of a getitem is an int
            user.replace_all_uses_with(result)
            exported.graph_signature.replace_all_uses(user.name, result.name)
            module.graph.erase_node(user)
        module.graph.erase_node(mark)
    module.recompile()
    return exported


def _tied(exported: ExportedProgram, model: nn.Module) -> set[str]:
    """The placeholders of parameters that have several names, of which each reads the parameter by one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    several = {name for found in names.values() if len(found) > 1 for name in found}
    of = exported.graph_signature.inputs_to_parameters
    return {placeholder for placeholder, name in of.items() if name in several}


def _written(graph: fx.Graph, mark: fx.Node, tied: set[str]) -> list[fx.Node]:
    """The nodes of the derivatives that a mark stands for, written before it."""
    marked: Any = mark.args  # lists of nodes, by the schema of the mark
    outputs, given, inputs = marked
    if any(node.name in tied for node in inputs):
        raise _refusal(mark, "the gradient by a parameter that several layers share is computed inside forward")
    between = _between(graph, inputs, outputs)
    for node in between:
        _check(mark, node)
    leaves = [node for node in dict.fromkeys(inputs) if node not in between]
    read = [*given, *outputs, *(source for node in between for source in node.all_input_nodes)]
    others = [node for node in dict.fromkeys(read) if node in given or node not in between and node not in leaves]
    sources = list(dict.fromkeys([*leaves, *others]))

    def gradients(*values: Any) -> list[torch.Tensor | None]:
        held: dict[fx.Node, Any] = dict(zip(sources, values, strict=True))
        known = held | {node: held[node].detach().requires_grad_() for node in leaves}
        for node in between:
            known[node] = _run(node, known)
        ends, starts = (tuple(known[node] for node in nodes) for nodes in (outputs, inputs))
        taken = tuple(held[node] for node in given)
        return list(_run_engine(ends, taken, False, False, starts, allow_unreachable=True, accumulate_grad=False))

    if unknown := next((node for node in sources if "val" not in node.meta), None):
        raise _refusal(mark, f"a gradient of what depends on {unknown.name} is computed inside forward")
    values = [_value(node) for node in sources]
    mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
    with mode, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # its other kernels have backwards of their own
        traced = make_fx(gradients, decomposition_table=_decompositions())(*values)
    return _inlined(graph, mark, traced.graph, sources)


def _between(graph: fx.Graph, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> dict[fx.Node, None]:
    """The nodes on the ways from some nodes to others, in order; sizes are on none."""
    reached: set[fx.Node] = set()
    pending = [user for node in inputs for user in node.users]
    while pending:
        node = pending.pop()
        if (
            node not in reached
            and node.op != "output"
            and isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))
        ):
            reached.add(node)
            pending.extend(node.users)
    between = needed(outputs, reached)
    return {node: None for node in graph.nodes if node in between}


def _check(mark: fx.Node, node: fx.Node) -> None:
    """Refuses what would not be the same when run again, or has no derivative that autograd knows."""
    if node.target is operator.getitem:
        return
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace.startswith("galvatron_"):
        raise _refusal(mark, f"the gradient of {node.name} is computed inside forward")
    if torch.Tag.nondeterministic_seeded in node.target.tags and not _drops_nothing(node):
        raise _refusal(mark, f"the gradient of {node.target} is computed inside forward, which would draw again")


def _drops_nothing(node: fx.Node) -> bool:
    """Whether a node is a dropout, or an attention with dropout, of rate zero."""
    assert isinstance(node.target, torch._ops.OpOverload)
    parameters = node.target._schema.arguments
    rates = [i for i, parameter in enumerate(parameters) if parameter.name in ("p", "dropout_p")]
    return any((node.args[i] if i < len(node.args) else node.kwargs.get(parameters[i].name, 0.0)) == 0 for i in rates)


def _refusal(mark: fx.Node, what: str) -> CaptureError:
    own = "write this gradient as a formula, or leave this term of the loss out"
    return CaptureError(f"{where(mark)}{what}, which cannot be captured: {advice(source_of(mark), own)}")


def _run(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    args, kwargs = tree_map_only(fx.Node, known.__getitem__, (node.args, node.kwargs))
    if node.target is _aten.detach.default:
        with torch.no_grad():
            return _ops.cut(*args)
    assert callable(node.target)
    return _IN_STEPS.get(node.target, node.target)(*args, **kwargs)


def _standardized(x: torch.Tensor, dims: list[int], eps: float | None, centred: bool = True) -> torch.Tensor:
    """`x` with variance one over some dimensions."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    wide = wide - wide.mean(dims, keepdim=True) if centred else wide
    eps = torch.finfo(wide.dtype).eps if eps is None else eps
    return (wide * (wide.square().mean(dims, keepdim=True) + eps).rsqrt()).to(x.dtype)


def _scaled(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _of_channels(vector: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    return None if vector is None else vector.view(-1, *(1 for _ in x.shape[2:]))


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, _: bool = True) -> Any:
    return _scaled(_standardized(x, list(range(-len(shape), 0)), eps), weight, bias)


def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    return _scaled(_standardized(x, list(range(-len(shape), 0)), eps, centred=False), weight, None)


def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, _: bool = True) -> Any:
    normal = _standardized(x.reshape(x.shape[0], groups, -1), [2], eps).view(x.shape)
    return _scaled(normal, _of_channels(weight, x), _of_channels(bias, x))


def _batch_norm(x: Any, weight: Any, bias: Any, _mean: Any, _variance: Any, train: bool, _: float, eps: float) -> Any:
    if not train:
        return NotImplemented
    normal = _standardized(x, [0, *range(2, x.dim())], eps)
    return (_scaled(normal, _of_channels(weight, x), _of_channels(bias, x)),)


_IN_STEPS: dict[Any, Callable[..., Any]] = {
    _aten.layer_norm.default: _layer_norm,
    _aten.rms_norm.default: _rms_norm,
    _aten.group_norm.default: _group_norm,
    _aten._native_batch_norm_legit_functional.default: _batch_norm,
}
"""What is run step by step: autograd takes what it keeps for its backward, such as the statistics of a norm, for
constants."""


def _value(node: fx.Node) -> Any:
    value = node.meta["val"]
    return value.detach() if isinstance(value, torch.Tensor) else value


def _inlined(graph: fx.Graph, mark: fx.Node, traced: fx.Graph, sources: Sequence[fx.Node]) -> list[fx.Node]:
    """What was traced, at the line of the mark.

    The `detach` in it are those of autograd, for what it keeps, and of the leaves; those of the model were `cut`.
    """
    remaining = iter(sources)
    copies: dict[fx.Node, Any] = {}
    told = {name: mark.meta[name] for name in ("stack_trace", "nn_module_stack") if name in mark.meta}
    with graph.inserting_before(mark):
        for node in traced.nodes:
            if node.op == "placeholder":
                copies[node] = next(remaining)
            elif node.op == "output":
                return [_given(mark, result, copies) for result in node.args[0]]  # type: ignore[union-attr]  # a list
            elif node.target is _aten.detach.default:
                copies[node] = copies[node.args[0]]  # type: ignore[index]  # its operand is a node
            elif node.op == "get_attr":
                raise _refusal(mark, "a gradient with constants of its own is computed inside forward")
            else:
                _check_traced(mark, node)
                copies[node] = graph.node_copy(node, lambda n: copies[n])
                copies[node].meta = dict(node.meta) | told
                if node.target is _ops.cut.default:
                    copies[node].target = _aten.detach.default
                elif isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
                    copies[node].target = _out_of_place(mark, node)
                    copies[node.args[0]] = copies[node]  # what is read of it from here on
    raise AssertionError("a graph ends with its output")


def _out_of_place(mark: fx.Node, node: fx.Node) -> Any:
    """The operator that makes what one writes into its first operand, which nothing else may share."""
    written, target = node.args[0], node.target
    assert isinstance(written, fx.Node) and isinstance(target, torch._ops.OpOverload)
    packet = getattr(_aten, target._schema.name.removeprefix("aten::").removesuffix("_"), None)
    sharing = (written, *(user for user in written.users if user is not node))
    if packet is None or written.op != "call_function" or any(map(_may_share, sharing)):
        raise _refusal(mark, f"a gradient by {target} is computed inside forward")
    return getattr(packet, target._overloadname)


def _may_share(node: fx.Node) -> bool:
    """Whether a result may be in the memory of an operand, unless it is written into that."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or (not schema.is_mutable and any(result.alias_info for result in schema.returns))


def _check_traced(mark: fx.Node, node: fx.Node) -> None:
    """Refuses backwards without a formula, and results that autograd takes for constants though they are none."""
    if "backward" in str(node.target):
        raise _refusal(mark, f"a gradient by {node.target} is computed inside forward")
    if node.target is operator.getitem:
        call, index = node.args
        assert isinstance(call, fx.Node) and isinstance(index, int)
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or (value.is_floating_point() and not _is_differentiable(call, index)):
            raise _refusal(mark, f"the gradient of {call.target} is computed inside forward")


def _is_differentiable(call: fx.Node, index: int) -> bool:
    """Whether autograd has a derivative of the result of an op at an index."""
    with torch.enable_grad():
        args, kwargs = tree_map_only(fx.Node, _value, (call.args, call.kwargs))
        args, kwargs = tree_map_only(torch.Tensor, _leaf, (args, kwargs))
        assert callable(call.target)
        return call.target(*args, **kwargs)[index].requires_grad


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point() or tensor.is_complex())


def _given(mark: fx.Node, result: Any, copies: dict[fx.Node, Any]) -> fx.Node:
    if not isinstance(result, fx.Node):
        raise _refusal(mark, "a gradient that is zero everywhere is computed inside forward")
    return copies[result]


_FORWARDS = ("aten.nll_loss_forward", "aten.nll_loss2d_forward", "aten._safe_softmax")
"""What functions that models call are made of, where a program has no rule for it."""


@cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Backwards as the operators that a program may have; all of them are differentiable."""
    found = {
        op: rule
        for op, rule in core_aten_decompositions().items()
        if "backward" in str(op) or str(op).partition(".default")[0] in _FORWARDS
    }
    return found | {_aten.convolution_backward.default: _convolution_backward}


def _convolution_backward(
    gradient: torch.Tensor,
    operand: torch.Tensor,
    weight: torch.Tensor,
    _bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[torch.Tensor | None, ...]:
    """The gradient by the operand is the convolution in the other direction; that by a weight is left as it is."""
    if wanted[1] or wanted[2]:
        return NotImplemented
    rest = [0] * len(stride)
    if not transposed:
        sizes = zip(operand.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        rest = [into - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for into, out, k, s, p, d in sizes]
    found = torch.convolution(gradient, weight, None, stride, padding, dilation, not transposed, rest, groups)
    return found, None, None
