"""Code that others wrote and passes call: whatever it raises or gives becomes an error that names it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from galvatron.errors import GalvatronError, PassError


def is_ours(thing: object) -> bool:
    """Whether code is a part of this package, so that what it raises is a bug of it."""
    module = getattr(thing if hasattr(thing, "__qualname__") else type(thing), "__module__", None) or ""
    return module.partition(".")[0] == "galvatron"


@contextmanager
def code_of_others(what: str, passing: Sequence[BaseException] = ()) -> Iterator[None]:
    """Around a call of code that others wrote.

    Args:
        what: is called, as in "`what` failed: ...".
        passing: errors that others raised which it called in turn.

    Raises:
        PassError: it raises anything but a `GalvatronError`, or leaves the process.
    """
    try:
        yield
    except (GalvatronError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if any(error is one for one in passing):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        raise PassError(f"{what} failed: {type(error).__name__}: {error} (at {where})") from error
