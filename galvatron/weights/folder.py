"""The tensors in a folder of `safetensors` files: in one file, or in several with an index that says which has what."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from galvatron.errors import GalvatronError, ParseError
from galvatron.ir.documents import read_json, shown
from galvatron.ir.files import exists, read_text
from galvatron.tensor_file import TensorFile

SUFFIX = ".safetensors"
FILE = "model" + SUFFIX
INDEX = FILE + ".index.json"
ADAPTER, ADAPTER_FILE = "adapter_config.json", "adapter_model" + SUFFIX
"""What `peft` writes of an adapter: its configuration and its weights."""


def tensors_in(path: Path) -> dict[str, TensorFile]:
    """The file that each tensor is in, by name: of one file, or of a folder with an index, with a `model.safetensors`,
    or with other such files.

    Raises:
        GalvatronError: there are none, or one of the files is damaged or missing.
    """
    if not exists(str(path)):
        raise GalvatronError(
            f"there is no {path}: weights= is a folder of {SUFFIX} files on this machine, or one such file; what is "
            "elsewhere has to be fetched before (huggingface_hub.snapshot_download)"
        )
    try:
        index = _index(path)
        if index is not None:
            return _indexed(index)
        found: dict[str, TensorFile] = {}
        for file in map(_opened, _files(path)):
            for name in file.entries:
                if name in found:
                    raise GalvatronError(
                        f"{found[name].path} and {file.path} both have {shown(name)}: name one of them"
                    )
                found[name] = file
        return found
    except OSError as error:
        raise GalvatronError(f"weights cannot be read from {path}: {error.strerror or error}") from error


def _index(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    found = sorted(path.glob(f"*{SUFFIX}.index.json"))
    if len(found) > 1:
        found = [file for file in found if file.name == INDEX]
        if not found:
            raise GalvatronError(
                f"{path} has several files with indices, and none is {INDEX}: name one file of weights"
            )
    return found[0] if found else None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / FILE).exists():
        return [path / FILE]
    if (path / ADAPTER).exists():
        raise GalvatronError(
            f"{path} has an adapter and not a model: merge it into its model (merge_and_unload of peft), "
            "save_pretrained that, and name its folder"
        )
    found = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith("."))
    if not found:
        raise GalvatronError(
            f"there are no {SUFFIX} files in {path}; other formats of weights are not read: load them with what made "
            "them, and save_pretrained the model"
        )
    return found


def _indexed(index: Path) -> dict[str, TensorFile]:
    by_file: dict[str, list[str]] = defaultdict(list)
    for name, file in _weight_map(index).items():
        by_file[file].append(name)
    found: dict[str, TensorFile] = {}
    for file_name, names in by_file.items():
        file = _opened(index.parent / file_name)
        for name in names:
            if name not in file.entries:
                raise _damaged(file.path, f"it has no {shown(name)}, which {index.name} says it has")
            found[name] = file
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        said: Any = read_json(read_text(index), "it")
    except (ParseError, ValueError) as error:
        raise _damaged(index, str(error)) from error
    found = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(found, dict):
        raise _damaged(index, "it has no weight_map")
    for file in found.values():  # nothing outside of the folder is opened
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(SUFFIX) or "\0" in file:
            raise _damaged(index, f"{shown(file)} is no name of a {SUFFIX} file beside it")
    return found


def _opened(path: Path) -> TensorFile:
    try:
        return TensorFile(path)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> GalvatronError:
    return GalvatronError(f"{path} is no whole file of weights: {why}; nothing was loaded. Fetch or write it anew")
