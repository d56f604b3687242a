"""What a model looks like in files: which tensors under which names, and the descriptions that lie beside them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError
from galvatron.tensor_file import Entry, has_name
from galvatron.weights.adapters import NotSavedError, adapter_of
from galvatron.weights.folder import ADAPTER_FILE, FILE, SUFFIX
from galvatron.weights.names import declared, kept_name


@dataclass(frozen=True)
class ModelForm:
    """How a model is saved, whatever becomes of it later.

    Attributes:
        entries: its tensors in the order of its `state_dict`, each under one name.
        element_type: that of its first parameter with floating numbers.
        parameter_count: the number of elements of all parameters.
        architecture: the name of its class.
        descriptions: what it has of `config` and `generation_config`, as `transformers` models do; copies. Of an
            adapter, its own.
        sources: the names of tensors in the model, where those in files are others.
        file: the name of the file, where there is one.
        refused: why it cannot be saved, if so.
    """

    entries: tuple[Entry, ...]
    element_type: torch.dtype | None
    parameter_count: int
    architecture: str
    descriptions: tuple[Any, ...]
    sources: Mapping[str, str] = field(default_factory=dict)
    file: str = FILE
    refused: str = ""

    @staticmethod
    def of(model: nn.Module) -> ModelForm:
        """That of a model as it is now; around which there are adapters, that of the active one.

        Raises:
            GalvatronError: see `adapter_of`.
        """
        names: dict[int, list[str]] = defaultdict(list)
        state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
        for name, value in state.items():
            names[id(value)].append(name)
        left = set(declared(model, "_keys_to_ignore_on_save"))
        for same in names.values():
            if len(same) > 1:
                left |= {*same} - {kept_name(same, model)}
        adapter, refused = None, ""
        try:
            adapter = adapter_of(model)
        except NotSavedError as error:
            refused = str(error)
        types = (p.dtype for p in model.parameters() if p.is_floating_point())
        if adapter is not None:
            entries = [Entry(n, tuple(state[own].shape), state[own].dtype) for n, own in adapter.tensors.items()]
            count = sum(state[own].numel() for own in adapter.tensors.values())
            return ModelForm(
                tuple(entries),
                next(types, None),
                count,
                type(model).__name__,
                (adapter,),
                adapter.tensors,
                ADAPTER_FILE,
            )
        return ModelForm(
            tuple(Entry(name, tuple(v.shape), v.dtype) for name, v in state.items() if name not in left),
            next(types, None),
            sum(p.numel() for p in model.parameters()),
            type(model).__name__,
            tuple(_descriptions(model)),
            refused=refused,
        )

    def in_type(self, dtype: torch.dtype | None) -> ModelForm:
        """The same with floating numbers of a type; None, as they are.

        Raises:
            GalvatronError: files have no such type, or the model cannot be saved.
        """
        if self.refused:
            raise GalvatronError(self.refused)
        form = self
        if dtype is not None:
            entries = [replace(e, dtype=dtype) if e.dtype.is_floating_point else e for e in self.entries]
            form = replace(self, entries=tuple(entries), element_type=dtype)
        for entry in form.entries:
            if not has_name(entry.dtype):
                raise GalvatronError(
                    f"{entry.name!r} has element type {entry.dtype}, which files of weights cannot have"
                )
        return form

    def describe(self, folder: Path) -> None:
        """Writes what lies beside the tensors.

        Raises:
            GalvatronError: a part of it says itself that it cannot be written.
        """
        for description in self.descriptions:
            if hasattr(description, "architectures"):
                description = copy.deepcopy(description)
                description.architectures = [self.architecture]
                if self.element_type is not None:
                    description.dtype = str(self.element_type).removeprefix("torch.")
            try:
                description.save_pretrained(folder)
            except ValueError as error:
                raise GalvatronError(
                    f"the model's {type(description).__name__} cannot be saved: {error}; mend it before the model is "
                    "compiled"
                ) from error


def _descriptions(model: nn.Module) -> Iterator[Any]:
    can_generate = getattr(model, "can_generate", None)
    generates = callable(can_generate) and can_generate()
    for attribute in ("config", "generation_config") if generates else ("config",):
        found = getattr(model, attribute, None)
        if callable(getattr(found, "save_pretrained", None)):
            yield copy.deepcopy(found)


def sharded(form: ModelForm, most_bytes: int) -> dict[str, list[Entry]]:
    """File name → its tensors: in order as many as have `most_bytes` together; one that has more, alone. An adapter has
    one file."""
    entries = form.entries
    if form.file != FILE:
        return {form.file: list(entries)}
    files: list[list[Entry]] = []
    run: list[Entry] = []
    for entry in entries:
        if entry.nbytes > most_bytes:
            files.append([entry])
            continue
        if run and sum(e.nbytes for e in run) + entry.nbytes > most_bytes:
            files.append(run)
            run = []
        run.append(entry)
    if run or not files:
        files.append(run)
    if len(files) == 1:
        return {FILE: files[0]}
    stem, count = FILE.removesuffix(SUFFIX), len(files)
    return {f"{stem}-{i:05d}-of-{count:05d}{SUFFIX}": own for i, own in enumerate(files, 1)}
