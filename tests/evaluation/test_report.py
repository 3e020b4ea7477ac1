"""The page and the tables of Markdown: every row is in them, and a name breaks out of nothing."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.evaluation.test_summary import ROWS, row
from tokenzoo.errors import BadArgumentError, MissingDependencyError
from tokenzoo.evaluation import Row, report
from tokenzoo.evaluation.leaderboard import leaderboard
from tokenzoo.evaluation.report_tables import COLUMNS
from tokenzoo.evaluation.summary import summarize

CONTROLS = {"pool", "random"}
REASON = "AttachError: no <b>language</b> model"
REFUSED = row("fastv", 0, status="refused", scores={}, reason=REASON)
OTHER = [
    replace(
        one,
        key=replace(one.key, task="see"),
        scores={"hits": one.scores["word"], "depth": [hit * 0.5 for hit in one.scores["word"]]},
    )
    for one in ROWS
]
LIBRARY = "/* the library */ 'https://elsewhere.example'"
Attributes = dict[str, str | None]


class Parsed(HTMLParser):
    """Elements as (tag, attributes) and their text; each is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = [""]
        self.feed(text)
        self.close()
        assert self.open == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "input", "img", "br", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1], data))

    def text(self, tag: str) -> str:
        return "".join(text for where, text in self.texts if where == tag)

    def all(self, tag: str, attribute: str = "") -> list[Attributes]:
        """The attributes of these elements, or of those with this attribute."""
        found = [attributes for name, attributes in self.elements if name == tag]
        return [one for one in found if not attribute or attribute in one]


@pytest.fixture(autouse=True)
def small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of five megabytes is parsed in one test only."""

    class Offline:
        get_plotlyjs = staticmethod(lambda: LIBRARY)

    monkeypatch.setattr(report, "need", lambda module, extra: Offline)


def made(*rows: Row, **options: Any) -> Parsed:
    return Parsed(report.page(summarize(rows, CONTROLS), **options))


def test_every_line_is_in_the_table() -> None:
    page = made(*ROWS, *OTHER, REFUSED)
    names = ("data-name", "data-budget", "data-task", "data-control")
    lines = [tuple(one[name] for name in names) for one in page.all("tr", "data-name")]
    expected = [
        (
            row.key.recipe or "bare",
            "" if row.key.keep is None else str(row.key.keep),
            f"{row.key.task} on vit",
            str(int(row.key.recipe in CONTROLS)),
        )
        for row in [*ROWS, *OTHER]
    ]
    # The task with two metrics comes again, by kind of question.
    again = [one for one in expected if "see" in one[2]]
    assert sorted(lines[: len(expected)]) == sorted(expected)
    assert sorted(lines[len(expected) :]) == sorted(again)
    assert "fastv" in page.text("b")
    assert REASON in page.text("li")


def test_each_line_has_a_cell_in_each_column() -> None:
    """A value for sorting, or nothing; the sort of a number is a number."""
    text = report.page(summarize(ROWS, CONTROLS))
    body = text.partition('<table id="rows">')[2].partition("</table>")[0]
    rows = re.findall("<tr data-name.*?</tr>", body, flags=re.DOTALL)
    cells = [re.findall('<td(?: [^>]*?data-value="([^"]*)")?[^>]*>', one) for one in rows]
    assert len(rows) == len(ROWS)
    assert len(Parsed(text).all("th", "data-kind")) == len(COLUMNS)
    for (name, kind, *_), values in zip(COLUMNS[1:], zip(*cells, strict=True), strict=True):
        found = [value for value in values if value]
        assert found or name == "same answer"
        if kind == "number":
            assert all(float(one) == float(one) for one in found)


def test_the_page_asks_for_nothing() -> None:
    page = made(*ROWS, pictures={"a.png": "data:image/png;base64,AA=="})
    assert not page.all("link")
    for name, attributes in page.elements:
        for attribute in ("src", "href", "action", "srcset", "data", "poster"):
            value = attributes.get(attribute)
            assert value is None or value.startswith("data:"), (name, attribute, value)
    assert not re.search(r"url\(|@import", page.text("style"))
    own = page.text("script").replace(LIBRARY, "")
    assert not re.search(r"fetch\(|import\(|XMLHttp|https?://", own)
    [policy] = [str(one["content"]) for one in page.all("meta", "http-equiv")]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert page.all("img")[0]["alt"] == "a.png"


def test_it_can_be_used_by_keyboard_and_read_aloud() -> None:
    page = made(*ROWS, *OTHER)
    heads = page.all("th", "data-kind")
    assert [one.get("type") for one in page.all("button")] == ["button"] * len(heads)
    assert all(one.get("aria-label") for one in page.all("div") if one.get("role") == "img")
    scrolled = [one for one in page.all("div") if one.get("class") == "scroll"]
    assert scrolled
    assert all(one["tabindex"] == "0" and one["role"] == "region" for one in scrolled)
    assert ":focus-visible" in page.text("style")
    ids = [one["id"] for _, one in page.elements if "id" in one]
    assert len(ids) == len(set(ids))


def test_what_the_plots_are_drawn_from() -> None:
    [task] = json.loads(made(*ROWS).text("script").partition("/* the library */")[0])
    lines = {(one["name"], one["budget"]): one for one in task["lines"]}
    assert set(lines) == {(one.key.recipe, str(one.key.keep)) for one in ROWS[1:]}
    tome = lines["tome", "0.5"]
    assert (tome["value"], tome["time"], tome["flops"]) == (0.9, [0.6, 0.5, 0.7], [0.7] * 3)
    assert tome["low"] < 0.9 < tome["high"]
    assert task["bare"]["value"] == 0.95
    assert lines["pool", "0.5"]["control"]


NASTY = "</script><script>alert(1)</script>\"'&|*`$x"


def test_names_break_out_of_nothing() -> None:
    def renamed(one: Row, **more: Any) -> Row:
        key = replace(one.key, task=NASTY, model=NASTY, recipe=one.key.recipe and NASTY)
        nasty = {"facts": {NASTY: NASTY}, "command": NASTY, "scores": {NASTY: [1, 0]}}
        return replace(one, key=key, **{**nasty, **more})

    rows = [renamed(ROWS[0]), renamed(ROWS[1])]
    page = made(*rows, renamed(ROWS[5], status="refused", reason=NASTY, scores={}))
    assert len(page.all("script")) == 3
    assert [one["data-name"] for one in page.all("tr", "data-name")] == ["bare", NASTY]
    text = leaderboard(summarize(rows))
    [line] = [one for one in text.splitlines() if one.startswith("| **")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 8


def test_tasks_without_a_score_and_nothing_to_report() -> None:
    assert "fastv" in made(REFUSED).text("b")
    assert "fastv" in leaderboard(summarize([REFUSED]))
    for write in (report.page, leaderboard):
        with pytest.raises(BadArgumentError, match="no rows"):
            write([])


def test_the_library_is_in_the_page_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    offline = pytest.importorskip("plotly.offline")
    page = made(*ROWS)
    assert len(page.all("script")) == 3  # it ends no script
    assert offline.get_plotlyjs() in page.text("script")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingDependencyError, match=r"plotly.*tokenzoo\[eval\]"):
        made(*ROWS)


def test_markdown_has_each_line_and_marks_the_best() -> None:
    rows = [*ROWS[:5], replace(ROWS[5], command="tokenzoo eval --keep 16"), *ROWS[6:], REFUSED]
    lines = leaderboard(summarize(rows, CONTROLS)).splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert cells[0] == ["recipe", "keep", "word", "of bare", "time", "operations", "tokens"]
    assert [one[0] for one in cells[1:]] == [
        *("bare", "**evoprune**", "**tome**", "pool\\*", "random\\*", "**pool\\***", "**tome**")
    ]
    assert cells[3] == ["**tome**", "0.5", "**0.900 ± 0.095**", "94.7 %", "0.60", "0.70", "32"]
    assert "Do not run on this model: fastv." in lines
    place = lines.index("```sh")
    assert lines[place + 1 : place + 4] == ["tokenzoo eval", "tokenzoo eval --keep 16", "```"]
