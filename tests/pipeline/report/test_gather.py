"""What the report counts, against rows made by hand; the page, read by an HTML parser and looked at in a browser."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import html
import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.world.geodesy import haversine_km
from pipeline import schema, storage
from pipeline.locate.places import Places
from pipeline.published import geoparquet
from pipeline.published.catalog import Catalog
from pipeline.report import coastlines
from pipeline.report import page as report_page
from pipeline.report.charts import Column, column_chart
from pipeline.report.gather import Report, gather
from pipeline.report.map_bins import MapBins
from pipeline.schema import ErrorCode
from tests.support.browser import Browser
from tests.support.photo_rows import NOON, failed_row, located_row, photos

NASTY = "s3://b/</script><script>alert(1)</script>\"'&<!--\u202e\n.jpg"
PARIS, ROME, ATLANTIC = (48.85, 2.35), (41.9, 12.5), (30.0, -40.0)


def publish(output: str, rows: Sequence[dict[str, Any]], precision: str = "street") -> None:
    """Lay `rows` out as a finished run."""
    path = Path(output) / "photos" / "run=r1" / "part-e1-00000.parquet"
    path.parent.mkdir(parents=True)
    table = photos(sorted(rows, key=lambda row: row.get(schema.CELL_ID) or 2**64))
    geoparquet.write(path, [table], geoparquet.bbox_of(table))
    failed = sum(row[schema.STATUS] == "failed" for row in rows)
    record = {
        "run_id": "r1",
        "finished_at": NOON.isoformat(),
        "model_id": "m-1",
        "settings": {"precision": precision},
        "photos": {"located": len(rows) - failed, "failed": failed, "failed_by_code": {}},
        "files": [{"path": str(path.relative_to(output))}],
    }
    storage.write_bytes(storage.join(output, "runs", "r1.json"), json.dumps(record).encode())


def off(row: dict[str, Any], km: float) -> dict[str, Any]:
    """Return the row with its camera so far north of the answer."""
    return row | {
        schema.RECORDED_LAT_DEG: row[schema.LAT_DEG] + km / 111.195,
        schema.RECORDED_LON_DEG: row[schema.LON_DEG],
    }


@pytest.fixture(scope="module")
def small_output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight photos of which all that the report should say is known."""
    output = str(tmp_path_factory.mktemp("report") / "out")
    unlocated = {schema.RECORDED_LAT_DEG: None, schema.RECORDED_LON_DEG: None}
    rows = [
        off(located_row("/paris1", *PARIS, confidence=0.9, radius_km=5.0), 0.5),
        off(located_row("/paris2", *PARIS, confidence=0.8, radius_km=5.0), 100.0),
        off(located_row("/rome", *ROME, confidence=0.7, radius_km=2000.0, precision="city"), 1000.0),
        off(located_row(NASTY, *ROME, confidence=0.95, radius_km=50.0, precision=None), 3000.0),
        located_row("/sea", *ATLANTIC, confidence=0.2) | unlocated | {schema.TAKEN_AT: dt.datetime(2020, 5, 1)},
        failed_row("/broken1", ErrorCode.CORRUPT),
        failed_row("/broken2", ErrorCode.CORRUPT),
        failed_row("/empty</td>", ErrorCode.EMPTY),
    ]
    # The nasty one took longest, then a broken one; the others are of a version that did not measure it.
    rows[3] |= {schema.READ_SECONDS: 61.5, schema.SIZE_BYTES: 12_000_000, schema.WIDTH_PX: 4000}
    rows[5] |= {schema.READ_SECONDS: 2.25}
    publish(output, rows)
    return output


@pytest.fixture(scope="module")
def small(small_output: str) -> Report:
    return gather(Catalog(small_output), small_output)


def test_counts_places_times_and_failures(small: Report) -> None:
    assert (small.photos, small.located, small.failed, small.undated) == (8, 5, 3, 3)
    assert {country.code: country.photos for country in small.countries} == {"FR": 2, "IT": 2, None: 1}
    assert {country.name for country in small.countries} == {"France", "Italy", "open sea"}
    assert small.photos_by_period == [("2020-02", 4), ("2020-03", 0), ("2020-04", 0), ("2020-05", 1)]
    assert small.photos_by_precision == {"street": 3, "city": 1, "region": 0, "country": 0, "none of them": 1}
    assert [(x.code, x.photos) for x in small.failures] == [("corrupt", 2), ("empty", 1)]
    assert small.failures[0].examples == [("/broken1", "it is corrupt"), ("/broken2", "it is corrupt")]
    assert small.photos_by_confidence[18:] == [1, 1]
    assert sum(small.photos_by_confidence) == 5


def test_what_the_model_cannot_tell_is_said_in_so_many_words(tmp_path: Path) -> None:
    guess = {schema.STATUS: "undecided", schema.COUNTRY: None, schema.COUNTRY_CODE: None, schema.PRECISION: None}
    unsure = [off(located_row(f"/cat{number}", *ROME, radius_km=900.0) | guess, 1000.0) for number in range(3)]
    publish(str(tmp_path), [off(located_row("/paris", *PARIS), 0.5), *unsure, failed_row("/broken", ErrorCode.EMPTY)])
    report = gather(Catalog(str(tmp_path)), str(tmp_path))
    assert (report.photos, report.located, report.undecided, report.failed) == (5, 1, 3, 1)
    assert [country.code for country in report.countries] == ["FR"]
    assert [failure.code for failure in report.failures] == ["empty"]
    assert report.accuracy is not None
    assert (report.accuracy.photos, report.accuracy.inside_radius) == (4, 0.25)
    page = made(report)
    assert "Can't tell</strong>: of 3 photos no place is more likely right than not." in html.unescape(page)


def test_measures_against_the_cameras(small: Report) -> None:
    assert small.accuracy is not None
    assert small.accuracy.photos == 4
    assert small.accuracy.share_within == {1: 0.25, 25: 0.25, 200: 0.5, 750: 0.5, 2500: 0.75}
    assert 99 <= small.accuracy.median_km <= 1001
    assert small.accuracy.inside_radius == 0.5
    assert small.accuracy.same_country is None  # these rows name no countries
    for km, share in small.accuracy.curve:
        assert share == sum(error <= km for error in (0.5, 100, 1000, 3000)) / 4, km
    # In a cell some 5 km wide only the first camera is where the answer is.
    assert sum(bin.was * bin.photos for bin in small.accuracy.reliability) == pytest.approx(1)
    # What is judged is the best cell's probability, 0.5 in every row: confidence is the point's cell's, maybe another.
    assert sum(bin.said * bin.photos for bin in small.accuracy.reliability) == pytest.approx(4 * 0.5)


def test_lists_the_oddest(small: Report) -> None:
    assert [photo.uri for photo in small.wrong] == [NASTY, "/rome"]
    assert small.wrong[0].error_km == pytest.approx(3000, rel=1e-3)
    assert [photo.uri for photo in small.at_sea] == ["/sea"]
    assert [photo.uri for photo in small.unsure][:2] == ["/sea", "/rome"]
    assert {photo.uri for photo in small.sample} >= {"/broken1", "/sea"}


def test_lists_the_slowest(small: Report) -> None:
    assert [(photo.uri, photo.read_seconds) for photo in small.slowest] == [(NASTY, 61.5), ("/broken1", 2.25)]
    section = made(small).split('<section id="slowest"')[1].split("</section>")[0]
    cells = [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", section)]
    assert cells[4:] == [schema.printable(NASTY), "61.50 s", "12 MB", "4,000 × 480", "/broken1", "2.25 s", "1 kB", "–"]
    untimed = made(dataclasses.replace(small, slowest=[]))
    assert "a version that did not measure it" in untimed


def test_a_condition_limits_everything(small_output: str) -> None:
    report = gather(Catalog(small_output), small_output, "lat_deg > 45 -- north of it")
    assert (report.photos, report.located) == (2, 2)
    assert [country.code for country in report.countries] == ["FR"]
    assert report.failures == []
    with pytest.raises(ValueError, match="no_such_column"):
        gather(Catalog(small_output), small_output, "no_such_column = 1")


def test_nothing_is_left(small_output: str, tmp_path: Path) -> None:
    report = gather(Catalog(small_output), small_output, "false")
    assert (report.photos, report.accuracy, report.countries) == (0, None, [])
    assert "nothing to compare with" in made(report)


def test_takes_countries_that_the_output_has(small_output: str) -> None:
    catalog = Catalog(small_output)
    catalog.connection.execute(
        "CREATE OR REPLACE VIEW photos AS SELECT * REPLACE ("
        " CASE WHEN lat_deg > 45 THEN 'CH' END AS country_code,"
        " CASE WHEN lat_deg > 45 THEN 'Switzerland' WHEN lat_deg > 41 THEN 'open sea' END AS country,"
        " CASE WHEN lat_deg > 45 THEN 'Zermatt' END AS place,"
        " CASE WHEN uri = '/paris2' THEN 'France' ELSE 'Switzerland' END AS recorded_country),"
        " NULL::TIMESTAMPTZ AS gone_since FROM history"
    )
    report = gather(catalog, small_output)
    # The photo on the Atlantic, which names no country as an older version's rows, is looked up; Rome's says the sea.
    assert {country.code: country.photos for country in report.countries} == {"CH": 2, None: 3}
    assert {(photo.place, photo.country) for photo in report.sample} == {
        ("Zermatt", "Switzerland"),
        (None, "open sea"),
        (None, None),
    }
    assert report.accuracy is not None
    assert report.accuracy.same_country == 0.25  # of four with both
    page = made(report)
    assert "Zermatt, Switzerland" in page
    assert "25.0% are in its country" in page


def test_many_years_go_together(tmp_path: Path) -> None:
    rows = [located_row(f"/{year}", *PARIS, taken_at=dt.datetime(year, 1, 1)) for year in range(1900, 2020)]
    publish(str(tmp_path / "out"), rows)
    report = gather(Catalog(str(tmp_path / "out")), "out")
    assert report.periods_before
    assert report.photos_by_period[0] == ("before 1961", 61)
    assert sum(count for _, count in report.photos_by_period) == 120


def test_bins_get_coarser_and_lose_nothing() -> None:
    rng = np.random.default_rng(3)
    bins = MapBins(most=500)
    count_N = rng.integers(1, 50, 4000)
    lat_N, lon_N, sure_N = rng.uniform(-89, 89, 4000), rng.uniform(-180, 180, 4000), rng.uniform(0, 1, 4000)
    country_N = rng.integers(0, 3, 4000)
    for part in np.array_split(np.arange(4000), 7):
        lat_sum, lon_sum, sure_sum = (x[part] * count_N[part] for x in (lat_N, lon_N, sure_N))
        bins.add(lat_sum, lon_sum, count_N[part], sure_sum, country_N[part])
    columns = {name: np.array(values) for name, values in bins.columns().items()}
    assert 50 < len(columns["photos"]) <= 500
    assert bins.depth < 8
    photos_B = columns["photos"]
    assert photos_B.sum() == count_N.sum()
    for name, values_N in (("lat", lat_N), ("lon", lon_N), ("sure", sure_N)):
        assert (columns[name] * photos_B).sum() == pytest.approx((values_N * count_N).sum(), abs=0.001 * count_N.sum())
    # The commonest country of a bin, told by where bins are: each mean lies in its own square.
    side = 1 << bins.depth

    def squares(lat_deg: np.ndarray, lon_deg: np.ndarray) -> np.ndarray:
        down = 0.5 - np.arcsinh(np.tan(np.radians(np.clip(lat_deg, -85.0511, 85.0511)))) / (2 * np.pi)
        return ((lon_deg + 180) / 360 * side).astype(int) * side + np.clip((down * side).astype(int), 0, side - 1)

    of_photos = squares(lat_N, lon_N)
    for square, country in zip(squares(columns["lat"], columns["lon"]), columns["country"], strict=True):
        by_country = np.bincount(country_N[of_photos == square], count_N[of_photos == square], 3)
        assert by_country[country] == by_country.max()


def decoded(lines: str) -> Iterator[np.ndarray]:
    """Yield (latitude, longitude) of each line, as the page's script does it."""
    for line in lines.split(" "):
        values, value, shift = [], 0, 0
        for character in line:
            five = ord(character) - 63
            value |= (five & 31) << shift
            shift += 5
            if five < 32:
                values.append((value >> 1) ^ -(value & 1))
                value = shift = 0
        yield np.cumsum(np.array(values).reshape(-1, 2), axis=0) / 100


def test_the_outline_is_the_worlds() -> None:
    lines = coastlines.world_outline()
    assert len(json.dumps(lines)) < 500_000
    rng = np.random.default_rng(0)
    lat_N, lon_N = np.degrees(np.arcsin(rng.uniform(-1, 1, 400))), rng.uniform(-180, 180, 400)
    inside_N = np.zeros(400, bool)
    for ring in decoded(lines["land"]):
        assert (np.abs(ring) <= [90, 180]).all()
        (lat1_E, lon1_E), (lat2_E, lon2_E) = ring.T, np.roll(ring, -1, axis=0).T
        is_across_NE = (lat1_E > lat_N[:, None]) != (lat2_E > lat_N[:, None])
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing_NE = (lon2_E - lon1_E) * (lat_N[:, None] - lat1_E) / (lat2_E - lat1_E) + lon1_E
        inside_N ^= ((is_across_NE & (lon_N[:, None] < crossing_NE)).sum(axis=1) % 2).astype(bool)
    assert (inside_N == Places().is_land_N(lat_N, lon_N)).mean() > 0.98
    assert sum(len(line) for line in decoded(lines["borders"])) > 20_000


def test_columns_of_a_chart() -> None:
    chart = column_chart("<t>", "x", "y", [Column("a&b", 0), Column("rest", 730, is_rest=True)])
    assert 'aria-label="&lt;t&gt;"' in chart
    assert "a&amp;b: 0" in chart
    assert re.findall(r'text-anchor="end">([^<]*)<', chart) == ["0", "200", "400", "600", "800"]
    assert column_chart("nothing", "x", "y", []).startswith("<svg")


def made(report: Report, title: str = "Holidays", thumbnails: dict[bytes, bytes | str] | None = None) -> str:
    return report_page.page(report, title, thumbnails or {}, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


class Elements(HTMLParser):
    """Every element of a page, its scripts' and styles' texts and all other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside][-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_can_load_nothing_and_run_nothing_else(small: Report) -> None:
    nasty = dataclasses.replace(small, where=NASTY, output=NASTY, models=[NASTY])
    page = Elements(made(nasty, NASTY, {small.sample[0].photo_id: b"\xff\xd8", small.sample[1].photo_id: NASTY}))
    policy = page.all("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    places, world, *programs = page.raw["script"]
    kinds = [attributes.get("type") for attributes in page.all("script")]
    assert kinds == ["application/json", "application/json", None, None]
    assert json.loads(places)["countries"]
    assert json.loads(world)["land"]
    assert not set("<>&") & set(places + world)
    for source in (*programs, *page.raw["style"]):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'" in policy
    assert re.findall(r"url\(|@import", "".join(page.raw["style"])) == []
    assert "sourceMappingURL" not in "".join(programs)
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert name != "style"
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:image/jpeg;base64,")), value
    assert "alert(1)</script>" in page.text  # as text
    assert "\u202e" not in page.text


def test_the_page_says_all_in_words_too(small: Report) -> None:
    page = Elements(made(small))
    assert [name for name, _ in page.elements if name in ("header", "nav", "main", "footer")] == [
        *("header", "nav", "main", "footer")
    ]
    assert [name for name, _ in page.elements].count("h1") == 1
    headings = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(headings))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for attributes in page.all("a"):
        assert str(attributes["href"])[1:] in names
    for attributes in page.all("svg"):
        assert attributes.get("aria-label") or "preserveaspectratio" in attributes, "a chart, or a bar of a table"
    for attributes in page.all("img"):
        assert attributes["alt"]
    for said in ("2020-02", "Italy", "corrupt", "40.0%", "median error", "GSHHG", "OpenStreetMap", "Leaflet 1.9.4"):
        assert said in page.text, said
    assert "Redistributions in binary form" in page.text


def test_a_coarsened_output_is_told(tmp_path: Path) -> None:
    publish(str(tmp_path / "out"), [located_row("/a", *PARIS)], precision="region")
    assert "Positions are coarsened" in made(gather(Catalog(str(tmp_path / "out")), "out"))


def test_leaflet_is_what_its_authors_published() -> None:
    """Against the hash that leafletjs.com gives for version 1.9.4."""
    data = (Path(report_page.__file__).parent / "leaflet" / "leaflet.js").read_bytes()
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert digest == "20nQCchB9co0qIjJZRGuk2/Z9VM+kNiyxNV1lvTlZBo="


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A page on 5000 photos, a third of them around Rome, with one nasty name among those that it shows."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(1)
    lat_N, lon_N = np.degrees(np.arcsin(rng.uniform(-0.9, 0.9, 5000))), rng.uniform(-180, 180, 5000)
    lat_N[::3], lon_N[::3] = ROME[0] + rng.normal(0, 1, 1667), ROME[1] + rng.normal(0, 1, 1667)
    rows = [
        located_row(f"/{number}", float(lat), float(lon), confidence=float(sure))
        for number, (lat, lon, sure) in enumerate(zip(lat_N, lon_N, rng.uniform(0.1, 1, 5000), strict=True))
    ]
    rows.append(located_row(NASTY, *PARIS, confidence=0.01))
    publish(str(folder / "out"), rows)
    report = gather(Catalog(str(folder / "out")), "out")
    (folder / "page.html").write_text(made(report), encoding="utf-8")
    return folder / "page.html", report


def test_a_page_stays_small(large_page: tuple[Path, Report]) -> None:
    path, report = large_page
    assert path.stat().st_size < 1_500_000
    assert sum(report.bins["photos"]) == report.located == 5001
    near = haversine_km(np.array(report.bins["lat"]), np.array(report.bins["lon"]), *ROME) < 500
    assert np.array(report.bins["photos"])[near].sum() > 1600


def test_a_browser_draws_the_map_and_loads_nothing(large_page: tuple[Path, Report], tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.look(1280, 900, "light")
        assert browser.open(large_page[0]) < 10
        assert browser.evaluate("document.getElementById('world').dataset.drawn") == str(len(large_page[1].bins["lat"]))
        # Colours in the land's and the dots' canvases.
        colours = browser.evaluate(
            "[...document.querySelectorAll('#world canvas')].map(c => new Set(new Uint32Array(c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data.buffer)).size)"
        )
        assert len(colours) == 2
        assert min(colours) > 5
        assert in_view(browser) > 4500
        browser.evaluate("document.getElementById('world').focus()")
        browser.press("+", 187)
        until(browser, "parseInt(document.getElementById('view-summary').textContent.replace(/\\D+/, '')) < 4")
        browser.evaluate("document.getElementById('show-all').click()")
        assert in_view(browser) == 5001
        assert browser.evaluate("document.querySelector('#in-view button').textContent").startswith("1,")

        background = "getComputedStyle(document.body).backgroundColor"
        light = browser.evaluate(background)
        browser.evaluate("document.getElementById('theme').click()")
        assert browser.evaluate(background) != light
        browser.look(390, 844, "dark")
        browser.open(large_page[0])
        assert browser.evaluate(background) != light
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        assert browser.problems == []
        assert {url for url in browser.requested if not url.startswith("data:")} == {large_page[0].as_uri()}


def test_a_browser_obeys_the_policy(large_page: tuple[Path, Report], tmp_path: Path) -> None:
    """The tests above could not fail if a breach were not noticed: here are some."""
    tampered = tmp_path / "tampered.html"
    breaches = "<script>document.title = 'run'</script><img src='https://example.invalid/x.png' alt=''>"
    page = large_page[0].read_text(encoding="utf-8").replace("</body>", f"{breaches}</body>")
    tampered.write_text(page, encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        browser.open(tampered)
        until(browser, "true")
        assert browser.evaluate("document.title") == "Holidays"
        assert len(browser.problems) == 2


def in_view(browser: Browser) -> int:
    told = browser.evaluate("document.getElementById('view-summary').textContent")
    found = re.match(r"In view: ([\d,]+) photos", told)
    assert found, told
    return int(found[1].replace(",", ""))


def until(browser: Browser, condition: str) -> None:
    """Wait for what an animation leads to."""
    deadline_s = time.monotonic() + 10
    while not browser.evaluate(condition):
        assert time.monotonic() < deadline_s, condition
        time.sleep(0.05)
