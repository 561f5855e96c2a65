"""An evaluation as one HTML page that needs nothing else: charts, the tables they are drawn from, what the model sees.

No scripts and no network (the page forbids itself both), light or dark as the reader's system is. The words are in
`templates/evaluation.html.jinja`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.readout import RADIUS_PROBABILITY
from model.world.geodesy import EARTH_RADIUS_KM
from pipeline.report.charts import STYLE, Axis, Bar, Chart, Line, bar_chart, legend, line_chart, share_axis
from pipeline.report.elements import NONE, Look, Noted, Table
from pipeline.report.templates import packaged, render
from training.evaluate.summary import PERCENTILES, LevelNumbers, Summary
from training.metrics import THRESHOLDS_KM, Breakdown, Estimate

_FARTHEST_KM = 20_015.0
_TEMPERATURES = ("at temperature 1", "at the model's temperatures")
_WITHIN = [f"≤ {km:g} km" for km in THRESHOLDS_KM.values()]


def page(summary: Summary, looks: Sequence[Look]) -> str:
    """Return the page."""
    return render(
        "training.evaluate",
        "evaluation.html.jinja",
        title=f"Evaluation of {summary.about['model_id']}",
        style=packaged("training.evaluate", "page.css") + STYLE,
        summary=summary,
        distance_legend=legend([way.name for way in summary.ways]),
        distance_chart=_distance_chart(summary),
        distance_table=_distance_table(summary),
        likelihood_table=_likelihood_table(summary),
        temperatures_legend=legend(_TEMPERATURES),
        level_charts=[_reliability_chart(number, level) for number, level in enumerate(summary.levels)],
        level_table=_level_table(summary),
        bin_tables=[_bin_table(number, level) for number, level in enumerate(summary.levels)],
        radius_probability=RADIUS_PROBABILITY,
        radius_holds=_percent(summary.radius_holds),
        radius_km=_km(summary.radius_km),
        radius_chart=_radius_chart(summary),
        radius_table=_radius_table(summary),
        nearness_table=_nearness_table(summary),
        country_right=_percent(summary.country_right),
        countries=_kinds(summary.by_country, "Countries of the true places"),
        scene_right=None if summary.scene_right is None else _percent(summary.scene_right),
        labelled_scenes=_kinds(summary.by_scene, "Scenes as labelled"),
        chosen_scenes=_kinds(summary.by_predicted_scene, "Scenes as the model chose them"),
        looks=looks,
        unreadable_table=Table("Not counted above", ["photo", "why"], list(summary.unreadable.items()), "words"),
        about_table=_about_table(summary),
    )


@dataclass(frozen=True)
class _Kinds:
    """How near the photos of each country, or scene, are placed: a heading, a chart of it, its table."""

    heading: str
    chart: Chart
    table: Table


def _distance_chart(summary: Summary) -> Chart:
    lines = [
        Line(way.name, [(max(km, 0.1), p / 100) for km, p in zip(way.error_km_P, PERCENTILES, strict=True)])
        for way in summary.ways
    ]
    ticks = [(km, f"{km:g}") for km in (0.1, *THRESHOLDS_KM.values(), 10_000.0)]
    return line_chart(
        "Share of photos placed within a distance, for the model and the baselines; the table below has the numbers",
        Axis("distance from the true place, km", 0.1, _FARTHEST_KM, ticks, logarithmic=True),
        share_axis("share of photos"),
        lines,
        marks=[(km, name) for name, km in THRESHOLDS_KM.items()],
    )


def _distance_table(summary: Summary) -> Table:
    rows = [[way.name, *map(_percent, way.share_within.values()), _km(way.median_km)] for way in summary.ways]
    return Table("Photos placed within each distance", ["", *_WITHIN, "median km"], rows)


def _likelihood_table(summary: Summary) -> Table:
    rows = [
        [str(number), *map(_nats, (level.model, level.prior, level.blind, level.gain))]
        for number, level in enumerate(summary.likelihood)
    ]
    header = ["level", "model", "prior alone", "blind mean", "gain over the prior"]
    return Table("Minus log-likelihood of the right cell; less is better", header, rows)


def _reliability_chart(number: int, level: LevelNumbers) -> Chart | None:
    if not level.photos_in_cells:
        return None
    lines = [
        Line(name, [(x.said, x.was) for x in side.bins])
        for name, side in (("before", level.before), ("after", level.after))
    ]
    title = f"Reliability of level {number}: what share was right, by what the model said; the tables have the numbers"
    axes = share_axis("said"), share_axis("was")
    return line_chart(title, *axes, lines, size_px=(300, 290), diagonal=True, dots=True)


def _level_table(summary: Summary) -> Table:
    rows = [
        [
            str(number),
            f"{level.cells:,}",
            str(level.photos_in_cells),
            _percent(level.accuracy),
            f"{level.before.temperature:g} → {level.after.temperature:g}",
            _change(level.before.mean_confidence, level.after.mean_confidence),
            _change(level.before.ece, level.after.ece),
            _change(level.before.ece_everywhere, level.after.ece_everywhere),
        ]
        for number, level in enumerate(summary.levels)
    ]
    header = ["level", "cells", "photos in one", "right", "temperature", "said", "calibration error", "elsewhere wrong"]
    return Table("Levels, coarse to fine", header, rows)


def _bin_table(number: int, level: LevelNumbers) -> Table:
    rows = [
        [when, str(x.photos), _share(x.said), _share(x.was)]
        for when, side in (("before", level.before), ("after", level.after))
        for x in side.bins
    ]
    return Table(f"Level {number}: bins, the least sure first", ["", "photos", "said", "was"], rows)


def _radius_chart(summary: Summary) -> Chart:
    lines = [
        Line(_TEMPERATURES[0], [(0, 0), *((x.share, x.before.value) for x in summary.coverage)]),
        Line(_TEMPERATURES[1], [(0, 0), *((x.share, x.after.value) for x in summary.coverage)]),
    ]
    return line_chart(
        "Share of photos truly within the radius meant to hold a share; the table below has the numbers",
        share_axis("probability that the radius is meant to hold"),
        share_axis("photos within it"),
        lines,
        size_px=(460, 380),
        diagonal=True,
        dots=True,
    )


def _radius_table(summary: Summary) -> Table:
    rows = [[f"{x.share:.0%}", _percent(x.before), _percent(x.after)] for x in summary.coverage]
    return Table("Photos within the radius meant to hold a share", ["share", *_TEMPERATURES], rows)


def _nearness_table(summary: Summary) -> Table:
    rows = [[f"{x.km:g} km", _share(x.said), _percent(x.was)] for x in summary.nearness]
    return Table("How near the model says its points are, and are", ["within", "said", "was"], rows)


def _kinds(lines: Sequence[Breakdown], what: str) -> _Kinds:
    km = THRESHOLDS_KM["country"]
    bars, rows = [], []
    for line in lines:
        share, photos = line.measured.share_within, line.measured.photos
        bars.append(Bar(line.kind, share["country"], f"{share['country']:.1%} of {photos}"))
        rows.append([line.kind, str(photos), *map(_share, share.values()), f"{line.measured.median_km:,.0f}"])
    return _Kinds(
        f"{what}: placed within {km:g} km",
        bar_chart(f"{what}: share of photos placed within {km:g} km; the table below has the numbers", bars),
        Table(what, ["", "photos", *_WITHIN, "median km"], rows),
    )


def _about_table(summary: Summary) -> Table:
    rows = [[key.replace("_", " "), _plain(value)] for key, value in summary.about.items()]
    caption = f"Distances are great circles on a sphere of {EARTH_RADIUS_KM:g} km radius; at a threshold is within it"
    return Table(caption, ["setting", "value"], rows, "words")


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)


def _nats(estimate: Estimate) -> Noted | str:
    return _with_interval(estimate, ".3f")


def _percent(estimate: Estimate) -> Noted | str:
    return _with_interval(estimate, ".1%")


def _km(estimate: Estimate) -> Noted | str:
    return _with_interval(estimate, ",.0f")


def _with_interval(estimate: Estimate, form: str) -> Noted | str:
    """Return an estimate and its interval; a dash where there was nothing to measure."""
    if math.isnan(estimate.value):
        return NONE
    return Noted(f"{estimate.value:{form}}", f"{estimate.low:{form}}–{estimate.high:{form}}")


def _share(share: float) -> str:
    return NONE if math.isnan(share) else f"{share:.1%}"


def _change(before: float, after: float) -> str:
    return f"{_share(before)} → {_share(after)}"
