"""What is trained, and with which gradients: the parameters of the model and nothing besides, with the gradients of
what forward computes and nothing that it does to them besides."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._functorch import is_gradtrackingtensor
from torch.overrides import TorchFunctionMode

from galvatron.errors import CaptureError
from galvatron.ir.capture.derivatives import refuse_gradient
from galvatron.ir.capture.refusals import refuse
from galvatron.ir.capture.running import advised, calling_file, here, tensors_in
from galvatron.ir.capture.sources import is_user_file
from galvatron.ir.capture.tracing import storage_of, version_of


class OnlyRegisteredAreTrained(TorchFunctionMode):
    """Refuses gradients of tensors that the model does not own: torch would detach them and take them for constants.

    While torch traces, the model's own parameters are fake; a real tensor comes from a closure, a global, a plain list
    or an attribute that is no parameter.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():  # other modes are not to see what this asks
            if torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in(result)):
                for tensor in tensors_in((args, kwargs)):
                    if tensor.requires_grad and type(tensor) in (torch.Tensor, torch.nn.Parameter):
                        if is_gradtrackingtensor(tensor):  # of torch.func
                            refuse_gradient()
                        refuse(_untrained(tensor))
        return result


def _untrained(tensor: torch.Tensor) -> CaptureError:
    return CaptureError(
        f"{here()}a {'parameter' if isinstance(tensor, torch.nn.Parameter) else 'tensor'} of shape "
        f"{tuple(tensor.shape)} that requires a gradient is not among the model's parameters, so it "
        "would not be trained: make it a parameter of the model, or what owns it (such as a loss) a "
        "submodule of the model; if it is not to be trained, use tensor.detach()"
    )


class GradientsFollowTheValues(TorchFunctionMode):
    """Refuses what makes gradients others than those of the values and leaves no trace in a graph: what is frozen or
    cut off in the middle of forward, hooks, and writes that autograd does not see.
    """

    def __init__(self) -> None:
        super().__init__()
        # Storages of values that have a gradient, by id: they are held so that no id is given twice.
        self._differentiated: dict[int, torch.UntypedStorage] = {}
        # Tensors by id that something was computed of, and those of them that required a gradient only later.
        self._read: dict[int, torch.Tensor] = {}
        self._required_late: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        _check_attribute(func)
        operands = tensors_in((args, kwargs))
        if func is torch.autograd.grad:
            self._check_inputs(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            before = [(version_of(tensor), tensor.requires_grad) for tensor in operands]
            self._note(operands)
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            for tensor, (version, requires_grad) in zip(operands, before, strict=True):
                if tensor.requires_grad is not requires_grad:
                    _check_switched(tensor)
                    if id(tensor) in self._read:
                        self._required_late.add(id(tensor))
                if version_of(tensor) != version:
                    self._check_written(tensor)
            results = tensors_in(result)
            self._note(results)
            if any(made.is_floating_point() and all(made is not tensor for tensor in operands) for made in results):
                self._read.update((id(tensor), tensor) for tensor in operands)
        return result

    def _check_inputs(self, _outputs: Any, inputs: Any, *_args: Any, **_options: Any) -> None:
        """Refuses the gradient by a tensor of which autograd has not seen all that was computed of it."""
        if any(id(tensor) in self._required_late for tensor in tensors_in(inputs)):
            own = "call requires_grad_() before the tensor is used"
            what = "a gradient is computed by a tensor that required none when it was first used"
            raise CaptureError(f"{here()}{what}: {advised(own)}")

    def _note(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            storage = storage_of(tensor) if tensor.requires_grad else None
            if storage is not None:
                self._differentiated[storage._cdata] = storage

    def _check_written(self, tensor: torch.Tensor) -> None:
        if torch.is_grad_enabled() and tensor.requires_grad:
            return
        storage = storage_of(tensor)
        if storage is not None and storage._cdata in self._differentiated:
            own = "use a new tensor, and update state, such as a counter, outside of forward"
            where = "through detach() or .data" if torch.is_grad_enabled() else "inside torch.no_grad()"
            refuse(CaptureError(f"{here()}a tensor is changed in place {where}, which would be lost: {advised(own)}"))


def _check_switched(tensor: torch.Tensor) -> None:
    """Refuses that a tensor no longer requires a gradient, or a parameter now does; others do by what is written."""
    if not tensor.requires_grad or isinstance(tensor, torch.nn.Parameter):
        own = (
            "use tensor.detach() for what is to have no gradient, and torch.func.functional_call with detached "
            "parameters for a module that one term is not to train"
        )
        what = "unfrozen" if tensor.requires_grad else "frozen or cut off in place"
        refuse(CaptureError(f"{here()}a tensor is {what} in forward, which would be lost: {advised(own)}"))


_OF_GRADIENTS = {getattr(torch.Tensor, name): name for name in ("data", "grad", "grad_fn")}
"""Attributes of a tensor, by their descriptors, that lead around what autograd records."""


def _check_attribute(func: Any) -> None:
    """Refuses that forward sets the data of a tensor, and that it asks for gradients or their functions.

    Torch itself reads them too.
    """
    access = getattr(func, "__name__", "")
    if access not in ("__get__", "__set__"):
        return
    attribute, is_set = _OF_GRADIENTS.get(func.__self__), access == "__set__"
    if attribute is None or not (is_set or (attribute != "data" and is_user_file(calling_file()))):
        return
    own = "write what it is to do with operations of the forward, or into the optimizer"
    what = f"the .{attribute} of a tensor is {'set' if is_set else 'read'} in forward"
    refuse(CaptureError(f"{here()}{what}, which would be lost: {advised(own)}"))
