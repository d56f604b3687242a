"""Graphs of programs, and pictures of them."""

from __future__ import annotations

import html.parser
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from xml.etree import ElementTree

import networkx
import pytest
from common.browser import CHROMIUM, Page, browser

import galvatron
from galvatron.errors import GalvatronError
from galvatron.inspection.pictures.boxes import boxes, boxes_of
from galvatron.inspection.pictures.dot import dot
from galvatron.inspection.pictures.layout import GAP, arranged
from galvatron.inspection.pictures.page import page
from galvatron.inspection.pictures.svg import svg
from tests.ir.programs import FORMS, captured, clustered, costed, staged

HOSTILE = ('"]; evil [label="', "</title><script>alert(1)</script>", "a\\", "new\nline\x00\u202e", "%s {0} &amp;")


@pytest.mark.parametrize("form", FORMS)
def test_edges_are_what_layers_and_ops_read(form: str) -> None:
    program = FORMS[form]()
    found = galvatron.graph(program)
    assert networkx.is_directed_acyclic_graph(found)
    for layer in program.all_layers:
        made = {
            value for before in found.predecessors(layer.name) for value in found.edges[before, layer.name]["values"]
        }
        assert made == set(layer.operands)
        assert found.nodes[layer.name]["kind"] == str(layer.kind)
    assert found.in_degree(("result", "loss")) == 1


def test_ops_of_a_layer_are_nodes_with_their_figures() -> None:
    found = galvatron.graph(clustered(), layer="block_1")
    (block,) = (cls for cls in clustered().classes if cls.name == "block")
    ops = {node: data for node, data in found.nodes(data=True) if data["kind"] == "op"}
    assert list(ops) == [op.results[0].name for op in block.graph.ops]
    assert ops["up"]["source"] == "/home/user/net.py:12" and ops["up"]["forward_flop"] > 0
    assert set(found.predecessors("up")) == {("input", "x"), ("state", "up.weight")}
    assert set(galvatron.graph(captured(), layer="graph")) >= set(captured().required_graph.producers)
    with pytest.raises(GalvatronError, match="did you mean 'block_1'"):
        galvatron.graph(clustered(), layer="block_11")


def test_equal_layers_are_one_box() -> None:
    shown = boxes(galvatron.graph(costed()))
    (run,) = (box for box in boxes_of(shown).values() if "…" in box.lines[0])
    assert run.lines[:2] == ("block_0 … block_3", "4 layers of block")
    assert networkx.is_directed_acyclic_graph(shown)
    lines = [box.lines for box in boxes_of(boxes(galvatron.graph(staged()))).values()]
    assert sum("stage 1" in line[1] for line in lines if len(line) > 1) == len(staged().stages[1].layers)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_below_what_they_read_and_beside_each_other(seed: int) -> None:
    chance = random.Random(seed)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(30))
    graph.add_edges_from((a, b) for a in range(30) for b in range(a + 1, 30) if chance.random() < 0.07)
    widths = {node: chance.uniform(10, 90) for node in graph}
    found = arranged(graph, widths)
    assert all(found.rows[first] < found.rows[second] for first, second in graph.edges)
    for row in range(found.height):
        own = sorted((found.centres[n], widths[n]) for n in graph if found.rows[n] == row)
        assert all(
            b - a >= (wide + wider) / 2 + GAP - 1e-6 for (a, wide), (b, wider) in zip(own, own[1:], strict=False)
        )
    for (first, second), way in found.ways.items():
        assert [row for row, _ in way] == list(range(found.rows[first], found.rows[second] + 1))
        assert way[0][1] == found.centres[first] and way[-1][1] == found.centres[second]
    assert min(found.centres[node] - widths[node] / 2 for node in graph) >= -1e-6


def hostile() -> networkx.DiGraph:
    program = costed(len(HOSTILE))
    named = dict(zip((f"block_{i}" for i in range(len(HOSTILE))), HOSTILE, strict=True))
    layers = tuple(replace(layer, name=named.get(layer.name, layer.name)) for layer in program.layers)
    return galvatron.graph(replace(program, layers=layers))


class Tags(html.parser.HTMLParser):
    """What elements a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_names_of_strangers_are_text() -> None:
    found = hostile()
    tree = ElementTree.fromstring(svg(found))
    assert {re.sub("{.*}", "", node.tag) for node in tree.iter()} == {
        *("svg", "style", "defs", "marker", "path", "g", "title", "rect", "text")
    }
    text = page(found, HOSTILE[1], "one sample")
    tags = Tags()
    tags.feed(text)
    assert tags.tags.count("script") == 2 and "\u202e" not in text and "\x00" not in text
    drawn = dot(found, HOSTILE[0])
    outside = re.sub(r'"(?:\\.|[^"\\])*"', '""', drawn)
    assert outside.count('"') % 2 == 0 and "evil" not in outside and outside.count("label") == found.number_of_nodes()
    assert len(drawn.splitlines()) == 3 + found.number_of_nodes() + found.number_of_edges()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("page") / "graph.html"
    path.write_text(page(hostile(), "Net", "one sample"), encoding="utf-8")
    with browser() as found:
        found.open(path)
        yield found


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine (apt install chromium)")
def test_the_page_finds_and_chooses(opened: Page) -> None:
    number = "document.querySelectorAll('.node:not(.faint)').length"
    whole = opened.evaluate(number)
    field = "document.querySelector('input')"
    opened.evaluate(f"{field}.value = 'head'; {field}.dispatchEvent(new Event('input'))")
    assert 0 < opened.evaluate(number) < whole
    opened.evaluate(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")
    assert opened.evaluate(number) == whole
    opened.evaluate("document.querySelector('.layer').dispatchEvent(new Event('click'))")
    assert opened.evaluate("document.querySelectorAll('path.chosen').length") > 0
    opened.evaluate("document.querySelector('.layer').dispatchEvent(new PointerEvent('pointermove'))")
    assert "forward" in opened.evaluate("document.getElementById('tip').textContent")
    assert opened.complaints == []
