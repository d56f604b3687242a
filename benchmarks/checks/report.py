"""What a part of the check found, as a JSON file that is complete after every row."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from common.results import conditions

from galvatron.ir.files import write_text

FORMAT, VERSION = "galvatron-gpu-check", 1


class Report:
    """The rows, failures and omissions of one part.

    Args:
        path: the file.
        part: its name.
        limit_s: for what begins later than so many seconds from now there is no time.
    """

    def __init__(self, path: Path, part: str, limit_s: float) -> None:
        self.path = path
        self._began = time.monotonic()
        self._limit_s = limit_s
        self.document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "part": part,
            "conditions": conditions(),
            "finished": False,
            "seconds": 0.0,
            "rows": [],
            "failures": [],
            "skipped": [],
        }
        self._save()

    @property
    def left_s(self) -> float:
        """Seconds that are left to the part."""
        return self._limit_s - (time.monotonic() - self._began)

    def add(self, row: Any, **facts: Any) -> None:
        """One more row: a dataclass or a dictionary."""
        self.document["rows"].append({**(asdict(row) if is_dataclass(row) else row), **facts})  # type: ignore[arg-type]  # an instance
        self._save()

    def attempt(self, name: str, function: Callable[..., Any], *args: Any, needs_s: float = 0.0) -> Any:
        """What `function(*args)` returns; None, and an entry that says why, if it fails or there is no time for it."""
        if self.left_s < needs_s:
            self.document["skipped"].append({"name": name, "needs_s": needs_s, "left_s": round(self.left_s, 1)})
            self._save()
            return None
        began = time.monotonic()
        try:
            return function(*args)
        except Exception as error:  # whatever it is, the others still run
            self.document["failures"].append(
                {
                    "name": name,
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                    "seconds": round(time.monotonic() - began, 2),
                }
            )
        self._save()
        gc.collect()  # the traceback is text by now: nothing holds the memory of what failed
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return None

    def finish(self) -> None:
        """The part has come to its end, with failures or without."""
        self.document["finished"] = True
        self._save()

    def _save(self) -> None:
        self.document["seconds"] = round(time.monotonic() - self._began, 2)
        write_text(self.path, json.dumps(self.document, indent=1) + "\n")
