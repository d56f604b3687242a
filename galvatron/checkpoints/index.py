"""The index of a checkpoint, `index.json`: all that is not the elements of tensors."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from galvatron.checkpoints.folders import INDEX
from galvatron.checkpoints.parts import damaged
from galvatron.errors import GalvatronError
from galvatron.ir.documents import read_json, shown
from galvatron.ir.files import read_text
from galvatron.ir.json_values import with_numbers
from galvatron.tensor_file import numbers

_FORMAT, _VERSION = "galvatron checkpoint", 3
_SUM = "crc32"
"""The last member of the index: the CRC-32 of its text without this one."""

_FILE = re.compile(r"rank_\d+\.safetensors")


@dataclass(frozen=True)
class ParameterState:
    """What the optimizer keeps for one parameter, and with which options it updates it.

    Attributes:
        rule: the class of the optimizer that does: of several that are joined, one.
        options: those of its group, as JSON.
        elements: keys of tensors with a number for each element of the parameter.
        tensors: keys of other tensors.
        values: numbers, texts and the like.
    """

    rule: str
    options: dict[str, Any]
    elements: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of all that is kept."""
        return (*self.elements, *self.tensors, *self.values)


@dataclass(frozen=True)
class Index:
    """
    Attributes:
        checkpoint: a name that no other one has.
        step: as the caller of `save` counts.
        files: the ranks' files and their sizes in bytes.
        shapes: of tensors, whole, by key. Those of the optimizer that have a number for each element of a parameter
            have its shape; others that are not here have no dimensions.
        parameters: what the optimizer has for each parameter that it trains; empty where there was none.
        run: `compiled.state()`.
        metrics: figures of the last step.
        extra: what the caller of `save` gave along, which may be `with_words`.
        loaders: the place of each data loader, by its name.
    """

    checkpoint: str
    step: int
    files: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, ParameterState]
    run: dict[str, Any]
    metrics: dict[str, Any] | None
    extra: dict[str, Any]
    loaders: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """As JSON; `read` reads it back. Parameters that the optimizer treats alike, as most are, share an entry."""
        kinds: dict[str, int] = {}
        numbers = {name: kinds.setdefault(_as_json(asdict(s)), len(kinds)) for name, s in self.parameters.items()}
        found = {"format": _FORMAT, "version": _VERSION, **asdict(replace(self, parameters={}))}
        found |= {"kinds": [json.loads(kind) for kind in kinds], "parameters": numbers}
        return _as_json(found | {_SUM: _sum_of(found)}) + "\n"

    @staticmethod
    def read(folder: Path) -> Index:
        """The index of the checkpoint in a folder.

        Raises:
            GalvatronError: it is missing, damaged, or of another version.
        """
        path = folder / INDEX
        try:
            if not path.is_file():
                raise OSError("there is no such file")
            found = read_json(read_text(path), "it")
        except (OSError, ValueError, GalvatronError) as error:
            raise damaged(path, str(error)) from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise damaged(path, f"its format is not {_FORMAT!r}")
        if found.get("version") != _VERSION:
            raise damaged(
                path,
                f"it has version {shown(found.get('version'))}, but {_VERSION} is read here: use the version of "
                "Galvatron that has written it",
            )
        try:
            if found.pop(_SUM, None) != _sum_of(found):
                raise ValueError("it is not what was written (its checksum is another one)")
            kinds = dict(enumerate(map(_parameter, _typed(found["kinds"], list))))
            return Index(
                checkpoint=_typed(found["checkpoint"], str),
                step=_typed(found["step"], int),
                files={_file(name): _typed(size, int) for name, size in _members(found["files"])},
                shapes={key: numbers(shape) for key, shape in _members(found["shapes"])},
                parameters={name: kinds[_typed(number, int)] for name, number in _members(found["parameters"])},
                run=_typed(found["run"], dict),
                metrics=None if found["metrics"] is None else _typed(found["metrics"], dict),
                extra=_typed(with_numbers(found["extra"]), dict),
                loaders=_typed(found["loaders"], dict),
            )
        except KeyError as error:
            raise damaged(path, f"it has no {error}") from None
        except ValueError as error:
            raise damaged(path, str(error)) from None


def _as_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _sum_of(found: Mapping[str, Any]) -> int:
    return zlib.crc32(_as_json(found).encode())


def _parameter(value: Any) -> ParameterState:
    found = _typed(value, dict)
    return ParameterState(
        _typed(found["rule"], str),
        _typed(found["options"], dict),
        tuple(_typed(key, str) for key in _typed(found["elements"], list)),
        tuple(_typed(key, str) for key in _typed(found["tensors"], list)),
        _typed(found["values"], dict),
    )


def _file(name: str) -> str:
    if not _FILE.fullmatch(name):  # nothing outside of the folder is opened
        raise ValueError(f"{name!r} is no file of a rank")
    return name


def _members(value: Any) -> list[tuple[str, Any]]:
    return list(_typed(value, dict).items())


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"it has {value!r:.80} where a {kind.__name__} belongs")
    return value
