"""Batches of a data set for a compiled model, of which every rank loads the samples that it reads (`docs/data.md`)."""

from galvatron.data.joining import ONE_LENGTH, whole_shapes
from galvatron.data.loader import Loader, Serves
from galvatron.data.loaders import Loaders
from galvatron.data.options import Options

__all__ = ["ONE_LENGTH", "Loader", "Loaders", "Options", "Serves", "whole_shapes"]
