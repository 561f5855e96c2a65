"""Line, bar and column charts as inline SVG, in colours that the page's style sheet gives: they follow light and dark.

Lines differ in dashes and marks too, not in colour alone. Markup's `format` escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.schema import printable

Chart = Markup
"""HTML that is safe as it is."""
STYLE = """
.chart { display: block; max-width: 100%; height: auto; }
.chart text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .mark { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 2 3; }
.chart .even { stroke: var(--faint); stroke-width: 1; }
.line { fill: none; stroke-width: 2.25; }
.bar { fill: var(--line0); }
.bar.rest { fill: var(--faint); }
.line0 { stroke: var(--line0); }
.line1 { stroke: var(--line1); stroke-dasharray: 7 4; }
.line2 { stroke: var(--line2); stroke-dasharray: 2 3; }
.line3 { stroke: var(--line3); stroke-dasharray: 12 3 2 3; }
.line4 { stroke: var(--line4); stroke-dasharray: 1 5; }
.line5 { stroke: var(--line5); stroke-dasharray: 16 5; }
.dot0 { fill: var(--line0); }
.dot1 { fill: var(--line1); }
.dot2 { fill: var(--line2); }
.dot3 { fill: var(--line3); }
.dot4 { fill: var(--line4); }
.dot5 { fill: var(--line5); }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.5em; list-style: none; margin: .3em 0; padding: 0; }
.legend svg { width: 2.4em; height: .7em; margin-right: .4em; }
"""
STYLES = 6
"""How many lines of a chart can be told apart; a page gives as many colours, --line0 and on, as its charts have."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 22, 42
_BAR_PX, _LABEL_PX, _NOTE_PX = 22, 230, 210
_LINE_THROUGH = Markup('<polyline class="line line{}" points="{}"/>')


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with (value, text) ticks; a logarithmic one needs `low` above 0."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies between the ends, from 0 to 1; what lies beyond an end lies at it."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def share_axis(label: str, highest: float = 1.0) -> Axis:
    """Return an axis of shares up to `highest`, or a little more, in five steps."""
    end = next((end for end in (0.05, 0.1, 0.25, 0.5) if highest <= end), 1.0)
    return Axis(label, 0, end, [(end * fifths / 5, f"{end * fifths / 5:.0%}") for fifths in range(6)])


@dataclass(frozen=True)
class Line:
    """A named line through (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """A bar of a length from 0 to 1, with a text before and one after it."""

    label: str
    share: float
    note: str


@dataclass(frozen=True)
class Column:
    """How many there are of something; `is_rest` sets one apart that gathers what has no column of its own."""

    label: str
    count: int
    is_rest: bool = False


def line_chart(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    size_px: tuple[int, int] = (720, 330),
    marks: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
    dots: bool = False,
) -> Chart:
    """Return an SVG element. `marks`: named places on the x axis; `diagonal`: where x and y are equal."""
    assert len(lines) <= STYLES
    width, height = size_px
    right, bottom = width - _RIGHT, height - _BOTTOM

    def at(x_value: float, y_value: float) -> tuple[float, float]:
        return (
            round(_LEFT + x.share(x_value) * (right - _LEFT), 1),
            round(bottom - y.share(y_value) * (bottom - _TOP), 1),
        )

    parts = []
    for value, text in y.ticks:
        _, down = at(x.low, value)
        parts.append(_line(_LEFT, down, right, down, "grid") + _text(_LEFT - 6, down + 4, text, "end"))
    for value, text in x.ticks:
        across, _ = at(value, y.low)
        parts.append(_line(across, bottom, across, bottom + 4, "grid") + _text(across, bottom + 18, text, "middle"))
    for value, text in marks:
        across, _ = at(value, y.low)
        parts.append(_line(across, _TOP, across, bottom, "mark") + _text(across, _TOP - 7, text, "middle"))
    if diagonal:
        parts.append(_line(*at(x.low, y.low), *at(x.high, y.high), "even"))
    parts.append(_text((_LEFT + right) / 2, height - 6, x.label, "middle"))
    parts.append(_text(-(_TOP + bottom) / 2, 12, y.label, "middle", turned=True))
    for number, line in enumerate(lines):
        places = [at(*point) for point in line.points]
        path = " ".join(f"{across},{down}" for across, down in places)
        parts.append(_LINE_THROUGH.format(number, path))
        if dots:
            parts += [Markup('<circle class="dot{}" cx="{}" cy="{}" r="4"/>').format(number, a, d) for a, d in places]
    return _svg(title, width, height, parts)


def bar_chart(title: str, bars: Sequence[Bar]) -> Chart:
    """Return an SVG element with one bar below the other."""
    width, height = 720, _BAR_PX * len(bars) + 6
    room = width - _LABEL_PX - _NOTE_PX
    parts = []
    for number, bar in enumerate(bars):
        middle = number * _BAR_PX + _BAR_PX / 2 + 3
        length = round(room * min(max(bar.share, 0.0), 1.0), 1)
        parts.append(_text(_LABEL_PX - 8, middle + 4, bar.label, "end"))
        parts.append(_line(_LABEL_PX, middle, _LABEL_PX + room, middle, "grid"))
        box = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="14" rx="2"/>')
        parts.append(box.format(_LABEL_PX, middle - 7, length))
        parts.append(_text(_LABEL_PX + room + 8, middle + 4, bar.note, "start"))
    return _svg(title, width, height, parts)


def column_chart(
    title: str, x_label: str, y_label: str, columns: Sequence[Column], size_px: tuple[int, int] = (720, 280)
) -> Chart:
    """Return an SVG element with columns beside each other, and as many of their labels as there is room for."""
    width, height = size_px
    right, bottom = width - _RIGHT, height - _BOTTOM
    ticks = _round_ticks(max((column.count for column in columns), default=0))
    top_count = ticks[-1]
    parts = []
    for count in ticks:
        down = round(bottom - count / top_count * (bottom - _TOP), 1)
        parts.append(_line(_LEFT, down, right, down, "grid") + _text(_LEFT - 6, down + 4, _short(count), "end"))
    step = (right - _LEFT) / max(len(columns), 1)
    longest = max((len(column.label) for column in columns), default=0)
    every = max(1, math.ceil((longest * 8 + 10) / step))
    for number, column in enumerate(columns):
        across = _LEFT + number * step
        tall = round(column.count / top_count * (bottom - _TOP), 1)
        kind = "bar rest" if column.is_rest else "bar"
        box = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"><title>{}</title></rect>')
        hint = f"{printable(column.label)}: {column.count:,}"
        parts.append(box.format(kind, across + step * 0.1, bottom - tall, step * 0.8, tall, hint))
        if number % every == 0:
            parts.append(_text(round(across + step / 2, 1), bottom + 18, column.label, "middle"))
    parts.append(_text((_LEFT + right) / 2, height - 6, x_label, "middle"))
    parts.append(_text(4, 12, y_label, "start"))
    return _svg(title, width, height, parts)


def legend(names: Sequence[str]) -> Chart:
    """Return an HTML list of the lines' names, each beside its line."""
    item = Markup('<li><svg viewBox="0 0 40 10" aria-hidden="true">{}</svg>{}</li>')
    items = [item.format(_LINE_THROUGH.format(n, "0,5 40,5"), printable(name)) for n, name in enumerate(names)]
    return Markup('<ul class="legend">{}</ul>').format(Markup().join(items))


def _svg(title: str, width: float, height: float, parts: Sequence[Markup]) -> Chart:
    # One picture to a screen reader, which finds its numbers in the table that follows. The width keeps it from growing
    # with the page, or its letters would grow too.
    box = Markup('<svg class="chart" viewBox="0 0 {w} {h}" width="{w}" role="img" aria-label="{title}">{parts}</svg>')
    return box.format(w=width, h=height, title=printable(title), parts=Markup().join(parts))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str, turned: bool = False) -> Markup:
    turn = Markup(' transform="rotate(-90)"') if turned else ""
    element = Markup('<text x="{}" y="{}" text-anchor="{}"{}>{}</text>')
    return element.format(x, y, anchor, turn, printable(text))


def _round_ticks(highest: int) -> list[int]:
    """Return ticks from 0 to at least `highest`, five to seven where there is so much to count, in round steps."""
    step = 1
    while step * 6 < highest:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2  # 1 2 5 10 20 50
    return list(range(0, max(-(-highest // step), 1) * step + 1, step))


def _short(count: int) -> str:
    for unit, name in ((1_000_000, " M"), (1000, " k")):
        if count >= unit:
            return f"{count / unit:g}{name}"
    return str(count)
