"""The page is read as a browser would: by an HTML parser, and its charts by an XML parser."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.charts import Axis, Bar, Line, bar_chart, line_chart
from pipeline.report.elements import Look
from tests.support.browser import Browser
from training.evaluate.calibration import Judged
from training.evaluate.evaluation import Measured, Predictions, Truth
from training.evaluate.page import page
from training.evaluate.summary import Kinds, Summary, summarise

PHOTOS, LEVELS = 40, 2
NASTY = "<script>alert(1)</script>\"'& é.jpg"


def judged(confidence: float, right_NH: np.ndarray) -> Judged:
    return Judged(
        np.full((PHOTOS, LEVELS), confidence),
        right_NH,
        np.where(np.isnan(right_NH), np.nan, 1.5),
        np.linspace(0, 0.999, PHOTOS),
    )


@pytest.fixture(scope="module")
def summary() -> Summary:
    """Twenty groups of two photos: the first 24 within 10 km, the rest 3000 km off; no photo lies in a fine cell."""
    error_km_N = np.where(np.arange(PHOTOS) < 24, 10.0, 3000.0)
    label_NH = np.stack([np.arange(PHOTOS) % 4, np.full(PHOTOS, -1)], axis=1)
    said = Predictions(
        row_N=np.arange(PHOTOS) + 5,
        best_NH=np.stack([np.where(np.arange(PHOTOS) < 30, np.arange(PHOTOS) % 4, 9), np.zeros(PHOTOS, int)], axis=1),
        lat_deg_N=np.zeros(PHOTOS),
        lon_deg_N=np.zeros(PHOTOS),
        radius_km_N=np.full(PHOTOS, 100.0),
        mass_within_N4=np.tile([0.1, 0.5, 0.7, 0.9], (PHOTOS, 1)),
        scene_N=np.zeros(PHOTOS, int),
    )
    label_of_row = np.vstack([np.full((5, 2), 7), label_NH])
    right_NH = np.stack([(np.arange(PHOTOS) < 30).astype(float), np.full(PHOTOS, np.nan)], axis=1)
    return summarise(
        {"model_id": NASTY, "part": "test", "answered_by": "engine torch fp32", "class_counts": (10, 300)}
        | {"temperatures": (2.0, 3.0)},
        Measured(
            said,
            before=judged(0.95, right_NH),
            after=judged(0.75, right_NH),
            prior=judged(0.1, right_NH)._replace(nll_NH=np.where(np.isnan(right_NH), np.nan, 2.25)),
            blind_nll_NH=np.where(np.isnan(right_NH), np.nan, 1.75),
        ),
        Truth(np.zeros(PHOTOS + 5), np.zeros(PHOTOS + 5), label_of_row),
        {"our model": error_km_N, "guessing": np.full(PHOTOS, 9000.0)},
        {"photographers": np.full(PHOTOS, -1), "places": np.arange(PHOTOS) // 2},
        Kinds(
            country_N=["FR"] * 20 + ["IT"] * 18 + ["CH", None],
            predicted_country_N=["FR"] * PHOTOS,
            scene_N=["urban"] * 10 + [None] * 30,
            predicted_scene_N=["urban"] * 5 + ["natural"] * 35,
        ),
        {"gone.jpg": "No such file <b>"},
    )


@pytest.fixture(scope="module")
def html(summary: Summary) -> str:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "JPEG")
    return page(summary, [Look(NASTY, "3 km off", encoded.getvalue(), ["upper left, 2.0 times", "middle, 3.0 times"])])


def test_the_numbers(summary: Summary) -> None:
    model, guess = summary.ways
    assert [x.value for x in model.share_within.values()] == [0, 0.6, 0.6, 0.6, 0.6]
    assert model.share_within["city"].low < 0.6 < model.share_within["city"].high
    assert (model.median_km.value, guess.median_km.value) == (10, 9000)
    assert (summary.photos, summary.resampled) == (40, {"places": 20})
    coarse, fine = summary.levels
    assert (coarse.cells, coarse.photos_in_cells, coarse.accuracy.value) == (10, 40, 0.75)
    # All 40 have the same confidence, so bins are ten photos in order: three all right, one all wrong.
    assert coarse.after.ece == pytest.approx((3 * 0.25 + 0.75) / 4)
    assert coarse.before.ece == pytest.approx((3 * 0.05 + 0.95) / 4)
    assert (coarse.before.temperature, coarse.after.temperature) == (1, 2)
    assert (fine.photos_in_cells, np.isnan(fine.accuracy.value)) == (0, True)
    assert fine.after.ece_everywhere == 0.75
    told, none = summary.likelihood
    assert [x.value for x in (told.model, told.prior, told.blind, told.gain)] == [1.5, 2.25, 1.75, 0.75]
    assert (told.gain.low, told.gain.high) == (0.75, 0.75)
    assert np.isnan(none.gain.value)
    assert summary.radius_holds.value == 0.6
    assert [x.after.value for x in summary.coverage] == pytest.approx([k / 10 for k in range(1, 10)], abs=0.026)
    assert [(x.km, x.said, x.was.value) for x in summary.nearness] == [
        (1, pytest.approx(0.1), 0),
        (25, pytest.approx(0.5), 0.6),
        (200, pytest.approx(0.7), 0.6),
        (750, pytest.approx(0.9), 0.6),
    ]
    assert summary.country_right.value == pytest.approx(20 / 39)
    assert [(x.kind, x.measured.photos) for x in summary.by_country] == [
        ("FR", 20),
        ("IT", 18),
        ("CH", 1),
        ("outside every country", 1),
    ]
    assert summary.scene_right is not None
    assert summary.scene_right.value == 0.5
    assert [(x.kind, x.measured.photos) for x in summary.by_scene] == [("urban", 10), ("scene not known", 30)]


def test_json_has_the_numbers_and_null_for_what_could_not_be_measured(summary: Summary) -> None:
    values = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert values["ways"][0]["share_within"]["city"]["value"] == 0.6
    assert len(values["ways"][0]["error_km_P"]) == 101
    assert values["levels"][1]["accuracy"]["value"] is None
    assert values["levels"][0]["after"]["bins"][0] == {"photos": 10, "said": 0.75, "was": 1.0}
    assert values["unreadable"] == {"gone.jpg": "No such file <b>"}


class Reader(HTMLParser):
    """Collects what the page asks for, says and shows; a tag left open or closed twice is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_stands_alone_and_runs_nothing(html: str) -> None:
    reader = read(html)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not {"href", "srcset", "background", "poster"} & attributes.keys(), (tag, attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in html
    assert "@import" not in html
    policy = next(str(attributes["content"]) for _, attributes in reader.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script-src" not in policy
    assert "prefers-color-scheme: dark" in html


def test_names_are_text_whatever_they_are(html: str) -> None:
    reader = read(html)
    assert NASTY in "".join(reader.text)
    (image,) = (attributes for tag, attributes in reader.tags if tag == "img")
    assert str(image["alt"]).startswith(NASTY)
    assert "No such file <b>" in "".join(reader.text)


def test_names_hide_no_character_and_can_be_written(summary: Summary) -> None:
    """A name that turns text around, or that is no UTF-8, is told; it may be a country's or a scene's of a table."""
    odd = "a\u202egpj.\udcff (3)"
    kinds = tuple(dataclasses.replace(line, kind=odd) for line in summary.by_scene)
    ways = tuple(dataclasses.replace(way, name=odd) for way in summary.ways)
    about = {**summary.about, "model_id": odd, "odd": {odd: [odd]}}
    of_odd = dataclasses.replace(summary, about=about, unreadable={odd: odd}, ways=ways, by_scene=kinds)
    written = page(of_odd, [Look(odd, odd, b"", [odd])]).encode().decode()
    reader = read(written)
    assert "\u202e" not in written
    assert "a\\u202egpj.\\udcff (3)" in "".join(reader.text)
    # Intervals are in small print, what a name has in brackets is not.
    small = [tag for tag, _ in reader.tags].count("small")
    assert small == [tag for tag, _ in read(page(summary, [])).tags].count("small")


def test_a_browser_shows_it_in_its_own_style(html: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.look(1280, 900, "light")
        browser.open(tmp_path / "page.html")
        assert browser.evaluate("getComputedStyle(document.body).maxWidth") == "960px"
        assert browser.problems == []
        assert {url for url in browser.requested if not url.startswith("data:")} == {(tmp_path / "page.html").as_uri()}


def test_a_screen_reader_gets_a_name_for_every_picture_and_a_table_of_it(html: str) -> None:
    reader = read(html)
    pictures = [attributes for tag, attributes in reader.tags if attributes.get("role") == "img"]
    assert len(pictures) == 6  # errors, one level (the other has no photo), radius, countries, scenes twice
    assert all(attributes["aria-label"] for attributes in pictures)
    ends = [match.end() for match in re.finditer("</figure>", html)]
    assert all("<table" in html[end : end + 400] for end in ends)
    tables = [tag for tag, _ in reader.tags if tag == "table"]
    assert len(tables) == len([tag for tag, _ in reader.tags if tag == "caption"])
    assert ("html", {"lang": "en"}) in reader.tags
    text = " ".join("".join(reader.text).split())
    for expected in (
        "60.0% (",
        "0.750 (0.750–0.750)",
        "20 places (rough",
        "No photo lies in one of its cells",
        "95.0% → 75.0%",
        "1 → 2",
    ):
        assert expected in text


def test_a_page_without_photos_to_show_or_scenes_to_know(summary: Summary) -> None:
    bare = dataclasses.replace(summary, unreadable={}, scene_right=None, by_scene=())
    text = " ".join(read(page(bare, [])).text)
    assert "looks at" not in text
    assert "could not be read" not in text.replace("0 more could not be read", "")
    assert "as labelled" not in text


def test_line_chart_puts_points_where_they_belong() -> None:
    logarithmic = Axis("km", 1, 100, [(10, "ten <km>")], logarithmic=True)
    chart = line_chart("a & b", logarithmic, Axis("y", 0, 1, []), [Line("x", [(1, 0), (10, 0.5), (1000, 2)])])
    svg = ET.fromstring(chart)
    assert svg.get("aria-label") == "a & b"
    (line,) = svg.iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in str(line.get("points")).split())
    assert (x1 - x0, y0 - y1) == (pytest.approx((x2 - x0) / 2, abs=0.1), pytest.approx((y0 - y2) / 2, abs=0.1))
    width, height = (float(x) for x in str(svg.get("viewBox")).split()[2:])
    assert 0 < x0 < x2 < width
    assert 0 < y2 < y0 < height
    assert "ten <km>" in [text.text for text in svg.iter("text")]


def test_bars_are_as_long_as_their_shares() -> None:
    svg = ET.fromstring(bar_chart("bars", [Bar("<a>", 0.25, "x"), Bar("b", 0.5, "y"), Bar("c", 0, "z")]))
    quarter, half, none = (float(str(bar.get("width"))) for bar in svg.iter("rect"))
    assert half == pytest.approx(2 * quarter)
    assert none == 0
