"""Geotag a folder and show what came out, and of which photos nothing could be told: what `make demo` runs.

python -m jobs.demo [--photos FOLDER] [--model MODEL]
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
from pipeline.geotag_settings import GeotagSettings
from pipeline.locate.locator import BUNDLED_MODEL
from pipeline.published.catalog import Catalog
from pipeline.schema import printable

_ROWS_SHOWN = 50


@dataclass(frozen=True)
class DemoSettings:
    """Geotag a folder and show what came out, and of which photos nothing could be told."""

    photos: Path | None = None
    """Folder of photos; a little archive of packaged photographs, good and broken, if not given."""
    model: str = "bundled"
    """Checkpoint folder or URI; `bundled` is the small model that ships with Graticule."""
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
    code, _ = geotag_archive.geotag_and_tell(
        GeotagSettings(photos=(str(photos),), output=answers, model=settings.model, max_failed_fraction=1)
    )
    catalog = Catalog(answers)
    Console(width=max(140, Console().width), highlight=False).print(
        _photo_table(catalog, storage.absolute(str(photos)))
    )
    print(
        "can't tell: the model looked, and no country is more likely right than not. That is an answer, too: a cat, a"
    )
    print("cup or a face is everywhere. The columns countries, levels and alternatives have what it thought of.")
    if settings.model == "bundled":
        print(
            "The bundled model can tell of no photo: it learned from a few hundred, and knows where photos of the world"
        )
        print(f"are taken and no more. Its numbers are in {BUNDLED_MODEL / 'MODEL_CARD.md'};")
        print("a model of your own, or one of the public ones, goes in with make demo MODEL=FOLDER.")
    print("Next, try")
    print(f"    .venv/bin/python -m jobs.query {answers} \\")
    print('        "SELECT uri, place, country, radius_km, countries[1] AS likeliest FROM photos"')
    return code


def _photo_table(catalog: Catalog, folder: str) -> Table:
    rows = catalog.sql(
        f"""
        SELECT uri, status, error_code, lat_deg, lon_deg, place, country, radius_km,
            countries[1].country, countries[1].probability, information_bits
        FROM photos WHERE status <> 'skipped' ORDER BY status = 'failed', status = 'undecided', uri LIMIT {_ROWS_SHOWN}
        """
    ).fetchall()
    (total,) = catalog.sql("SELECT count(*) FROM photos WHERE status <> 'skipped'").fetchall()[0]
    table = Table(title=f"{len(rows)} of {total} photos", title_justify="left")
    for name in ("photo", "place", "point", "within", "likeliest country", "the picture said"):
        table.add_column(name, justify="right" if name in ("within", "the picture said") else "left")
    for uri, status, error_code, lat_deg, lon_deg, place, country, radius_km, likeliest, share, bits in rows:
        photo = Text(printable(uri.removeprefix(f"{folder}/")))  # and no markup: "[red]" is part of a name
        said = "" if bits is None else f"{bits:.1f} bits"
        if status == "failed":
            table.add_row(photo, f"failed: {error_code}")
        elif status == "undecided":
            table.add_row(photo, "can't tell", "", "", f"{share:.0%} {likeliest}", said)
        else:
            point = (
                f"{abs(lat_deg):.2f}° {'N' if lat_deg >= 0 else 'S'} {abs(lon_deg):.2f}° {'E' if lon_deg >= 0 else 'W'}"
            )
            name = ", ".join(part for part in (place, country) if part)
            table.add_row(photo, name, point, f"{radius_km:,.0f} km", f"{share:.0%} {likeliest}", said)
    return table


if __name__ == "__main__":
    run_command(DemoSettings, run)
