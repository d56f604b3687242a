"""Generated text as a Python module that tracebacks, `inspect` and breakpoints can see the source of."""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import os
import sys
from pathlib import Path
from types import ModuleType

from galvatron.ir.files import cache_directory, write_text


def source_directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where generated modules are written: under `cache_dir`, or the user's cache directory."""
    return cache_directory(cache_dir) / "generated"


def load_module(file_name: str, text: str, cache_dir: str | os.PathLike[str] | None = None) -> ModuleType:
    """Executes generated text as a module.

    The text is first written to a file of its own, in a directory named after its content, so that ranks of one machine
    can write it at the same time and a breakpoint set in it stays where it is. Where no file can be written the text
    lives in memory, and tracebacks still show it.

    Args:
        file_name: `stage_0.py`; the module is named after it.
        text: the source.
        cache_dir: see `source_directory`.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    stem = Path(file_name).stem
    path = source_directory(cache_dir) / digest / file_name
    try:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
        location = str(path)
    except OSError:
        location = f"<galvatron {digest} {file_name}>"
        linecache.cache[location] = (len(text), None, text.splitlines(keepends=True), location)
    name = f"galvatron_generated_{digest}_{stem}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=location)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = location
    sys.modules[name] = module
    exec(compile(text, location, "exec"), module.__dict__)
    return module
