"""Names for new values: short, readable, and safe to use as Python identifiers in emitted code."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Iterable

from galvatron.ir.ops.targets import parsed

RESERVED = frozenset({*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "torch", "F", "rt", "self"})
"""What no variable of emitted code may be called."""

_NO_VALUES = RESERVED | {"b", "B"}
"""What no value is called: a size that depends on the batch would be, too."""


class Names:
    """Hands out unique names: `linear`, `linear_1`, `linear_2`, …"""

    def __init__(self, taken: Iterable[str] = (), *, reserved: Iterable[str] = _NO_VALUES) -> None:
        self._taken = {*reserved, *taken}
        self._next: dict[str, int] = {}

    def fresh(self, base: str) -> str:
        """A name that was not taken before: `base` itself where possible, else `base_1` and so on."""
        count = self._next.get(base, 0)
        while True:
            name = base if count == 0 else f"{base}_{count}"
            count += 1
            if name not in self._taken:
                break
        self._next[base] = count
        self._taken.add(name)
        return name


def base_name(target: str) -> str:
    """What a result of an op is called: `aten._to_copy.default` → `to_copy`, `function.Clip` → `clip`."""
    called = parsed(target)
    return called.name.lower() if called.namespace == "function" else called.name.strip("_")
