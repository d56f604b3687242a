"""What a model is told that asks whether it is traced, as by `torch.compiler.is_compiling()`: no, as in eager.

A model may go another way while it is traced: it makes a mask that it can do without, or unrolls what is one operation.
To torch's own code, which asks as well, the answer is yes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from galvatron.ir.capture.sources import is_user_file


class _Flag:
    """In the place of a flag that torch's functions return: whoever asks decides on it in code of their own."""

    def __bool__(self) -> bool:
        return not is_user_file(sys._getframe(1).f_code.co_filename)


@contextmanager
def as_in_eager() -> Iterator[None]:
    """Inside the `with` block, which stands where forward is called, since torch sets its flags just before."""
    flag = _Flag()
    with (
        mock.patch.object(torch.compiler, "_is_compiling_flag", flag),
        mock.patch.object(torch.compiler, "_is_exporting_flag", flag),
    ):
        yield
