"""Imports of the libraries that models come from."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

_UNBUILT = ("nms", "qnms")
"""Operators that torchvision describes to torch while it is imported, whether its compiled part could be loaded or not.

Its distribution is compiled for torch with CUDA and does not load beside the build for the CPU. The models here use
none of its operators.
"""


@cache
def library(name: str) -> Any:
    """The module of this name.

    Raises:
        ImportError: it is not installed.
    """
    _declare_operators()
    return importlib.import_module(name)


@cache
def _declare_operators() -> Any:
    """Lets torchvision be imported where its compiled operators cannot be; what is returned keeps the declarations."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return None
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        declared = torch.library.Library("torchvision", "DEF")
        for name in _UNBUILT:
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return declared
    return None
