"""Random plans that once were wrong stay right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.cases import FOLDER, Case
from tests.parity.harness import check_program, planned


@pytest.mark.one_in(2)
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.gir")), ids=lambda path: path.stem)
def test_kept_case_equals_eager(path: Path) -> None:
    case = Case.read(path)
    check_program(case.model, case.program, case.batch)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("ignored", [(1, 4), ()])
def test_a_case_reads_back(ignored: tuple[int, ...], tmp_path: Path) -> None:
    case = Case("random-3", planned("random-3", "pp2/m4/zbv/dp2"), 7, ignored)
    (tmp_path / "case.gir").write_text(case.text)
    assert Case.read(tmp_path / "case.gir") == case
