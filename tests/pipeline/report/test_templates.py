"""What every page has from its templates: nothing unescaped, nothing missing, nothing that a page may load."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import Environment, UndefinedError
from markupsafe import Markup

from pipeline.report import templates
from pipeline.report.charts import Axis, Bar, Column, Line, bar_chart, column_chart, legend, line_chart
from pipeline.report.elements import Bars, Look, Noted, Table
from tests.conftest import REPOSITORY

NASTY = "</script><!--\"'`=&amp;{{ 7 * 7 }}{% raw %}\u202e\x00\n\udcff.jpg"
SHOWN = "</script><!--\"'`=&amp;{{ 7 * 7 }}{% raw %}\\u202e\\x00\\n\\udcff.jpg"
"""What a reader of the page sees of it."""
TEMPLATES = sorted([*(REPOSITORY / "pipeline").rglob("*.jinja"), *(REPOSITORY / "training").rglob("*.jinja")])


@pytest.fixture
def environment() -> Environment:
    return templates._environment("pipeline.report")


class Read(HTMLParser):
    """All tags, all texts joined, and all attributes' values of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def macro(environment: Environment, name: str, shown: object) -> Read:
    source = f'{{% from "macros.html.jinja" import {name} %}}{{{{ {name}(shown) }}}}'
    return Read(environment.from_string(source).render(shown=shown))


def test_text_and_attributes_are_escaped(environment: Environment) -> None:
    html = environment.from_string('<p title="{{ name }}">{{ name }}</p>').render(name=NASTY)
    read = Read(html)
    assert (read.tags, read.values, read.text) == (["p"], [SHOWN], SHOWN)
    assert html.encode()  # a lone surrogate, of a file's name that is no UTF-8, can't be written


def test_data_for_scripts_cannot_end_them(environment: Environment) -> None:
    text = environment.from_string("{{ data|tojson }}").render(data={"name": NASTY, "n": [1.5, None]})
    assert json.loads(text) == {"name": NASTY, "n": [1.5, None]}
    assert not set("<>&") & set(text)
    with pytest.raises(ValueError, match="JSON"):
        environment.from_string("{{ data|tojson }}").render(data=float("nan"))


def test_what_is_missing_is_an_error(environment: Environment) -> None:
    with pytest.raises(UndefinedError, match="nothing"):
        environment.from_string("{{ nothing }}").render()
    with pytest.raises(UndefinedError, match="captoin"):
        environment.from_string("{{ shown.captoin }}").render(shown=Table("", [], []))
    with pytest.raises(AssertionError):
        environment.from_string("{{ place }}").render(place=None)
    with pytest.raises(AssertionError, match="ragged"):
        Table("ragged", ["a", "b"], [["1", "2"], ["3"]])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("table", Table(NASTY, [NASTY] * 4, [[NASTY, NASTY, Noted(NASTY, NASTY), "1"]])),
        ("bars", Bars.of(NASTY, NASTY, [(NASTY, 3)], 4)),
        ("look", Look(NASTY, NASTY, b"\xff\xd8", [NASTY])),
        ("figure", line_chart(NASTY, *[Axis(NASTY, 0, 1, [(0, NASTY)])] * 2, [Line(NASTY, [])], marks=[(0, NASTY)])),
        ("figure", bar_chart(NASTY, [Bar(NASTY, 0.5, NASTY)])),
        ("figure", column_chart(NASTY, NASTY, NASTY, [Column(NASTY, 1)])),
        ("figure", legend([NASTY])),
        ("figure", NASTY),
    ],
)
def test_names_are_text_wherever_they_are(environment: Environment, name: str, shown: object) -> None:
    plain, read = macro(environment, name, _renamed(shown)), macro(environment, name, shown)
    assert read.tags == plain.tags
    assert read.text == plain.text.replace("NAME", SHOWN)
    assert read.values == [value.replace("NAME", SHOWN) for value in plain.values]
    assert SHOWN in read.text
    assert "\u202e" not in read.text + "".join(read.values)


def _renamed(shown: object) -> object:
    """Return the same with a harmless name in place of the nasty one."""
    if isinstance(shown, Markup):
        return Markup(str(shown).replace(str(Markup.escape(SHOWN)), "NAME"))
    if isinstance(shown, str):
        return shown.replace(NASTY, "NAME")
    if isinstance(shown, list | tuple):
        return [_renamed(inner) for inner in shown]
    if hasattr(shown, "__dict__"):
        return type(shown)(**{key: _renamed(value) for key, value in vars(shown).items()})
    return shown


def test_a_wide_table_scrolls_with_keys_and_a_narrow_one_is_no_stop(environment: Environment) -> None:
    wide, narrow = (
        macro(environment, "table", Table("caption", ["a"] * columns, [["1"] * columns])) for columns in (4, 3)
    )
    assert wide.values[:4] == ["wide", "0", "group", "caption"]
    assert narrow.values[:2] == ["wide", "numbers"]
    assert (narrow.values.count("col"), narrow.values.count("row")) == (3, 1)


def test_small_print_is_what_is_noted_and_nothing_else(environment: Environment) -> None:
    table = Table("", ["a", "b", "c"], [["x", Noted("1.5", "1–2"), "copy (2)"]])
    assert macro(environment, "table", table).tags.count("small") == 1


def test_bars_are_as_long_as_their_counts(environment: Environment) -> None:
    counts = [("a", 1), ("b", 4), ("c", 0)]
    assert [(row.length_percent, row.share) for row in Bars.of("", "", counts, 8).rows] == [
        (25, "12.5%"),
        (100, "50.0%"),
        (0, "0.0%"),
    ]
    assert [row.length_percent for row in Bars.of("", "", counts, 8, longest=10).rows] == [10, 40, 0]
    assert [row.share for row in Bars.of("", "", [("a", 0)], 0).rows] == ["–"]
    assert macro(environment, "bars", Bars.of("", "", [("a", 1000), ("b", 333)], 0)).values.count("33.30") == 1


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_say_nothing_that_the_policy_would_not_let_pass(path: Path) -> None:
    """Nor do they switch escaping off."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\|\s*safe\b|autoescape|\sstyle=|\son\w+=|url\(|(?:src|href)=\"(?!#|data:)", text) == []
