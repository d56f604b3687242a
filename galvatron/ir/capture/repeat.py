"""Whether a model computes in each step what it computes in the first.

What forward leaves behind for its next call would be lost, wherever it is (an attribute, a list, an iterator, a global,
the clock), since a program keeps nothing but its parameters and buffers. So forward is called a second time, on the
same symbolic tensors but without tracing, which costs little: it must compute what the first call did, and write the
same into the model's buffers.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode, disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from galvatron.errors import CaptureError
from galvatron.ir.capture.alike import Survey
from galvatron.ir.capture.copies import Standing, UnlikeTracedError
from galvatron.ir.capture.evaluation import in_evaluation
from galvatron.ir.capture.leftovers import no_leftovers
from galvatron.ir.capture.meaning import Meaning, Numbering
from galvatron.ir.capture.restore import unchanged
from galvatron.ir.capture.reuse import ReadElsewhereError, reusing
from galvatron.ir.capture.samples import count_of
from galvatron.ir.capture.sources import is_user_file, located, source_of_error
from galvatron.ir.capture.tracing import version_of

Forward = Callable[[Mapping[str, torch.Tensor]], tuple[torch.Tensor, ...]]
"""From the tensors of a batch by name."""


@dataclass(frozen=True)
class Repeated:
    """The results of a forward while it is traced, and what other calls of it showed.

    Attributes:
        alone: None where a single sample is treated as others are, otherwise the head of an error message.
        evaluated: None where the model computes in evaluation mode what a program does that only evaluates, otherwise
            the head of an error message.
    """

    results: tuple[torch.Tensor, ...]
    alone: str | None
    evaluated: str | None


def repeated(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    single: Mapping[str, torch.Tensor],
    forward: Forward,
    trained: Sequence[nn.Module] = (),
    layers: Mapping[int, str] = MappingProxyType({}),
) -> Repeated:
    """The results of a forward while it is traced, after seeing that a second call gives the same.

    What forward assigns to buffers is then written into them, so that the trace has it. A third call tells whether what
    is traced, for several samples, is what the model computes of one, too: torch keeps no condition of the trace that
    holds for all sizes but one, and functions such as `squeeze` leave out a dimension of size one. A fourth call, in
    evaluation mode, tells whether what is traced in training is that, but for what the operators themselves leave out.

    Args:
        single: in the place of inputs, those with one sample (`single_sample`).
        trained: the modules that are then put into evaluation mode; none, where the model is in it already.
        layers: those of which some need not be traced, as one more call then tells first (`capture.alike`).

    Raises:
        StepsUnlikeError: it gives something else.
        CaptureError: it assigns a buffer something that this cannot hold.
        UnlikeTracedError: all layers must be traced.
    """
    before = _attributes(model)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    state = [*model.parameters(), *model.buffers()]
    meanings = _Meanings.of(state, inputs, single)
    standing = _standing(model, layers, inputs, forward, meanings, bool(trained)) if layers else None
    if standing is None:
        meanings = _Meanings.of(state, inputs, single)
        with meanings.begun(bool(trained)):
            given_first = results = forward(inputs)
    else:
        given_first = standing.results
        meanings.example.again()
        with Numbering(meanings.example), _sizes_in_words(""), standing.trace():
            results = forward(inputs)
    meaning, of_one, evaluated = meanings.example, meanings.of_one, meanings.evaluated
    after = _attributes(model)
    assigned = {name: after.get(name) for name, buffer in buffers.items() if after.get(name) is not buffer}
    names = [name for name in after if name not in before or not _is_same(before[name], after[name])]
    lasting = {name: value for name, value in assigned.items() if name in model.state_dict(keep_vars=True)}
    first = [*map(meaning.of, given_first)], _written(buffers, assigned, meaning)
    traced = [*map(meaning.of, results)], first[1]
    of_several = [*map(of_one.of, given_first)], _written(buffers, assigned, of_one)
    once = [*map(evaluated.of, given_first)]

    def given(inputs: Mapping[str, torch.Tensor], put_back: Mapping[str, Any], meaning: Meaning) -> list[Hashable]:
        """What another forward gives."""
        _assign(model, {name: buffers[name] for name in put_back})
        with _untraced(results), reusing(layers) as reuse, Numbering(meaning), _sizes_in_words("0000000"):
            return list(map(meaning.of, reuse(lambda: forward(inputs))))

    def called(inputs: Mapping[str, torch.Tensor], put_back: Mapping[str, Any], meaning: Meaning) -> Hashable:
        """What another forward gives and writes."""
        results, now = given(inputs, put_back, meaning), _attributes(model)
        return results, _written(buffers, {name: now.get(name) for name in assigned}, meaning)

    # A buffer that is no lasting state may be a cache, in which the next step finds what it would compute.
    for put_back in [lasting] if len(lasting) == len(assigned) else [lasting, assigned]:
        meaning.again()
        try:
            again = called(inputs, put_back, meaning)
        except (CaptureError, ReadElsewhereError):
            raise
        except Exception as error:
            raise _unlike(names, located(source_of_error(error))) from error
        if again == first:
            break
    else:
        raise _unlike(names, meaning.first_unlike)
    if traced != first:
        raise UnlikeTracedError
    alone = None
    if single := {name: tensor for name, tensor in single.items() if count_of(inputs[name]) is not None}:
        of_one.again([*state, *{**inputs, **single}.values()])
        try:
            alone = None if called({**inputs, **single}, assigned, of_one) == of_several else of_one.first_unlike
        except ReadElsewhereError:
            raise
        except Exception as error:
            alone = located(source_of_error(error))
    unlike = None
    if trained:
        evaluated.again()
        try:
            with in_evaluation(trained):
                unlike = None if given(inputs, assigned, evaluated) == once else evaluated.first_unlike
        except ReadElsewhereError:
            raise
        except Exception as error:
            unlike = located(source_of_error(error))
    _write(buffers, put_back)
    _assign(model, buffers)
    return Repeated(results, alone, unlike)


@dataclass(frozen=True)
class _Meanings:
    """What the calls of a forward are compared by: for the example, for a single sample, in evaluation."""

    example: Meaning
    of_one: Meaning
    evaluated: Meaning

    @staticmethod
    def of(
        state: Sequence[torch.Tensor], inputs: Mapping[str, torch.Tensor], single: Mapping[str, torch.Tensor]
    ) -> _Meanings:
        leaves = [*state, *inputs.values()]
        counts = filter(None, map(count_of, (inputs[name] for name in single)))
        return _Meanings(Meaning(leaves), Meaning(leaves, counts), Meaning(leaves, evaluates=True))

    @contextlib.contextmanager
    def begun(self, is_trained: bool) -> Iterator[None]:
        """Inside the `with` block is the first call."""
        evaluated = [self.evaluated] if is_trained else []
        with Numbering(self.example, self.of_one, *evaluated), _sizes_in_words(""):
            yield


def _standing(
    model: nn.Module,
    layers: Mapping[int, str],
    inputs: Mapping[str, torch.Tensor],
    forward: Forward,
    meanings: _Meanings,
    is_trained: bool,
) -> Standing | None:
    """What a call of forward tells of layers that are alike; None where there are none, or where it leaves something
    in the model."""
    leaves = [*model.parameters(), *model.buffers(), *inputs.values()]
    before, versions = _attributes(model), [*map(version_of, leaves)]
    survey = Survey(layers, leaves, meanings.example)
    with no_leftovers(model), unchanged(model), _untraced(inputs.values()):
        with reusing(layers) as reuse, meanings.begun(is_trained), survey.watching():
            results = reuse(lambda: forward(inputs))
        after = _attributes(model)
    is_unchanged = before.keys() == after.keys() and all(_is_same(before[name], after[name]) for name in before)
    if not is_unchanged or versions != [*map(version_of, leaves)] or not survey.settle(results):
        return None
    return Standing(layers, survey.calls, meanings.example, results)


def single_sample(inputs: Mapping[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """One sample in the place of each input that has `size` of them, as far as is known while it is traced."""
    with _untraced(inputs.values()):
        return {
            name: tensor.new_empty((1, *tensor.shape[1:]))
            for name, tensor in inputs.items()
            if tensor.dim() and isinstance(rows := tensor.shape[0], torch.SymInt) and rows.node.hint == size
        }


def _written(buffers: Mapping[str, torch.Tensor], assigned: Mapping[str, Any], meaning: Meaning) -> dict[str, Hashable]:
    """What the buffers of a model mean after forward, whether they were written into or assigned."""
    now = {**buffers, **assigned}
    return {name: meaning.of(value) if isinstance(value, torch.Tensor) else None for name, value in now.items()}


def _assign(model: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    for name, buffer in buffers.items():
        path, _, own = name.rpartition(".")
        model.get_submodule(path)._buffers[own] = buffer


def _write(buffers: Mapping[str, torch.Tensor], assigned: Mapping[str, Any]) -> None:
    """Writes what forward assigned to buffers into the tensors that they were.

    Raises:
        CaptureError: a value is not of the shape and type of its buffer, or that has several names.
    """
    for name, value in assigned.items():
        buffer = buffers[name]
        holds = isinstance(value, torch.Tensor) and value.shape == buffer.shape and value.dtype == buffer.dtype
        if not holds or sum(other is buffer for other in buffers.values()) > 1:
            raise CaptureError(
                f"the model assigns its own {name!r} in forward, which would be lost, since it is not a tensor of the "
                f"same shape and type ({tuple(buffer.shape)}, {str(buffer.dtype).removeprefix('torch.')}) or the "
                "buffer has several names: keep it constant, or write into it in place"
            )
        buffer.copy_(value.detach())


@contextlib.contextmanager
def _sizes_in_words(end: str) -> Iterator[None]:
    """Inside the `with` block a symbolic size is, for the user's code, the text of the example's size with some end.

    Text that only reports is as good with any end; what is computed from it tells itself by another.
    """

    def in_words(plain: Callable[[torch.SymInt], str]) -> Callable[[torch.SymInt], str]:
        def words(size: torch.SymInt) -> str:
            is_shown_to_user = is_user_file(sys._getframe(1).f_code.co_filename) and size.node.has_hint()
            return f"{size.node.hint}{end}" if is_shown_to_user else plain(size)

        return words

    with (
        mock.patch.object(torch.SymInt, "__str__", in_words(torch.SymInt.__str__)),
        mock.patch.object(torch.SymInt, "__repr__", in_words(torch.SymInt.__repr__)),
    ):
        yield


@contextlib.contextmanager
def _untraced(results: Iterable[torch.Tensor]) -> Iterator[None]:
    """Forward may be called on the tensors of a trace, and adds nothing to its graph; what it says was said before."""
    modes = _get_current_function_mode_stack()
    mode = detect_fake_mode([*results])
    shapes = None if mode is None else mode.shape_env
    with contextlib.ExitStack() as stack:
        stack.enter_context(disable_proxy_modes_tracing())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if shapes is not None:
            stack.enter_context(shapes.ignore_fresh_unbacked_symbols())
        for _ in modes:
            stack.callback(_push_mode, _pop_mode())
        for mode in modes:
            _push_mode(_Unrecorded() if isinstance(mode, PreDispatchTorchFunctionMode) else mode)
            stack.callback(_pop_mode)
        yield


class _Unrecorded(PreDispatchTorchFunctionMode):
    """In the place of the mode that records the switches of `torch.no_grad()`: torch looks for one of its class."""

    def __init__(self) -> None:
        TorchFunctionMode.__init__(self)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast):
            return None  # they are for the record: torch switches autocast besides
        return func(*args, **(kwargs or {}))


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, and what is in its dictionaries and lists, by name."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for key, value in module.__dict__.items():
            name = f"{path}.{key}" if path else key
            if key in ("_buffers", "_parameters"):
                found.update((f"{path}.{own}" if path else own, item) for own, item in value.items())
            elif isinstance(value, dict):
                found.update((f"{name}[{own!r}]", item) for own, item in value.items())
            elif isinstance(value, (list, tuple)):
                found.update((f"{name}[{position}]", item) for position, item in enumerate(value))
            else:
                found[name] = value
    return found


def _is_same(before: Any, after: Any) -> bool:
    is_plain = type(before) is type(after) and type(after) in (bool, int, float, str)
    return before is after or (is_plain and before == after)


class StepsUnlikeError(CaptureError):
    """The model computes something else in its second step than in its first."""


def _unlike(names: list[str], where: str) -> StepsUnlikeError:
    """For a second forward that is unlike the first; `names` of what it assigns, `where` it is the first to be so."""
    if names:
        what = f"the model assigns {', '.join(map(repr, names[:5]))} in forward and reads it in the next step, which"
    else:
        what = (
            "a second forward computes something else than the first: it reads what changes from step to step (a "
            "counter, an iterator, the clock, random numbers that are not torch's), or the batch size as text, which"
        )
    return StepsUnlikeError(f"{where}{what} would be lost: keep it constant, or give it as an input of the batch")
