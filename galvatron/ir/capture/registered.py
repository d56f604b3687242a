"""What torch looks up and registers of all its operators in each export, done no more often than it matters.

This takes longer than the tracing of a small model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from unittest import mock

import torch
from torch._export import utils
from torch.export import exported_program


@contextmanager
def few_registrations(device: torch.device) -> Iterator[None]:
    """Inside the `with` block operators are listed once, not once per library, and kept whole where they may run only:
    on the device of the model, on CPU and GPU, and where nothing has values."""
    places = {"CPU", "CUDA", "Meta", torch._C._dispatch_key_for_device(device.type)}
    with ExitStack() as patches:  # the names are torch's own and differ between versions
        if hasattr(utils, "_materialize_cpp_cia_ops"):
            patches.enter_context(
                mock.patch.object(utils, "_materialize_cpp_cia_ops", cache(utils._materialize_cpp_cia_ops))
            )
        for name in ("_AUTOGRAD_ALIAS_BACKEND_KEYS_TO_OVERRIDE", "_BACKEND_KEYS_TO_OVERRIDE"):
            keys = [key for key in getattr(exported_program, name, ()) if key.name.removeprefix("Autograd") in places]
            if keys:
                patches.enter_context(mock.patch.object(exported_program, name, keys))
        yield
