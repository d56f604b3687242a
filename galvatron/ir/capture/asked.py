"""What a model is told that asks whether it is traced, as by `torch.compiler.is_compiling()`: no, as in eager. And
whether there are gradients, by `torch.is_grad_enabled()`: no, where it is traced in evaluation mode.

A model may go another way while it is traced: it makes a mask that it can do without, or unrolls what is one operation.
To torch's own code, which asks as well, the answer is yes. To a model that asks for the class of a tensor whose values
are known (`capture.constants`) it is no `FakeTensor`, since they can be read as in eager; another one is.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor

from galvatron.ir.capture.evaluation import is_evaluating
from galvatron.ir.capture.sources import is_user_file

_Known = Callable[[torch.Tensor], bool]


class _Flag:
    """In the place of a flag that torch's functions return: whoever asks decides on it in code of their own."""

    def __bool__(self) -> bool:
        return not is_user_file(sys._getframe(1).f_code.co_filename)


class _Classes(types.ModuleType):
    """In the place of the class of a module that has the class of fake tensors."""

    @property
    def FakeTensor(self) -> type:
        return _stand_in if is_user_file(sys._getframe(1).f_code.co_filename) else FakeTensor


class _AsksForValues(type):
    known: _Known

    def __instancecheck__(cls, tensor: Any) -> bool:
        return isinstance(tensor, FakeTensor) and not cls.known(tensor)


class _stand_in(metaclass=_AsksForValues):
    """In the place of the class of fake tensors."""


_plain_is_grad_enabled = torch.is_grad_enabled


def _is_grad_enabled() -> bool:
    """In the place of the function of torch, whose own code goes the way of training, of which everything is known."""
    is_evaluated = is_evaluating() and is_user_file(sys._getframe(1).f_code.co_filename)
    return _plain_is_grad_enabled() and not is_evaluated


@contextmanager
def as_in_eager(known: _Known) -> Iterator[None]:
    """Inside the `with` block, which stands where forward is called, since torch sets its flags just before.

    Args:
        known: whether the values of a tensor are.
    """
    flag = _Flag()
    with (
        mock.patch.object(_AsksForValues, "known", staticmethod(known), create=True),
        _class_of(torch._subclasses),
        _class_of(fake_tensor),
        mock.patch.object(torch.compiler, "_is_compiling_flag", flag),
        mock.patch.object(torch.compiler, "_is_exporting_flag", flag),
        mock.patch.object(torch, "is_grad_enabled", _is_grad_enabled),
    ):
        yield


@contextmanager
def _class_of(module: types.ModuleType) -> Iterator[None]:
    """Inside the `with` block a module gives the user's code another class of fake tensors."""
    plain = module.__class__
    module.__class__ = _Classes
    try:
        yield
    finally:
        module.__class__ = plain
