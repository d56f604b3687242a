"""What printed programs are made of: lines that know which part they show, in columns, regular stretches as loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count

from galvatron.ir.graph import Source
from galvatron.ir.text.loops import Loop, rolled
from galvatron.ir.text.names import bare_or_quoted, quote, unmark

_COLUMN_WIDTH = 64

Locus = tuple[Hashable, ...]
"""Which part of a program a line shows: `("layer", "decoder_3")`, `("op", class, index)` …"""


@dataclass(frozen=True)
class Line:
    """One printed line, and what it shows."""

    text: str
    locus: Locus = ()


@dataclass
class File:
    """A file of the model, as a text calls it, and the lines of it that ops come from."""

    label: str
    lines: dict[int, str] = field(default_factory=dict)


@dataclass
class Writer:
    """Options of one printing, and the files met so far, by path and number.

    A lenient writer never fails (it prints invalid programs for the verifier's messages) and rolls nothing into loops.
    With `locations` each op has its line of the model beside it.
    """

    comments: bool = True
    lenient: bool = False
    locations: bool = False
    files: dict[tuple[str, int], File] = field(default_factory=dict)
    _of: dict[tuple[str, int, str], File] = field(default_factory=dict)
    _codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    _labels: set[str] = field(default_factory=set)

    def file_of(self, source: Source) -> File:
        """The file of a source, which has the line of it from now on. Of one that was edited meanwhile, so that a line
        has several codes, there are several.
        """
        place = source.file, source.line, source.code
        if place not in self._of:
            number = self._codes[place[:2]]
            self._codes[place[:2]] += 1
            if (source.file, number) not in self.files:
                self.files[source.file, number] = File(self._label(source.file, number))
            self._of[place] = self.files[source.file, number]
            self._of[place].lines[source.line] = source.code
        return self._of[place]

    def _label(self, path: str, number: int) -> str:
        """As much of the end of a path as tells it from those before, or all of it and a number."""
        parts = path.split("/")
        ends = ("/".join(parts[-size:]) for size in range(1, len(parts) + 1))
        numbered = (f"{path} ({n})" for n in count(number + 1))
        candidates = numbered if number else chain(ends, numbered)
        label = next(one for one in candidates if one and one not in self._labels)
        self._labels.add(label)
        return label

    def note(self, text: str) -> str:
        return f"  // {text}" if self.comments else ""


def joined(lines: Iterable[Line]) -> str:
    """Lines as one text."""
    return unmark("\n".join(line.text.rstrip() for line in lines)) + "\n"


def source_lines(w: Writer) -> list[Line]:
    """The table of files and their lines; empty (or blank, then the table)."""
    if not w.files or w.lenient:
        return []
    lines = [Line(""), Line("sources {")]
    for (path, _), file in sorted(w.files.items()):
        lines.append(Line(f"  file {unmark(bare_or_quoted(file.label))} {quote(path)} {{"))
        lines += [Line(f"    {number:>5} {quote(code)}") for number, code in sorted(file.lines.items())]
        lines.append(Line("  }"))
    return [*lines, Line("}")]


def width(texts: Iterable[str], limit: int) -> int:
    """The width of a column: that of its widest text, but for texts so wide that they would push all others apart."""
    lengths = sorted(map(_length, texts))
    usual = min(limit, 3 * lengths[len(lengths) // 2] // 2 + 6) if lengths else 0
    return max((length for length in lengths if length <= usual), default=0)


def _length(text: str) -> int:
    return len(text) - text.count("\x00")


def pad(text: str, width: int) -> str:
    return text + " " * (width - _length(text))


def rolled_lines(items: Sequence[str], loci: Sequence[Locus], w: Writer, indent: str = "") -> list[Line]:
    """Items as lines, regular stretches as loops, tabs aligned.

    An item may be several lines, of which the first carries the locus.
    """
    lines: list[Line] = []

    def emit(item: str, locus: Locus, margin: str) -> None:
        first, *rest = item.split("\n")
        lines.append(Line(margin + first, locus))
        lines.extend(Line(margin + part) for part in rest)

    at = 0
    for entry in items if w.lenient else rolled(items):
        if isinstance(entry, Loop):
            lines.append(Line(f"{indent}for i in {entry.first}..{entry.last} {{{w.note(f'×{entry.count}')}"))
            for item in entry.body:
                emit(item, (), indent + "  ")
            lines.append(Line(indent + "}"))
            at += entry.count * len(entry.body)
        else:
            emit(entry, loci[at], indent)
            at += 1
    return _aligned(lines)


def _aligned(lines: Sequence[Line]) -> list[Line]:
    """Lines with their tab-separated columns padded to equal widths."""
    rows = [line.text.split("\t") for line in lines]
    for column in range(max((len(row) for row in rows), default=1) - 1):
        own = [row for row in rows if len(row) > column + 1]
        wide = width((row[column] for row in own), _COLUMN_WIDTH)
        for row in own:
            row[column] = pad(row[column], wide)
    return [Line(" ".join(row), line.locus) for row, line in zip(rows, lines, strict=True)]
