"""While a model is traced: every op remembers its line, and what would be lost of it in silence is refused."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import inspect
import keyword
import math
import sys
import traceback
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._decomp import decomposition_table
from torch._functorch.autograd_function import custom_function_call
from torch.autograd.function import _SingleLevelFunction
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import graph, proxy
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.proxy import TracerBase
from torch.nn.modules._functions import SyncBatchNorm
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from galvatron.errors import CaptureError
from galvatron.ir.capture.branches import chosen
from galvatron.ir.capture.checks import calls_of, passing
from galvatron.ir.capture.derivatives import differentiated
from galvatron.ir.capture.diagnose import on_values
from galvatron.ir.capture.functions import called
from galvatron.ir.capture.refusals import passed_over, refuse
from galvatron.ir.capture.running import advised, here, line_running, tensors_in, turns_running
from galvatron.ir.capture.sources import TURN, is_user_file

_aten = torch.ops.aten
_MISREAD_LOSSES = (_aten.nll_loss.default, _aten.margin_ranking_loss.default, _aten.hinge_embedding_loss.default)
"""Losses whose Python references take `reduction` as text: under a symbolic batch size torch calls them with the op's
number, and an unreduced loss gets the type of a reduced one (seen in torch 2.13)."""


@contextlib.contextmanager
def careful_tracing() -> Iterator[None]:
    """Traces inside the `with` block keep the user's line of each op and refuse what would silently be lost.

    Left to itself torch records only frames of functions called `forward`, which misses losses and helpers, and traces
    the forward of a `torch.autograd.Function` as if its backward did not exist (`capture.functions` traces both). Of
    functions of Python that must return a plain number, `len` and `math.sqrt` give the symbolic one for the size of a
    batch. A module may have any name: the code that torch makes of a graph says it as a literal.
    """
    _settle_dynamo()
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(proxy, "CapturedTraceback", _UserLine))
        if hasattr(TracerBase, "_filter_traceback_frames"):
            patches.enter_context(mock.patch.object(TracerBase, "_filter_traceback_frames", lambda _, frames: frames))
        patches.enter_context(mock.patch.object(_SingleLevelFunction, "apply", classmethod(_apply), create=True))
        patches.enter_context(mock.patch.object(torch.autograd.function, "custom_function_call", _apply_mapped))
        patches.enter_context(mock.patch.object(torch.Tensor, "register_hook", _register_hook))
        patches.enter_context(mock.patch.object(saved_tensors_hooks, "__enter__", _hook_saved_tensors))
        patches.enter_context(mock.patch.object(nn.Module, "_apply", _converted))
        patches.enter_context(mock.patch.object(torch.Tensor, "__bool__", _truth_of_tensor))
        patches.enter_context(mock.patch.object(torch.SymBool, "__bool__", _truth_of_symbol))
        patches.enter_context(mock.patch.object(torch.SymInt, "__hash__", _key_of_size))
        patches.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", differentiated))
        patches.enter_context(mock.patch.object(fx.Tracer, "call_module", _call_module))
        patches.enter_context(mock.patch.object(graph, "_format_target", _attribute_of))
        patches.enter_context(mock.patch.object(builtins, "len", _length))
        # Modes see what this makes.
        patches.enter_context(mock.patch.object(torch, "from_numpy", lambda array: torch.tensor(array)))
        patches.enter_context(mock.patch.object(math, "sqrt", _root))
        patches.enter_context(mock.patch.object(torch, "_is_all_true", torch.all))  # another name of it
        patches.enter_context(mock.patch.object(torch, "as_tensor", _as_tensor))
        patches.enter_context(mock.patch.object(torch.Tensor, "new_tensor", _new_tensor))
        patches.enter_context(mock.patch.dict(decomposition_table))
        for op in _MISREAD_LOSSES:
            decomposition_table.pop(op, None)
        yield


@functools.cache
def _settle_dynamo() -> None:
    """Has torch make its tables of known functions now: they must not get those that stand in for others here."""
    from torch._dynamo import trace_rules

    with contextlib.suppress(AttributeError):  # names of its own, which differ between versions
        trace_rules.get_torch_obj_rule_map()
        trace_rules.is_builtin_callable(len)


class _UserLine:
    """In the place of the traceback of an op: of all frames the innermost of the user's code, which is what is kept.

    Torch would look up the lines of a hundred frames for each op.
    """

    @staticmethod
    def extract(**_: Any) -> type[_UserLine]:
        return _UserLine

    @staticmethod
    def summary() -> traceback.StackSummary:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.endswith("galvatron/ir/capture/export.py"):
            if is_user_file(frame.f_code.co_filename):
                name = f"{frame.f_code.co_name}{''.join(map(TURN.format, turns_running))}"
                line = traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, name)
                return traceback.StackSummary.from_list([line])
            frame = frame.f_back
        return traceback.StackSummary()


def _attribute_of(base: str, target: str) -> str:
    """An attribute of a module, as an expression of Python."""
    parts = target.split(".")
    if all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        return f"{base}.{target}"
    for part in parts:
        base = f"getattr({base}, {part!r})"
    return base


_plain_call_module = fx.Tracer.call_module


def _call_module(tracer: fx.Tracer, *args: Any, **kwargs: Any) -> Any:
    """A module that raises is left, too: forward may catch it and go on (`try: ... except ValueError: ...`)."""
    depth = _plain_length(tracer.module_stack)
    try:
        return _plain_call_module(tracer, *args, **kwargs)
    except Exception:
        while _plain_length(tracer.module_stack) > depth:
            tracer.module_stack.popitem()
        raise


def _apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    """Stands where every `apply` of a function leads, also one that was bound long before (`clip = Clip.apply`)."""
    if cls is CheckpointFunction:
        function, _preserve_random_state, *inputs = args
        return function(*inputs)
    if cls is SyncBatchNorm:  # ranks are what plans make of the batch, so that it is one of the whole batch here
        x, weight, bias, running_mean, running_var, eps, momentum, *_ = args
        return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    differentiates = torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in((args, kwargs)))
    if _is_of_torch(cls) or not differentiates:
        return super(_SingleLevelFunction, cls).apply(*args, **kwargs)  # type: ignore[misc]  # that of its base in C
    if torch._C._are_functorch_transforms_active():
        raise _own_backward(cls)
    return called(cls, args)


_plain_mapped_call = custom_function_call


def _apply_mapped(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    """As `_apply`, inside `torch.vmap` and the like, where no tensor says whether it needs a gradient."""
    if _is_of_torch(cls):
        return _plain_mapped_call(cls, *args, **kwargs)
    raise _own_backward(cls)


def _is_of_torch(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "torch"


def _own_backward(cls: type[torch.autograd.Function]) -> CaptureError:
    own = (
        "write it with operations that torch differentiates, such as x + (f(x) - x).detach() for a function that "
        "passes gradients straight through"
    )
    return CaptureError(
        f"{here()}the autograd function {cls.__name__} has a backward of its own, which would be lost: {advised(own)}"
    )


def _register_hook(_: torch.Tensor, hook: Any) -> RemovableHandle:
    own = "write it with operations of the forward"
    refuse(CaptureError(f"{here()}a hook on a gradient would be lost: {advised(own)}"))
    return RemovableHandle(OrderedDict())


_refusals: list[Exception] = []
"""What was refused of a forward, which may catch it (`try: ... except Exception: ...`) and go on."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """A refusal inside the `with` block is raised at its end, if what was refused has caught it."""
    plain = CaptureError.__init__

    def remembered(error: CaptureError, *args: Any) -> None:
        plain(error, *args)
        _refusals.append(error)

    try:
        with mock.patch.object(CaptureError, "__init__", remembered):
            yield
        if _refusals:
            raise _refusals[0]
    finally:
        _refusals.clear()


@contextlib.contextmanager
def unseeded() -> Iterator[None]:
    """Inside the `with` block nothing may seed torch's random numbers, or set them back."""
    with mock.patch.object(torch.random, "default_generator", _Unseeded()):
        yield


class _Unseeded:
    """Torch's default generator, as far as it is read."""

    def __getattr__(self, name: str) -> Any:
        if name in ("manual_seed", "seed", "set_state") and not _compiling(sys._getframe(1)):
            own = "draw without a seed, or make fixed random numbers once, as a buffer of the model"
            refuse(
                CaptureError(
                    f"{here()}random numbers are seeded or set back in forward, which would be lost: {advised(own)}"
                )
            )
        return getattr(torch.default_generator, name)


def _compiling(frame: types.FrameType | None) -> bool:
    """Whether torch's compiler asks, which puts the generators back where they were (`torch.cond` calls it)."""
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        if frame.f_globals.get("__name__") in ("torch._dynamo.convert_frame", "torch._dynamo.utils"):
            return True
        frame = frame.f_back
    return False


_plain_hook_saved_tensors = saved_tensors_hooks.__enter__


def _hook_saved_tensors(hooks: saved_tensors_hooks) -> None:
    """Those of torch's own that keep values as they are (a checkpoint, a copy on the CPU) do not matter."""
    if type(hooks) is not saved_tensors_hooks and _is_of_torch(type(hooks)):
        _plain_hook_saved_tensors(hooks)
        return
    own = "leave them out: Galvatron itself decides what is kept for the backward"
    refuse(CaptureError(f"{here()}hooks on saved tensors would be lost: {advised(own)}"))
    _plain_hook_saved_tensors(hooks)


_plain_converted = nn.Module._apply


def _converted(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """Stands where `Module.to` and its like lead: nothing happens where all is of that type and there already."""
    if all(function(t) is t for t in (*module.parameters(recurse), *module.buffers(recurse))):
        return module
    try:
        return _plain_converted(module, function, recurse)
    except RuntimeError as error:
        own = "convert it before, or cast what it computes"
        raise CaptureError(
            f"{here()}a module is converted to another type or device in forward, which would be lost: {advised(own)}"
        ) from error


def _truth(plain: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """What a condition is; where that depends on values, what makes a check of them pass."""

    def truth(value: Any) -> bool:
        try:
            return plain(value)
        except GuardOnDataDependentSymNode as error:
            frame = sys._getframe(1)  # what asks for the truth of a value or of a symbol
            if not is_user_file(frame.f_code.co_filename) and not _checks_itself(frame):
                raise
            passes = passing(frame, value)
            if passes is None:
                passes = chosen(frame, value)
            if passes is None:
                if is_user_file(frame.f_code.co_filename) and (times := passed_over(on_values(line_running()))):
                    return times % 2 == 0  # both sides in turn, so that loops end
                _refusals.append(error)
                raise
            return passes

    return truth


def _checks_itself(frame: types.FrameType) -> bool:
    """Whether it is a function of torch that checks what it is given: a module, a distribution, `torch._assert`."""
    module = frame.f_globals.get("__name__", "")
    return module.startswith(("torch.nn.", "torch.distributions.")) or frame.f_code is torch._assert.__code__


_truth_of_tensor, _truth_of_symbol = _truth(torch.Tensor.__bool__), _truth(torch.SymBool.__bool__)

_plain_key_of_size = torch.SymInt.__hash__


def _key_of_size(size: torch.SymInt) -> int:
    """The hash of a size: in the key of a `functools.lru_cache`, which computes what it does not find; elsewhere torch
    refuses it, since a table of the user's has no entry for it. That of a value is refused as any branch on one."""
    if not size.node.has_hint():
        _refusals.append(GuardOnDataDependentSymNode(size.node.expr, "the hash of a value"))
        raise _refusals[-1]
    if not _calls_a_cache(sys._getframe(1)):
        return _plain_key_of_size(size)
    return hash((id(size.node.shape_env), str(size.node.expr)))


def _calls_a_cache(frame: types.FrameType) -> bool:
    """Whether what a frame calls is a function with a cache, and not a table on the same line."""
    if sys.version_info < (3, 11):  # which part of a line runs is not said
        return False
    line, _, column, end = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    calls = (node for node in calls_of(frame.f_code.co_filename) if (node.lineno, node.col_offset) == (line, column))
    found = [node.func for node in calls if node.end_col_offset == end]
    return len(found) == 1 and isinstance(_named(found[0], frame), functools._lru_cache_wrapper)


def _named(expression: ast.expr, frame: types.FrameType) -> Any:
    """What a name, or an attribute of one, stands for in a frame, without running anything; None for others."""
    if isinstance(expression, ast.Name):
        return frame.f_locals.get(expression.id, frame.f_globals.get(expression.id))
    if isinstance(expression, ast.Attribute):
        return inspect.getattr_static(_named(expression.value, frame), expression.attr, None)
    return None


_plain_as_tensor, _plain_new_tensor = torch.as_tensor, torch.Tensor.new_tensor


def _as_tensor(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    make = torch.tensor if isinstance(data, (torch.SymInt, torch.SymFloat)) else _plain_as_tensor
    return make(data, *args, **kwargs)


def _new_tensor(tensor: torch.Tensor, data: Any, **kwargs: Any) -> torch.Tensor:
    if not isinstance(data, (torch.SymInt, torch.SymFloat)):
        return _plain_new_tensor(tensor, data, **kwargs)
    return torch.tensor(data, **{"dtype": tensor.dtype, "device": tensor.device, **kwargs})


_plain_length, _plain_root = len, math.sqrt


def _length(value: Any) -> Any:
    sized = isinstance(value, torch.Tensor) and value.dim() and isinstance(value.shape[0], torch.SymInt)
    return value.shape[0] if sized else _plain_length(value)


def _root(value: Any) -> Any:
    return torch.sym_sqrt(value) if isinstance(value, (torch.SymInt, torch.SymFloat)) else _plain_root(value)


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """Where a tensor has its values, which its views share; None where torch does not say."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # inside of torch.vmap
        return None


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version
