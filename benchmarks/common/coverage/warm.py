"""Imports what most rows need, so that the processes forked from the one that imported this start at once."""

import contextlib

import common.coverage.row  # noqa: F401
import galvatron.passes.pipeline  # noqa: F401
from common.architectures.libraries import library

for name in ("transformers.modeling_utils", "torchvision.models", "timm", "diffusers.models.modeling_utils"):
    with contextlib.suppress(ImportError):
        library(name)
