"""World maps of how many photos lie in each cell of the land, as one self-contained SVG that follows light and dark.

The projection is Lambert's cylindrical one with true scale at 37.5° (Hobo and Dyer's choice): equal areas on Earth are
equal on the map, and cells between meridians and parallels are rectangles.

Shapes: K cells; Y, X rows from the north and columns from the west of the land's outline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from pipeline.locate.places import Places
from training.evaluate.evenness import Grid

CLASSES = ((1, "1"), (2, "2–4"), (5, "5–19"), (20, "20–99"), (100, "100–999"), (1000, "1000 and more"))
"""The least number of photos of each colour, and how the legend calls it."""
_WIDTH = 720
_STEP = 2
_HEIGHT = round(_WIDTH / (math.pi * math.cos(math.radians(37.5)) ** 2) / _STEP) * _STEP
_TITLE_HEIGHT, _LINE, _LEGEND_HEIGHT, _GAP = 26, 17, 30, 14
_STYLE = """
svg { --page: #fcfcfb; --ink: #1d1d1b; --faint: #5d5d58; --sea: #eef2f4; --land: #d3d2ca;
  --c0: #9ecae1; --c1: #6baed6; --c2: #4292c6; --c3: #2171b5; --c4: #08519c; --c5: #08306b; }
@media (prefers-color-scheme: dark) { svg { --page: #161614; --ink: #ecebe5; --faint: #a5a49d; --sea: #20262a;
  --land: #45453f; --c0: #23527c; --c1: #2f6fa7; --c2: #4292c6; --c3: #6baed6; --c4: #9ecae1; --c5: #deebf7; } }
.page { fill: var(--page); } .sea { fill: var(--sea); } .land { fill: var(--land); }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); }
.c3 { fill: var(--c3); } .c4 { fill: var(--c4); } .c5 { fill: var(--c5); }
text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.title { font-weight: 600; font-size: 15px; } .note { fill: var(--faint); }
"""


@dataclass(frozen=True, eq=False)
class LandMap:
    """One map: a title, a line below it, and the photos in each cell of the grid."""

    title: str
    note: str
    cell_K: NDArray[np.int64]
    photos_K: NDArray[np.int64]


def draw_maps(title: str, maps: Sequence[LandMap], grid: Grid, places: Places) -> str:
    """Return an SVG file's text: the maps below each other and one legend. Every text is escaped here."""
    below = _TITLE_HEIGHT + _LINE
    height = len(maps) * (below + _HEIGHT + _GAP) + _LEGEND_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<defs><path id="land" class="land" d="{_outline(places)}"/></defs>',
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
    ]
    for number, one in enumerate(maps):
        top = number * (below + _HEIGHT + _GAP)
        parts.append(f'<g transform="translate(0 {top})">')
        parts.append(f'<text class="title" x="4" y="18">{escape(one.title)}</text>')
        parts.append(f'<text class="note" x="4" y="{18 + _LINE}">{escape(one.note)}</text>')
        parts.append(f'<g transform="translate(0 {below})"><rect class="sea" width="{_WIDTH}" height="{_HEIGHT}"/>')
        parts.append('<use href="#land"/>')
        parts += _cells(one, grid)
        parts.append("</g></g>")
    parts.append(_legend(height - _LEGEND_HEIGHT))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _outline(places: Places) -> str:
    """Return the land as a path of strips two pixels high."""
    down = (np.arange(_HEIGHT // _STEP) + 0.5) * _STEP
    across = (np.arange(_WIDTH // _STEP) + 0.5) * _STEP
    lat_deg_Y = np.degrees(np.arcsin(1 - 2 * down / _HEIGHT))
    lon_deg_X = across / _WIDTH * 360 - 180
    land_YX = places.is_land_N(np.repeat(lat_deg_Y, len(lon_deg_X)), np.tile(lon_deg_X, len(lat_deg_Y))).reshape(
        len(lat_deg_Y), len(lon_deg_X)
    )
    strips = []
    for row, land_X in enumerate(land_YX):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], land_X.astype(np.int8), [0]]))) * _STEP
        for west, east in edges.reshape(-1, 2).tolist():
            strips.append(f"M{west} {row * _STEP}h{east - west}v{_STEP}h{west - east}z")
    return "".join(strips)


def _cells(one: LandMap, grid: Grid) -> list[str]:
    """Return one path for each colour."""
    least = [photos for photos, _ in CLASSES]
    boxes: list[list[str]] = [[] for _ in CLASSES]
    for cell, photos in zip(one.cell_K.tolist(), one.photos_K.tolist(), strict=True):
        if photos:
            south, west, north, east = grid.box_deg(cell)
            left, right = ((lon_deg + 180) / 360 * _WIDTH for lon_deg in (west, east))
            top, bottom = ((1 - math.sin(math.radians(lat_deg))) / 2 * _HEIGHT for lat_deg in (north, south))
            box = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}z"
            boxes[int(np.searchsorted(least, photos, side="right")) - 1].append(box)
    return [f'<path class="c{number}" d="{"".join(found)}"/>' for number, found in enumerate(boxes) if found]


def _legend(top: int) -> str:
    parts = [f'<g transform="translate(4 {top})"><text class="note" x="0" y="16">photos in a cell</text>']
    left = 112
    for number, (_, name) in enumerate(CLASSES):
        parts.append(f'<rect class="c{number}" x="{left}" y="5" width="14" height="14"/>')
        parts.append(f'<text x="{left + 19}" y="16">{escape(name)}</text>')
        left += 44 + 8 * len(name)
    return "".join(parts) + "</g>"
