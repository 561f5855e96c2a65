"""An evaluation as one HTML page that needs nothing else: charts, the tables they are drawn from, what the model sees.

No scripts and no network (the page forbids itself both), light or dark as the reader's system is.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from html import escape

from model.readout import RADIUS_PROBABILITY
from model.world.geodesy import EARTH_RADIUS_KM
from pipeline.report.charts import STYLE, Axis, Bar, Line, bar_chart, legend, line_chart
from pipeline.report.page import Look
from training.evaluate.summary import PERCENTILES, LevelNumbers, Summary
from training.metrics import THRESHOLDS_KM, Breakdown, Estimate

_FARTHEST_KM = 20_015.0
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --rule: #d9dce1; --faint: #767b84;
  --line0: #0b62a8; --line1: #b34700; --line2: #3d7a2b; --line3: #7a3b9a; --line4: #555b66; --line5: #8a6d00; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e7ea; --rule: #3a3e45; --faint: #969ca6;
  --line0: #6db6f2; --line1: #f5a35c; --line2: #8fd07a; --line3: #c79be0; --line4: #b8bdc7; --line5: #e0c251; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin-bottom: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .3rem; }
th, td { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
th:first-child, .prose td, .prose th { text-align: left; } thead th { font-weight: 600; }
tbody th { font-weight: 400; overflow-wrap: break-word; max-width: 22rem; } td { white-space: nowrap; }
.prose td { white-space: normal; overflow-wrap: anywhere; } small { color: var(--faint); }
.numbers small { display: block; }
figure { margin: 1rem 0; } .several { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.several > div { padding-right: 1rem; } img { max-width: 100%; height: auto; } figcaption { overflow-wrap: anywhere; }
"""


def page(summary: Summary, looks: Sequence[Look]) -> str:
    """Return the page."""
    title = f"Evaluation of {summary.about['model_id']}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _introduction(summary),
        _section("How near", _nearness(summary)),
        _section("What the photos told", _likelihood(summary)),
        _section("Levels: how often right, how sure", _levels(summary)),
        _section("Radius: does it hold the true place?", _radius(summary)),
        _section("Countries", _countries(summary)),
        _section("Scenes", _scenes(summary)),
        _section("What each level looks at", _looks(looks)) if looks else "",
        _section("Photos that could not be read", _unreadable(summary)) if summary.unreadable else "",
        _section("How this was measured", _about(summary)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _introduction(summary: Summary) -> str:
    text = (
        f"{summary.photos} photos ({summary.about['part']}), {len(summary.unreadable)} more could not be read. Placed "
        f"by {summary.about['answered_by']}. In parentheses: 95 % intervals, by resampling {summary.in_words}. "
        "Where all photos are alike, they are the exact binomial ones of as many trials as the rarer of these."
    )
    return f"<p>{escape(text)}</p>"


def _nearness(summary: Summary) -> str:
    lines = [
        Line(way.name, [(max(km, 0.1), p / 100) for km, p in zip(way.error_km_P, PERCENTILES, strict=True)])
        for way in summary.ways
    ]
    ticks = [(km, f"{km:g}") for km in (0.1, *THRESHOLDS_KM.values(), 10_000.0)]
    chart = line_chart(
        "Share of photos placed within a distance, for the model and the baselines; the table below has the numbers",
        Axis("distance from the true place, km", 0.1, _FARTHEST_KM, ticks, logarithmic=True),
        _share_axis("share of photos"),
        lines,
        marks=[(km, name) for name, km in THRESHOLDS_KM.items()],
    )
    header = ["", *(f"≤ {km:g} km" for km in THRESHOLDS_KM.values()), "median km"]
    rows = [[way.name, *map(_percent, way.share_within.values()), _km(way.median_km)] for way in summary.ways]
    return _figure(legend([way.name for way in summary.ways]) + chart) + _table(
        "Photos placed within each distance", header, rows
    )


def _likelihood(summary: Summary) -> str:
    header = ["level", "model", "prior alone", "blind mean", "gain over the prior"]
    rows = [
        [str(number), *map(_nats, (level.model, level.prior, level.blind, level.gain))]
        for number, level in enumerate(summary.likelihood)
    ]
    note = (
        "<p>Nats a photo, of photos that lie in one of a level's cells. Prior alone: where photos are taken, whatever "
        "is in this one. Blind mean: the model's mean answer to all the other photos. A model whose gain is not above "
        "zero knows no more than its prior.</p>"
    )
    return _table("Minus log-likelihood of the right cell; less is better", header, rows) + note


def _nats(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "–"
    return f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def _levels(summary: Summary) -> str:
    charts = "".join(_reliability_chart(number, level) for number, level in enumerate(summary.levels))
    header = ["level", "cells", "photos in one", "right", "temperature", "said", "calibration error", "elsewhere wrong"]
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
    note = (
        "<p>Before → after: at temperature 1, and at the model's. Said: its mean confidence in its best cell. "
        "Calibration error: the mean distance between what was said and what was so, in bins of equally many photos "
        "that lie in one of the level's cells; beside it, with photos that lie in none counted as wrong. In small "
        "samples it is above zero even for a perfect model.</p>"
    )
    return (
        _figure(legend(["at temperature 1", "at the model's temperatures"]) + f'<div class="several">{charts}</div>')
        + _table("Levels, coarse to fine", header, rows)
        + note
        + "".join(_bins(number, level) for number, level in enumerate(summary.levels))
    )


def _reliability_chart(number: int, level: LevelNumbers) -> str:
    if not level.photos_in_cells:
        return f"<div><h3>Level {number}</h3><p>No photo lies in one of its cells.</p></div>"
    lines = [
        Line(name, [(x.said, x.was) for x in side.bins])
        for name, side in (("before", level.before), ("after", level.after))
    ]
    title = f"Reliability of level {number}: what share was right, by what the model said; the tables have the numbers"
    axes = _share_axis("said"), _share_axis("was")
    chart = line_chart(title, *axes, lines, size_px=(300, 290), diagonal=True, dots=True)
    return f"<div><h3>Level {number}</h3>{chart}</div>"


def _bins(number: int, level: LevelNumbers) -> str:
    rows = [
        [when, str(x.photos), _share(x.said), _share(x.was)]
        for when, side in (("before", level.before), ("after", level.after))
        for x in side.bins
    ]
    table = _table(f"Level {number}: bins, the least sure first", ["", "photos", "said", "was"], rows)
    return f"<details><summary>Reliability table of level {number}</summary>{table}</details>" if rows else ""


def _radius(summary: Summary) -> str:
    sides = ("at temperature 1", "at the model's temperatures")
    lines = [
        Line(sides[0], [(0, 0), *((x.share, x.before.value) for x in summary.coverage)]),
        Line(sides[1], [(0, 0), *((x.share, x.after.value) for x in summary.coverage)]),
    ]
    chart = line_chart(
        "Share of photos truly within the radius meant to hold a share; the table below has the numbers",
        _share_axis("probability that the radius is meant to hold"),
        _share_axis("photos within it"),
        lines,
        size_px=(460, 380),
        diagonal=True,
        dots=True,
    )
    rows = [[f"{x.share:.0%}", _percent(x.before), _percent(x.after)] for x in summary.coverage]
    near = [[f"{x.km:g} km", _share(x.said), _percent(x.was)] for x in summary.nearness]
    served = (
        f"<p>The radius that is served is meant to hold {RADIUS_PROBABILITY:.0%}: it held "
        f"{_percent(summary.radius_holds)}. Its median is {_km(summary.radius_km)} km.</p>"
    )
    return (
        served
        + _figure(legend(sides) + chart)
        + _table("Photos within the radius meant to hold a share", ["share", *sides], rows)
        + _table("How near the model says its points are, and are", ["within", "said", "was"], near)
    )


def _countries(summary: Summary) -> str:
    right = f"<p>Points in the right country: {_percent(summary.country_right)}.</p>"
    return right + _breakdown(summary.by_country, "Countries of the true places")


def _scenes(summary: Summary) -> str:
    labelled = ""
    if summary.scene_right is not None:
        right = f"<p>Scene recognised: {_percent(summary.scene_right)} of the photos whose scene is known.</p>"
        labelled = right + _breakdown(summary.by_scene, "Scenes as labelled")
    return labelled + _breakdown(summary.by_predicted_scene, "Scenes as the model chose them")


def _breakdown(lines: Sequence[Breakdown], what: str) -> str:
    km = THRESHOLDS_KM["country"]
    bars = [
        Bar(
            line.kind,
            line.measured.share_within["country"],
            f"{line.measured.share_within['country']:.1%} of {line.measured.photos}",
        )
        for line in lines
    ]
    header = ["", "photos", *(f"≤ {km:g} km" for km in THRESHOLDS_KM.values()), "median km"]
    rows = [
        [
            line.kind,
            str(line.measured.photos),
            *map(_share, line.measured.share_within.values()),
            f"{line.measured.median_km:,.0f}",
        ]
        for line in lines
    ]
    chart = bar_chart(f"{what}: share of photos placed within {km:g} km; the table below has the numbers", bars)
    return f"<h3>{escape(what)}: placed within {km:g} km</h3>" + _figure(chart) + _table(what, header, rows)


def _looks(looks: Sequence[Look]) -> str:
    explained = (
        "<p>The last decoder layer's attention to the image, the mean of its heads, of the chosen scene's query of "
        "each level. Each picture's scale goes from its least looked-at place (dark) to its most (bright).</p>"
    )
    return explained + "".join(_look(look) for look in looks)


def _look(look: Look) -> str:
    data = base64.b64encode(look.sheet_jpeg).decode()
    words = [[f"level {level}", text] for level, text in enumerate(look.words_H)]
    alternative = escape(f"{look.name}, and what each level looks at; the table below says where", quote=True)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{alternative}">'
        f"<figcaption>{escape(look.name)}: {escape(look.facts)}</figcaption></figure>"
        + _table("Most looked at", ["level", "where"], words, "prose")
    )


def _unreadable(summary: Summary) -> str:
    return _table("Not counted above", ["photo", "why"], [list(item) for item in summary.unreadable.items()], "prose")


def _about(summary: Summary) -> str:
    rows = [[key.replace("_", " "), _plain(value)] for key, value in summary.about.items()]
    caption = f"Distances are great circles on a sphere of {EARTH_RADIUS_KM:g} km radius; at a threshold is within it"
    return _table(caption, ["setting", "value"], rows, "prose")


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>\n"


def _figure(content: str) -> str:
    return f"<figure>{content}</figure>\n"


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{_cell(text)}</td>" for text in rest) + "</tr>\n"
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _cell(text: str) -> str:
    """Escape a text, its interval, if it has one, in small print."""
    return re.sub(r" (\([\d.,%–-]+\))$", r" <small>\1</small>", escape(text))


def _share_axis(label: str) -> Axis:
    return Axis(label, 0, 1, [(tenths / 10, f"{tenths}0%" if tenths else "0") for tenths in range(0, 11, 2)])


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "–"
    return f"{estimate.value:.1%} ({estimate.low:.1%}–{estimate.high:.1%})"


def _km(estimate: Estimate) -> str:
    return f"{estimate.value:,.0f} ({estimate.low:,.0f}–{estimate.high:,.0f})"


def _share(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _change(before: float, after: float) -> str:
    return f"{_share(before)} → {_share(after)}"
