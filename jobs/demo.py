"""Geotag a folder with the bundled model and show what came out: what `make demo` runs.

python -m jobs.demo [--photos FOLDER]
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs import geotag_archive, run_command
from jobs.demo_photos import write_demo_archive
from pipeline import storage
from pipeline.catalog import Catalog
from pipeline.locator import BUNDLED_MODEL
from pipeline.schema import printable

_ROWS_SHOWN = 50


@dataclass(frozen=True)
class DemoSettings:
    """Geotag a folder with the bundled model and show what came out."""

    photos: Path | None = None
    """Folder of photos; a little archive of packaged photographs, good and broken, if not given."""
    output: Path | None = None
    """Where the answers go; a fresh temporary folder if not given, so that every demo starts anew."""


def run(settings: DemoSettings) -> int:
    """Geotag, then print the photos, their counts and a query to try next; return the exit code."""
    output = settings.output or Path(tempfile.mkdtemp(prefix="graticule-demo-"))
    photos = settings.photos
    if photos is None:
        photos = output / "archive"
        print(f"A little archive in {photos}:")
        for name, origin in write_demo_archive(photos):
            print(f"  {name:<20} {origin}")
    answers = str(output / "answers")
    code = geotag_archive.run(
        geotag_archive.GeotagSettings(photos=(str(photos),), output=answers, max_failed_fraction=1)
    )
    catalog = Catalog(answers)
    Console(width=max(140, Console().width), highlight=False).print(
        _photo_table(catalog, storage.absolute(str(photos)))
    )
    print(
        "The bundled model is weak: it learned from a few hundred photos, most of one French coast. Its numbers are in"
    )
    print(f"{BUNDLED_MODEL / 'MODEL_CARD.md'}; your own model drops in with --model. Next, try")
    print(f"    .venv/bin/python -m jobs.query {answers} \\")
    print('        "SELECT uri, place, country, radius_km, countries[1] AS likeliest FROM photos"')
    return code


def _photo_table(catalog: Catalog, folder: str) -> Table:
    rows = catalog.sql(
        f"""
        SELECT uri, status, error_code, lat_deg, lon_deg, place, country, radius_km,
            countries[1].country, countries[1].probability, list_transform(levels, lambda cell: cell.probability)
        FROM photos ORDER BY status DESC, uri LIMIT {_ROWS_SHOWN}
        """
    ).fetchall()
    (total,) = catalog.sql("SELECT count(*) FROM photos").fetchall()[0]
    table = Table(title=f"{len(rows)} of {total} photos", title_justify="left")
    for name in ("photo", "point", "near", "within", "likeliest country", "each level, coarse → fine"):
        table.add_column(name, justify="right" if name == "within" else "left")
    for uri, status, error_code, lat_deg, lon_deg, place, country, radius_km, likeliest, share, probabilities in rows:
        photo = Text(printable(uri.removeprefix(f"{folder}/")))  # and no markup: "[red]" is part of a name
        if status == "failed":
            table.add_row(photo, f"failed: {error_code}")
        else:
            point = (
                f"{abs(lat_deg):.2f}° {'N' if lat_deg >= 0 else 'S'} {abs(lon_deg):.2f}° {'E' if lon_deg >= 0 else 'W'}"
            )
            levels = " ".join(f"{probability:.2f}" for probability in probabilities)
            near = country if place is None else f"{place}, {country}"
            table.add_row(photo, point, near, f"{radius_km:,.0f} km", f"{share:.0%} {likeliest}", levels)
    return table


if __name__ == "__main__":
    run_command(DemoSettings, run)
