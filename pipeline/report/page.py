"""A report as one HTML page that needs no network, and may not use any: its policy forbids it to load anything.

Charts and tables are drawn here; only the map needs scripts. Its panning and zooming, by mouse, touch and keyboard, is
Leaflet's, which is small enough to go into the page. The words are in `templates/report.html.jinja`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.readout import RADIUS_PROBABILITY
from pipeline import schema
from pipeline.report import gather
from pipeline.report.charts import STYLE, Axis, Chart, Column, Line, column_chart, line_chart, share_axis
from pipeline.report.coastlines import SOURCE, world_outline
from pipeline.report.elements import NONE, Bars, Look, Table, percent
from pipeline.report.gather import Accuracy, Example, Report
from pipeline.report.templates import packaged, render
from pipeline.report.thumbnails import SIDE_PX

_COUNTRIES_SHOWN = 15
_CHART_PX = (480, 330)
_EQUATOR_KM = 40_075


def page(
    report: Report,
    title: str,
    thumbnails: Mapping[bytes, bytes | str],
    made_at: dt.datetime,
    looks: Sequence[Look] = (),
) -> str:
    """Return the page. `thumbnails`: by photo id, a JPEG, or why there is none."""
    return render(
        "pipeline.report",
        "report.html.jinja",
        title=title,
        style=_style(),
        scripts=_scripts(),
        report=report,
        made_at=made_at,
        newest=max((run["finished_at"] for run in report.runs), default=made_at),
        facts=_facts(report),
        square_km=_EQUATOR_KM / 2**report.bins_depth,
        places=_places(report),
        outline=world_outline(),
        radius_probability=RADIUS_PROBABILITY,
        **_countries(report),
        **_time(report),
        **_certainty(report),
        **(_accuracy(report.accuracy) if report.accuracy else {}),
        **_failures(report),
        photo_lists=_photo_lists(report, thumbnails),
        side_px=SIDE_PX,
        slowest_table=_slowest(report),
        looks=looks,
        runs_table=_runs(report),
        most_examples=gather.EXAMPLES,
        most_slowest=gather.SLOWEST,
        coastlines_source=SOURCE,
        leaflet_licence=packaged("pipeline.report", "leaflet/LICENSE"),
    )


@dataclass(frozen=True)
class _Photo:
    """One photo as its list shows it: the JPEG, or why there is none, or neither; `facts`: a line each."""

    folder: str
    name: str
    picture: bytes | str | None
    facts: Sequence[str]


def _style() -> str:
    style = packaged("pipeline.report", "leaflet/leaflet.css") + STYLE + packaged("pipeline.report", "page.css")
    # Pictures of controls that are not used here: no address stays in the page.
    return re.sub(r"url\([^)]*\)", "none", style)


def _scripts() -> list[str]:
    leaflet = packaged("pipeline.report", "leaflet/leaflet.js")
    # A debugger would look for it on the network.
    return [re.sub(r"//# sourceMappingURL=\S*", "", leaflet), packaged("pipeline.report", "page.js")]


def _places(report: Report) -> dict[str, object]:
    return report.bins | {
        "countries": [country.name if country.code else "the open sea" for country in report.countries],
        "photosIn": [country.photos for country in report.countries],
    }


def _facts(report: Report) -> list[tuple[str, str, str]]:
    """Return what the page says first: names, values and notes."""
    sure = NONE if report.median_confidence is None else f"{report.median_confidence:.2f}"
    facts = [
        ("photos", f"{report.photos:,}", _bytes(report.size_bytes)),
        ("with a place", f"{report.located:,}", percent(report.located, report.photos)),
        ("can't tell", f"{report.undecided:,}", percent(report.undecided, report.photos)),
        ("failed", f"{report.failed:,}", percent(report.failed, report.photos)),
        *([("skipped", f"{report.skipped:,}", "files that are no photos")] if report.skipped else []),
        ("countries", f"{sum(country.code is not None for country in report.countries):,}", ""),
        ("median confidence", sure, "of the finest cell"),
        ("median radius", _km(report.median_radius_km), f"is to hold {RADIUS_PROBABILITY:.0%}"),
    ]
    if report.accuracy:
        said = f"of {report.accuracy.photos:,} whose camera knew"
        facts.append(("median error", _km(report.accuracy.median_km), said))
    return facts


def _countries(report: Report) -> dict[str, Bars]:
    by_photos = sorted(report.countries, key=lambda country: (-country.photos, country.name))
    counts = [(country.name, country.photos) for country in by_photos]
    most = counts[0][1] if counts else 1
    first, rest = counts[:_COUNTRIES_SHOWN], counts[_COUNTRIES_SHOWN:]
    return {
        "country_bars": Bars.of("Countries with most photos", "country", first, report.located, most),
        "more_country_bars": Bars.of("More countries", "country", rest, report.located, most),
    }


def _time(report: Report) -> dict[str, Chart | Table]:
    columns = [
        Column(label, count, is_rest=report.periods_before and not number)
        for number, (label, count) in enumerate(report.photos_by_period)
    ]
    title = "Photos by when they were taken; the table below has the numbers"
    rows = [[label, f"{count:,}"] for label, count in report.photos_by_period]
    return {
        "time_chart": column_chart(title, "camera's own time", "photos", columns, (640, 280)),
        "time_table": Table("Photos over time", ["", "photos"], rows),
    }


def _certainty(report: Report) -> dict[str, Bars | Chart | Table]:
    caption = "Finest precision that is more likely right than not"
    counts = list(enumerate(report.photos_by_confidence))
    columns = [Column(f"{step / 20:.2f}", count) for step, count in counts]
    title = "Photos by confidence; the table below has the numbers"
    rows = [[f"{step / 20:.2f} to {(step + 1) / 20:.2f}", f"{count:,}"] for step, count in counts]
    return {
        "precision_bars": Bars.of(caption, "", report.photos_by_precision.items(), report.located),
        "confidence_chart": column_chart(title, "confidence, from … on", "photos", columns, _CHART_PX),
        "confidence_table": Table("Photos by confidence", ["from … to", "photos"], rows),
    }


def _accuracy(accuracy: Accuracy) -> dict[str, Chart | Table | str]:
    ticks = [(km, f"{km:g}") for km in (0.1, 1, 10, 100, 1000, 10_000)]
    curve = line_chart(
        "Share of photos placed within a distance; the table has the numbers",
        Axis("km from where the camera was", 0.1, 20_015.0, ticks, logarithmic=True),
        share_axis("share of photos"),
        [Line("photos", accuracy.curve)],
        _CHART_PX,
    )
    within = [[f"{km:,} km", f"{share:.1%}"] for km, share in accuracy.share_within.items()]
    highest = max((max(bin.said, bin.was) for bin in accuracy.reliability), default=1.0)
    reliability = line_chart(
        "Share of photos truly in the cell, by confidence; the table has the numbers",
        share_axis("mean confidence", highest),
        share_axis("was in its cell", highest),
        [Line("photos", [(bin.said, bin.was) for bin in accuracy.reliability])],
        _CHART_PX,
        diagonal=True,
        dots=True,
    )
    bins = [[f"{bin.said:.1%}", f"{bin.was:.1%}", f"{bin.photos:,}"] for bin in accuracy.reliability]
    return {
        "distance_chart": curve,
        "distance_table": Table("Placed within", ["distance", "photos"], within),
        "reliability_chart": reliability,
        "reliability_table": Table("Photos of like confidence", ["mean confidence", "was so", "photos"], bins),
        "median_error": _km(accuracy.median_km),
    }


def _failures(report: Report) -> dict[str, Bars | Table]:
    counts = [(failure.code, failure.photos) for failure in report.failures]
    examples = [[failure.code, uri, why] for failure in report.failures for uri, why in failure.examples]
    caption = "Examples: the first of each code by name"
    return {
        "failure_bars": Bars.of("Photos without a place, by error code", "code", counts, report.photos),
        "failure_table": Table(caption, ["code", "photo", "why"], examples, "words"),
    }


def _photo_lists(report: Report, thumbnails: Mapping[bytes, bytes | str]) -> list[tuple[str, str, Sequence[_Photo]]]:
    """Return each list's heading, what it is of, and its photos."""
    km = f"{gather.WRONG_KM:,} km"
    lists = [
        ("Surest of the wrong", f"More than {km} from where the camera says, most confident first.", report.wrong),
        ("Placed on the open sea", "Most confident first. Some photos are taken there.", report.at_sea),
        ("Least sure", "The least confident of all.", report.unsure),
        ("Drawn by lot", f"{gather.EXAMPLES} photos, by their hashes.", report.sample),
    ]
    return [(heading, told, [_photo(x, thumbnails.get(x.photo_id)) for x in photos]) for heading, told, photos in lists]


def _photo(photo: Example, picture: bytes | str | None) -> _Photo:
    folder, _, name = photo.uri.rpartition("/")
    if photo.lat_deg is None or photo.lon_deg is None:
        facts = [photo.status]
    else:
        north, east = ("N" if photo.lat_deg >= 0 else "S"), ("E" if photo.lon_deg >= 0 else "W")
        named = ", ".join(name for name in (photo.place, photo.country) if name)
        sure = NONE if photo.confidence is None else f"{photo.confidence:.3f}"
        facts = [
            f"{abs(photo.lat_deg):.2f}° {north} {abs(photo.lon_deg):.2f}° {east}, {named}",
            f"confidence {sure}, within {_km(photo.radius_km)}",
        ]
    if photo.error_km is not None:
        facts.append(f"{_km(photo.error_km)} off")
    return _Photo(folder, name, picture, facts)


def _slowest(report: Report) -> Table:
    rows = [
        [
            photo.uri,
            f"{photo.read_seconds:,.2f} s",
            NONE if photo.size_bytes is None else _bytes(photo.size_bytes),
            NONE if photo.width_px is None else f"{photo.width_px:,} × {photo.height_px:,}",
        ]
        for photo in report.slowest
    ]
    return Table("Slowest to read", ["photo", "took", "size", "pixels"], rows, "slowest")


def _runs(report: Report) -> Table:
    rows = [
        [
            run[schema.RUN_ID],
            f"{run['finished_at']:%Y-%m-%d %H:%M}",
            f"{run['located']:,}",
            f"{run['failed']:,}",
            NONE if run["wall_s"] is None else f"{run['wall_s']:,.0f} s",
            run[schema.PRECISION] or NONE,
            run[schema.MODEL_ID] or NONE,
        ]
        for run in report.runs
    ]
    header = ["run", "finished (UTC)", "with a place", "failed", "took", "precision", "model"]
    return Table("Finished runs, newest first", header, rows)


def _km(km: float | None) -> str:
    if km is None:
        return NONE
    return f"{km:,.0f}\u00a0km" if km >= 10 else f"{km:.1f}\u00a0km"


def _bytes(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}"
