"""The page in a browser: it draws, filters and listens to keys, and complains of nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from common.browser import CHROMIUM, Page, browser

from galvatron.forms import with_costs
from galvatron.ir.planned import resolve
from galvatron.reporting.page import report
from tests.ir.programs import costed
from tests.reporting.test_report import MACHINES

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine (apt install chromium)")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = with_costs(costed(), MACHINES, 48)
    first, second = (resolve(program, text, 48, 4) for text in ("pp2/m6/zbv/dp2-zero3", "pp4/m6/1f1b/dp1"))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report(program, first, MACHINES, against=second), encoding="utf-8")
    with browser() as page:
        page.open(path)
        yield page


def test_charts_are_drawn(opened: Page) -> None:
    assert opened.complaints == []
    assert opened.evaluate("document.querySelectorAll('#layers [data-run]').length") >= 4
    kinds = opened.evaluate("[...document.querySelectorAll('#time [data-kind]')].map((one) => one.dataset.kind)")
    assert {"forward", "backward", "weight"} <= set(kinds)
    assert opened.evaluate("document.querySelectorAll('#memory [data-kind=activations]').length") == 2
    assert opened.evaluate("document.querySelectorAll('#differences tbody tr').length") > 3
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_where_bars_do_not_end_at_the_predicted_time_it_is_marked(opened: Page) -> None:
    """Those of 1F1B with unequal stages, whose time is that of a formula."""
    assert opened.evaluate("document.querySelectorAll('#time [data-kind=predicted]').length") == 1
    assert "Computation by computation" in opened.evaluate("document.getElementById('time').textContent")


def test_filters_leave_what_is_asked_for(opened: Page) -> None:
    def typed(field: str, text: str) -> None:
        opened.evaluate(
            f"(() => {{ const field = document.getElementById('{field}'); field.value = '{text}';"
            " field.dispatchEvent(new Event('input')); })()"
        )

    faint = "document.querySelectorAll('#layers rect[opacity=\"0.18\"]').length"
    assert opened.evaluate(faint) == 0
    typed("filter-layers", "head")
    assert opened.evaluate(faint) > 0
    chips = "[...document.querySelectorAll('#tree code')].slice(1).map((one) => one.textContent)"
    typed("filter-tree", "zero3")
    found = [text for text in opened.evaluate(chips) if not text.startswith("pp")]
    assert found and all("zero3" in text for text in found)
    typed("filter-tree", "no such strategy")
    assert opened.evaluate("document.querySelectorAll('#tree details').length") == 0
    assert opened.complaints == []


def test_keys_switch_and_zoom(opened: Page) -> None:
    dark = "getComputedStyle(document.body).backgroundColor"
    before = opened.evaluate(dark)
    opened.press("t")
    assert opened.evaluate(dark) != before
    opened.press("4")
    assert opened.evaluate("location.hash") == "#time"
    words = "[...document.querySelectorAll('#time .chart text')].map((one) => one.textContent).join()"
    whole = opened.evaluate(words)
    opened.press("+")
    assert opened.evaluate(words) != whole
    opened.press("0")
    assert opened.evaluate(words) == whole
    opened.press("?")
    assert opened.evaluate("document.getElementById('keys').open")
    assert "[object" not in opened.evaluate("document.body.textContent")
    opened.press("?")
    assert opened.complaints == []


def test_plans_are_on_one_scale(opened: Page) -> None:
    words = "[...document.querySelectorAll('#layers text')].map((one) => one.textContent)"
    most = [text for text in opened.evaluate(words) if text.startswith("≤")]
    assert most[:2] == most[2:] and len(most) == 4


def test_memory_is_seen_where_the_budget_is_far_above_it(opened: Page) -> None:
    height = "document.querySelector('#memory .chart [data-kind=activations]').getBBox().height"
    assert "budget ↑" in opened.evaluate("document.querySelector('#memory .chart').textContent")
    assert opened.evaluate(height) > 10
    ends = "[...document.querySelectorAll('#memory table svg')].map((one) => one.getBBox().width / one.clientWidth)"
    assert 0.9 < max(opened.evaluate(ends)) <= 1


def test_all_is_reached_in_a_narrow_window(opened: Page) -> None:
    opened.call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=False)
    opened.evaluate("new Promise((done) => setTimeout(done, 200))")
    shown = (
        "[...document.querySelectorAll('nav a, .tools button, .chart svg')].map((one) => one.getBoundingClientRect())"
    )
    edges = opened.evaluate(f"{shown}.map((at) => [at.right, at.width])")
    opened.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    assert len(edges) > 12 and all(0 < width < right <= 420 for right, width in edges)
    assert opened.complaints == []


def test_code_and_differences_open(opened: Page) -> None:
    opened.evaluate("document.querySelectorAll('#passes details').forEach((one) => { one.open = true; })")
    opened.evaluate("document.getElementById('code').scrollIntoView()")
    opened.evaluate("new Promise((done) => setTimeout(done, 200))")
    assert opened.evaluate("document.querySelectorAll('#passes .added').length") > 10
    assert opened.evaluate("document.querySelectorAll('#code .k').length") > 5
    assert opened.complaints == []
