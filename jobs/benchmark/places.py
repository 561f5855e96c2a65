"""How many towns of an independent gazetteer are told to be in their country, which are not, and how fast that is.

`python -m jobs.benchmark places --towns ne_10m_populated_places_simple.json` is the command.
"""

from __future__ import annotations

import collections
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from jobs.benchmark.figure import Figure
from model.world.geodesy import EARTH_RADIUS_KM, unit_vectors_N3
from pipeline.locate.places import Gazetteer

_BORDER_KM = 25.0
_NO_CODE = "-99"
_LEAST_RIGHT = 0.99


@dataclass(frozen=True)
class Town:
    """A town as the table has it; `code` None where the table names a country that ISO 3166-1 does not list."""

    name: str
    country: str
    code: str | None
    lat_deg: float
    lon_deg: float


@dataclass(frozen=True)
class Told:
    """Towns with the country that each is told to be in, None for the open sea."""

    towns: tuple[Town, ...]
    code_N: tuple[str | None, ...]

    @property
    def right(self) -> float:
        """The share of towns told right, of those whose country has a code."""
        with_code = [(town, code) for town, code in zip(self.towns, self.code_N, strict=True) if town.code]
        return sum(town.code == code for town, code in with_code) / len(with_code)

    def misses(self) -> dict[tuple[str, str], list[Town]]:
        """Return the towns told otherwise than the table has it, by (the table's, ours), most first."""
        found = collections.defaultdict(list)
        for town, code in zip(self.towns, self.code_N, strict=True):
            if town.code != code:
                found[town.code or town.country, code or "open sea"].append(town)
        return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


@dataclass(frozen=True)
class PlacesBenchmark:
    """Right countries among the towns of an independent gazetteer, every miss by name, and µs a position."""

    towns: Path
    """Natural Earth's populated places as GeoJSON, ne_10m_populated_places_simple.json."""
    positions: int = 100_000
    """So many positions around the towns are named for the speed."""

    def measure(self) -> list[Figure]:
        """Print shares, misses and speed; return the figures."""
        towns = read_towns(self.towns)
        gazetteer = Gazetteer()
        told = tell(gazetteer, towns)
        near = near_a_border(towns)
        for name, part in (
            ("all towns", told),
            (f"within {_BORDER_KM:g} km of another country's", _subset(told, near)),
        ):
            codes = {town.code for town in part.towns if town.code}
            count = sum(town.code is not None for town in part.towns)
            share = f"{part.right:.2%} right" if count else ""
            print(f"{name:<40}{count:>6} in {len(codes):>3} countries  {share}")
        print("told otherwise than the table has it:")
        for (theirs, ours), missed in told.misses().items():
            names = ", ".join(town.name for town in missed)
            print(f"{theirs:>20} → {ours:<9}{len(missed):>4}  {names}")
        self._print_speed(gazetteer, towns)
        return [Figure("places", "towns in their country", told.right, 1.0, told.right, "share", least=_LEAST_RIGHT)]

    def _print_speed(self, gazetteer: Gazetteer, towns: tuple[Town, ...]) -> None:
        random = np.random.default_rng(0)
        rows = random.integers(0, len(towns), self.positions)
        lat_deg_N = np.clip(
            np.array([town.lat_deg for town in towns])[rows] + random.normal(0, 0.1, len(rows)), -90, 90
        )
        lon_deg_N = np.array([town.lon_deg for town in towns])[rows] + random.normal(0, 0.1, len(rows))
        lon_deg_N = (lon_deg_N + 540) % 360 - 180
        start_s = time.perf_counter()
        code_N = gazetteer.places.country_code_N(lat_deg_N, lon_deg_N)
        countries_s = time.perf_counter() - start_s
        names = gazetteer.names_within_N(code_N, lat_deg_N, lon_deg_N)
        names_s = time.perf_counter() - start_s - countries_s
        scale = 1e6 / self.positions
        print(
            f"{self.positions:,} positions: {countries_s * scale:.1f} µs each for the country, {names_s * scale:.1f} µs"
        )
        print(f"for region and town, which {1 - names.place.null_count / self.positions:.1%} have")


def read_towns(file: Path) -> tuple[Town, ...]:
    """Return the towns of `file`, less those without a position; ValueError where it is not Natural Earth's."""
    try:
        rows = [feature["properties"] for feature in json.loads(file.read_text("utf-8"))["features"]]
        return tuple(
            Town(
                name=row["name"],
                country=row["adm0name"],
                code=None if row["iso_a2"] == _NO_CODE else row["iso_a2"],
                lat_deg=row["latitude"],
                lon_deg=row["longitude"],
            )
            for row in rows
            if (row["latitude"], row["longitude"]) != (0, 0)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--towns {file}: give Natural Earth's populated places as GeoJSON ({error!r})") from error


def tell(gazetteer: Gazetteer, towns: tuple[Town, ...]) -> Told:
    """Return the country that each town is told to be in."""
    names = gazetteer.names_N([town.lat_deg for town in towns], [town.lon_deg for town in towns])
    return Told(towns, tuple(names.country_code.to_pylist()))


def near_a_border(towns: tuple[Town, ...]) -> list[int]:
    """Return the rows of towns that are near one of another country."""
    tree = KDTree(unit_vectors_N3([town.lat_deg for town in towns], [town.lon_deg for town in towns]))
    pairs = tree.query_pairs(2 * np.sin(_BORDER_KM / EARTH_RADIUS_KM / 2))
    return sorted({row for pair in pairs if towns[pair[0]].country != towns[pair[1]].country for row in pair})


def _subset(told: Told, rows: list[int]) -> Told:
    return Told(tuple(told.towns[row] for row in rows), tuple(told.code_N[row] for row in rows))
