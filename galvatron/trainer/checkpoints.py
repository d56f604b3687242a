"""The folders that `transformers.Trainer` makes of a run, with the state of a compiled program in them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

STATE = "galvatron"
"""The folder in a checkpoint that `CompiledModel.save` writes."""

_NAME = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
"""The files of a model's values; those of an adapter are one."""


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The last checkpoint from which a run can go on, for `train(resume_from_checkpoint=...)`; None, there is none yet.

    One that a crash left unfinished, or with a model alone (`save_only_model`), is passed over.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    named = {path: _NAME.fullmatch(path.name) for path in folder.iterdir()}
    numbered = {path: int(match.group(1)) for path, match in named.items() if match}
    latest_first = sorted(numbered, key=numbered.__getitem__, reverse=True)
    return next((str(path) for path in latest_first if is_complete(path)), None)


def is_complete(checkpoint: Path) -> bool:
    """Whether a run can go on from there: `Trainer` writes its own state when all else is there."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (checkpoint / STATE).is_dir()


def put_beside(exported: Path, folder: Path) -> None:
    """Moves the files of an exported model into a folder that may have other files, in place of those of a model that
    was there, which go last."""
    names = {path.name for path in exported.iterdir()}
    old = [path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name) and path.name not in names]
    for path in sorted(exported.iterdir()):
        path.replace(folder / path.name)
    for path in old if any(map(_WEIGHTS.fullmatch, names)) else ():
        path.unlink()
    shutil.rmtree(exported)
