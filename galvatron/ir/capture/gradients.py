"""What is trained: the parameters of the model, and nothing that takes part in its forward or loss besides."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._functorch import is_gradtrackingtensor
from torch.overrides import TorchFunctionMode

from galvatron.errors import CaptureError
from galvatron.ir.capture.tracing import here, refuse_gradient, tensors_in


class OnlyRegisteredAreTrained(TorchFunctionMode):
    """Refuses gradients of tensors that the model does not own: torch would detach them and take them for constants.

    While torch traces, the model's own parameters are fake; a real tensor comes from a closure, a global, a plain list
    or an attribute that is no parameter.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in(result)):
            for tensor in tensors_in((args, kwargs)):
                if tensor.requires_grad and type(tensor) in (torch.Tensor, torch.nn.Parameter):
                    if is_gradtrackingtensor(tensor):  # of torch.func
                        refuse_gradient()
                    raise CaptureError(
                        f"{here()}a {'parameter' if isinstance(tensor, torch.nn.Parameter) else 'tensor'} of shape "
                        f"{tuple(tensor.shape)} that requires a gradient is not among the model's parameters, so it "
                        "would not be trained: make it a parameter of the model, or what owns it (such as a loss) a "
                        "submodule of the model; if it is not to be trained, use tensor.detach()"
                    )
        return result
