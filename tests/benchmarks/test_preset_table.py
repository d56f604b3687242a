"""The tables of docs/clusters.md are those of the records."""

from __future__ import annotations

from preset_table import DOCUMENT, written


def test_the_document_has_the_tables_of_the_records() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert written(document) == document, "run benchmarks/preset_table.py"
