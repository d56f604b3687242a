"""The tensors in files that are those of a model: found, compared with it, and read where a rank needs them."""

from __future__ import annotations

import logging
import os
import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.ir.files import check_path
from galvatron.tensor_file import Entry
from galvatron.weights.adapters import copied, is_adapted, names_in_adapters
from galvatron.weights.folder import tensors_in
from galvatron.weights.names import declared, listed, matched, without

_LOG = logging.getLogger("galvatron")


class Weights:
    """Files of weights that fit a model. Only their headers have been read.

    Args:
        path: a folder, or one file.
        is_partial: the files may lack tensors of the model, and have others.

    Attributes:
        given: by every name of the model for it, what the files have: see `rt.ModelState`.

    Raises:
        GalvatronError: there are none, or they are damaged, or they do not fit the model.
    """

    def __init__(self, model: nn.Module, path: Path, *, is_partial: bool) -> None:
        self._path = path
        self._files = tensors_in(path)
        self._tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._tensors.update(model.named_buffers(remove_duplicate=False))
        persistent = [name for name in model.state_dict(keep_vars=True) if name in self._tensors]
        known = matched(self._files, self._tensors, is_adapted=is_adapted(model))
        # What the model has and does not save it computes itself.
        saved = set(persistent)
        self._names = {source: name for source, name in known.items() if name in saved}
        self._sources: dict[int, list[str]] = defaultdict(list)
        for source, name in self._names.items():
            self._sources[id(self._tensors[name])].append(source)
        for name, original in copied(model).items():
            if (sources := self._sources.get(id(self._tensors[original]))) is not None:
                self._sources[id(self._tensors[name])] = sources
        self._check(model, persistent, [name for name in self._files if name not in known], is_partial)
        self.given = {
            name: self._reading(self._sources[id(tensor)][0])
            for name, tensor in self._tensors.items()
            if id(tensor) in self._sources
        }

    def facts(self) -> dict[str, str]:
        """What of the files must be equal on all ranks, in words."""
        entries = sorted(str(self._entry(name)) for name in self._names)
        return {"what the files of weights have": f"digest {zlib.crc32(repr(entries).encode()):08x}"}

    def check_ties(self) -> None:
        """Reads what the files have under several names of one tensor of the model.

        Raises:
            GalvatronError: these are not equal.
        """
        for names in self._sources.values():
            for other in names[1:]:
                with self._reading(names[0])() as first, self._reading(other)() as second:
                    if not torch.equal(first, second):
                        raise GalvatronError(
                            f"{names[0]!r} and {other!r} are one tensor of the model, but have unlike values in "
                            f"{self._path}: build the model without that tie (often tie_word_embeddings=False in its "
                            "config); nothing was loaded"
                        )

    def _entry(self, source: str) -> Entry:
        return self._files[source].entries[source]

    def _reading(self, source: str) -> rt.Source:
        return partial(self._files[source].reading, source)

    def _check(self, model: nn.Module, persistent: Sequence[str], unknown: Sequence[str], is_partial: bool) -> None:
        """Whether the files have all of the model, and nothing else."""
        adapted = names_in_adapters(model)  # which keep the values that they have
        missing = [name for name in persistent if id(self._tensors[name]) not in self._sources and name not in adapted]
        found = {
            "lack": without(missing, declared(model, "_keys_to_ignore_on_load_missing")),
            "have besides": without(unknown, declared(model, "_keys_to_ignore_on_load_unexpected")),
            "have otherwise": [text for source in self._names if (text := self._difference(source))],
        }
        if not any(found.values()):
            return
        text = "; ".join(f"they {how} {listed(names)}" for how, names in found.items() if names)
        if is_partial and not found["have otherwise"]:
            _LOG.warning("the files in %s are not those of the model: %s", self._path, text)
            return
        raise GalvatronError(
            f"the files in {self._path} are not those of the model: {text}; nothing was loaded. Build the model from "
            "the config that belongs to them; partial_weights=True initialises what they lack and leaves out what they "
            "have besides"
        )

    def _difference(self, source: str) -> str:
        entry, own = self._entry(source), self._tensors[self._names[source]]
        if entry.shape != tuple(own.shape):
            return f"{source} has shape {entry.shape} in the files and {tuple(own.shape)} in the model"
        if entry.dtype != own.dtype and (_kind(entry.dtype) != _kind(own.dtype) or _is_scaled(entry.dtype)):
            return f"{source} has element type {entry.dtype} in the files and {own.dtype} in the model"
        return ""


def _kind(dtype: torch.dtype) -> tuple[bool, bool, bool]:
    return dtype.is_floating_point, dtype.is_complex, dtype == torch.bool


def _is_scaled(dtype: torch.dtype) -> bool:
    """Whether numbers of this type mean something only with a scale beside them."""
    return dtype.is_floating_point and dtype.itemsize == 1


def check_weights(weights: Any, *, is_partial: bool) -> None:
    """
    Raises:
        GalvatronError: they are not those of `compile`.
    """
    if weights is not None:
        check_path(weights, "weights are in a directory")
    if weights is None and is_partial:
        raise GalvatronError("partial_weights is about the files of weights=, which was not given")


def found_for(world: rt.World, model: nn.Module, weights: str | os.PathLike[str], *, is_partial: bool) -> Weights:
    """The files of weights for a model, alike on every rank. Collective.

    Raises:
        GalvatronError: see `Weights`.
    """
    with rt.together(world, "compile"):
        found = Weights(model, Path(weights), is_partial=is_partial)
        if world.rank == 0:
            found.check_ties()
    rt.agree(world, "compile", facts=found.facts())
    return found
