"""Whether the user's model still is the one that was compiled: what happens to it later does not reach the program."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from galvatron.errors import GalvatronError


class ModelWatch:
    """Notices that a model was changed since it was compiled. It keeps nothing of the model alive, and nothing is
    noticed of a model, or of a part of one, that is gone or was moved to another device.

    Args:
        read: the names of the parameters and buffers that the program reads.
    """

    def __init__(self, model: nn.Module, read: Iterable[str]) -> None:
        self._rows = [_Row(name, module) for name, module in model.named_modules()]
        self._read = frozenset(read)
        self.values_taken()

    def values_taken(self) -> None:
        """The program has been given values: those that the model has now are not missed."""
        for row in self._rows:
            row.look(self._read)

    def check(self, *, training: bool) -> None:
        """Costs some 50 nanoseconds for each module, and 200 for each tensor that the program reads.

        Args:
            training: whether it matters if modules are in training or evaluation mode, and what changes gradients.

        Raises:
            GalvatronError: something was changed that the program does not see; it says what.
        """
        for row in self._rows:
            module = row.module()
            if module is None:
                continue
            if training and module.training is not row.training:
                raise _switched(row.name, module)
            if training and (module._backward_hooks or module._backward_pre_hooks):
                raise _hooked(f"module {row.name!r}" if row.name else "the model")
            for kind, marks in row.marks:
                table = getattr(module, kind)
                for attribute, seen, requires_grad, version in marks:
                    tensor = table.get(attribute)
                    if (
                        training
                        and tensor is not None
                        and (tensor._backward_hooks or tensor._post_accumulate_grad_hooks)
                    ):
                        raise _hooked(f"{_KINDS[kind]} {_joined(row.name, attribute)!r}")
                    if tensor is None or (
                        tensor is seen() and tensor._version == version and tensor.requires_grad is requires_grad
                    ):
                        continue
                    if change := _change(tensor, seen(), requires_grad):
                        raise GalvatronError(f"{_KINDS[kind]} {_joined(row.name, attribute)!r} {change}")


_KINDS = {"_parameters": "parameter", "_buffers": "buffer"}
"""Where a module has its own tensors, and what they are called."""

_Mark = tuple[str, "weakref.ref[Tensor]", bool, int]
"""Name, tensor, whether it requires a gradient, and the count of its changes in place."""


class _Row:
    """What a module was like."""

    __slots__ = ("marks", "module", "name", "training")

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = weakref.ref(module)
        self.training = module.training
        self.marks: list[tuple[str, list[_Mark]]] = []

    def look(self, read: frozenset[str]) -> None:
        """Take what the module's own tensors are like now as what they should be like."""
        module = self.module()
        if module is not None:
            before = dict(self.marks)
            marks = {kind: self._marks_of(getattr(module, kind), read, before.get(kind, [])) for kind in _KINDS}
            self.marks = [(kind, found) for kind, found in marks.items() if found]

    def _marks_of(self, table: Mapping[str, Tensor | None], read: frozenset[str], before: list[_Mark]) -> list[_Mark]:
        trained = {attribute: requires_grad for attribute, _, requires_grad, _ in before}
        return [
            (attribute, weakref.ref(tensor), trained.get(attribute, tensor.requires_grad), tensor._version)
            for attribute, tensor in table.items()
            # Inference tensors do not count their changes.
            if tensor is not None and _joined(self.name, attribute) in read and not tensor.is_inference()
        ]


def _joined(path: str, attribute: str) -> str:
    return f"{path}.{attribute}" if path else attribute


def _switched(name: str, module: nn.Module) -> GalvatronError:
    who = f"module {name!r}" if name else "the model"
    now, back = ("training", "eval") if module.training else ("evaluation", "train")
    return GalvatronError(
        f"{who} was switched to {now} mode after the model was compiled, which the compiled program does not see: "
        f"switch it back with .{back}(), or compile again (eval_step drops nothing out in either mode)"
    )


def _hooked(who: str) -> GalvatronError:
    return GalvatronError(
        f"{who} was given a hook on its backward after the model was compiled, which the compiled program does not "
        "see: remove it, and write what it does into the forward or the optimizer"
    )


def _change(tensor: Tensor, seen: Tensor | None, requires_grad: bool) -> str:
    """What has become of a tensor; nothing if it was only moved away."""
    if tensor.is_meta:
        return ""
    if tensor.requires_grad is not requires_grad:
        return (
            f"was {'frozen' if requires_grad else 'unfrozen'} after the model was compiled, which the compiled program "
            f"does not see: set its requires_grad back to {requires_grad}, or compile again"
        )
    return (
        f"was {'changed in place' if tensor is seen else 'replaced'} after the model was compiled, and the compiled "
        "program has values of its own: bring yours in with compiled.load_full_state_dict(model.state_dict()), compile "
        "again, or work on a copy of the model"
    )
