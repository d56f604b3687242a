"""The names of the IR as Python: identifiers, string literals and comments that no name can break out of."""

from __future__ import annotations

import keyword
import re
from collections.abc import Hashable, Iterable

from galvatron.errors import GalvatronError
from galvatron.ir.names import RESERVED

_ATTRIBUTE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)


def identifier(name: str) -> str:
    """The nearest identifier: `q_proj.weight` → `q_proj_weight`, `decoder@dp1-tp2` → `decoder_dp1_tp2`."""
    text = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    return f"_{text}" if text[0].isdigit() else text


def literal(text: str) -> str:
    """A string literal on one line: plain names as they are, in double quotes."""
    return f'"{escaped(text)}"'


def escaped(text: str) -> str:
    """What a literal has between its quotes, one or three, and a docstring or comment anywhere."""
    return "".join(c if c.isprintable() and c not in _ESCAPES else _escape(c) for c in text)


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(character: str) -> str:
    code = ord(character)
    return _ESCAPES.get(character) or (
        f"\\x{code:02x}" if code < 1 << 8 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
    )


def attribute(name: str) -> str:
    """The name of something in torch or the runtime, or of an argument, which stands in the text as it is.

    Raises:
        GalvatronError: it is none.
    """
    if not _ATTRIBUTE.fullmatch(name) or any(map(keyword.iskeyword, name.split("."))):
        raise GalvatronError(f"{name!r} cannot be written in Python: it is no name of an op, a constant or an argument")
    return name


class Scope:
    """The identifiers of one Python scope: gives each IR name one, never the same one twice.

    What has no name of the IR is known by a tuple, such as `("axis", "tp")`: no name can be mistaken for it.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._names: dict[Hashable, str] = {}

    def __getitem__(self, name: Hashable) -> str:
        """The identifier that `bind` gave to `name`."""
        return self._names[name]

    def __contains__(self, name: Hashable) -> bool:
        return name in self._names

    def is_free(self, wish: str) -> bool:
        """Whether `bind` would give this very identifier."""
        return identifier(wish) not in self._taken | RESERVED

    def bind(self, name: Hashable, wish: str = "") -> str:
        """Gives `name` the identifier nearest to `wish` (default: to the name itself) that is still free."""
        base = identifier(wish or str(name))
        base = f"{base}_" if base in RESERVED else base
        found, count = base, 1
        while found in self._taken:
            count += 1
            found = f"{base}_{count}"
        self._taken.add(found)
        self._names[name] = found
        return found

    def bind_one_of(self, name: str, *wishes: str) -> str:
        """As `bind`, to the first wish that is still free as it is; to the name itself where none is."""
        return self.bind(name, next(filter(self.is_free, wishes), name))

    def rebind(self, name: str, wish: str) -> str:
        """Gives `name` the identifier `wish` from here on, if that is still free; the one it has now otherwise."""
        if self.is_free(wish):
            self._names[name] = wish
            self._taken.add(wish)
        return self._names[name]


def shortest_suffixes(names: Iterable[str], components: int = 2) -> dict[str, str]:
    """Each dotted name cut to its last `components` parts, or as many more as keep all of them apart.

    `model.layers.0.self_attn.q_proj.weight` → `q_proj.weight`.
    """
    all_names = list(dict.fromkeys(names))

    def suffix(name: str, count: int) -> str:
        return ".".join(name.split(".")[-count:])

    shortened: dict[str, str] = {}
    for name in all_names:
        count = components
        while count <= name.count(".") and any(suffix(o, count) == suffix(name, count) for o in all_names if o != name):
            count += 1
        shortened[name] = suffix(name, count)
    return shortened
